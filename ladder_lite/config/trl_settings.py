"""Settings that are TRL's and peft's own, under their names and with their types, checked without importing either.

trl_settings.json lists those of trl.GRPOConfig and peft.LoraConfig as this package was written for; a test compares it
with what is installed. What the training loop or the loader sets itself, and what could not train, is refused here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator
from pydantic.annotated_handlers import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Setting(NamedTuple):
    """Who decides a setting of GRPOConfig, and how it can be told that the trainer holds what was decided.

    The loop's settings have a `value`, PER_RUN where it depends on the run, or TRL's default; with others, steps,
    rollouts and rows would not match, so recipes must not have them. Of `derived` ones the loop makes other values for
    the trainer. Settings without an entry are the recipe's.
    `compared` is false where GRPOConfig or Unsloth writes it in another form; `copy` names the trainer's own copy.
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
    "logging_nan_inf_filter": Setting("loop", False),  # it would log the loss of the step before in place of a NaN
    "save_strategy": Setting("loop", "steps"),
    "save_total_limit": Setting("loop", 2),  # the one being written may be torn by a kill, the one before it is whole
    "disable_tqdm": Setting("loop", True, compared=False),
    "ignore_data_skip": Setting("loop", True),  # the sampler starts at the right step by itself
    "dataloader_num_workers": Setting("loop", 0),
    "num_iterations": Setting("loop", 1, copy="num_iterations"),
    "remove_unused_columns": Setting("loop", False),
    "min_p": Setting("loop", None),
    "repetition_penalty": Setting("loop", 1.0),
    "generation_kwargs": Setting("loop", None),
    "vllm_mode": Setting("loop", "colocate"),
    "vllm_importance_sampling_correction": Setting("loop", False),  # it wants vLLM's own probabilities
    **dict.fromkeys(("steps_per_generation", "generation_batch_size"), Setting("loop", TRL_DEFAULT, compared=False)),
    **dict.fromkeys(
        ("auto_find_batch_size", "eval_strategy", "load_best_model_at_end", "push_to_hub"), Setting("loop", TRL_DEFAULT)
    ),
    # The recipe's batch, in portions that fit; truncated completions are masked with the rollouts.
    "per_device_train_batch_size": Setting("derived"),
    "gradient_accumulation_steps": Setting("derived"),
    "mask_truncated_completions": Setting("derived", copy="mask_truncated_completions"),
    # Of the recipe, but Unsloth has its own way to do it, which changes nothing of what is learned.
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
"""The settings of GRPOConfig that are not the recipe's alone, or of which the trainer has a copy."""

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")


def _on_record() -> dict[str, dict[str, dict[str, Any]]]:
    """The settings of TRL and peft as this package was written for: by class, by name, types and default."""
    path = Path(__file__).with_name("trl_settings.json")
    record: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    return record


def settle(trl: Mapping[str, Any], per_run: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every setting of GRPOConfig: of this run, the loop's, the recipe's, or TRL's default on record."""
    defaults = {name: field["default"] for name, field in _on_record()["GRPOConfig"].items()}
    loops = {
        name: setting.value
        for name, setting in SETTINGS.items()
        if setting.owner == "loop" and setting.value not in (PER_RUN, TRL_DEFAULT)
    }
    return defaults | {"report_to": "none"} | dict(trl) | loops | dict(per_run)


class LibrarySettings:
    """Field metadata: a mapping of settings under the names and types a library gives them."""

    def __init__(self, owner: Literal["GRPOConfig", "LoraConfig"]) -> None:
        self.types: dict[str, list[str]] = {name: field["types"] for name, field in _on_record()[owner].items()}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        fields = {
            name: core_schema.typed_dict_field(
                core_schema.union_schema(
                    [_JSON_TYPES[type_] for type_ in types],
                    custom_error_type="setting_type",
                    custom_error_message="must be " + " or ".join(types),
                ),
                required=False,
            )
            for name, types in self.types.items()
        }
        return core_schema.typed_dict_schema(fields, extra_behavior="forbid")


_JSON_TYPES: dict[str, CoreSchema] = {
    "bool": core_schema.bool_schema(strict=True),
    "int": core_schema.int_schema(strict=True),
    "float": core_schema.float_schema(strict=True, allow_inf_nan=False),
    "str": core_schema.str_schema(strict=True),
    "list": core_schema.list_schema(strict=True),
    "dict": core_schema.dict_schema(strict=True),
    "null": core_schema.none_schema(),
}


def _not_ours(trl: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(name for name in trl if name in SETTINGS and SETTINGS[name].owner == "loop"):
        raise ValueError(f"must leave out {', '.join(taken)}: the training loop sets it")
    return trl


def _of_a_language_model(lora: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted({"task_type", "inference_mode"}.intersection(lora)):
        raise ValueError(f"must leave out {', '.join(taken)}: the loader sets it")
    return lora


GrpoConfigSettings = Annotated[dict[str, Any], LibrarySettings("GRPOConfig"), AfterValidator(_not_ours)]
LoraConfigSettings = Annotated[dict[str, Any], LibrarySettings("LoraConfig"), AfterValidator(_of_a_language_model)]


def trainable(trl: dict[str, Any]) -> dict[str, Any]:
    """The settings of GRPOConfig; ValueError for some that TRL would refuse only once a model is loaded and asked."""
    needed = ("max_steps", "num_generations", "per_device_train_batch_size", "max_completion_length")
    if missing := sorted(name for name in needed if not trl.get(name)):
        raise ValueError(f"must set {', '.join(missing)}")
    counts = (*needed, "gradient_accumulation_steps", "save_steps")
    if wrong := sorted(name for name in counts if (trl.get(name) or 1) <= 0):
        raise ValueError(f"must have a {wrong[0]} above 0")
    if trl["num_generations"] < 2:
        raise ValueError("must have num_generations of 2 or more: answers are compared within a group")
    completions = trl["per_device_train_batch_size"] * trl.get("gradient_accumulation_steps", 1)
    if completions % trl["num_generations"]:
        raise ValueError(
            f"must have a batch (per_device_train_batch_size times gradient_accumulation_steps, {completions}) that "
            f"num_generations, {trl['num_generations']}, divides"
        )
    if trl.get("loss_type", "dapo") not in LOSS_TYPES:
        raise ValueError(f"must have a loss_type of {', '.join(LOSS_TYPES)}")
    return trl
