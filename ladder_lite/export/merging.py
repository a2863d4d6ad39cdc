"""An adapter merged into its base model, checked against the two apart; and GGUF files, which Unsloth writes.

An adapter that was trained on 4-bit weights is merged into the unquantized ones: merged into the 4-bit ones, the sum
would be rounded to four bits again. The merged model is therefore not quite the one that was trained, which saw weights
rounded to NF4, and answers a little differently; by how much is measured.

Logits alone do not tell a lost adapter from rounding in 16 bits. So each layer's sum is compared with the one computed
in float32 from the adapter's file, and what was written with that sum, byte by byte; logits say what it comes to.
"""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ladder_lite.config import Recipe
from ladder_lite.errors import UserError, first_line
from ladder_lite.models import load_backend, release_memory
from ladder_lite.models.adapter import TRAINED
from ladder_lite.models.loading import load_tokenizer, unsloth_obstacle
from ladder_lite.models.shape import read_shape
from ladder_lite.runs import layout
from ladder_lite.tasks import Messages

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far merging may move a logit, as a share of the largest: rounding errors of the type.

Measured on random models of 4 and of 16 layers with random adapters: at most 8e-6, 1.1e-2 and 7e-2. Deeper models were
not measured.
"""

_PRODUCT_TOLERANCE = 2e-3
"""How far a product of two matrices may be off, as a share of that of their magnitudes: TF32 rounds to 2**-11."""

_PREFIX = "base_model.model."
"""What peft puts before the names of the base model's layers."""

_GGUF_BYTES = 5
"""Of the disk, for each parameter: the merged model and a GGUF file of it, 16 bits both, and the quantized file."""

Logits = list[torch.Tensor]
"""Of each prompt, (tokens, vocabulary), float32, on the CPU."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The largest differences of a logit, over all tokens of the prompts.

    `difference` is that of the written model to base and adapter in the same type, `effect` that of the adapter to
    none at all, `quantized` that of the written model to the 4-bit model that was trained, None where none was.
    """

    dtype: str
    largest: float
    tolerance: float
    difference: float
    effect: float
    quantized: float | None


@contextmanager
def _fitting() -> Iterator[None]:
    """A card too small for the unquantized model as one line: it was trained in a quarter of the memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "--format merged: the unquantized model does not fit on this GPU; CUDA_VISIBLE_DEVICES= merges it on the "
            "CPU, and --format adapter loads no model at all"
        ) from error


def save_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Write the base model's tokenizer and chat template."""
    load_tokenizer(recipe.model).save_pretrained(folder)


