"""Completions with their grades: the rows that evaluation, training logs and reports share."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from ladder_lite.tasks import Grade, Reason


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled reply: its text, its length in tokens, and whether the token limit cut it off."""

    text: str
    n_tokens: int
    truncated: bool


class Outcome(Enum):
    """The outcome of an attempt; each attempt has exactly one."""

    RIGHT = "right"
    WRONG = "wrong"
    TRUNCATED = "truncated"  # cut off by the token limit, and not right
    UNREADABLE = "unreadable"  # no answer, or one that cannot be parsed
    REFUSED = "refused"  # an answer with forbidden functions, or too large
    UNVERIFIABLE = "unverifiable"  # the problem cannot be verified, whatever the answer


# By `verify.Reason`, as text: rows of old runs may have a reason that this version no longer has. All others count as
# unverifiable.
_OUTCOMES = {
    "CORRECT": Outcome.RIGHT,
    "WRONG": Outcome.WRONG,
    "NO_ANSWER": Outcome.UNREADABLE,
    "UNPARSEABLE": Outcome.UNREADABLE,
    "FORBIDDEN": Outcome.REFUSED,
    "TOO_LARGE": Outcome.REFUSED,
}


def outcome_of(reason: str, truncated: bool) -> Outcome:
    """The outcome of an attempt with this grade; a reason that this version does not know counts as unverifiable."""
    # A reply that was cut off counts as truncated even if it has an answer that is wrong or unreadable: with more
    # tokens it might have had another one.
    outcome = _OUTCOMES.get(reason, Outcome.UNVERIFIABLE)
    is_settled = outcome in (Outcome.RIGHT, Outcome.UNVERIFIABLE)
    return Outcome.TRUNCATED if truncated and not is_settled else outcome


@dataclass(frozen=True, slots=True)
class Attempt:
    """A graded completion: attempt number `index` (from 0) at a problem.

    `from_base` says that the base model sampled it during training, with the adapter switched off.
    """

    problem_id: str
    index: int
    completion: Completion
    grade: Grade
    from_base: bool = False

    @property
    def correct(self) -> bool:
        """Whether the answer was verified as right."""
        return self.grade.reason is Reason.CORRECT

    @property
    def outcome(self) -> Outcome:
        """The outcome, from grade and truncation."""
        return outcome_of(self.grade.reason.value, self.completion.truncated)

    def to_row(self) -> dict[str, Any]:
        """The attempt as one flat JSON object."""
        return {
            "problem_id": self.problem_id,
            "index": self.index,
            **asdict(self.completion),
            **asdict(self.grade),
            "reason": self.grade.reason.value,
            **({"from_base": True} if self.from_base else {}),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Attempt":
        """The attempt of a row; further keys, such as the `step` of a training log, are ignored."""
        return cls(
            row["problem_id"],
            row["index"],
            Completion(row["text"], row["n_tokens"], row["truncated"]),
            Grade(row["reward"], Reason(row["reason"]), row["answer"], row.get("detail", "")),  # old rows lack it
            row.get("from_base", False),
        )
