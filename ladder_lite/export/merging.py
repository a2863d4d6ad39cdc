"""Merging of an adapter into its base model, with checks of the result; and GGUF files, which Unsloth writes.

An adapter that was trained on 4-bit weights is merged into the unquantized weights, because a merge into 4-bit weights
would round the sum to four bits again. The base weights are then not those of training, which were rounded to NF4, and
the merged model answers a little differently. The difference is measured.

Logits alone cannot distinguish a lost adapter from rounding to 16 bits. Each merged layer is therefore compared with
the sum computed in float32 from the adapter's file, and the written file with the merged layer, byte by byte. The
logits show the effect of everything together.
"""

import hashlib
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
"""How much rounding errors of each type may change a logit, as a share of the largest logit.

The largest errors measured on random models of 4 and of 16 layers with random adapters were 8e-6, 1.1e-2 and 7e-2.
Deeper models were not measured.
"""

_PRODUCT_TOLERANCE = 2e-3
"""Allowed error of a matrix product, as a share of the product of the absolute values: TF32 rounds to 2**-11."""

_PREFIX = "base_model.model."
"""Prefix that peft adds to the names of the base model's layers."""

_GGUF_BYTES = 5
"""Disk space per parameter: 2 bytes each for the merged model and a 16-bit GGUF file, 1 for the quantized file."""

_RESERVE_BYTES = 64 * 2**20
"""Disk space for the tokenizer and the model card."""

Logits = list[torch.Tensor]
"""One tensor per prompt, of shape (tokens, vocabulary), float32, on the CPU."""


