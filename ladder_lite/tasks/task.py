"""The protocol of a task: problems, prompts, parsing of variants, grading, equality.

`integration.py` is the paper's task. The loop (`variants`, `train`, `evaluate`, `ttrl`) uses tasks only through this
protocol, so another domain with a verifier needs another class of this kind and nothing else in the loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ladder_lite.problems import Problem
from ladder_lite.verify import Grade
from ladder_lite.verify.rules.fingerprints import Keys

Messages = list[dict[str, str]]
"""A conversation in the format of chat templates: [{"role": "user", "content": "..."}]."""

Effect = Literal["easier", "equivalent", "harder"]


@dataclass(frozen=True, slots=True)
class VariantRequest:
    """What one variant prompt asks for: `count` variants, in the role of `persona`, with suggested transformations."""

    effect: Effect
    persona: str
    suggestions: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A piece of a reply that is not a usable variant, with the reason.

    `equal_to` is the id of the problem that it repeats, or the name of the set whose test problem it equals.
    """

    text: str
    reason: str
    equal_to: str | None = None


class Task(Protocol):
    """A family of problems with a verifier."""

    stop: tuple[str, ...]
    """Stop strings: a reply to a problem ends with the first one that occurs."""

    def problems(self, split: Literal["train", "test", "probe"]) -> list[Problem]:
        """The problems of a split, or of the probe, in the order of their file."""

    def read(self, text: str) -> Problem:
        """A problem that a user typed. Raises UserError if it is not one."""

    def statement(self, problem: Problem) -> str:
        """The problem as one line of text, for people."""

    def prompt(self, problem: Problem) -> Messages:
        """The prompt that asks for a solution."""

    def variant_prompt(self, problem: Problem, request: VariantRequest) -> Messages:
        """The prompt that asks for variants of the problem."""

    def transformations_prompt(self, effect: Effect, count: int) -> Messages:
        """The prompt that asks for a list of transformations with this effect."""

    def strip_thinking(self, text: str) -> str:
        """A reply without the thoughts of a reasoning model."""

    def parse_variants(self, text: str, parent: Problem, request: VariantRequest) -> list[Problem | Rejected]:
        """The variants in a reply to `request`, in order. Never raises, whatever the text."""

    def grade(self, problem: Problem, text: str) -> Grade:
        """Grade a reply. A bug in the verifier raises; it must never score 0."""

    def same_answers(self, problem: Problem, answers: Sequence[str]) -> list[int | None]:
        """For each answer the index of the first answer that is the same, None if it is unreadable: [0, 1, 0, None].

        The verdicts play no part in this. Never raises, whatever the texts.
        """

    def fingerprints(self, problem: Problem, up_to_factor: bool = False) -> Keys:
        """Two keys. Equal problems, however they are written, share at least one of them; different ones share none.

        With `up_to_factor`, a problem equals its multiples by a constant.
        """
