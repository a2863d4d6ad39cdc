"""The LoRA adapter while TRL trains it: is it still sound, and which frozen copy is KL measured against.

With `beta` above 0, GRPO adds the KL divergence from a reference model. TRL and Unsloth take the adapter called "ref"
for it where there is one, else the base model; who makes that adapter has changed with their versions, and none removes
it again. Here it is always the adapter as it is when training begins: a fresh one, which equals the base model, or
LADDER's for TTRL.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ladder_lite.backends import Adapter

TRAINED, REFERENCE = "default", "ref"


def in_full_precision(model: Any) -> None:
    """Make the weights that are trained float32: in 16 bits, small steps of training would be rounded away."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def is_finite(model: Any) -> bool:
    """Whether every weight that is trained is a number."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return bool(torch.stack([torch.isfinite(weight.detach()).all() for weight in weights]).all())


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
