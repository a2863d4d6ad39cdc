"""Where on the real line an expression breaks: the zeros of its breakable quantities, found on arrays."""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, Self

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Breakable, Expression, Floats, Indices
from ladder_lite.verify.expressions.operations import Break

WORK: Final = 6_000_000  # bound on operations times points
MAX_FOUND: Final = 48
ALL: Final[tuple[Break, ...]] = ("pole", "log", "root", "step")
_PARTS: Final = 32  # of a bracket, of which two are kept
_ROUNDS: Final = 7  # 16**7 times narrower: to the last digits


class Brackets(NamedTuple):
    """Intervals on which quantities may vanish: which one, and the interval's ends."""

    which: Indices
    low: Floats
    high: Floats

    @property
    def distance(self) -> Floats:
        """Of each interval from 0."""
        return np.minimum(np.abs(self.low), np.abs(self.high))

    def of(self, chosen: Indices | Bools) -> Self:
        """Those with an index or a mask."""
        return type(self)(self.which[chosen], self.low[chosen], self.high[chosen])

    def nearest(self, limit: int) -> Self:
        """Of every quantity those nearest to 0, so that none that vanishes often hides the others."""
        return self.of(in_turns(self.which, self.distance)[:limit])


def locate(
    expression: Expression,
    grid: Floats,
    breakables: Sequence[Breakable],
    usable: Bools | None = None,
    kinds: Collection[Break] = ALL,
    limit: int = MAX_FOUND,
) -> list[tuple[float, Break]]:
    """Where quantities of `kinds` vanish and how the expression breaks there, sorted: the nearest `limit` of them.

    `breakables` are those on `grid`. Zooms in on their changes of sign and dips between its points, where the
    expression is `usable` beside them.
    """
    return zoom(expression, breakables, brackets(grid, breakables, kinds, usable).nearest(limit))


def zoom(expression: Expression, breakables: Sequence[Breakable], found: Brackets) -> list[tuple[float, Break]]:
    """Where quantities vanish in brackets, sorted; of the first brackets, if there are more than can be afforded."""
    which, low, high = (part[: max(8, WORK // (40 * _PARTS * max(1, expression.n_nodes)))] for part in found)
    if not len(which):
        return []
    rows = np.arange(len(which))
    fractions = np.linspace(0, 1, _PARTS + 1)
    largest = np.zeros(0)
    for _ in range(_ROUNDS):
        points = low[:, None] + (high - low)[:, None] * fractions
        now = expression.evaluate(points.ravel().astype(complex), derivative=False).breakables
        size = np.empty(points.shape)
        for index in np.unique(which):
            of_index = which == index
            size[of_index] = np.abs(now[index].vanishing.reshape(points.shape)[of_index])
        if not largest.size:
            largest = np.where(np.isfinite(size), size, 0).max(axis=1)
        size[~np.isfinite(size)] = np.inf
        best = size.argmin(axis=1)
        low, high = points[rows, np.maximum(best - 1, 0)], points[rows, np.minimum(best + 1, _PARTS)]
    vanished = size.min(axis=1) <= 1e-5 * largest
    # A zero may have been bracketed twice, by its change of sign and as a dip.
    middle = 0.5 * (low + high)
    zeros = {(breakables[which[i]].kind, float(f"{middle[i]:.9e}")): float(middle[i]) for i in np.flatnonzero(vanished)}
    return sorted((at, kind) for (kind, _), at in zeros.items())


def in_turns(which: Indices, distance: Floats) -> Indices:
    """An order in which each quantity's nearest bracket comes first, then each one's second, and so on."""
    order = np.lexsort((distance, which))
    starts = np.flatnonzero(np.diff(which[order], prepend=-1))
    turn = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.asarray(order[np.lexsort((distance[order], turn))])


def brackets(grid: Floats, breakables: Sequence[Breakable], kinds: Collection[Break], usable: Bools | None) -> Brackets:
    """Where quantities of `kinds` may vanish.

    A change of sign or a dip between points of `grid`, where the expression is `usable` beside it.
    """
    usable = np.ones(len(grid), bool) if usable is None else usable
    beside = usable.copy()
    beside[1:] |= usable[:-1]
    beside[:-1] |= usable[1:]
    beside[:-2] |= usable[2:]
    which, first, last = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    with np.errstate(all="ignore"):
        for index, (kind, q) in enumerate(breakables):
            if kind not in kinds:
                continue
            size, sign = np.abs(q), np.sign(q)
            seen = np.isfinite(q)
            changes = np.flatnonzero(seen[:-1] & seen[1:] & (sign[:-1] * sign[1:] < 0) & beside[:-1])
            middle, before, after = size[1:-1], size[:-2], size[2:]
            further = np.append(before[0], before[:-1]), np.append(after[1:], after[-1])
            around = np.maximum.reduce([before, after, *further])
            least = (middle <= before) & (middle <= after) & (middle < 0.5 * around)
            dips = np.flatnonzero(least & beside[1:-1])
            which.append(np.full(len(changes) + len(dips), index))
            first += [changes, dips]
            last += [changes + 1, dips + 2]
    return Brackets(np.concatenate(which), grid[np.concatenate(first)], grid[np.concatenate(last)])
