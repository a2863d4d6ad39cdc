"""The LoRA adapter in training and sampling: is it sound, which frozen copy is KL measured against, and folding it.

With `beta` above 0, GRPO adds the KL divergence from a reference model. TRL and Unsloth take the adapter called "ref"
for it where there is one, else the base model; who makes that adapter has changed with their versions, and none removes
it again. Here it is always the adapter as it is when training begins: a fresh one, which equals the base model, or
LADDER's for TTRL.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from ladder_lite.models.backend import Adapter

TRAINED, REFERENCE = "default", "ref"

_SPARE = 0.125
"""The share of the memory that copies of weights may take: of all there is, for what is free differs from one moment to
the next, and a folded model's replies differ from those of the same weights apart, by rounding errors."""


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The weights that are trained, by name: those of the adapter."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def in_full_precision(model: Any) -> None:
    """Make the weights that are trained float32: in 16 bits, small steps of training would be rounded away."""
    for weight in trained(model).values():
        weight.data = weight.data.float()


def is_finite(model: Any) -> bool:
    """Whether every weight that is trained is a number."""
    return bool(torch.stack([weight.detach().isfinite().all() for weight in trained(model).values()]).all())


def set_reference(model: Any) -> None:
    """Freeze a copy of the adapter as it is now, in its own type: another one would leave a KL of rounding errors."""
    if REFERENCE not in model.peft_config:
        model.add_adapter(REFERENCE, model.peft_config[TRAINED])
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if f".{REFERENCE}." in name:
            weight.data = weights[name.replace(f".{REFERENCE}.", f".{TRAINED}.")].data.clone()
    model.set_adapter(TRAINED)


@contextmanager
def without_reference_after(model: Any) -> Iterator[None]:
    """Remove the frozen copy when the block ends, however it does: it would be saved, and it takes memory."""
    try:
        yield
    finally:
        if REFERENCE in model.peft_config:
            model.delete_adapter(REFERENCE)
            model.set_adapter(TRAINED)


def is_same(one: Adapter, other: Adapter) -> bool:
    """Whether two snapshots hold the same weights bit by bit; a type that training made wider is no difference."""
    return one.keys() == other.keys() and all(
        torch.equal(weight.float().view(torch.int32), other[name].float().view(torch.int32))
        for name, weight in one.items()
    )


@contextmanager
def folded(model: Any) -> Iterator[None]:
    """On a CPU, the adapter as a part of the weights while the block runs: one product of matrices in place of three.

    Only float32 weights are replaced: in 16 bits, the sum would lose the small steps of training. Afterwards each has
    the very tensor that it had.
    """
    layers = _foldable(model)
    kept = [(weight, weight.data) for layer in layers for weight in layer.get_base_layer().parameters()]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.merge(safe_merge=True)  # into a copy
        yield
    finally:
        for weight, data in kept:
            weight.data = data
        for layer in layers:
            layer.merged_adapters.clear()


def _foldable(model: Any) -> list[Any]:
    """Linear layers with a plain adapter, whose weights are no other layer's too and fit in memory a second time."""
    from peft.tuners import lora

    users = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    layers = []
    for layer in model.modules():
        if isinstance(layer, lora.Linear) and not layer.lora_variant:
            weight = layer.get_base_layer().weight
            if weight.device.type == "cpu" and weight.dtype == torch.float32 and users[id(weight)] == 1:
                layers.append(layer)
    n_bytes = sum(layer.get_base_layer().weight.nbytes for layer in layers)
    return layers if n_bytes <= _SPARE * psutil.virtual_memory().total else []
