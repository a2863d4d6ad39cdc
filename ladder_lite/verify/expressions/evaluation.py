"""One evaluation of an expression on an array of points: values, derivatives, and what they tell about its shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ladder_lite.verify.expressions.function import Break
from ladder_lite.verify.expressions.operations import Breakable, Step

RESOLVED: Final = 4.0  # how much the argument of a function like atan may change between points, near its zeros
SATURATED: Final = 20.0  # arguments at which such a function has come to rest
NEAR_ZERO: Final = 2.0  # a divisor that would vanish within half a gap, at its speed, has to change its sign there
ONE: Final = np.float64(1.0)  # of NumPy's, whose division by zero is infinite and no error


class Breaks(NamedTuple):
    """A break that a subexpression may have: where `vanishes` of the slot's value (itself if None) is 0."""

    kind: Break
    slot: int
    vanishes: Callable[[Any], Any] | None


# What gives a function a feature: its argument passing zero fast (atan(u)), or nearly vanishing without a change of
# sign (1/u, log(u)), or any argument that is not linear (tan(u)).
Bend = Literal["speed", "zeros", "any"]


class Curve(NamedTuple):
    """A slot that some function bends into features, the narrower the faster `factor` times the slot changes."""

    slot: int
    factor: float
    by: Bend


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Value and derivative of every slot of an expression; derivatives are None where they are an exact zero."""

    points: NDArray[Any]
    slots: list[Any]
    slopes_of_slots: list[Any]
    breaks: Sequence[Breaks]

    @property
    def values(self) -> NDArray[Any]:
        """Values of the expression, in the shape of the points."""
        value = self.slots[-1]
        return value if isinstance(value, np.ndarray) else np.full(self.points.shape, value)

    @property
    def slopes(self) -> NDArray[Any]:
        """Derivatives of the expression, in the shape of the points."""
        slope = self.slopes_of_slots[-1]
        if isinstance(slope, np.ndarray):
            return slope
        return np.full(self.points.shape, 0.0 if slope is None else slope, self.values.dtype)

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        """At which points every slot is: a part that overflowed may be one that counts (a/inf is a lost term)."""
        with np.errstate(all="ignore"):
            total = self.values * 0.0
            for slot in self.slots:
                total = total + slot
            return np.isfinite(total)

    @property
    def breakables(self) -> list[Breakable]:
        """What may break."""
        found = []
        with np.errstate(all="ignore"):
            for kind, slot, vanishes in self.breaks:
                u = self.slots[slot]
                quantity = np.real(u if vanishes is None else vanishes(u))
                shaped = quantity if isinstance(quantity, np.ndarray) else np.full(self.points.shape, quantity)
                found.append(Breakable(kind, shaped))
        return found

    def is_resolved(self, curves: Sequence[Curve] | None, gaps: NDArray[np.float64]) -> bool:
        """Whether the points, with `gaps` to their neighbours, are dense enough for every feature of the expression.

        A step that hides between two points, as of tanh(10**6*x) or x/sqrt(x**2+10**-20), has to come out of a function
        whose argument changes fast from point to point, or nearly vanishes between them without changing its sign.
        """
        if curves is None:
            return False
        with np.errstate(all="ignore"):
            for slot, factor, by in curves:
                slope = self.slopes_of_slots[slot]
                linear = not isinstance(slope, np.ndarray)  # and so its zero is a simple one
                if linear and (by == "zeros" or factor * abs(slope) * gaps.max() <= RESOLVED):
                    continue
                change = factor * gaps * np.abs(slope)
                if by == "any":
                    return False
                if by == "speed":
                    if ((change > RESOLVED) & (factor * np.abs(self.slots[slot]) < change + SATURATED)).any():
                        return False
                elif not _zeros_are_simple(self.slots[slot], change):
                    return False
        return True


def _zeros_are_simple(u: NDArray[Any], change: NDArray[np.float64]) -> bool:
    """Whether `u`, which changes by `change` from a point to the next, changes its sign wherever it nearly vanishes."""
    near_zero = NEAR_ZERO * np.abs(u) < change
    if not near_zero.any():
        return True
    negative = np.signbit(u.real)
    beside = np.zeros(len(u) + 3, bool)  # two points to either side of a change of sign
    changes = negative[1:] != negative[:-1]
    for shift in range(4):
        beside[shift : shift + len(changes)] |= changes
    return not (near_zero & ~beside[1:-2]).any()


def _is_whole(constant: complex) -> bool:
    return constant.real.is_integer() and constant.imag.is_integer()


def run(
    template: Sequence[complex | None],
    steps: Sequence[Step],
    breaks: Sequence[Breaks],
    points: NDArray[Any],
    derivative: bool,
    jitter: NDArray[np.float64] | None,
) -> Evaluation:
    """Evaluate every step in turn.

    With `jitter`, rows of random factors close to 1, each operation's result is scaled by the next row: the spread of
    some such runs is the rounding noise of a plain run (Vignes' stochastic arithmetic).
    """
    values: list[Any] = list(template)
    slopes: list[Any] = [None] * len(values)
    values[0], slopes[0] = points, ONE if derivative else None
    with np.errstate(all="ignore"):
        if jitter is None:
            for slot, forward, left, right, _, _ in steps:
                values[slot], slopes[slot] = forward(values[left], slopes[left], values[right], slopes[right])
            return Evaluation(points, values, slopes, breaks)
        factors = cycle(jitter)
        values = [c if c is None or _is_whole(c) else c * next(factors) for c in template]
        values[0] = points * next(factors)
        for slot, forward, left, right, _, _ in steps:
            value, slope = forward(values[left], slopes[left], values[right], slopes[right])
            values[slot] = value * next(factors)
            slopes[slot] = None if slope is None else slope * next(factors)
    return Evaluation(points, values, slopes, breaks)
