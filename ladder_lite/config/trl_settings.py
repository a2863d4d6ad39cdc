"""Settings of trl.GRPOConfig and peft.LoraConfig, checked by name and type without importing either library.

trl_settings.json records names, types and defaults of the versions this package was written for; a test compares them
with the installed versions. Settings that the training loop or the loader owns are refused, and so are values that
cannot train.
"""

import json
from collections.abc import Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, GetCoreSchemaHandler, with_config
from pydantic_core import CoreSchema
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12


class Setting(NamedTuple):
    """Who owns a setting of GRPOConfig, and how to check that the trainer uses the intended value.

    `owner`: "loop" settings have a fixed `value`, one that depends on the run (PER_RUN), or TRL's default. Recipes must
    not set them, because steps, rollouts and rows would no longer match. "derived" settings are in the recipe, and the
    loop computes the trainer's value from them. Settings without an entry belong to the recipe.
    `compared` is false if GRPOConfig or Unsloth stores the value in another form. `copy` names the attribute in which
    the trainer keeps its own copy.
    """

    owner: Literal["recipe", "loop", "derived"]
    value: Any = None
    compared: bool = True
    copy: str | None = None


PER_RUN, TRL_DEFAULT = object(), object()

SETTINGS: dict[str, Setting] = {
    "output_dir": Setting("loop", PER_RUN, compared=False),
    **dict.fromkeys(("seed", "use_cpu", "bf16", "fp16"), Setting("loop", PER_RUN)),
    "use_vllm": Setting("loop", PER_RUN, copy="use_vllm"),
    "top_k": Setting("loop", PER_RUN, copy="top_k"),
    "logging_steps": Setting("loop", 1),
    "logging_strategy": Setting("loop", "steps"),
    "logging_nan_inf_filter": Setting("loop", False),  # it would replace a NaN by the loss of the previous step
    "save_strategy": Setting("loop", "steps"),
    "save_total_limit": Setting("loop", 2),  # a kill may tear the one being written; the previous one is intact
    "disable_tqdm": Setting("loop", True, compared=False),
    "ignore_data_skip": Setting("loop", True),  # all rows are equal, so there is nothing to skip
    "full_determinism": Setting("loop", False),  # sampling uses CUDA operations without a deterministic implementation
    "dataloader_num_workers": Setting("loop", 0),  # rows are placeholders, which need no workers
    "num_iterations": Setting("loop", 1, copy="num_iterations"),
    "remove_unused_columns": Setting("loop", False),  # TRL needs the column "prompt"
    # Our rollouts sample from the full distribution with top_p and temperature only.
    "min_p": Setting("loop", None),
    "repetition_penalty": Setting("loop", 1.0),
    "generation_kwargs": Setting("loop", None),
    "vllm_mode": Setting("loop", "colocate"),
    "vllm_importance_sampling_correction": Setting("loop", False),  # needs vLLM's own log-probabilities
    **dict.fromkeys(("steps_per_generation", "generation_batch_size"), Setting("loop", TRL_DEFAULT, compared=False)),
    **dict.fromkeys(
        ("auto_find_batch_size", "eval_strategy", "load_best_model_at_end", "push_to_hub"), Setting("loop", TRL_DEFAULT)
    ),
    # The recipe's batch, split into micro-batches that fit; the rollouts mask truncated completions.
    "per_device_train_batch_size": Setting("derived"),
    "gradient_accumulation_steps": Setting("derived"),
    "mask_truncated_completions": Setting("derived", copy="mask_truncated_completions"),
    # Unsloth implements these in its own way, with the same result.
    **dict.fromkeys(
        ("gradient_checkpointing", "gradient_checkpointing_kwargs", "bf16_full_eval", "fp16_full_eval"),
        Setting("recipe", compared=False),
    ),
    **dict.fromkeys(
        ("accelerator_config", "dataloader_pin_memory", "debug", "report_to"), Setting("recipe", compared=False)
    ),
    **{
        name: Setting("recipe", copy=name)
        for name in (
            *("beta", "importance_sampling_level", "loss_type", "max_completion_length"),
            *("num_generations", "scale_rewards", "temperature", "top_p"),
        )
    },
    "epsilon": Setting("recipe", copy="epsilon_low"),
}
"""Settings of GRPOConfig that the loop owns or derives, or that need care when compared."""

TRL_DEFAULTS: dict[str, Any] = {
    "top_p": 1.0,  # the importance ratio of GRPO is one of full distributions
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "report_to": "none",  # TRL's own default starts every tracker that is installed
}
"""Defaults of `grpo.trl`. Other settings that a recipe leaves out get TRL's default, as recorded."""

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")


