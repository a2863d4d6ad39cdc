"""Choosing a loader and loading a model: base weights, a LoRA adapter on top of them, and the tokenizer.

The loader is Unsloth if it is installed and the GPU supports it, else transformers with peft and bitsandbytes, which
run on any machine. Both give a peft model with a frozen base in one dtype (or in 4-bit NF4) and a float32 adapter.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from packaging.version import Version

from ladder_lite.config import EMBEDDED, ModelSettings
from ladder_lite.errors import UserError, first_line
from ladder_lite.models import adapter
from ladder_lite.models.gguf import as_folder
from ladder_lite.models.memory import Loader

_UNSLOTH_CAPABILITY = (7, 0)
"""The lowest compute capability that Unsloth supports: Volta, the architecture of the V100. A T4 has 7.5."""

_VLLM_LAST_BEFORE_AMPERE = (0, 11, 2)
"""The last version of vLLM that runs on GPUs older than Ampere, such as the T4."""

_VLLM_FIRST_WITH_PLUGIN = (0, 28)
"""From this version on, vLLM needs the package vllm-bnb-plugin for 4-bit weights (vllm-project/vllm#43529)."""

_PEFT_DEFAULTS = {"r": 8, "lora_alpha": 8}
"""peft's values for settings that a recipe leaves out. Unsloth's own default is 16 for both."""

_PADDING = ("<|finetune_right_pad_id|>", "<|vision_pad|>", "<|pad|>", "<pad>", "<|endoftext|>", "<unk>")
"""Tokens that can serve as padding, in order of preference. The first three are those of Llama 3 and Qwen 2."""


class Loaded(NamedTuple):
    """A peft model with one adapter named "default", its tokenizer, and the dtype that it computes in."""

    model: Any
    tokenizer: Any
    dtype: torch.dtype


def choose_loader(settings: ModelSettings) -> Loader:
    """Resolve `model.backend` on this machine.

    Raises UserError if the recipe requires Unsloth, or vLLM inside it, and that cannot run here.
    """
    obstacle = "model.backend is transformers" if settings.backend == "transformers" else unsloth_obstacle(settings)
    if obstacle is None:
        if settings.engine == "vllm" and (reason := _vllm_obstacle(settings.load_in_4bit)):
            raise UserError(f"model.engine vllm: {reason}, or set model.engine=auto")
        return "unsloth"
    if settings.backend == "unsloth":
        raise UserError(f"model.backend unsloth: {obstacle}; model.backend=transformers runs without it")
    if settings.engine == "vllm":  # it is available through Unsloth only
        raise UserError(f"model.engine vllm needs Unsloth: {obstacle}; set model.engine=auto")
    return "transformers"


def choose_device(settings: ModelSettings) -> torch.device:
    """Resolve `model.device` on this machine; the preflight checks refuse "cuda" if there is no GPU."""
    return torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")


def unsloth_obstacle(settings: ModelSettings | None = None) -> str | None:
    """Return why Unsloth cannot run on this machine or with these settings, None if it can."""
    if settings and settings.device == "cpu":
        return "it needs a GPU, and model.device is cpu"
    if not torch.cuda.is_available():
        return "it needs a GPU, and PyTorch sees none"
    capability = torch.cuda.get_device_capability()  # (7, 5) for a T4
    if capability < _UNSLOTH_CAPABILITY:
        have = ".".join(map(str, capability))
        return f"it needs compute capability 7.0, and this {torch.cuda.get_device_name()} has {have}"
    if importlib.util.find_spec("unsloth") is None:
        return "it is not installed (pip install 'ladder_lite[gpu]')"
    # Unsloth ignores a float32 dtype: it trains in bfloat16 if the card supports it.
    if settings and settings.dtype == "float32":
        return "it trains in 16 bits, and model.dtype is float32"
    return None


def _vllm_obstacle(in_4bit: bool) -> str | None:
    """Return why vLLM cannot sample here, with the remedy; None if it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed; install it"
    version = importlib.metadata.version("vllm")
    # "0.11.2+cu128" -> (0, 11, 2). As a Version, it would compare greater than 0.11.2.
    release = Version(version).release
    # Compute capability 8.0 is Ampere.
    if torch.cuda.get_device_capability() < (8, 0) and release > _VLLM_LAST_BEFORE_AMPERE:
        last = ".".join(map(str, _VLLM_LAST_BEFORE_AMPERE))
        return f"vLLM {version} does not run on this {torch.cuda.get_device_name()}; install vllm=={last}"
    if in_4bit and release >= _VLLM_FIRST_WITH_PLUGIN and importlib.util.find_spec("vllm_bnb_plugin") is None:
        return f"vLLM {version} reads 4-bit weights with a plugin only; install vllm-bnb-plugin"
    return None


def import_unsloth() -> None:
    """Import Unsloth without its output. Raises UserError if the import fails."""
    with redirect_stdout(StringIO()):  # it prints a banner and a list of its patches
        try:
            import unsloth  # noqa: F401
        except (ImportError, NotImplementedError, OSError, RuntimeError) as error:
            raise UserError(
                f"model.backend unsloth: it cannot be imported ({first_line(error)}); model.backend=transformers runs "
                "without it"
            ) from error


def load(settings: ModelSettings, loader: Loader, device: torch.device, seed: int, max_length: int) -> Loaded:
    """Load the model with a fresh adapter, whose A matrices are drawn from the seed and whose B matrices are zero.

    `max_length` is the largest number of tokens of a problem's prompt and its reply together. Raises UserError with the
    remedy if the model cannot be loaded: a wrong id, no network, a licence that must be accepted.
    """
    import transformers

    dtype = choose_dtype(settings, device)
    transformers.utils.logging.set_verbosity_error()  # covers Unsloth's logger, too
    transformers.utils.logging.disable_progress_bar()
    with _explain_load_errors(settings):
        # Read the config here, before Unsloth does: it would wrap the hub's errors in its own, and silently scale the
        # positional embeddings of a model that is too short.
        config = transformers.AutoConfig.from_pretrained(_model_path(settings))
        context_length = _context_length(settings, config, max_length)
        if loader == "unsloth":
            # Unsloth truncates beyond a length that it must know in advance. Twice `max_length`, because prompts that
            # ask for variants are longer than those that ask for solutions.
            model, tokenizer = _with_unsloth(settings, dtype, seed, min(2 * max_length, context_length))
        else:
            model, tokenizer = _with_transformers(settings, dtype, device, seed)
    _set_padding_token(tokenizer)
    adapter.in_full_precision(model)
    return Loaded(model, tokenizer, dtype)


def load_tokenizer(settings: ModelSettings) -> Any:
    """Load only the tokenizer, set up as in `load`."""
    import transformers

    with _explain_load_errors(settings):
        tokenizer = transformers.AutoTokenizer.from_pretrained(_model_path(settings))
    _set_padding_token(tokenizer)
    return tokenizer


def choose_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    """Return the dtype for all computations: bfloat16 or, on older GPUs, float16; float32 on a CPU."""
    if settings.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]
    if device.type == "cpu":
        return torch.float32
    # A T4 only emulates bfloat16, which is slow.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _with_transformers(settings: ModelSettings, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Any, Any]:
    import transformers
    from bitsandbytes.nn.modules import Linear4bit
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    # The empty key of `device_map` stands for the whole model.
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", "device_map": {"": device}}
    if settings.load_in_4bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,  # quantizes the scales of the blocks of 64 weights, too
            bnb_4bit_compute_dtype=dtype,
        )
    tokenizer = load_tokenizer(settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(_model_path(settings), **options)
    if settings.load_in_4bit:
        # Freezes the base model and casts its 16-bit weights (embeddings, head, norms) to float32. Gradient
        # checkpointing is left to TRL.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            # On CPUs with AVX512-BF16, bitsandbytes repacks the weights at the first forward pass in eval mode, and
            # cannot compute gradients through the packed form.
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
    transformers.set_seed(seed)  # peft draws the A matrices from the global generator
    with _explain_adapter_errors():
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings.lora)), tokenizer


def _with_unsloth(settings: ModelSettings, dtype: torch.dtype, seed: int, max_length: int) -> tuple[Any, Any]:
    lora = _PEFT_DEFAULTS | settings.lora
    with redirect_stdout(StringIO()):  # it prints a banner of twelve lines
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            _model_path(settings),
            max_seq_length=max_length,
            dtype=dtype,
            load_in_4bit=settings.load_in_4bit,
            # Otherwise it loads its own copy of the model, in which it keeps some layers in 16 bits.
            use_exact_model_name=True,
            # Otherwise it moves the embedding to the CPU when memory is short, and `model.device` is then the CPU.
            offload_embedding=False,
            fast_inference=settings.engine == "vllm",
            max_lora_rank=int(lora["r"]),
        )
        with _explain_adapter_errors():
            model = FastLanguageModel.get_peft_model(
                model, use_gradient_checkpointing="unsloth", random_state=seed, **lora
            )
    return model, tokenizer


def _context_length(settings: ModelSettings, config: Any, max_length: int) -> int:
    """Return the model's context length in tokens. Raises UserError if prompt and reply can be longer."""
    length: int = getattr(config.get_text_config(), "max_position_embeddings", None) or max_length
    if max_length > length:
        raise UserError(
            f"model.id {settings.id}: its context has {length} tokens, but a prompt and its reply may have "
            f"{max_length}; lower model.max_prompt_length, or the longest of grpo.trl.max_completion_length, "
            "eval.max_new_tokens and variants.max_new_tokens"
        )
    return length


def _set_padding_token(tokenizer: Any) -> None:
    """Set a padding token that is not the end of turn, if the vocabulary has one.

    Unsloth's trainer treats every occurrence of the padding token as padding. If it were also the end of turn, the
    model would never be trained to end its replies.
    """
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return
    # No padding token, or one that is also the end of turn: look for another.
    vocabulary = tokenizer.get_vocab()
    candidates = [token for token in _PADDING if token in vocabulary and token != tokenizer.eos_token]
    tokenizer.pad_token = candidates[0] if candidates else tokenizer.eos_token


def _model_path(settings: ModelSettings) -> str:
    """Return what `from_pretrained` takes: a folder, or an id on the Hugging Face hub."""
    if settings.id == EMBEDDED:
        return str(Path(__file__).parents[1] / "tiny")
    return str(as_folder(Path(settings.id))) if settings.id.endswith(".gguf") else settings.id


@contextmanager
def _explain_load_errors(settings: ModelSettings) -> Iterator[None]:
    """Turn errors of the hub, of files and of memory into a UserError: one line with the remedy."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = "take a smaller model" if settings.load_in_4bit else "set model.load_in_4bit=true"
        raise UserError(
            f"model.id {settings.id}: this model does not fit on the GPU ({first_line(error)}); {remedy}"
        ) from error
    # ValueError: not a model, or an unknown architecture. StrictDataclassError: a setting of the wrong type.
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        # What transformers says of a gated model has the page of its licence in the second line.
        reason = " ".join(str(error).splitlines()[:2])
        copy = f", or take an ungated copy: model.id={settings.mirror}" if settings.mirror else ""
        raise UserError(
            f"model.id {settings.id}: cannot load this model ({reason}); give the id of a hub model that can be "
            f'reached (gated ones need `hf auth login` or HF_TOKEN), a local folder, or "{EMBEDDED}"{copy}'
        ) from error


@contextmanager
def _explain_adapter_errors() -> Iterator[None]:
    """Turn errors of peft and Unsloth about the adapter's settings into a UserError."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"model.lora: this model cannot have such an adapter ({first_line(error)}); change it"
        ) from error
