"""What the loop needs of a model: sampling, training weights, and taking those weights back.

`local.py` holds the one backend there is, a model on this machine; `loading.py` says who loads it.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ladder_lite.attempts import Completion
from ladder_lite.settings import GrpoSettings, Recipe
from ladder_lite.tasks import Messages

if TYPE_CHECKING:  # importing this package must not import torch
    from torch import Tensor

_TELEMETRY = (
    "DO_NOT_TRACK",  # what several libraries agree on, vLLM among them
    "HF_HUB_DISABLE_TELEMETRY",  # the hub's, and that of the libraries that call it
    "UNSLOTH_DISABLE_STATISTICS",
    "VLLM_NO_USAGE_STATS",
)

Adapter = dict[str, "Tensor"]
"""The trained weights of an adapter by parameter name, on the CPU."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: temperature 0 is greedy; the same seed, prompts and weights give the same replies on a CPU.

    `temperature` is one for all prompts or a positive one for each, so that different ones share a batch. A reply ends
    at the model's end of turn, with one of the `stop` texts or at `max_new_tokens`. At most `batch_size` replies are
    generated at once, fewer where memory is short.
    """

    temperature: float | tuple[float, ...]
    top_p: float
    max_new_tokens: int
    batch_size: int
    seed: int
    stop: tuple[str, ...] = ()


class Rollout(NamedTuple):
    """A reply with the token ids of its prompt and of itself, as training wants them; a cut one has no end token."""

    prompt_ids: list[int]
    completion_ids: list[int]
    completion: Completion


class Backend(Protocol):
    """One model with one trainable adapter; training prompts have at most `max_prompt_length` tokens."""

    max_prompt_length: int

    def sample(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Sample `n` replies to each prompt, in the order of the prompts."""
        ...

    def roll_out(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Rollout]:
        """Sample one reply to each prompt, in the order of the prompts, with the tokens of both."""
        ...

    def check(self, prompts: Sequence[Messages]) -> None:
        """UserError for a prompt that is too long, or has a word that the model's vocabulary lacks."""
        ...

    def fits(self, prompt: Messages) -> bool:
        """Whether the prompt is short enough to be trained on."""
        ...

    def micro_batch(self, settings: GrpoSettings) -> int:
        """How many completions to train on at a time, at most the recipe's; UserError where none would fit."""
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


def load_backend(recipe: Recipe) -> Backend:
    """Load the model that a recipe names, with a fresh adapter initialised from the recipe's seed."""
    switch_telemetry_off()
    # When it is imported, bitsandbytes warns of a kernel that only hurry would want.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from ladder_lite.backends.loading import choose_loader, import_unsloth

    loader = choose_loader(recipe.model)
    if loader == "unsloth":  # before transformers, peft and TRL, which it patches
        import_unsloth()
    from ladder_lite.backends.local import LocalBackend

    return LocalBackend(recipe, loader)


def switch_telemetry_off() -> None:
    """Tell the libraries to send no statistics, before they are imported; a user's own setting stays."""
    for variable in _TELEMETRY:
        os.environ.setdefault(variable, "1")
