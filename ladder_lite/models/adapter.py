"""The LoRA adapter: its trainable weights, the frozen copy that KL is measured against, and merging it for sampling.

With `beta` above 0, GRPO adds the KL divergence from a reference model. TRL and Unsloth use the adapter named "ref" as
the reference if there is one, else the base model. Which of them creates that adapter depends on their versions, and
none removes it afterwards. So this package creates and removes it itself. The reference is always the adapter as it is
when training begins: a fresh one, which equals the base model, or for TTRL the adapter that LADDER trained.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from ladder_lite.models.backend import Adapter

TRAINED, REFERENCE = "default", "ref"  # "default" is peft's name for the first adapter; TRL looks for "ref"

_MAX_COPY_SHARE = 0.125
"""Share of the machine's memory that copies of weights may take when the adapter is merged.

It is a share of all memory, not of the free memory. What is free changes from moment to moment, and a merged model's
replies differ from those of the plain model by rounding errors, so a resumed run might sample other replies.
"""


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the trainable weights, which are those of the adapter, by parameter name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def in_full_precision(model: Any) -> None:
    """Cast the trainable weights to float32: in 16 bits, small optimizer steps would be rounded away."""
    # Assigning `.data` keeps the Parameter objects, to which the optimizer and peft hold references.
    for weight in trained(model).values():
        weight.data = weight.data.float()


def is_finite(model: Any) -> bool:
    """Return whether all trainable weights are finite."""
    # Stacking first means one transfer from the GPU instead of one per weight.
    return bool(torch.stack([weight.detach().isfinite().all() for weight in trained(model).values()]).all())


def set_reference(model: Any) -> None:
    """Freeze a copy of the current adapter as the adapter "ref"."""
    if REFERENCE not in model.peft_config:
        model.add_adapter(REFERENCE, model.peft_config[TRAINED])
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if f".{REFERENCE}." in name:
            # "...q_proj.lora_A.ref.weight" -> "...q_proj.lora_A.default.weight". The copy keeps the dtype of the
            # original: with another one, KL would start at a rounding error instead of 0.
            weight.data = weights[name.replace(f".{REFERENCE}.", f".{TRAINED}.")].data.clone()
    model.set_adapter(TRAINED)  # also freezes the other adapter


@contextmanager
def without_reference_after(model: Any) -> Iterator[None]:
    """Remove the frozen copy when the block ends, also after an exception."""
    try:
        yield
    finally:
        # Left in place, it would take memory and be saved along with the trained adapter.
        if REFERENCE in model.peft_config:
            model.delete_adapter(REFERENCE)
            model.set_adapter(TRAINED)


@contextmanager
def without_wrappers_after(model: Any) -> Iterator[None]:
    """Remove what trainers add to a model when the block ends: wrappers of its forward pass, hooks of its embedding.

    Each trainer adds its own. After those of a few hundred test problems, calls would be too deep for Python.
    """
    base = model.get_base_model()
    forwards = [(module, module.__dict__.get("forward")) for module in (model, base)]
    hooks = base.get_input_embeddings()._forward_hooks
    kept = dict(hooks)
    try:
        yield
    finally:
        for module, forward in forwards:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
        hooks.clear()
        hooks.update(kept)


def is_same(one: Adapter, other: Adapter) -> bool:
    """Return whether two snapshots have the same weights bit by bit, after conversion to float32."""
    # Training may widen a 16-bit weight to float32, which changes no value. Comparing the bits as integers makes NaN
    # equal to itself and tells 0.0 from -0.0.
    return one.keys() == other.keys() and all(
        torch.equal(weight.float().view(torch.int32), other[name].float().view(torch.int32))
        for name, weight in one.items()
    )


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Merge the adapter into the base weights on a CPU while the block runs, then put the original tensors back.

    A merged layer computes one matrix product, (W + s B A) x, instead of three, W x + s B (A x).
    """
    layers = _mergeable(model)
    # Keep references to the original tensors. Subtracting the adapter again would leave rounding errors in them.
    originals = [(weight, weight.data) for layer in layers for weight in layer.get_base_layer().parameters()]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.merge(safe_merge=True)  # merges into a copy; without it, peft changes the tensor in place
        yield
    finally:
        for weight, data in originals:
            weight.data = data
        for layer in layers:
            layer.merged_adapters.clear()  # tells peft that the layer is not merged, without its own subtraction


def _mergeable(model: Any) -> list[Any]:
    """Return the LoRA layers that can be merged; none if copies of all their weights would take too much memory."""
    from peft.tuners import lora

    # How many modules use each weight. A head tied to the embedding shares its weight, and merging the adapter of one
    # would change the other.
    users = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    layers = []
    for layer in model.modules():
        if isinstance(layer, lora.Linear):  # 4-bit layers are another class
            weight = layer.get_base_layer().weight
            # Only float32: in 16 bits, the sum W + s B A would round away small changes in the adapter.
            if weight.device.type == "cpu" and weight.dtype == torch.float32 and users[id(weight)] == 1:
                layers.append(layer)
    n_bytes = sum(layer.get_base_layer().weight.nbytes for layer in layers)
    return layers if n_bytes <= _MAX_COPY_SHARE * psutil.virtual_memory().total else []
