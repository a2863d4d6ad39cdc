"""Settings that are TRL's and peft's own, under their names and with their types, checked without importing either.

trl_settings.json lists those of trl.GRPOConfig and peft.LoraConfig as this package was written for; a test compares it
with what is installed. What the training loop or the loader sets itself, and what could not train, is refused here.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator
from pydantic.annotated_handlers import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

# What the training loop sets itself (train.trainer): with other values, steps, rollouts and rows would not match.
OURS = {
    *("output_dir", "seed", "use_cpu", "bf16", "fp16", "logging_steps", "logging_strategy", "logging_nan_inf_filter"),
    *("disable_tqdm", "save_strategy", "save_total_limit", "ignore_data_skip", "dataloader_num_workers"),
    *("num_iterations", "steps_per_generation", "generation_batch_size", "remove_unused_columns", "top_k", "min_p"),
    *("repetition_penalty", "generation_kwargs", "use_vllm", "vllm_mode", "vllm_importance_sampling_correction"),
    *("auto_find_batch_size", "eval_strategy", "load_best_model_at_end", "push_to_hub"),
}

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")


def _on_record() -> dict[str, dict[str, dict[str, Any]]]:
    """The settings of TRL and peft as this package was written for: by class, by name, types and default."""
    path = Path(__file__).with_name("trl_settings.json")
    record: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
    return record


def grpo_config_defaults() -> dict[str, Any]:
    """TRL's default of every setting of GRPOConfig, as it was when the list was made."""
    return {name: field["default"] for name, field in _on_record()["GRPOConfig"].items()}


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
    if taken := sorted(OURS.intersection(trl)):
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