def recorded() -> dict[str, dict[str, dict[str, Any]]]:
    """Types and default of each setting: record[class name][setting]["types" or "default"]."""
    path = Path(__file__).with_name("trl_settings.json")
    record: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    return record


def settle(trl: Mapping[str, Any], per_run: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every setting of GRPOConfig: this run's, the loop's, the recipe's, or else TRL's recorded default.

    TRL's defaults change between versions, so none is left to the installed version.
    """
    defaults = {name: field["default"] for name, field in recorded()["GRPOConfig"].items()}
    loops = {
        name: setting.value
        for name, setting in SETTINGS.items()
        if setting.owner == "loop" and setting.value not in (PER_RUN, TRL_DEFAULT)
    }
    return defaults | dict(trl) | loops | dict(per_run)


class LibrarySettings:
    """Field metadata: a mapping whose keys and types are those of a library's config class."""

    def __init__(self, owner: Literal["GRPOConfig", "LoraConfig"]) -> None:
        fields = recorded()[owner].items()
        self.types = {name: reduce(or_, map(_TYPES.get, field["types"])) for name, field in fields}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        # All keys are optional: unknown names and wrong types are refused, missing ones are not.
        mapping = TypedDict("mapping", self.types, total=False)  # type: ignore[misc]
        return handler(with_config(extra="forbid", strict=True, allow_inf_nan=False)(mapping))


_TYPES: dict[str, Any] = {kind.__name__: kind for kind in (bool, int, float, str, list, dict)} | {"null": None}


def _refuse_loop_settings(trl: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(name for name in trl if name in SETTINGS and SETTINGS[name].owner == "loop"):
        raise ValueError(f"must leave out {', '.join(taken)}: the training loop sets it")
    return trl


_NOT_A_PRODUCT = (
    *("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "lora_bias", "target_parameters"),
    *("use_qalora", "alora_invocation_tokens"),
)


def _refuse_loader_settings(lora: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted({"task_type", "inference_mode"}.intersection(lora)):
        raise ValueError(f"must leave out {', '.join(taken)}: the loader sets it")
    # The base model writes variants and gives answers: the model with the adapter off, or with its weights at 0.
    if lora.get("bias", "none") != "none":
        raise ValueError("must have a bias of none: others train the base model")
    if other := sorted(name for name in _NOT_A_PRODUCT if lora.get(name)):
        raise ValueError(f"must leave out {', '.join(other)}: the adapter would be more than a product of two matrices")
    if lora.get("init_lora_weights", True) not in (True, "gaussian"):
        raise ValueError(
            "must have init_lora_weights of true or gaussian: with others, a fresh adapter is not the base model"
        )
    return lora


GrpoConfigSettings = Annotated[dict[str, Any], LibrarySettings("GRPOConfig"), AfterValidator(_refuse_loop_settings)]
LoraConfigSettings = Annotated[dict[str, Any], LibrarySettings("LoraConfig"), AfterValidator(_refuse_loader_settings)]


_NOT_NEGATIVE = ("beta", "epsilon", "weight_decay", "max_grad_norm", "warmup_steps")


def trainable(trl: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, checked for what TRL would refuse only after a model is loaded; raises ValueError."""
    needed = ("max_steps", "num_generations", "per_device_train_batch_size", "max_completion_length")
    if missing := sorted(name for name in needed if trl.get(name) is None):
        raise ValueError(f"must set {', '.join(missing)}")
    positive = (*needed, "gradient_accumulation_steps", "save_steps", "learning_rate", "temperature")
    if wrong := sorted(name for name in positive if trl.get(name) is not None and trl[name] <= 0):
        raise ValueError(f"must have a {wrong[0]} above 0")
    if wrong := sorted(name for name in _NOT_NEGATIVE if (trl.get(name) or 0) < 0):
        raise ValueError(f"must have {wrong[0]} of 0 or more")
    if trl.get("scale_rewards", "group") not in ("group", "batch", "none"):
        raise ValueError("must have scale_rewards of group, batch or none")
    if trl["num_generations"] < 2:
        raise ValueError("must have num_generations of 2 or more: answers are compared within a group")
    # TRL generates whole groups; it refuses a batch with a part of one.
    completions = trl["per_device_train_batch_size"] * trl.get("gradient_accumulation_steps", 1)
    if completions % trl["num_generations"]:
        raise ValueError(
            f"must have a batch (per_device_train_batch_size times gradient_accumulation_steps, {completions}) that "
            f"num_generations, {trl['num_generations']}, divides"
        )
    if trl.get("loss_type", "dapo") not in LOSS_TYPES:
        raise ValueError(f"must have a loss_type of {', '.join(LOSS_TYPES)}")
    return trl
