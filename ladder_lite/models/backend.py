"""What the loop needs of a model: sampling, training weights, and taking those weights back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:  # importing this package must not import torch; and `--help` needs no verifier
    import torch

    from ladder_lite.config import GrpoSettings
    from ladder_lite.problems.attempts import Completion
    from ladder_lite.tasks.task import Messages

Adapter = dict[str, "torch.Tensor"]
"""The trained weights of an adapter by parameter name, on the CPU."""

Score = Callable[["torch.Tensor", "torch.Tensor", int], "torch.Tensor"]
"""Token ids and attention mask (replies, length), and n -> log-probabilities of the last n tokens (replies, n)."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: temperature 0 is greedy; the same seed, prompts and weights give the same replies on a CPU.

    `temperature` is one for all prompts or a positive one for each, so that different ones share a batch. A reply ends
    at the model's end of turn, with one of the `stop` texts or at `max_new_tokens`. At most `batch_size` replies are
    generated at once, fewer where memory is short. With `logprobs`, rollouts carry the engine's log-probabilities; the
    temperature must be positive then.
    """

    temperature: float | tuple[float, ...]
    top_p: float
    max_new_tokens: int
    batch_size: int
    seed: int
    stop: tuple[str, ...] = ()
    logprobs: bool = False


class Rollout(NamedTuple):
    """A reply with the token ids of its prompt and of itself, as training wants them; a cut one has no end token.

    There is at least one token. A reply that begins with padding consists of an end token, which the model did not
    sample; its `completion.n_tokens` is 0. `logprobs` are the engine's, after the temperature.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    completion: Completion
    logprobs: list[float] | None = None


class Backend(Protocol):
    """One model, computed in `dtype`, with one adapter; training prompts have `max_prompt_length` tokens at most."""

    dtype: torch.dtype
    max_prompt_length: int

    def sample(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Sample `n` replies to each prompt, in the order of the prompts."""

    def roll_out(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Rollout]:
        """Sample one reply to each prompt, in the order of the prompts, with the tokens of both."""

    def check(self, prompts: Sequence[Messages]) -> None:
        """UserError for a prompt that is too long, or has a word that the model's vocabulary lacks."""

    def fits(self, prompt: Messages) -> bool:
        """Whether the prompt is short enough to be trained on."""

    def micro_batch(self, settings: GrpoSettings) -> int:
        """How many completions to train on at a time, at most the recipe's; UserError where none would fit."""

    def check_rollouts(self, score: Score | None = None, temperature: float = 1.0) -> None:
        """UserError where sampling does not use the weights that `score`, or else a forward pass, computes with.

        `temperature` is that of the log-probabilities of `score`.
        """

    def trainable(self) -> tuple[Any, Any]:
        """The model with its adapter and its tokenizer, as TRL's trainers take them."""

    def snapshot(self) -> Adapter:
        """A copy of the adapter's weights."""

    def restore(self, adapter: Adapter) -> None:
        """Put an adapter's weights back, bit by bit."""

    def save(self, folder: Path) -> None:
        """Write the adapter in peft's format."""

    def load(self, folder: Path, check: bool = True) -> None:
        """Read an adapter that `save` wrote; UserError where the files are missing or of another shape.

        `check` rollouts with it, unless nothing will be sampled.
        """
