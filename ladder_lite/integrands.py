"""An integrand as the verifier sees it: where it is defined, where it breaks, and points to test answers on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ladder_lite.evaluation import Evaluation
from ladder_lite.expressions import Breakable, Expression, ExpressionError, parse
from ladder_lite.landmarks import MAX_FOUND, WORK, locate
from ladder_lite.quadrature import DEGREE, NODES, between_nodes, kronrod

# Edges of the panels that hold the near points, to either side of 0; moved by up to a tenth of a panel for a seed.
_EDGES: Final = np.array([0.5, 1.25, 2.4, 4.2, 6.8, 10.0])
N_NEAR: Final = 2 * len(_EDGES) * DEGREE + 1
MIN_POINTS: Final = 8  # of those at which the integrand has a value that floating point can hold
SMALLEST: Final = 1e-90  # closer to 0, parts of a value (its cubes and squares) may have lost their digits
LARGEST: Final = 1e90
LOUD: Final = 1e6  # an integrand that is larger at all near points can hide plain errors
QUIET: Final = 1e-6  # of the usual size
N_JITTERED: Final = 4
MAX_PANELS: Final = 1000  # of one round of quadrature between near points; an integrand that needs more oscillates fast

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[Any]  # real or complex


class IntegrandError(Exception):
    """The integrand cannot be read, or is nowhere finite and real: the problem's fault, no answer's."""


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """An interval on which the integrand is finite and real.

    `cells` are the grid intervals where it can be told from 0, `quiet` those where it is far smaller than elsewhere.
    """

    low: float
    high: float
    cells: Floats  # shape (n, 2)
    quiet: Floats
    switches: tuple[float, ...]  # where the integrand has a step, a kink or a root's branch point, sorted

    def sample(self, n: int, seed: int) -> Floats:
        """`n` random points in the component's cells, near ones first choice, at least 3 on each side of a switch."""
        rng = np.random.default_rng(seed)
        cells = self.cells
        near = np.abs(cells).max(axis=1) <= 20
        if near.sum() >= 8:
            cells = cells[near]
        points = [_in_cells(cells, n, rng), self.quiet.mean(axis=1)]
        edges = [self.low, *self.switches, self.high]
        for low, high in pairwise(edges):
            piece = self.cells[(self.cells[:, 0] >= low) & (self.cells[:, 1] <= high)]
            if len(piece) and len(edges) > 2:
                points.append(_in_cells(piece[np.argsort(np.abs(piece).max(axis=1))[:16]], 3, rng))
        return np.sort(np.concatenate(points))


def _in_cells(cells: Floats, n: int, rng: np.random.Generator) -> Floats:
    at = (np.arange(n) + rng.uniform(0, 1, n)) * (len(cells) / n)
    index = np.minimum(at.astype(int), len(cells) - 1)
    low, high = cells[index].T
    return np.asarray(low + (high - low) * (at - index))


@dataclass(slots=True, eq=False)
class Integrand:
    """A read integrand with its values at the base points. The survey is made when an answer first needs it."""

    expression: Expression
    seed: int
    points: Floats  # near points, sorted, then far points
    values: Numbers
    breakables: list[Breakable]
    known: Bools  # finite, real, and neither underflowing nor overflowing
    _surveyed: tuple[tuple[Component, ...], bool] | None = None  # components, whether identically zero
    _increments: tuple[Floats, Floats] | None = None

    @property
    def components(self) -> tuple[Component, ...]:
        """The intervals of the domain, those with the most known points first; raises IntegrandError if none."""
        if self._surveyed is None:
            self._surveyed = _survey(self)
        components, zero = self._surveyed
        if not components and not zero:
            raise IntegrandError("the integrand is nowhere finite and real")
        return components

    @property
    def identically_zero(self) -> bool:
        """Whether it is zero up to rounding wherever it is defined."""
        return not self.components

    @property
    def is_loud(self) -> bool:
        """Whether it is so large at all base points that plain errors do not show there."""
        sizes = np.abs(self.values[self.known])
        return bool(len(sizes)) and bool(sizes.min() > LOUD)

    @property
    def whole(self) -> Bools:
        """Between which neighbouring near points f has no pole or branch point that shows, and is known at both."""
        whole = self.known[: N_NEAR - 1] & self.known[1:N_NEAR]
        for kind, q in self.breakables:
            if kind in ("pole", "log"):
                negative = np.signbit(q[:N_NEAR])
                whole &= negative[1:] == negative[:-1]
        return whole

    @property
    def increments(self) -> tuple[Floats, Floats]:
        """Integrals of f between neighbouring near points and its size there; nan where f breaks, or is not real."""
        if self._increments is None:
            self._increments = _integrate_between(self)
        return self._increments


