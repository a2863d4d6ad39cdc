"""A time budget: a run that stops by itself, at a point from which the same command goes on.

    python -m ladder_lite.recipe tiny --budget 20m

Work is done in pieces that are on the disk when they end: a training step with its checkpoint, a chunk of an
evaluation, a part of a round of variants. Before each the deadline is asked whether it would end in time, by what the
pieces of its kind have taken so far; `OutOfTime` ends the run where it would not. The first piece of a kind has no
measure and is begun while any time is left, so a budget may be overrun by one piece; and every run, however short, gets
on.
"""

import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Self

from ladder_lite.errors import UserError

_RECENT = 20
"""Pieces of a kind that its expectation looks back at; enough to hold the slow ones, such as a look at the tests."""

_RESERVE, _MOST_RESERVE_S = 0.02, 60.0
"""Share of the budget, and seconds at most, that are kept for what comes after the last piece: the report."""

_UNITS_S = {"h": 3600, "m": 60, "s": 1}
_BUDGET = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def read_budget(text: str) -> float:
    """The seconds of a budget such as "9h", "90m", "1h30m" or "5400s"; ValueError where it cannot be read."""
    match = _BUDGET.fullmatch(text.strip().lower())
    parts = match.groups() if match else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, _UNITS_S.values(), strict=False) if part)
    if not seconds:
        raise ValueError("give hours, minutes or seconds, such as 9h, 1h30m or 5400s")
    return seconds


class OutOfTime(Exception):  # noqa: N818 - it is no error
    """The budget is used up and everything is saved. It is no mistake: command lines that meet it exit with 0."""


class Deadline:
    """The end of a budget, and what the pieces of work have taken; `clock` counts seconds and never goes back."""

    def __init__(self, budget_s: float, text: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._text = text
        self._clock = clock
        self._ends_at = clock() + budget_s - min(_RESERVE * budget_s, _MOST_RESERVE_S)
        self._pace: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))

    @classmethod
    def never(cls) -> Self:
        """No budget."""
        return cls(inf, "no end")

    @classmethod
    def after(cls, text: str | None, clock: Callable[[], float] = time.monotonic) -> Self:
        """A budget that begins now, such as "9h", "90m", "1h30m" or "5400s", or none; UserError for anything else."""
        if text is None:
            return cls.never()
        try:
            return cls(read_budget(text), text.strip(), clock)
        except ValueError as error:
            raise UserError(f"--budget {text}: not a time; {error}") from error

    def within(self, budget_s: float, text: str) -> "Deadline":
        """A budget for a part of the work, which begins now; this deadline itself where that comes first."""
        part = Deadline(budget_s, text, self._clock)
        return part if part._ends_at < self._ends_at else self

    def now(self) -> float:
        """The clock's seconds."""
        return self._clock()

    def allows(self, next_s: float = 0.0) -> bool:
        """Whether work of so many seconds would end in time; none at all does while the budget is not used up."""
        now = self._clock()
        return now < self._ends_at and now + next_s <= self._ends_at

    def check(self, next_s: float = 0.0) -> None:
        """Raise OutOfTime unless work of so many seconds would end in time."""
        if not self.allows(next_s):
            raise self.out_of_time()

    def out_of_time(self) -> OutOfTime:
        """What to raise where the work was stopped already."""
        return OutOfTime(f"budget of {self._text} used: everything is saved; run the same command again to go on")

    def expected_s(self, kind: str, size: float = 1.0) -> float:
        """The seconds of a piece of this kind and size, as slow as the slowest of the last ones; 0 before the first."""
        return size * max(self._pace[kind], default=0.0)

    def note(self, kind: str, seconds: float, size: float = 1.0) -> None:
        """Remember what a piece of work took."""
        self._pace[kind].append(seconds / size)

    @contextmanager
    def piece(self, kind: str, size: float = 1.0) -> Iterator[None]:
        """Do a piece of work and remember what it took; OutOfTime instead where it would not end in time."""
        self.check(self.expected_s(kind, size))
        started = self._clock()
        yield
        self.note(kind, self._clock() - started, size)