@_fitting()
def save_merged(
    recipe: Recipe, adapter: Path, prompts: Sequence[Messages], folder: Path, make_room: Callable[[int], None]
) -> Comparison:
    """Write base and adapter as one model of plain safetensors with its tokenizer, and read it again.

    It is computed and written in `model.dtype`; where that is "auto" on a CPU, in the checkpoint's own 16-bit type if
    it has one. `make_room` is told how many bytes will be written, before they are. UserError where a layer that was
    written is not the sum of base and adapter, or what was read does not answer the prompts as they do.
    """
    quantized = None
    if recipe.model.load_in_4bit:
        quantized = _logits(*_load(recipe, adapter, backend="transformers"), prompts)
        release_memory()
    # By transformers: Unsloth patches classes that the written model is read with plainly.
    plain = {"backend": "transformers", "load_in_4bit": False, "dtype": _choose_dtype(recipe)}
    model, tokenizer = _load(recipe, adapter, **plain)
    dtype, device = model.dtype, model.device
    expected = _logits(model, tokenizer, prompts)
    with model.disable_adapter():
        untrained = _logits(model, tokenizer, prompts)
    make_room(sum(weight.nbytes for name, weight in model.named_parameters() if "lora_" not in name))
    digests = _merge(model, adapter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")  # most are; embeddings were not
        model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    release_memory()
    _check_written(folder, digests, adapter)
    found = _read_logits(folder, dtype, device, prompts)
    largest = max(float(logits.abs().max()) for logits in expected)
    comparison = Comparison(
        dtype=str(dtype).removeprefix("torch."),
        largest=largest,
        tolerance=_TOLERANCE[dtype] * largest,
        difference=_difference(found, expected),
        effect=_difference(untrained, expected),
        quantized=None if quantized is None else _difference(found, quantized),
    )
    if not comparison.difference <= comparison.tolerance:  # NaN too is a difference
        raise UserError(
            f"{adapter}: the merged model's logits differ by up to {comparison.difference:.3g} from those of base and "
            f"adapter, where {comparison.dtype} explains {comparison.tolerance:.3g}; nothing was written, "
            "--format adapter exports the adapter as it is"
        )
    return comparison


def save_gguf(
    recipe: Recipe, adapter: Path, folder: Path, quantization: str, make_room: Callable[[int], None]
) -> list[Path]:
    """Write base and adapter as GGUF files, with Unsloth's exporter and the llama.cpp that it fetches.

    Returns the files in `folder`, an Ollama Modelfile among them where Unsloth knows the chat template. It merges into
    the 16-bit weights of the hub, whatever type the model was trained in; `make_room` is told how many bytes that takes
    of the disk meanwhile, before the model is loaded. UserError where Unsloth cannot run or fails.
    """
    if (obstacle := unsloth_obstacle()) is not None:
        raise UserError(
            f"--format gguf: Unsloth writes these files, and {obstacle}; "
            "--format merged runs anywhere, and llama.cpp's convert_hf_to_gguf.py reads what it writes"
        )
    make_room(_GGUF_BYTES * read_shape(recipe.model.id).parameters)
    model, tokenizer = _load(recipe, adapter, backend="unsloth", device="auto")
    try:
        written = model.save_pretrained_gguf(
            str(folder / "merged"), tokenizer=tokenizer, quantization_method=quantization
        )
    except (RuntimeError, ValueError, TypeError, OSError) as error:  # of it, llama.cpp's converter and the downloads
        raise UserError(
            f"--format gguf: Unsloth could not write it ({first_line(error)}); --format merged does without llama.cpp"
        ) from error
    # They lie beside the folder that it was given; on Kaggle, where /kaggle/working is small, even on another disk.
    modelfile = written["modelfile_location"]
    sources = [Path(path) for path in [*written["gguf_files"], *([modelfile] if modelfile else [])]]
    files = [Path(shutil.move(source, folder / source.name)) for source in sources]
    shutil.rmtree(folder / "merged", ignore_errors=True)
    shutil.rmtree(folder / "merged_gguf", ignore_errors=True)
    return files


def _choose_dtype(recipe: Recipe) -> str:
    """`model.dtype`, but the checkpoint's 16 bits where a CPU trained in float32: the file would be twice as large."""
    from transformers import AutoConfig

    if recipe.model.dtype != "auto" or torch.cuda.is_available():
        return recipe.model.dtype
    config = AutoConfig.from_pretrained(load_tokenizer(recipe.model).name_or_path)
    own = str(config.dtype).removeprefix("torch.")
    return own if own in ("float16", "bfloat16") else "auto"


def _merge(model: Any, adapter: Path) -> dict[str, str]:
    """Add each layer's adapter to its weights, one layer at a time, and compare with the adapter's file.

    Returns the digest of each layer's sum under the name that the written weights will have. UserError where a sum
    differs by more than it must, or a layer of the file is not there. DoRA and the like, which are no plain sums, and
    embeddings are left to the logits.
    """
    from peft.tuners.lora import LoraLayer  # and bitsandbytes, which copying an adapter needs not

    weights = load_file(adapter / layout.WEIGHTS)
    names = {name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")}
    names -= {name.removesuffix(".lora_magnitude_vector") for name in weights}
    layers = {name: layer for name, layer in model.named_modules() if name in names and isinstance(layer, LoraLayer)}
    digests = {}
    for name in sorted(names):
        if (layer := layers.get(name)) is None:
            raise _mismatch(adapter, name)
        down, up = weights[f"{name}.lora_A.weight"].float(), weights[f"{name}.lora_B.weight"].float()
        base = layer.get_base_layer()
        expected = base.weight.detach().float().cpu() + layer.scaling[TRAINED] * (up @ down)
        layer.merge()
        found = base.weight.detach().cpu()
        limits = torch.finfo(found.dtype)  # one unit in the last place, of which rounding takes half
        allowed = limits.eps * (expected.abs() + limits.smallest_normal)
        allowed += _PRODUCT_TOLERANCE * abs(layer.scaling[TRAINED]) * (up.abs() @ down.abs())
        if not bool(((found.float() - expected).abs() <= allowed).all()):  # NaN too is a difference
            raise _mismatch(adapter, name)
        digests[f"{name.removeprefix(_PREFIX)}.weight"] = _digest(found)
    return digests


def _check_written(folder: Path, digests: dict[str, str], adapter: Path) -> None:
    """UserError unless the files in the folder hold each of these weights."""
    found: dict[str, str] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: _digest(file.get_tensor(name)) for name in digests.keys() & set(file.keys())}
    for name, digest in digests.items():
        if found.get(name) != digest:
            raise _mismatch(adapter, name)


def _digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.contiguous().view(torch.uint8).numpy().data).hexdigest()


def _mismatch(adapter: Path, name: str) -> UserError:
    layer = name.removeprefix(_PREFIX).removesuffix(".weight")
    return UserError(
        f"{adapter}: {layer} of the merged model is not the sum of base and adapter; nothing was written, --format "
        "adapter exports the adapter as it is"
    )


def _load(recipe: Recipe, adapter: Path, **settings: object) -> tuple[Any, Any]:
    """The peft model with an adapter and its tokenizer, with other settings in the recipe's `model` section."""
    model = recipe.model.model_copy(update={"fast_inference": False, **settings})
    backend = load_backend(recipe.model_copy(update={"model": model}))
    backend.load(adapter, check=False)
    return backend.trainable()


def _read_logits(folder: Path, dtype: torch.dtype, device: torch.device, prompts: Sequence[Messages]) -> Logits:
    """Those of the written model, read as any user would."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, attn_implementation="sdpa"
    )
    return _logits(model, AutoTokenizer.from_pretrained(folder), prompts)


def _logits(model: Any, tokenizer: Any, prompts: Sequence[Messages]) -> Logits:
    model.eval()
    logits = []
    for prompt in prompts:  # one at a time: nothing is padded
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
        with torch.no_grad():
            output = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        logits.append(output.logits[0].float().cpu())
    return logits


def _difference(found: Logits, expected: Logits) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))