@contextmanager
def _explain_out_of_memory() -> Iterator[None]:
    try:
        yield
    # Likely after 4-bit training, which needs a quarter of the memory for the weights.
    except torch.OutOfMemoryError as error:
        raise UserError(
            "--format merged: the unquantized model does not fit on this GPU; CUDA_VISIBLE_DEVICES= merges it on the "
            "CPU, and --format adapter loads no model at all"
        ) from error


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise UserError if the disk of a temporary folder, `out.parent`/.NAME-xyz/NAME, lacks space for these bytes."""
    needed, free = n_bytes + _RESERVE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent.parent}: {needed / 2**30:.2f} GiB are needed and {free / 2**30:.2f} are free; "
            "free some space, or name a folder on another disk with --out"
        )


@_explain_out_of_memory()
def save_merged(recipe: Recipe, adapter: Path, prompts: Sequence[Messages], folder: Path) -> list[str]:
    """Write base and adapter as one model in safetensors files with its tokenizer, and read it back.

    It is computed and written in `model.dtype`. If that is "auto" on a CPU, the type is the checkpoint's own if that
    has 16 bits. Returns lines for the user: how the logits of the written model compare, on these prompts, with those
    of base and adapter. Raises UserError if a written layer is not the sum of base and adapter, if the model that was
    read back has other logits, or if the disk is too small.
    """
    quantized = None
    if recipe.model.load_in_4bit:
        quantized = _logits(*_load(recipe, adapter, backend="transformers"), prompts)
        release_memory()  # both models at once may not fit
    # Not Unsloth, which patches model classes: base and adapter would then be computed by other code than the model
    # that is read back.
    settings = {"backend": "transformers", "load_in_4bit": False, "dtype": _choose_dtype(recipe)}
    model, tokenizer = _load(recipe, adapter, **settings)
    dtype, device = model.dtype, model.device
    # What the merged model has to reproduce, and what it would give if the adapter got lost.
    expected = _logits(model, tokenizer, prompts)
    with model.disable_adapter():
        untrained = _logits(model, tokenizer, prompts)
    check_space(folder, sum(weight.nbytes for name, weight in model.named_parameters() if "lora_" not in name))
    # Merges and checks the linear layers; merge_and_unload then merges what is left, such as embeddings, and removes
    # peft's wrappers.
    digests = _merge(model, adapter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")  # once for each layer
        model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    release_memory()
    _check_written(folder, digests, adapter)
    actual = _read_logits(folder, dtype, device, prompts)
    largest = max(float(logits.abs().max()) for logits in expected)
    tolerance, name = _TOLERANCE[dtype] * largest, str(dtype).removeprefix("torch.")
    difference, effect = _difference(actual, expected), _difference(untrained, expected)
    if not difference <= tolerance:  # "not <=" rather than ">", which is false for NaN
        raise UserError(
            f"{adapter}: the merged model's logits differ by up to {difference:.3g} from those of base and adapter; "
            f"rounding to {name} explains {tolerance:.3g}; nothing was written, --format adapter exports the adapter "
            "as it is"
        )
    # "checked on 4 prompts in bfloat16: logits differ from base and adapter by at most 0.12 (allowed 3.1; ...)"
    lines = [
        f"checked on {len(prompts)} prompts in {name}: logits differ from base and adapter by at most {difference:.2g} "
        f"(allowed {tolerance:.2g}; the adapter changes them by up to {effect:.2g}, the largest is {largest:.3g})"
    ]
    # A short training run changes logits by little, and 16 bits are coarse: the merge can be right and yet useless.
    if difference > effect / 2:
        lines.append(
            f"note: every layer contains the adapter, but {name} rounds the logits by about as much as the adapter "
            "changes them; --format adapter loses nothing"
        )
    if quantized is not None:
        lines.append(
            f"note: the adapter was trained on 4-bit weights and is merged into {name} ones; the logits differ from "
            f"those of the 4-bit model by up to {_difference(actual, quantized):.2g}"
        )
    return lines


def save_gguf(recipe: Recipe, adapter: Path, folder: Path, quantization: str) -> list[str]:
    """Write base and adapter as GGUF files, with Unsloth's exporter and the llama.cpp that it downloads.

    Returns a line for each file, including an Ollama Modelfile if Unsloth knows the chat template. Unsloth merges into
    the hub's 16-bit weights, whatever type the model was trained in. Raises UserError if the disk is too small for the
    peak of the export, or if Unsloth cannot run or fails.
    """
    if (obstacle := unsloth_obstacle()) is not None:
        raise UserError(
            f"--format gguf: Unsloth writes these files, and {obstacle}; "
            "--format merged runs anywhere, and llama.cpp's convert_hf_to_gguf.py reads what it writes"
        )
    check_space(folder, _GGUF_BYTES * read_shape(recipe.model.id).parameters)
    model, tokenizer = _load(recipe, adapter, backend="unsloth", device="auto")
    try:
        written = model.save_pretrained_gguf(
            str(folder / "merged"), tokenizer=tokenizer, quantization_method=quantization
        )
    # Unsloth, llama.cpp's converter and the downloads raise errors of all these types.
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"--format gguf: Unsloth could not write it ({first_line(error)}); --format merged works without llama.cpp"
        ) from error
    # Unsloth writes the files beside the folder that it was given; on Kaggle, where /kaggle/working is small, even on
    # another disk. Hence shutil.move, which copies where renaming is impossible.
    modelfile = written["modelfile_location"]
    sources = [Path(path) for path in [*written["gguf_files"], *([modelfile] if modelfile else [])]]
    files = [Path(shutil.move(source, folder / source.name)) for source in sources]
    # The 16-bit model, of which the GGUF files were made.
    shutil.rmtree(folder / "merged", ignore_errors=True)
    shutil.rmtree(folder / "merged_gguf", ignore_errors=True)
    return [f"{path.name}: {path.stat().st_size / 2**30:.2f} GiB" for path in files]


def _choose_dtype(recipe: Recipe) -> str:
    from transformers import AutoConfig

    if recipe.model.dtype != "auto" or torch.cuda.is_available():
        return recipe.model.dtype
    # On a CPU, "auto" trains in float32. Written like that, a 16-bit checkpoint would take twice the space.
    config = AutoConfig.from_pretrained(load_tokenizer(recipe.model).name_or_path)
    own = str(config.dtype).removeprefix("torch.")
    return own if own in ("float16", "bfloat16") else "auto"


def _merge(model: Any, adapter: Path) -> dict[str, str]:
    """Merge the adapter into each linear layer and compare the result with the adapter's file.

    Returns the digest of each merged weight by its name in the written model. Raises UserError if a weight differs by
    more than rounding explains, or if the model lacks a layer of the file.
    """
    from peft.tuners.lora import LoraLayer  # imports bitsandbytes, which the export of an adapter does not need

    weights = load_file(adapter / layout.WEIGHTS)
    # "base_model.model.model.layers.0.self_attn.q_proj", for each pair of matrices in the file. Embeddings have other
    # names, and DoRA (which adds a magnitude vector) is not a plain sum: only the logits check these.
    names = {name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")}
    names -= {name.removesuffix(".lora_magnitude_vector") for name in weights}
    layers = {name: layer for name, layer in model.named_modules() if name in names and isinstance(layer, LoraLayer)}
    digests = {}
    # One layer at a time, so that only one layer's weights exist twice.
    for name in sorted(names):
        if (layer := layers.get(name)) is None:
            raise _mismatch(adapter, name)
        # A: (rank, inputs), B: (outputs, rank), the layer's weight: (outputs, inputs)
        down, up = weights[f"{name}.lora_A.weight"].float(), weights[f"{name}.lora_B.weight"].float()
        base = layer.get_base_layer()
        expected = base.weight.detach().float().cpu() + layer.scaling[TRAINED] * (up @ down)
        layer.merge()
        merged = base.weight.detach().cpu()
        # Rounding the sum to the layer's type is off by at most half a unit in the last place; a whole one is allowed.
        limits = torch.finfo(merged.dtype)
        allowed = limits.eps * (expected.abs() + limits.smallest_normal)
        # On a GPU, the product may have been computed in TF32.
        allowed += _PRODUCT_TOLERANCE * abs(layer.scaling[TRAINED]) * (up.abs() @ down.abs())
        if not bool(((merged.float() - expected).abs() <= allowed).all()):  # false also for NaN
            raise _mismatch(adapter, name)
        digests[f"{name.removeprefix(_PREFIX)}.weight"] = _digest(merged)
    return digests


def _check_written(folder: Path, digests: dict[str, str], adapter: Path) -> None:
    """Raise UserError unless the files in the folder contain each of these weights."""
    written: dict[str, str] = {}
    for path in folder.glob("*.safetensors"):  # large models are split into several files
        with safe_open(path, framework="pt") as file:
            # Tensors are read one by one, so memory for one of them is enough.
            written |= {name: _digest(file.get_tensor(name)) for name in digests.keys() & set(file.keys())}
    for name, digest in digests.items():
        if written.get(name) != digest:
            raise _mismatch(adapter, name)


def _digest(weight: torch.Tensor) -> str:
    # As bytes, because NumPy has no bfloat16.
    return hashlib.sha256(weight.contiguous().view(torch.uint8).numpy().data).hexdigest()


def _mismatch(adapter: Path, name: str) -> UserError:
    layer = name.removeprefix(_PREFIX).removesuffix(".weight")
    return UserError(
        f"{adapter}: {layer} of the merged model is not the sum of base and adapter; nothing was written, --format "
        "adapter exports the adapter as it is"
    )


def _load(recipe: Recipe, adapter: Path, **settings: object) -> tuple[Any, Any]:
    """Return the peft model with the adapter, and its tokenizer; `settings` override the recipe's `model` section."""
    # Nothing is sampled here, so vLLM would only take memory.
    model = recipe.model.model_copy(update={"engine": "auto", **settings})
    backend = load_backend(recipe.model_copy(update={"model": model}))
    backend.load(adapter, check=False)
    return backend.trainable()


def _read_logits(folder: Path, dtype: torch.dtype, device: torch.device, prompts: Sequence[Messages]) -> Logits:
    """Return the logits of the written model, loaded with transformers alone, as any user would."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map={"": device}, attn_implementation="sdpa"
    )
    return _logits(model, AutoTokenizer.from_pretrained(folder), prompts)


def _logits(model: Any, tokenizer: Any, prompts: Sequence[Messages]) -> Logits:
    model.eval()
    logits = []
    # One prompt at a time, so that nothing has to be padded.
    for prompt in prompts:
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        # The template has already added the special tokens.
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
        with torch.no_grad():
            output = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        logits.append(output.logits[0].float().cpu())
    return logits


def _difference(first: Logits, second: Logits) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))
