"""The interface between the training loop and a model: sample, expose weights for training, save and restore them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

# Importing this package must not import torch, and `--help` must not load the verifier: both are slow.
if TYPE_CHECKING:
    import torch

    from ladder_lite.config import GrpoSettings
    from ladder_lite.problems.attempts import Completion
    from ladder_lite.tasks.task import Messages

Adapter = dict[str, "torch.Tensor"]
"""The trainable weights of an adapter by parameter name, on the CPU."""

Score = Callable[["torch.Tensor", "torch.Tensor", int], "torch.Tensor"]
"""(token ids, attention mask, n) -> log-probabilities of the last n tokens.

The ids and the mask have shape (replies, length), the result (replies, n).
"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. On a CPU, the same seed, prompts and weights give the same replies.

    `temperature` is one value for all prompts (0 is greedy), or a positive value for each, so that prompts with
    different temperatures can share a batch. A reply ends at the model's end of turn, at one of the `stop` texts or
    after `max_new_tokens`. At most `batch_size` replies are generated at once, fewer if memory is short. With
    `logprobs`, rollouts have the engine's log-probabilities; the temperature must then be positive. With `from_base`,
    the base model samples: the adapter is switched off.
    """

    temperature: float | tuple[float, ...]
    top_p: float
    max_new_tokens: int
    batch_size: int
    seed: int
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    from_base: bool = False


class Rollout(NamedTuple):
    """A reply with its token ids and those of its prompt, as training needs them.

    `completion_ids` has at least one token. It ends with an end token unless the reply was truncated or ended by a stop
    text. A reply that begins with padding gets a single end token, which the model did not sample; its
    `completion.n_tokens` is 0. `logprobs` are the engine's, after division of the logits by the temperature.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    completion: Completion
    logprobs: list[float] | None = None


class Backend(Protocol):
    """One model with one adapter. It computes in `dtype`; training prompts have at most `max_prompt_length` tokens."""

    dtype: torch.dtype
    max_prompt_length: int

    def sample(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Sample `n` replies to each prompt, in the order of the prompts."""

    def roll_out(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Rollout]:
        """Sample one reply to each prompt, in the order of the prompts, with the token ids of both."""

    def check(self, prompts: Sequence[Messages]) -> None:
        """Raise UserError if a prompt is too long, or has a word that is not in the model's vocabulary."""

    def fits(self, prompt: Messages) -> bool:
        """Return whether the prompt is short enough for training."""

    def micro_batch(self, settings: GrpoSettings) -> int:
        """Return how many completions to train on at once, at most the recipe's number.

        Raises UserError if not even one fits in memory.
        """

    def check_rollouts(self, score: Score | None = None, temperature: float = 1.0, from_base: bool = False) -> None:
        """Raise UserError if sampling uses other weights than `score`, or than a forward pass if `score` is None.

        `score` returns log-probabilities at `temperature`. With `from_base`, check sampling with the adapter off.
        """

    def trainable(self) -> tuple[Any, Any]:
        """Return the model with its adapter, and its tokenizer, as TRL's trainers take them."""

    def snapshot(self) -> Adapter:
        """Return a copy of the adapter's weights."""

    def restore(self, adapter: Adapter) -> None:
        """Set the adapter's weights to those of a snapshot, bit by bit."""

    def save(self, folder: Path) -> None:
        """Write the adapter in peft's format."""

    def load(self, folder: Path, check: bool = True) -> None:
        """Read an adapter that `save` wrote.

        With `check`, also check rollouts with it; pass False if nothing will be sampled. Raises UserError if files are
        missing or do not match the model.
        """