def _integrate_between(problem: Integrand) -> tuple[Floats, Floats]:
    x = problem.points[:N_NEAR]
    if problem.expression.is_complex:
        return np.full(N_NEAR - 1, np.nan), np.full(N_NEAR - 1, np.nan)
    edges = x[::DEGREE]
    integrals, size = between_nodes(problem.values[_PANELS], 0.5 * np.diff(edges))
    integrals, scales = integrals.ravel(), np.repeat(size, DEGREE) * np.diff(x)
    # Where the nodes are too few, as around poles: intervals on their own.
    rest = np.isnan(integrals) & problem.whole
    for panels in (1, 4, 16):
        at = np.flatnonzero(rest)
        if not len(at) or len(at) * panels > MAX_PANELS:
            break
        ends = x[at, None] + (x[at + 1] - x[at])[:, None] * (np.arange(panels + 1) / panels)
        found = kronrod(problem.expression.values, ends[:, :-1].ravel(), ends[:, 1:].ravel())
        integral, absolute, uncertain, _ = (part.reshape(len(at), panels).sum(axis=1) for part in found)
        converged = uncertain <= 1e-9 * absolute
        integrals[at[converged]] = integral[converged]
        scales[at[converged]] = absolute[converged]
        rest[at[converged]] = False
    return integrals, scales


@lru_cache(maxsize=256)
def prepare(text: str, variable: str = "x", seed: int = 0) -> Integrand:
    """Read an integrand and evaluate it at the base points of `seed`; raises IntegrandError."""
    try:
        expression = parse(text, variable)
    except ExpressionError as error:
        raise IntegrandError(f"the integrand cannot be read: {error}") from None
    points = base_points(seed)
    evaluation = evaluate_real(expression, points)
    values = evaluation.values
    return Integrand(expression, seed, points, values, evaluation.breakables, is_known(evaluation))


def real_values(expression: Expression, points: Floats) -> Numbers:
    """Values of an integrand at real points, nan where it is not real unless it contains I itself.

    In real arithmetic: where a subexpression leaves the reals the value is nan at once, while in complex arithmetic a
    large real term can hide an imaginary part, as in log(x)+sinh(x). An integrand that is real by way of complex
    numbers only, like sqrt(-1-x**2)**2, is thus real nowhere.
    """
    return evaluate_real(expression, points).values


def evaluate_real(expression: Expression, points: Floats) -> Evaluation:
    """An evaluation of an integrand without derivatives, in real arithmetic unless it contains I."""
    return expression.evaluate(points.astype(complex) if expression.is_complex else points, derivative=False)


def is_known(evaluation: Evaluation) -> Bools:
    """Where an integrand's value is finite and carries its digits, because no part of it overflows or underflows."""
    with np.errstate(all="ignore"):
        size = np.abs(evaluation.values)
        known: Bools = evaluation.is_finite & (size > SMALLEST) & (size < LARGEST)
        return known


def stretches(points: Floats, breakables: list[Breakable]) -> NDArray[np.intp]:
    """The number of the stretch each point lies in: no breakable quantity changes its sign inside a stretch."""
    order = np.argsort(points)
    broken = np.zeros(len(points), dtype=np.intp)
    for _, quantity in breakables:
        negative = np.signbit(np.broadcast_to(quantity, points.shape)[order])
        broken[1:] |= negative[1:] != negative[:-1]
    numbers = np.empty(len(points), dtype=np.intp)
    numbers[order] = np.cumsum(broken)
    return numbers


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
def gaps(seed: int) -> Floats:
    """Distance of every base point to its neighbours, the larger one; 0 for the far points."""
    between = np.diff(base_points(seed)[:N_NEAR])
    largest = np.maximum(np.append(between, 0.0), np.insert(between, 0, 0.0))
    return np.append(largest, np.zeros(len(base_points(seed)) - N_NEAR))


# --- the survey: components of the domain ---------------------------------------------------------------------------


