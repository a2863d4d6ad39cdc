"""Find where on the real line an expression breaks: the zeros of its breakable quantities, located on arrays."""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple, Self

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Breakable, Expression, Floats, Indices
from ladder_lite.verify.expressions.operations import Break

WORK: Final = 6_000_000  # bound on operations times points
MAX_FOUND: Final = 48
ALL: Final[tuple[Break, ...]] = ("pole", "log", "root", "step")  # without "turn", where nothing really breaks
# Each round cuts a bracket into 32 parts and keeps the two around the smallest value. Seven rounds make it 16**7, or
# 2.7e8, times narrower, which locates a zero to the last digits.
_PARTS: Final = 32
_ROUNDS: Final = 7


class Brackets(NamedTuple):
    """Intervals on which quantities may vanish. One quantity can have several."""

    quantity: Indices  # its index among the breakables
    low: Floats
    high: Floats

    @property
    def distance(self) -> Floats:
        """Distance of each interval from 0."""
        return np.minimum(np.abs(self.low), np.abs(self.high))

    def of(self, chosen: Indices | Bools) -> Self:
        """Return the intervals that indices or a mask select."""
        return type(self)(self.quantity[chosen], self.low[chosen], self.high[chosen])


def locate(
    expression: Expression,
    grid: Floats,
    breakables: Sequence[Breakable],
    usable: Bools | None = None,
    kinds: Collection[Break] = ALL,
    limit: int = MAX_FOUND,
) -> list[tuple[float, Break]]:
    """Return sorted places where quantities of `kinds` vanish, and how the expression breaks there.

    `breakables` are the quantities on `grid`. Only the `limit` candidates nearest to 0 are examined. With the mask
    `usable`, candidates count only next to points of the grid where it is True.
    """
    found = brackets(grid, breakables, kinds, usable)
    # In turns between quantities: one with many zeros must not hide others.
    return zoom(expression, breakables, found.of(round_robin(found.quantity, found.distance)[:limit]))


def zoom(expression: Expression, breakables: Sequence[Breakable], candidates: Brackets) -> list[tuple[float, Break]]:
    """Return sorted places where quantities vanish in brackets. The last brackets are skipped if there are too many."""
    quantity, low, high = (part[: max(8, WORK // (40 * _PARTS * max(1, expression.n_nodes)))] for part in candidates)
    if not len(quantity):
        return []
    rows = np.arange(len(quantity))
    fractions = np.linspace(0, 1, _PARTS + 1)
    largest = np.zeros(0)
    # All brackets are narrowed together: `points` has shape (n, _PARTS + 1).
    for _ in range(_ROUNDS):
        points = low[:, None] + (high - low)[:, None] * fractions
        now = expression.evaluate(points.ravel().astype(complex), derivative=False).breakables
        size = np.empty(points.shape)
        for index in np.unique(quantity):
            of_index = quantity == index
            size[of_index] = np.abs(now[index].vanishing.reshape(points.shape)[of_index])
        # The size of each quantity on its whole bracket, from the first round: what counts as small later.
        if not largest.size:
            largest = np.where(np.isfinite(size), size, 0).max(axis=1)
        size[~np.isfinite(size)] = np.inf
        best = size.argmin(axis=1)
        # A dip keeps the point with the smallest value in the middle. A change of sign lies next to it too.
        low, high = points[rows, np.maximum(best - 1, 0)], points[rows, np.minimum(best + 1, _PARTS)]
    vanished = size.min(axis=1) <= 1e-5 * largest  # a dip that stays above 0 does not count
    # A zero may have two brackets, one for its change of sign and one as a dip. Rounding to ten digits merges them.
    middle = 0.5 * (low + high)
    found = [(float(middle[i]), breakables[quantity[i]].kind) for i in np.flatnonzero(vanished)]
    return sorted({(kind, float(f"{at:.9e}")): (at, kind) for at, kind in found}.values())


def round_robin(quantity: Indices, distance: Floats) -> Indices:
    """Return an order in which the nearest bracket of each quantity comes first, then the second of each, and so on."""
    # quantity [0, 0, 1], distance [5, 2, 3] -> [1, 2, 0]: the nearest of 0, the nearest of 1, the other one of 0.
    order = np.lexsort((distance, quantity))
    starts = np.flatnonzero(np.diff(quantity[order], prepend=-1))
    turn = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.asarray(order[np.lexsort((distance[order], turn))])


def brackets(grid: Floats, breakables: Sequence[Breakable], kinds: Collection[Break], usable: Bools | None) -> Brackets:
    """Return the intervals of `grid` on which quantities of `kinds` change sign or dip, next to `usable` points."""
    usable = np.ones(len(grid), bool) if usable is None else usable
    # True if the point itself, the one before it or one of the two behind it is usable.
    beside = usable.copy()
    beside[1:] |= usable[:-1]
    beside[:-1] |= usable[1:]
    beside[:-2] |= usable[2:]
    quantity, first, last = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    with np.errstate(all="ignore"):
        for index, (kind, q) in enumerate(breakables):
            if kind not in kinds:
                continue
            size, sign = np.abs(q), np.sign(q)
            seen = np.isfinite(q)
            changes = np.flatnonzero(seen[:-1] & seen[1:] & (sign[:-1] * sign[1:] < 0) & beside[:-1])
            # A dip: no larger than both neighbours, and less than half of the largest of the two points on either side.
            middle, before, after = size[1:-1], size[:-2], size[2:]
            further = np.append(before[0], before[:-1]), np.append(after[1:], after[-1])
            around = np.maximum.reduce([before, after, *further])
            least = (middle <= before) & (middle <= after) & (middle < 0.5 * around)
            dips = np.flatnonzero(least & beside[1:-1])
            quantity.append(np.full(len(changes) + len(dips), index))
            first += [changes, dips]
            last += [changes + 1, dips + 2]
    return Brackets(np.concatenate(quantity), grid[np.concatenate(first)], grid[np.concatenate(last)])
