"""Which loader a model gets, and loading it: base weights, a LoRA adapter on them, the tokenizer.

Unsloth where it is installed and a GPU carries it, else transformers, peft and bitsandbytes, on any machine. Both end
in the same thing: a peft model whose base is frozen in one dtype (or in 4-bit NF4) and whose adapter is float32.
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
"""The oldest GPUs that Unsloth supports: Volta, the V100's architecture; a T4 has 7.5."""

_VLLM_LAST_BEFORE_AMPERE = (0, 11, 2)
"""The last vLLM that ran on GPUs older than Ampere, such as the T4."""

_VLLM_FIRST_WITH_PLUGIN = (0, 28)
"""From here on, vLLM reads 4-bit weights through the package vllm-bnb-plugin (vllm-project/vllm#43529)."""

_PEFT_DEFAULTS = {"r": 8, "lora_alpha": 8}
"""What a recipe that leaves them out gets from peft; Unsloth's own default of both is 16."""

_PADDING = ("<|finetune_right_pad_id|>", "<|vision_pad|>", "<|pad|>", "<pad>", "<|endoftext|>", "<unk>")
"""Tokens that say nothing, in order of preference: the first three stand for padding in Llama 3 and Qwen 2."""


class Loaded(NamedTuple):
    """A peft model with one adapter named "default", its tokenizer, and the type it computes in."""

    model: Any
    tokenizer: Any
    dtype: torch.dtype


def choose_loader(settings: ModelSettings) -> Loader:
    """What `model.backend` comes to on this machine; UserError where it names Unsloth and Unsloth cannot run."""
    if settings.backend == "transformers":
        if settings.fast_inference:
            raise UserError("model.fast_inference is Unsloth's; set it to false, or model.backend=auto")
        return "transformers"
    if (obstacle := unsloth_obstacle(settings)) is None:
        if settings.fast_inference and (reason := _vllm_obstacle(settings.load_in_4bit)):
            raise UserError(f"model.fast_inference: {reason}, or set it to false")
        return "unsloth"
    if settings.backend == "unsloth":
        raise UserError(f"model.backend unsloth: {obstacle}; model.backend=transformers runs without it")
    if settings.fast_inference:
        raise UserError(f"model.fast_inference needs Unsloth: {obstacle}; set model.fast_inference=false")
    return "transformers"


def choose_device(settings: ModelSettings) -> torch.device:
    """The device that `model.device` comes to on this machine; `preflight` refuses a "cuda" that is not there."""
    return torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")


def unsloth_obstacle(settings: ModelSettings | None = None) -> str | None:
    """Why Unsloth cannot run here, or not with these settings; None where it can."""
    if settings and settings.device == "cpu":
        return "it needs a GPU, and model.device is cpu"
    if not torch.cuda.is_available():
        return "it needs a GPU, and PyTorch sees none"
    capability = torch.cuda.get_device_capability()
    if capability < _UNSLOTH_CAPABILITY:
        have = ".".join(map(str, capability))
        return f"it needs compute capability 7.0, and this {torch.cuda.get_device_name()} has {have}"
    if importlib.util.find_spec("unsloth") is None:
        return "it is not installed (pip install 'ladder_lite[gpu]')"
    if settings and settings.dtype == "float32":  # whatever it is told, it trains in bfloat16 where the card has it
        return "it trains in 16 bits, and model.dtype is float32"
    return None


