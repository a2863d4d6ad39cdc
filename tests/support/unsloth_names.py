"""Parameters of Unsloth's functions that the package uses.

Fakes of these functions accept them, and tests/walk checks that the installed Unsloth has them.
"""

import inspect
from typing import Any

# Parameters of FastLanguageModel.from_pretrained and FastLanguageModel.get_peft_model.
LOAD_MODEL = {
    *("model_name", "max_seq_length", "dtype", "load_in_4bit", "use_exact_model_name", "fast_inference"),
    *("max_lora_rank", "offload_embedding"),
}
GET_PEFT_MODEL = {"r", "target_modules", "lora_alpha", "lora_dropout", "use_gradient_checkpointing", "random_state"}

# The parameters of `unsloth_save_pretrained_gguf` in Unsloth 2026.10.7, unsloth/save.py, with their defaults.
GGUF_PARAMETERS: dict[str, Any] = {
    "save_directory": inspect.Parameter.empty,
    "tokenizer": None,
    "quantization_method": "fast_quantized",
    "first_conversion": None,
    "push_to_hub": False,
    "token": None,
    "private": None,
    "is_main_process": True,
    "state_dict": None,
    "save_function": None,
    "max_shard_size": "5GB",
    "safe_serialization": True,
    "variant": None,
    "save_peft_format": True,
    "tags": None,
    "temporary_location": "_unsloth_temporary_saved_buffers",
    "maximum_memory_usage": 0.85,
    "save_method": None,
    "imatrix_file": None,
    "merge_is_disposable": True,
}
