"""Integrands as the verifier sees them: where they are defined, where they break, and points to test answers on.

Every integrand is evaluated at the same base points first: 241 near points between about -10 and 10, sorted, and then
8 far points up to 1600, sorted. Arrays over the base points are in this order.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import (
    Bools,
    Breakable,
    Expression,
    ExpressionError,
    Floats,
    Indices,
    Numbers,
)
from ladder_lite.verify.expressions.parse import parse
from ladder_lite.verify.numerics.components import (
    MIN_POINTS,
    Component,
    IntegrandError,
    NoiseError,
    breaks_at,
    survey,
)
from ladder_lite.verify.numerics.quadrature import DEGREE, NODES, between_nodes, increments
from ladder_lite.verify.numerics.real_line import evaluate_real, is_known, sizes_of
from ladder_lite.verify.numerics.singularities import brackets, zoom

__all__ = ["Component", "Integrand", "IntegrandError", "NoiseError", "prepare"]

# Edges of the panels that contain the near points, on either side of 0. A seed moves them by up to a tenth of a panel.
_EDGES: Final = np.array([0.5, 1.25, 2.4, 4.2, 6.8, 10.0])
N_NEAR: Final = 2 * len(_EDGES) * DEGREE + 1  # 12 panels with 21 nodes each; neighbours share a node: 241
# More points beyond the near ones, used only to see where f ends.
_FAR: Final = np.outer([-1, 1], np.geomspace(10.5, 1700.0, 48)).ravel()
ZEROS: Final = 0.05  # largest share of values that are exactly 0 for an integrand that surely is not zero
LOUD: Final = 1e6  # an integrand that is larger than this everywhere hides errors of usual size


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """A run of neighbouring base points between which f does not end."""

    inside: Bools  # mask of the base points
    n_points: int
    is_loud: bool  # f is larger than LOUD at all of them
    is_whole: bool  # its near points are all those at which f is known
    goes_far: bool  # it contains far points


@dataclass(eq=False)
class Integrand:
    """A parsed integrand with its values at the base points. All other properties are computed when needed."""

    expression: Expression
    seed: int
    points: Floats  # the base points
    values: Numbers
    breakables: list[Breakable]
    known: Bools  # finite, real, and neither underflowing nor overflowing
    overflown: Bools  # not finite because a part is infinite

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The intervals on which an answer may be right, those with the most known points first; () if f is zero.

        Only intervals that reach into x > 0, unless none does. Raises IntegrandError if f is finite and real nowhere,
        or only rounding noise.
        """
        return survey(self.expression, self.seed)

    def read(self, answer: str, *, constant_of_integration: bool) -> Expression:
        """Parse an answer; raises ExpressionError."""
        f = self.expression
        # The integral of cbrt(x) is written as 3*x**(4/3)/4, which means real roots then.
        real = "cbrt" in f.functions
        return parse(answer, f.variable, constant_of_integration=constant_of_integration, real_cube_roots=real)

    @cached_property
    def may_be_zero(self) -> bool:
        """True if f is exactly 0 at many points. Its terms may cancel everywhere, up to rounding."""
        return not self.expression.kinds & {"root", "step"} and bool((self.values == 0).mean() > ZEROS)

    @cached_property
    def size(self) -> Floats:
        """Sizes of f at the base points, by which errors are measured; nan where f is unknown."""
        size = np.where(self.known, sizes_of(np.where(self.known, self.values, np.nan)), np.nan)
        # Close to a zero of f its terms cancel, and errors relative to its tiny value would only be rounding. There the
        # size is a tenth of that at the smaller neighbour, but at most 1000 times the value.
        beside = 0.1 * np.minimum(size[: N_NEAR - 2], size[2:N_NEAR])
        size[1 : N_NEAR - 1] = np.fmax(size[1 : N_NEAR - 1], np.minimum(beside, 1e3 * size[1 : N_NEAR - 1]))
        return size

    @cached_property
    def decisive(self) -> Bools:
        """Mask of the base points that count for a verdict of wrong: x > 0, or x <= 0 if f is known at no x > 0."""
        positive = self.points > 0
        return positive if (positive & self.known).any() else ~positive

    @cached_property
    def turns(self) -> int:
        """Number of times that f turns, from rising to falling or back, over the near points."""
        with np.errstate(invalid="ignore"):
            return int(np.count_nonzero(np.diff(np.sign(np.diff(self.values[:N_NEAR].real)))))

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The stretches with at least MIN_POINTS known points that reach into x > 0, or all if none does."""
        # The common case: f is known at all points and has no breaks, so it is a single stretch.
        if not self._signs and self.known.all() and np.count_nonzero(self.values) >= MIN_POINTS:
            return (self._stretch(self.known),)
        return self._between(self._visible_ends)

    @cached_property
    def parts(self) -> tuple[Stretch, ...]:
        """The stretches, also cut at ends of f that no change of sign between base points shows.

        Such ends are double poles, and those found by the extra far points. Finding them takes another evaluation.
        """
        if not any(kind in ("pole", "log", "root") for kind, _ in self.breakables):
            return self.stretches
        cuts = np.searchsorted(self.points[sort_order(self.seed)], self.ends.mean(axis=1))
        cuts = cuts[(cuts > 0) & (cuts < len(self.points))] - 1
        ends = self._visible_ends.copy()
        ends[cuts] = True
        return self.stretches if (ends == self._visible_ends).all() else self._between(ends)

    @cached_property
    def _visible_ends(self) -> Bools:
        """Mask of the gaps between neighbouring base points, by place, in which f visibly ends.

        There a breaking quantity changes sign, or f stops being known.
        """
        order = sort_order(self.seed)
        return np.asarray(np.any([np.diff(mask[order]) for mask in [*self._signs, self.known]], axis=0))

    @cached_property
    def _signs(self) -> list[Bools]:
        """Masks, one for each quantity that vanishes at poles or branch points of logarithms: where it is negative."""
        return [np.signbit(q) for kind, q in self.breakables if kind in ("pole", "log")]

    def _between(self, ends: Bools) -> tuple[Stretch, ...]:
        """Return the stretches between `ends`, a mask of the gaps between neighbouring base points, by place."""
        # numbers[i] is the number of the stretch that base point i belongs to.
        order = sort_order(self.seed)
        numbers = np.empty(len(order), np.intp)
        numbers[order] = np.append(0, np.cumsum(ends))
        counts = np.bincount(numbers, weights=self.known & (self.values != 0))
        reaching = (np.bincount(numbers, weights=self.points > 0) > 0) & (counts >= MIN_POINTS)
        chosen = reaching if (self.points[self.known] > 0).any() else counts >= MIN_POINTS
        return tuple(self._stretch(numbers == number) for number in np.flatnonzero(chosen))

    @cached_property
    def ends(self) -> Floats:
        """Intervals that contain an end of f, shape (n, 2), found at the base points and _FAR.

        An end shows as a change of sign, as a dip to 0, or because f stops being real. For a dip, both edges are its
        place.
        """
        far = evaluate_real(self.expression, _FAR)
        order = sort_order(self.seed, with_far=True)
        grid = np.append(self.points, _FAR)[order]
        breakables = [
            Breakable(kind, np.append(q, of_far)[order])
            for (kind, q), (_, of_far) in zip(self.breakables, far.breakables, strict=True)
        ]
        is_real = np.append(np.isfinite(self.values) | self.overflown, np.isfinite(far.values) | far.overflown)[order]
        signs = [np.signbit(q) for kind, q in breakables if kind in ("pole", "log")]
        ends = np.any([np.diff(mask) for mask in [is_real, *signs]], axis=0)
        dips = brackets(grid, breakables, ("pole", "log"), None)
        places = grid[1:][ends]
        # Locating dips is slow. Those beyond the first end on either side do not count: no stretch goes that far.
        low = places[places < self.points[0]].max(initial=-np.inf)
        high = places[places > self.points[N_NEAR - 1]].min(initial=np.inf)
        dips = dips.of(~ends[np.searchsorted(grid, dips.low)] & (dips.high > low) & (dips.low < high))
        landmarks = zoom(self.expression, breakables, dips)
        breaks = np.array(breaks_at(self.expression, landmarks) if landmarks else [])
        return np.stack([np.append(grid[:-1][ends], breaks), np.append(grid[1:][ends], breaks)], axis=1)

    def _stretch(self, inside: Bools) -> Stretch:
        is_loud = bool((self.size[inside] > LOUD).all())
        is_whole = bool((inside == self.known)[:N_NEAR].all())
        return Stretch(inside, int(np.count_nonzero(inside)), is_loud, is_whole, bool(inside[N_NEAR:].any()))

    @cached_property
    def removable(self) -> Bools:
        """Mask of the gaps between near points with a removable break, as that of sin(x)/x: f has an integral there."""
        broken = np.zeros(N_NEAR - 1, bool)
        for kind, q in self.breakables:
            if kind in ("pole", "log"):
                broken |= np.diff(np.signbit(q[:N_NEAR]))
        needed = broken & pairs_within(self.known)
        return np.isfinite(increments(self.expression, self.points[:N_NEAR], needed)[0])

    @cached_property
    def increments(self) -> tuple[Numbers, Floats]:
        """Integrals of f between neighbouring near points, nan where f breaks, and of |f|; both of shape (240,)."""
        x = self.points[:N_NEAR]
        edges = x[::DEGREE]
        # The near points are nodes of Clenshaw-Curtis panels, so where f is smooth its known values are enough.
        integrals, size = between_nodes(self.values[_PANELS], 0.5 * np.diff(edges))
        # The scale follows the local size of f, but is no less than a hundredth of the largest size in the panel: the
        # accuracy of the integrals is relative to that.
        local = np.maximum(np.abs(self.values[: N_NEAR - 1]), np.abs(self.values[1:N_NEAR]))
        scales = np.maximum(local, 0.01 * np.repeat(size, DEGREE)) * np.diff(x)
        return increments(self.expression, x, pairs_within(self.known), integrals.ravel(), scales)[:2]


def pairs_within(mask: Bools) -> Bools:
    """Return a mask of the pairs of neighbouring near points that are both in `mask`, a mask of the base points."""
    return mask[: N_NEAR - 1] & mask[1:N_NEAR]


@lru_cache(maxsize=256)
def prepare(text: str, variable: str = "x", seed: int = 0) -> Integrand:
    """Parse an integrand and evaluate it at the base points of `seed`; raises IntegrandError."""
    try:
        expression = parse(text, variable)
    except ExpressionError as error:
        raise IntegrandError(f"the integrand cannot be read: {error}") from None
    points = base_points(seed)
    evaluation = evaluate_real(expression, points)
    known = is_known(expression, evaluation)
    return Integrand(expression, seed, points, evaluation.values, evaluation.breakables, known, evaluation.overflown)


# Indices of the near points of each panel, shape (12, 21). Neighbouring panels share a point: the last index of a row
# is the first one of the next row.
_PANELS: Final = DEGREE * np.arange(2 * len(_EDGES))[:, None] + np.arange(DEGREE + 1)


@lru_cache(maxsize=64)
def base_points(seed: int) -> Floats:
    """Return the points at which every integrand is evaluated first, shape (249,). The seed alone decides them."""
    rng = np.random.default_rng(seed)
    edges = np.concatenate([-_EDGES[::-1], [0.0], _EDGES])
    widths = np.diff(edges)
    narrower = np.minimum(np.append(widths, widths[-1]), np.insert(widths, 0, widths[0]))
    # Each edge moves by up to a tenth of its narrower panel, so that edges avoid round numbers, where functions break.
    edges += 0.1 * narrower * rng.uniform(-1, 1, len(edges))
    near = edges[:-1, None] + 0.5 * np.diff(edges)[:, None] * (1 + NODES)
    # Far points: 15 to 30, 40 to 80, 200 to 400 and 800 to 1600, on both sides.
    sizes = np.array([15.0, 40.0, 200.0, 800.0]) * rng.uniform(1, 2, 4)
    return np.concatenate([near[:, :-1].ravel(), edges[-1:], -sizes[::-1], sizes])


@lru_cache(maxsize=64)
def sort_order(seed: int, *, with_far: bool = False) -> Indices:
    """Return the indices that sort the base points by place, or these and _FAR."""
    return np.argsort(np.append(base_points(seed), _FAR) if with_far else base_points(seed))


@lru_cache(maxsize=64)
def gaps(seed: int) -> Floats:
    """Return the distance from each base point to its farther neighbour, or 0 for the far points."""
    between = np.diff(base_points(seed)[:N_NEAR])
    largest = np.maximum(np.append(between, 0.0), np.insert(between, 0, 0.0))
    return np.append(largest, np.zeros(len(base_points(seed)) - N_NEAR))