def _vllm_obstacle(in_4bit: bool) -> str | None:
    """Why vLLM cannot sample here, with the remedy; None where it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed; install it"
    version = importlib.metadata.version("vllm")
    release = Version(version).release  # a local version, such as 0.11.2+cu128, sorts above its release
    if torch.cuda.get_device_capability() < (8, 0) and release > _VLLM_LAST_BEFORE_AMPERE:
        last = ".".join(map(str, _VLLM_LAST_BEFORE_AMPERE))
        return f"vLLM {version} does not run on this {torch.cuda.get_device_name()}; install vllm=={last}"
    if in_4bit and release >= _VLLM_FIRST_WITH_PLUGIN and importlib.util.find_spec("vllm_bnb_plugin") is None:
        return f"vLLM {version} reads 4-bit weights with a plugin only; install vllm-bnb-plugin"
    return None


def import_unsloth() -> None:
    """Import Unsloth, silently; UserError where it is broken on this machine."""
    with redirect_stdout(StringIO()):  # a banner, and what it patched
        try:
            import unsloth  # noqa: F401
        except (ImportError, NotImplementedError, OSError, RuntimeError) as error:
            raise UserError(
                f"model.backend unsloth: it cannot be imported ({first_line(error)}); model.backend=transformers runs "
                "without it"
            ) from error


def load(settings: ModelSettings, loader: Loader, device: torch.device, seed: int, max_length: int) -> Loaded:
    """Load the model with a fresh adapter whose random half follows from the seed.

    `max_length` is the most tokens of a problem's prompt and its reply together. Unsloth wants to know beforehand what
    it would cut off, and is told twice that, for what asks for variants is longer than what asks for solutions.
    UserError names the way out where the model cannot be had: a wrong id, no network, a licence to accept.
    """
    import transformers

    dtype = choose_dtype(settings, device)
    transformers.utils.logging.set_verbosity_error()  # Unsloth's logger, too
    transformers.utils.logging.disable_progress_bar()
    with _explained(settings):
        # Unsloth would put what the hub says into an error of its own, and stretch the model's positions unasked.
        reach = _reach(settings, transformers.AutoConfig.from_pretrained(_source(settings)), max_length)
        if loader == "unsloth":
            model, tokenizer = _with_unsloth(settings, dtype, seed, min(2 * max_length, reach))
        else:
            model, tokenizer = _with_transformers(settings, dtype, device, seed)
    _set_padding(tokenizer)
    adapter.in_full_precision(model)
    return Loaded(model, tokenizer, dtype)


def load_tokenizer(settings: ModelSettings) -> Any:
    """Load the tokenizer alone, set up as that of `load`."""
    import transformers

    with _explained(settings):
        tokenizer = transformers.AutoTokenizer.from_pretrained(_source(settings))
    _set_padding(tokenizer)
    return tokenizer


def choose_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    """The one type that weights are computed with: bfloat16 where the GPU has it, float16 on older ones, float32."""
    if settings.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[settings.dtype]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _with_transformers(settings: ModelSettings, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Any, Any]:
    import transformers
    from bitsandbytes.nn.modules import Linear4bit
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", "device_map": {"": device}}
    if settings.load_in_4bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    tokenizer = load_tokenizer(settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(_source(settings), **options)
    if settings.load_in_4bit:
        # Freezes the base and computes its norms in float32. Checkpointing is TRL's to switch on.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            # On some CPUs, bitsandbytes packs the weights when it first generates, and gradients no longer pass them.
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
    transformers.set_seed(seed)  # the adapter's first matrices are random
    with _adapter_explained():
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings.lora)), tokenizer


def _with_unsloth(settings: ModelSettings, dtype: torch.dtype, seed: int, max_length: int) -> tuple[Any, Any]:
    lora = _PEFT_DEFAULTS | settings.lora
    with redirect_stdout(StringIO()):  # a banner of twelve lines
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            _source(settings),
            max_seq_length=max_length,
            dtype=dtype,
            load_in_4bit=settings.load_in_4bit,
            use_exact_model_name=True,  # else a copy of its own, with other layers in 16 bits
            offload_embedding=False,  # else it decides by free memory, and the model seems to be on the CPU
            fast_inference=settings.fast_inference,
            max_lora_rank=int(lora["r"]),
        )
        with _adapter_explained():
            model = FastLanguageModel.get_peft_model(
                model, use_gradient_checkpointing="unsloth", random_state=seed, **lora
            )
    return model, tokenizer


def _reach(settings: ModelSettings, config: Any, max_length: int) -> int:
    """How many tokens the model's positions reach; UserError where prompt and reply are longer."""
    reach: int = getattr(config.get_text_config(), "max_position_embeddings", None) or max_length
    if max_length > reach:
        raise UserError(
            f"model.id {settings.id}: it reads {reach} tokens, and a prompt and its reply may have {max_length}; lower "
            "model.max_prompt_length, or the longest of grpo.trl.max_completion_length, eval.max_new_tokens and "
            "variants.max_new_tokens"
        )
    return reach


def _set_padding(tokenizer: Any) -> None:
    """A padding token that is no end of turn: Unsloth's trainer takes every one for padding, and never trains on it."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return
    vocabulary = tokenizer.get_vocab()
    spare = [token for token in _PADDING if token in vocabulary and token != tokenizer.eos_token]
    tokenizer.pad_token = spare[0] if spare else tokenizer.eos_token


def _source(settings: ModelSettings) -> str:
    if settings.id == EMBEDDED:
        return str(Path(__file__).parents[1] / "tiny")
    return str(as_folder(Path(settings.id))) if settings.id.endswith(".gguf") else settings.id


@contextmanager
def _explained(settings: ModelSettings) -> Iterator[None]:
    """What hub, files and memory can refuse, as one line with the remedy."""
    from huggingface_hub.errors import GatedRepoError
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = "take a smaller model" if settings.load_in_4bit else "set model.load_in_4bit=true"
        raise UserError(
            f"model.id {settings.id}: this model does not fit on the GPU ({first_line(error)}); {remedy}"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:  # ValueError: no model, or one of an unknown kind
        copy = f", or take an ungated copy: model.id={settings.mirror}" if settings.mirror else ""
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
            causes.append(cause)
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise UserError(
                f"model.id {settings.id}: its licence must be accepted first: do so at "
                f"https://huggingface.co/{settings.id}, then log in with `hf auth login` or set HF_TOKEN{copy}"
            ) from error
        raise UserError(
            f"model.id {settings.id}: cannot load this model ({first_line(error)}); "
            f'give the id of a hub model that can be reached, a local folder, or "{EMBEDDED}"{copy}'
        ) from error


@contextmanager
def _adapter_explained() -> Iterator[None]:
    """What peft and Unsloth refuse of an adapter's settings, as one line."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"model.lora: this model cannot have such an adapter ({first_line(error)}); change it"
        ) from error