def _survey(problem: Integrand) -> tuple[tuple[Component, ...], bool]:
    expression = problem.expression
    grid = survey_grid(expression, problem.seed)
    evaluation = evaluate_real(expression, grid)
    values = evaluation.values
    known = is_known(evaluation)
    if known.sum() < MIN_POINTS:
        grid = _grid_around_zeros(expression, grid)
        evaluation = evaluate_real(expression, grid)
        values = evaluation.values
        known = is_known(evaluation)
    usable = np.isfinite(values)
    if _only_noise(expression, grid, values, usable):
        return (), bool(usable.sum() >= MIN_POINTS)
    landmarks = locate(expression, grid, evaluation.breakables, usable, limit=2 * MAX_FOUND)
    breaks = [at for at, kind in landmarks if kind in ("pole", "log")]
    switches = sorted({at for at, kind in landmarks if kind in ("step", "root")})
    edges = usable[:-1] & usable[1:]
    edges[np.searchsorted(grid, [b for b in breaks if grid[0] < b < grid[-1]]) - 1] = False
    components = []
    start = 0
    for end in [*np.flatnonzero(~edges), len(grid) - 1]:
        if end > start:
            informative = known[start:end] | known[start + 1 : end + 1]
            cells = np.stack([grid[start:end], grid[start + 1 : end + 1]], axis=1)[informative]
            if len(cells) >= 2:
                inside = tuple(s for s in switches if grid[start] < s < grid[end])
                quiet = _quiet(cells, np.abs(values[start : end + 1]), informative)
                components.append(Component(float(grid[start]), float(grid[end]), cells, quiet, inside))
        start = end + 1
    components.sort(key=lambda c: -int((np.abs(c.cells).max(axis=1) <= 20).sum() * 1000 + len(c.cells)))
    return tuple(components), False


def _quiet(cells: Floats, size: Floats, informative: Bools) -> Floats:
    """The cells with the smallest values, if these are far below the others: large ones hide what is wrong."""
    smallest = np.minimum(size[:-1], size[1:])[informative]
    first = np.argsort(smallest)[:4]
    found: Floats = cells[first[smallest[first] < QUIET * np.median(smallest)]]
    return found


def survey_grid(expression: Expression, seed: int) -> Floats:
    """Sorted points over the line: dense in [-10, 10], logarithmic to 1e6, and around the expression's constants."""
    n = max(24, min(240, WORK // (40 * max(1, expression.n_nodes))))
    centres = sorted({c for c in expression.constants if 1e-3 < abs(c) < 1e9} - {-1.0}, key=abs)
    return _grid_around(tuple(centres[-8:]), n, seed)


@lru_cache(maxsize=256)
def _grid_around(centres: tuple[float, ...], n: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed + 1)
    away = np.geomspace(1e-6, 1e6, n)
    pieces = [np.linspace(-10, 10, 2 * n), away, -away]
    close = np.geomspace(1e-4, 30, n // 4)
    for centre in centres:
        for at in (centre, -centre):
            pieces += [at + close, at - close]
    grid = np.unique(np.concatenate(pieces))
    # Off the round numbers, where integrands have their poles and kinks.
    return grid[:-1] + np.diff(grid) * rng.uniform(0.2, 0.8, len(grid) - 1)


def _grid_around_zeros(expression: Expression, grid: Floats) -> Floats:
    """`grid` and points around the zeros of every subexpression: where an integrand lives far from the origin."""
    close = np.geomspace(1e-4, 30, 30)
    pieces = [grid]
    for zero in expression.zeros(grid)[:24]:
        pieces += [zero + close, zero - close]
    return np.unique(np.concatenate(pieces))


def _only_noise(expression: Expression, grid: Floats, values: Numbers, usable: Bools) -> bool:
    if not usable.any():
        return True
    points = grid[usable][:: max(1, int(usable.sum()) // 64)]
    plain = values[usable][:: max(1, int(usable.sum()) // 64)]
    # Of random noise a few values are larger than any run's spread.
    return bool((np.abs(plain) <= 30 * noise(expression, points)[0]).mean() >= 0.95)


def noise(expression: Expression, points: Numbers) -> tuple[Floats, Floats]:
    """Rounding noise of values and derivatives at `points`: the spread of a plain run and four jittered ones."""
    if expression.is_complex:
        points = points.astype(complex)
    plain = expression.evaluate(points)
    runs = expression.evaluate(np.tile(points, N_JITTERED), jitter=np.random.default_rng(12345))
    with np.errstate(all="ignore"):
        values = np.abs(runs.values.reshape(N_JITTERED, -1) - plain.values).max(axis=0)
        slopes = np.abs(runs.slopes.reshape(N_JITTERED, -1) - plain.slopes).max(axis=0)
    return values, slopes
