"""What the loop needs of a model: sampling, training weights, and taking those weights back.

`local.py` holds the one backend there is: a model on this machine.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ladder_lite.attempts import Completion
from ladder_lite.settings import ModelSettings
from ladder_lite.tasks import Messages

if TYPE_CHECKING:  # importing this package must not import torch
    from torch import Tensor

Adapter = dict[str, "Tensor"]
"""The trained weights of an adapter by parameter name, on the CPU."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: temperature 0 is greedy; the same seed, prompts and weights give the same replies on a CPU.

    `temperature` is one for all prompts or a positive one for each, so that different ones share a batch. A reply ends
    at the model's end of turn or at `max_new_tokens`. At most `batch_size` replies are generated at once.
    """

    temperature: float | tuple[float, ...]
    top_p: float
    max_new_tokens: int
    batch_size: int
    seed: int


class Backend(Protocol):
    """One model with one trainable adapter."""

    def sample(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Sample `n` replies to each prompt, in the order of the prompts."""
        ...

    def check(self, prompts: Sequence[Messages]) -> None:
        """UserError for a prompt with a word that the model's vocabulary lacks: trainers would drop it silently."""
        ...

    def trainable(self) -> tuple[Any, Any]:
        """The model with its adapter and its tokenizer, as TRL's trainers take them."""
        ...

    def snapshot(self) -> Adapter:
        """A copy of the adapter's weights."""
        ...

    def restore(self, adapter: Adapter) -> None:
        """Put an adapter's weights back, bit by bit."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter in peft's format."""
        ...

    def load(self, folder: Path) -> None:
        """Read an adapter that `save` wrote; UserError where the files are missing or of another shape."""
        ...


def load_backend(settings: ModelSettings, seed: int) -> Backend:
    """Load the model that a recipe names, with a fresh adapter initialised from the seed."""
    # When it is imported, bitsandbytes warns of a kernel that only hurry would want.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from ladder_lite.backends.local import LocalBackend

    return LocalBackend(settings, seed)
