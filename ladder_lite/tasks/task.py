"""What a task must offer, whatever it is about: problems, prompts, reading of variants, grading, equality.

`integration.py` is the paper's task. The loop (`variants`, `grpo`, `evaluate`, `ttrl`) knows tasks only through this
protocol.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ladder_lite.problems import Problem
from ladder_lite.verify import Grade
from ladder_lite.verify.rules.fingerprints import Keys

Messages = list[dict[str, str]]
"""A conversation as chat templates take it: dicts with `role` and `content`."""

Effect = Literal["easier", "equivalent", "harder"]


@dataclass(frozen=True, slots=True)
class VariantRequest:
    """What one variant prompt asks for: `count` variants, written as `persona`, with transformations suggested."""

    effect: Effect
    persona: str
    suggestions: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A piece of a reply that was no usable variant, and why; `equal_to` names the problem or the set it repeats."""

    text: str
    reason: str
    equal_to: str | None = None


class Task(Protocol):
    """A family of problems with a verifier."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts of which the first one ends a reply to a problem."""

    def problems(self, split: Literal["train", "test"]) -> list[Problem]:
        """The problems of a split, in the order of their file."""

    def read(self, text: str) -> Problem:
        """A problem that a user typed; UserError where it is none."""

    def statement(self, problem: Problem) -> str:
        """The problem as a line of text, for people."""

    def prompt(self, problem: Problem) -> Messages:
        """What the model is asked for a solution."""

    def variant_prompt(self, problem: Problem, request: VariantRequest) -> Messages:
        """What the model is asked for variants of the problem."""

    def transformations_prompt(self, effect: Effect, count: int) -> Messages:
        """What the model is asked for a list of transformations that have an effect."""

    def strip_thinking(self, text: str) -> str:
        """The part of a reply that is meant to be read: all but the thoughts of a reasoning model."""

    def parse_variants(self, text: str, parent: Problem, request: VariantRequest) -> list[Problem | Rejected]:
        """The variants in a reply to `request`, in order; never raises, whatever the text."""

    def grade(self, problem: Problem, text: str) -> Grade:
        """Grade a reply; an error in the verifier itself raises, it never scores 0."""

    def same_answers(self, problem: Problem, answers: Sequence[str]) -> list[int | None]:
        """For each answer the place of the first one that is the same, whatever its verdict; None if it is unreadable.

        Never raises, whatever the texts.
        """

    def fingerprints(self, problem: Problem, up_to_factor: bool = False) -> Keys:
        """Two keys, of which equal problems share at least one, however they are written, and different ones none.

        With `up_to_factor`, a problem equals its multiples by a constant.
        """
