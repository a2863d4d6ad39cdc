"""A time budget: a run stops by itself, at a point from which the same command resumes it.

    python -m ladder_lite.recipe tiny --budget 20m

Work is done in pieces whose results are saved when they end: a training step with its checkpoint, a chunk of an
evaluation, a part of a round of variants. Before each piece, the deadline checks whether it would end in time, judging
by earlier pieces of its kind, and raises `OutOfTime` if not. The first piece of a kind cannot be judged and starts if
any time is left. So a budget may be exceeded by one piece, but every run, however short, makes progress.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from math import inf
from typing import Self

from pydantic import TypeAdapter, ValidationError

from ladder_lite.errors import UserError

_WINDOW = 20
"""Pieces of a kind that an expectation is based on: enough to include slow ones, such as a step with an evaluation."""

# The part of a budget that is kept for the work after the last piece, the report: 2 %, at most a minute.
_RESERVE_SHARE = 0.02
_MAX_RESERVE_S = 60.0


def read_budget(text: str) -> float:
    """Parse a budget such as "9h", "90m", "1h30m" or "5400s" into seconds. Raises ValueError if it is not one."""
    try:
        # "1h30m" is PT1H30M in ISO 8601.
        seconds = TypeAdapter(timedelta).validate_python(f"PT{text.strip().upper()}").total_seconds()
    except ValidationError:
        seconds = 0.0
    if seconds <= 0:
        raise ValueError("must be a time: give hours, minutes or seconds, such as 9h, 1h30m or 5400s")
    return seconds


class OutOfTime(Exception):  # noqa: N818 - not an error
    """The budget is used up and everything is saved. Commands that end with it exit with code 0."""


class Deadline:
    """The end of a budget, and the durations of recent pieces of work. `clock` returns seconds and is monotonic."""

    def __init__(self, budget_s: float, text: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.text = text
        self._clock = clock
        self._ends_at = clock() + budget_s - min(_RESERVE_SHARE * budget_s, _MAX_RESERVE_S)
        # By kind: the seconds per unit of size of the last pieces.
        self._paces: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_WINDOW))

    @classmethod
    def never(cls) -> Self:
        """A deadline that is never reached."""
        return cls(inf, "no end")

    @classmethod
    def after(cls, text: str | None, clock: Callable[[], float] = time.monotonic) -> Self:
        """A budget that begins now, such as "9h", "90m", "1h30m" or "5400s"; without an end if None.

        Raises UserError for any other text.
        """
        if text is None:
            return cls.never()
        try:
            return cls(read_budget(text), text.strip(), clock)
        except ValueError as error:
            raise UserError(f"--budget {text}: {error}") from error

    def within(self, budget_s: float, text: str) -> "Deadline":
        """A budget for a part of the work, which begins now; this deadline itself if it ends earlier."""
        # Callers compare the result with `is` to tell which of the two ended.
        part = Deadline(budget_s, text, self._clock)
        return part if part._ends_at < self._ends_at else self

    def now(self) -> float:
        """Return the time of the clock, in seconds."""
        return self._clock()

    def left_s(self) -> float:
        """Return the seconds until the deadline."""
        return self._ends_at - self._clock()

    def allows(self, next_s: float = 0.0) -> bool:
        """Return whether work of `next_s` seconds would end in time; never True once the budget is used up."""
        now = self._clock()
        return now < self._ends_at and now + next_s <= self._ends_at

    def check(self, next_s: float = 0.0) -> None:
        """Raise OutOfTime unless work of `next_s` seconds would end in time."""
        if not self.allows(next_s):
            raise self.out_of_time()

    def out_of_time(self) -> OutOfTime:
        """Create the exception, for callers that have already stopped their work."""
        return OutOfTime(f"budget of {self.text} used: everything is saved; run the same command again to go on")

    def expected_s(self, kind: str, size: float = 1.0) -> float:
        """Return the expected seconds of a piece of this kind and size; 0 before the first of its kind."""
        # The slowest of the recent pieces, not their mean: a piece that is cut off is worse than one not started.
        return size * max(self._paces[kind], default=0.0)

    def record(self, kind: str, seconds: float, size: float = 1.0) -> None:
        """Record the duration of a piece of work."""
        self._paces[kind].append(seconds / size)

    @contextmanager
    def piece(self, kind: str, size: float = 1.0) -> Iterator[None]:
        """Run the block as a piece of work and record its duration. Raises OutOfTime if it would not end in time."""
        self.check(self.expected_s(kind, size))
        started = self._clock()
        yield  # without `finally`: a piece that fails is not a measure of the next one
        self.record(kind, self._clock() - started, size)
