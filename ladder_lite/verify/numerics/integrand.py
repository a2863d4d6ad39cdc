"""An integrand as the verifier sees it: where it is defined, where it breaks, and points to test answers on."""

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

# Edges of the panels that hold the near points, to either side of 0; moved by up to a tenth of a panel for a seed.
_EDGES: Final = np.array([0.5, 1.25, 2.4, 4.2, 6.8, 10.0])
N_NEAR: Final = 2 * len(_EDGES) * DEGREE + 1
# More points beyond the near ones, to see where f ends.
_FAR: Final = np.outer([-1, 1], np.geomspace(10.5, 1700.0, 48)).ravel()
ZEROS: Final = 0.05  # of its values an integrand that is not zero may have exactly 0
LOUD: Final = 1e6  # an integrand that is larger everywhere hides plain errors from double precision


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Base points between which f does not end: where they are, how many, and whether f is LOUD at all of them.

    `is_whole`: whether they are all near points at which f is known; `goes_far`: whether there are far ones.
    """

    inside: Bools
    n_points: int
    is_loud: bool
    is_whole: bool
    goes_far: bool


@dataclass(eq=False)
class Integrand:
    """A read integrand with its values at the base points; what else there is to know of it is found when needed."""

    expression: Expression
    seed: int
    points: Floats  # near points, sorted, then far points
    values: Numbers
    breakables: list[Breakable]
    known: Bools  # finite, real, and neither underflowing nor overflowing
    overflown: Bools

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The intervals that an answer may be right on, those with the most known points first; none if it is zero.

        They are those that reach into x > 0, the others only where none does. Raises IntegrandError if it is nowhere
        finite and real, or is only rounding noise.
        """
        return survey(self.expression, self.seed)

    def read(self, answer: str, *, constant_of_integration: bool) -> Expression:
        """Read an answer; raises ExpressionError."""
        f = self.expression
        real = "cbrt" in f.functions  # To its integral people answer x**(4/3), and mean real roots.
        return parse(answer, f.variable, constant_of_integration=constant_of_integration, real_cube_roots=real)

    @property
    def identically_zero(self) -> bool:
        """Whether it is zero wherever it is defined."""
        return not self.components

    @cached_property
    def may_be_zero(self) -> bool:
        """Whether it is exactly 0 more often than by its zeros: its terms may cancel everywhere, up to rounding."""
        return not self.expression.kinds & {"root", "step"} and bool((self.values == 0).mean() > ZEROS)

    @cached_property
    def size(self) -> Floats:
        """Sizes at the base points, by which errors are measured; nan where it is not known.

        Next to a zero of f, where terms of its own cancel, part of the size at both neighbours.
        """
        size = np.where(self.known, sizes_of(np.where(self.known, self.values, np.nan)), np.nan)
        beside = 0.1 * np.minimum(size[: N_NEAR - 2], size[2:N_NEAR])
        size[1 : N_NEAR - 1] = np.fmax(size[1 : N_NEAR - 1], np.minimum(beside, 1e3 * size[1 : N_NEAR - 1]))
        return size

    @cached_property
    def telling(self) -> Bools:
        """The base points with x > 0, or all where none of them is known."""
        positive = self.points > 0
        return positive if (positive & self.known).any() else ~positive

    @cached_property
    def turns(self) -> int:
        """How often it turns, from rising to falling or back, at the near points."""
        with np.errstate(invalid="ignore"):
            return int(np.count_nonzero(np.diff(np.sign(np.diff(self.values[:N_NEAR].real)))))

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The stretches with MIN_POINTS known points that reach into x > 0, all where none of them does."""
        if not self._signs and self.known.all() and np.count_nonzero(self.values) >= MIN_POINTS:
            return (self._stretch(self.known),)
        return self._between(self._seen_ends)

    @cached_property
    def parts(self) -> tuple[Stretch, ...]:
        """The stretches, cut where f ends between their points without a change of sign, or beyond the near points."""
        if not any(kind in ("pole", "log", "root") for kind, _ in self.breakables):
            return self.stretches
        cuts = np.searchsorted(self.points[by_place(self.seed)], self.ends.mean(axis=1))
        cuts = cuts[(cuts > 0) & (cuts < len(self.points))] - 1
        ends = self._seen_ends.copy()
        ends[cuts] = True
        return self.stretches if (ends == self._seen_ends).all() else self._between(ends)

    @cached_property
    def _seen_ends(self) -> Bools:
        """Between which neighbouring base points something changes its sign, or f ceases to be known."""
        order = by_place(self.seed)
        return np.asarray(np.any([np.diff(mask[order]) for mask in [*self._signs, self.known]], axis=0))

    @cached_property
    def _signs(self) -> list[Bools]:
        """Where each quantity that vanishes at poles, or where logarithms break, is negative."""
        return [np.signbit(q) for kind, q in self.breakables if kind in ("pole", "log")]

    def _between(self, ends: Bools) -> tuple[Stretch, ...]:
        """The stretches between `ends`, which are some of the pairs of neighbouring base points."""
        order = by_place(self.seed)
        numbers = np.empty(len(order), np.intp)
        numbers[order] = np.append(0, np.cumsum(ends))
        counts = np.bincount(numbers, weights=self.known & (self.values != 0))
        reaching = (np.bincount(numbers, weights=self.points > 0) > 0) & (counts >= MIN_POINTS)
        chosen = reaching if (self.points[self.known] > 0).any() else counts >= MIN_POINTS
        return tuple(self._stretch(numbers == number) for number in np.flatnonzero(chosen))

    @cached_property
    def ends(self) -> Floats:
        """Places where it ends, each as the numbers that it lies between, shape (n, 2).

        Those that changes of sign, dips to 0 and ends of the reals show at the base points and some far ones more.
        """
        far = evaluate_real(self.expression, _FAR)
        order = by_place(self.seed, with_far=True)
        grid = np.append(self.points, _FAR)[order]
        breakables = [
            Breakable(kind, np.append(q, of_far)[order])
            for (kind, q), (_, of_far) in zip(self.breakables, far.breakables, strict=True)
        ]
        is_real = np.append(np.isfinite(self.values) | self.overflown, np.isfinite(far.values) | far.overflown)[order]
        signs = [np.signbit(q) for kind, q in breakables if kind in ("pole", "log")]
        ends = np.any([np.diff(mask) for mask in [is_real, *signs]], axis=0)
        found = brackets(grid, breakables, ("pole", "log"), None)
        places = grid[1:][ends]
        # Dips beyond the first far ends do not count, for no stretch goes that far.
        low = places[places < self.points[0]].max(initial=-np.inf)
        high = places[places > self.points[N_NEAR - 1]].min(initial=np.inf)
        dips = found.of(~ends[np.searchsorted(grid, found.low)] & (found.high > low) & (found.low < high))
        landmarks = zoom(self.expression, breakables, dips)
        at = np.array(breaks_at(self.expression, landmarks) if landmarks else [])
        return np.stack([np.append(grid[:-1][ends], at), np.append(grid[1:][ends], at)], axis=1)

    def _stretch(self, inside: Bools) -> Stretch:
        is_loud = bool((self.size[inside] > LOUD).all())
        is_whole = bool((inside == self.known)[:N_NEAR].all())
        return Stretch(inside, int(np.count_nonzero(inside)), is_loud, is_whole, bool(inside[N_NEAR:].any()))

    @cached_property
    def removable(self) -> Bools:
        """Between which neighbouring near points f has an integral across a break, as sin(x)/x has."""
        broken = np.zeros(N_NEAR - 1, bool)
        for kind, q in self.breakables:
            if kind in ("pole", "log"):
                broken |= np.diff(np.signbit(q[:N_NEAR]))
        wanted = broken & both_near(self.known)
        return np.isfinite(increments(self.expression, self.points[:N_NEAR], wanted)[0])

    @cached_property
    def increments(self) -> tuple[Numbers, Floats]:
        """Integrals of f between neighbouring near points and those of its size; nan where f breaks."""
        x = self.points[:N_NEAR]
        edges = x[::DEGREE]
        integrals, size = between_nodes(self.values[_PANELS], 0.5 * np.diff(edges))
        # Of the function's size in the whole panel, which its integrals are known by, a part.
        local = np.maximum(np.abs(self.values[: N_NEAR - 1]), np.abs(self.values[1:N_NEAR]))
        scales = np.maximum(local, 0.01 * np.repeat(size, DEGREE)) * np.diff(x)
        return increments(self.expression, x, both_near(self.known), integrals.ravel(), scales)[:2]


def both_near(mask: Bools) -> Bools:
    """Of the pairs of neighbouring near points those of which both are in a mask of the base points."""
    return mask[: N_NEAR - 1] & mask[1:N_NEAR]


@lru_cache(maxsize=256)
def prepare(text: str, variable: str = "x", seed: int = 0) -> Integrand:
    """Read an integrand and evaluate it at the base points of `seed`; raises IntegrandError."""
    try:
        expression = parse(text, variable)
    except ExpressionError as error:
        raise IntegrandError(f"the integrand cannot be read: {error}") from None
    points = base_points(seed)
    evaluation = evaluate_real(expression, points)
    known = is_known(expression, evaluation)
    return Integrand(expression, seed, points, evaluation.values, evaluation.breakables, known, evaluation.overflown)


# Indices of the near points of each panel: neighbours share an edge.
_PANELS: Final = DEGREE * np.arange(2 * len(_EDGES))[:, None] + np.arange(DEGREE + 1)


@lru_cache(maxsize=64)
def base_points(seed: int) -> Floats:
    """The points every integrand is tried on first; reproducible for a seed.

    Near ones are nodes of panels that quadrature can use, denser around 0. Far ones, out to 1600, an answer must not
    contradict.
    """
    rng = np.random.default_rng(seed)
    edges = np.concatenate([-_EDGES[::-1], [0.0], _EDGES])
    widths = np.diff(edges)
    narrower = np.minimum(np.append(widths, widths[-1]), np.insert(widths, 0, widths[0]))
    edges += 0.1 * narrower * rng.uniform(-1, 1, len(edges))
    near = edges[:-1, None] + 0.5 * np.diff(edges)[:, None] * (1 + NODES)
    sizes = np.array([15.0, 40.0, 200.0, 800.0]) * rng.uniform(1, 2, 4)
    return np.concatenate([near[:, :-1].ravel(), edges[-1:], -sizes[::-1], sizes])


@lru_cache(maxsize=64)
def by_place(seed: int, *, with_far: bool = False) -> Indices:
    """The order that sorts the base points, or these and _FAR."""
    return np.argsort(np.append(base_points(seed), _FAR) if with_far else base_points(seed))


@lru_cache(maxsize=64)
def gaps(seed: int) -> Floats:
    """Distance of every base point to its neighbours, the larger one; 0 for the far points."""
    between = np.diff(base_points(seed)[:N_NEAR])
    largest = np.maximum(np.append(between, 0.0), np.insert(between, 0, 0.0))
    return np.append(largest, np.zeros(len(base_points(seed)) - N_NEAR))
