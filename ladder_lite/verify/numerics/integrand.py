"""An integrand as the verifier sees it: where it is defined, where it breaks, and points to test answers on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ladder_lite.verify.expressions.expression import Breakable, Evaluation, Expression, ExpressionError
from ladder_lite.verify.expressions.operations import Break
from ladder_lite.verify.expressions.parse import parse
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.quadrature import DEGREE, NODES, between_nodes, kronrod
from ladder_lite.verify.numerics.singularities import MAX_FOUND, locate

# Edges of the panels that hold the near points, to either side of 0; moved by up to a tenth of a panel for a seed.
_EDGES: Final = np.array([0.5, 1.25, 2.4, 4.2, 6.8, 10.0])
N_NEAR: Final = 2 * len(_EDGES) * DEGREE + 1
MIN_POINTS: Final = 8  # of those at which the integrand has a value that floating point can hold
SMALLEST: Final = 1e-90  # closer to 0, parts of a value (its cubes and squares) may have lost their digits
LARGEST: Final = 1e290
UNDERFLOW: Final = 1e-290  # numbers below it lose digits
LOUD: Final = 1e6  # an integrand that is larger everywhere hides plain errors from double precision
N_ZEROS: Final = 8  # cells in which the integrand is 0 that points are taken from
MAX_COMPONENTS: Final = 6  # that an answer may be right on
REACH: Final = 10.0  # All places nearer than this where an answer may break are looked at.
TOWARDS_END: Final = 0.1 ** np.arange(1, 8)
QUIET: Final = 1e-6  # of the usual size
N_JITTERED: Final = 4
MAX_RUNS: Final = 6  # of points at which it overflows that are looked at, the longest
N_OF_RUN: Final = 8  # points of each
JITTER: Final = 1.2e-14  # a run is off by so much in each operation, many times its rounding
GRID_WORK: Final = 1_500_000  # bound on operations times points
CONVERGED: Final = 1e-9  # error of an integral, relative to that of |f|
MAX_PANELS: Final = 1000  # of one round of quadrature; an integrand that needs more oscillates fast

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]
Numbers = NDArray[Any]  # real or complex


class IntegrandError(Exception):
    """The integrand cannot be read, or is nowhere finite and real: the problem's fault, no answer's."""


class NoiseError(IntegrandError):
    """Double precision shows only rounding noise."""


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """An interval on which the integrand is finite and real.

    `cells` are the grid intervals where it can be told from 0, `quiet` some where it is far smaller than elsewhere,
    or 0.
    """

    low: float
    high: float
    cells: Floats  # shape (n, 2)
    quiet: Floats
    switches: tuple[float, ...]  # where the integrand has a step, a kink or a root's branch point, sorted

    @property
    def reach(self) -> float:
        """How far from 0 it is looked at closely."""
        return REACH + max(self.low, -self.high, 0.0)

    def sample(self, n: int, seed: int) -> Floats:
        """`n` random points in the component's cells, near ones first choice, at least 3 on each side of a switch.

        And some towards its ends.
        """
        return _sample(self, n, seed)


@lru_cache(maxsize=256)
def _sample(component: Component, n: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    cells = component.cells
    near = np.abs(cells).max(axis=1) <= component.reach + REACH
    if near.sum() >= 8:
        cells = cells[near]
    inner = _in_cells(cells, n, rng)
    points = [inner, component.quiet.mean(axis=1)]
    for end, first in ((component.low, inner.min()), (component.high, inner.max())):
        if abs(end) <= component.reach + REACH:
            points.append(end + (first - end) * TOWARDS_END)
    edges = [component.low, *component.switches, component.high]
    for low, high in pairwise(edges):
        piece = component.cells[(component.cells[:, 0] >= low) & (component.cells[:, 1] <= high)]
        if len(piece) and len(edges) > 2:
            points.append(_in_cells(piece[np.argsort(np.abs(piece).max(axis=1))[:16]], 3, rng))
    return np.sort(np.concatenate(points))


def _in_cells(cells: Floats, n: int, rng: np.random.Generator) -> Floats:
    at = (np.arange(n) + rng.uniform(0, 1, n)) * (len(cells) / n)
    index = np.minimum(at.astype(int), len(cells) - 1)
    low, high = cells[index].T
    return np.asarray(low + (high - low) * (at - index))


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
        with exact.allowance():
            return _survey(self)

    @property
    def identically_zero(self) -> bool:
        """Whether it is zero wherever it is defined."""
        return not self.components

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
    def distances(self) -> Floats:
        """Of the base points from 0."""
        return np.abs(self.points)

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
        signs = [np.signbit(q) for kind, q in self.breakables if kind in ("pole", "log")]
        if not signs and self.known.all() and np.count_nonzero(self.values) >= MIN_POINTS:
            return (self._stretch(self.known),)
        order = by_place(self.seed)
        ends = np.any([np.diff(sign[order]) for sign in [*signs, self.known]], axis=0)
        numbers = np.empty(len(order), np.intp)
        numbers[order] = np.append(0, np.cumsum(ends))
        counts = np.bincount(numbers, weights=self.known & (self.values != 0))
        reaching = (np.bincount(numbers, weights=self.points > 0) > 0) & (counts >= MIN_POINTS)
        chosen = np.flatnonzero(reaching if reaching.any() else counts >= MIN_POINTS)
        return tuple(self._stretch(numbers == number) for number in chosen)

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
        known = self.known[: N_NEAR - 1] & self.known[1:N_NEAR]
        return np.isfinite(refined(self.expression, self.points[:N_NEAR], broken & known)[0])

    @cached_property
    def increments(self) -> tuple[Numbers, Floats]:
        """Integrals of f between neighbouring near points and those of its size; nan where f breaks."""
        x = self.points[:N_NEAR]
        edges = x[::DEGREE]
        integrals, size = between_nodes(self.values[_PANELS], 0.5 * np.diff(edges))
        # Of the function's size in the whole panel, which its integrals are known by, a part.
        local = np.maximum(np.abs(self.values[: N_NEAR - 1]), np.abs(self.values[1:N_NEAR]))
        scales = np.maximum(local, 0.01 * np.repeat(size, DEGREE)) * np.diff(x)
        known = self.known[: N_NEAR - 1] & self.known[1:N_NEAR]
        return refined(self.expression, x, known, integrals.ravel(), scales)[:2]


def refined(
    expression: Expression,
    edges: Floats,
    wanted: Bools,
    integrals: Numbers | None = None,
    scales: Floats | None = None,
    within: float = CONVERGED,
) -> tuple[Numbers, Floats, Floats]:
    """Integrals of f between neighbouring edges, those of its size, and their errors: of the `wanted` ones without one.

    By quadrature, `within` a part of the integral of its size where possible; nan where it does not converge.
    """
    low, width = edges[:-1], np.diff(edges)
    if integrals is None or scales is None:
        integrals = np.full(len(low), np.nan, complex if expression.is_complex else float)
        scales = np.zeros(len(low))
    errors = np.zeros(len(low))
    rest = np.isnan(integrals) & wanted
    for panels in (1, 4, 16, 64):
        at = np.flatnonzero(rest)
        if not len(at) or len(at) * panels > MAX_PANELS:
            break
        ends = low[at, None] + width[at, None] * (np.arange(panels + 1) / panels)
        found = kronrod(expression.values, ends[:, :-1].ravel(), ends[:, 1:].ravel())
        integral, absolute, uncertain, _ = (part.reshape(len(at), panels).sum(axis=1) for part in found)
        converged = uncertain <= CONVERGED * absolute
        integrals[at[converged]] = integral[converged]
        scales[at[converged]] = absolute[converged]
        errors[at[converged]] = uncertain[converged]
        rest[at[uncertain <= within * absolute]] = False
    return integrals, scales, errors


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
    known = is_known(expression, evaluation)
    return Integrand(expression, seed, points, values, evaluation.breakables, known, _overflown(evaluation))


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


def is_known(expression: Expression, evaluation: Evaluation) -> Bools:
    """Where an integrand's value is finite and carries its digits, because no part of it overflows or underflows.

    A 0 has underflowed, unless the integrand may be 0 on an interval, as one with steps may.
    """
    with np.errstate(all="ignore"):
        size = np.abs(evaluation.values)
        counts = (size > SMALLEST) | (size == 0) if expression.kinds & {"step", "root"} else size > SMALLEST
        known: Bools = evaluation.is_finite & counts & (size < LARGEST)
        return known


def sizes_of(values: Numbers) -> Floats:
    """Sizes of an integrand's values, by which errors are measured: where it is 0, what is usual elsewhere."""
    size = np.abs(values)
    others = size[size > 0]
    return np.where(size == 0, np.median(others) if len(others) else 1.0, size)


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
def by_place(seed: int) -> Indices:
    """The order that sorts the base points."""
    return np.argsort(base_points(seed))


@lru_cache(maxsize=64)
def gaps(seed: int) -> Floats:
    """Distance of every base point to its neighbours, the larger one; 0 for the far points."""
    between = np.diff(base_points(seed)[:N_NEAR])
    largest = np.maximum(np.append(between, 0.0), np.insert(between, 0, 0.0))
    return np.append(largest, np.zeros(len(base_points(seed)) - N_NEAR))


# --- the survey: components of the domain ---------------------------------------------------------------------------


def _survey(problem: Integrand) -> tuple[Component, ...]:
    expression = problem.expression
    grid = survey_grid(expression, problem.seed)
    evaluation = evaluate_real(expression, grid)
    values = evaluation.values
    known = is_known(expression, evaluation)
    if np.count_nonzero(known & (values != 0)) < MIN_POINTS:
        grid = _grid_around_zeros(expression, grid)
        evaluation = evaluate_real(expression, grid)
        values = evaluation.values
        known = is_known(expression, evaluation)
    usable = np.isfinite(values)
    if _is_zero(expression, grid, values, usable):
        return ()
    usable |= _overflows(expression, grid, evaluation)
    landmarks = locate(expression, grid, evaluation.breakables, usable, limit=2 * MAX_FOUND)
    breaks = [at for at, kind in landmarks if kind == "log"] + _poles(expression, landmarks)
    switches = sorted({at for at, kind in landmarks if kind in ("step", "root")})
    edges = usable[:-1] & usable[1:]
    edges[np.searchsorted(grid, [b for b in breaks if grid[0] < b < grid[-1]]) - 1] = False
    components = []
    start = 0
    for end in [*np.flatnonzero(~edges).tolist(), len(grid) - 1]:
        if end > start:
            informative = (known & (values != 0))[start : end + 1]
            informative = informative[:-1] | informative[1:]
            all_cells = np.stack([grid[start:end], grid[start + 1 : end + 1]], axis=1)
            cells, zeros = all_cells[informative], all_cells[~informative & (values[start:end] == 0)]
            if len(cells) >= 2:
                low, high = grid[start], grid[end]
                inside = tuple(s for s in switches if low < s < high)
                zeros = zeros[np.argsort(np.abs(zeros).max(axis=1))[:N_ZEROS]]
                quiet = np.concatenate([_quiet(cells, np.abs(values[start : end + 1]), informative), zeros])
                components.append(Component(low, high, cells, quiet, inside))
        start = end + 1
    if not components:
        raise IntegrandError("the integrand is nowhere finite and real")
    components.sort(key=lambda c: -int((np.abs(c.cells).max(axis=1) <= 20).sum() * 1000 + len(c.cells)))
    components = ([component for component in components if component.high > 0] or components)[:MAX_COMPONENTS]
    inner = np.array([end for component in components for end in (component.low, component.high)])
    outer = np.searchsorted(grid, inner) + np.tile([-1, 1], len(components))
    found = ends(expression, inner, grid[np.clip(outer, 0, len(grid) - 1)]).reshape(-1, 2)
    return tuple(
        replace(component, low=low, high=high) for component, (low, high) in zip(components, found, strict=True)
    )


def _overflown(evaluation: Evaluation) -> Bools:
    """Where a value is not finite and some part of it is infinite."""
    overflown: Bools = ~np.isfinite(evaluation.values)
    if overflown.any():
        overflown &= np.any([np.isinf(slot) & overflown for slot in evaluation.slots], axis=0)
    return overflown


def _overflows(expression: Expression, grid: Floats, evaluation: Evaluation) -> Bools:
    """Where floating point overflows on the way to a real value, which a few points of each run of them tell."""
    found = np.zeros(len(grid), bool)
    at = np.flatnonzero(_overflown(evaluation))
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    for run in sorted(runs, key=len)[-MAX_RUNS:] if len(at) else []:
        some = run[np.unique(np.linspace(0, len(run) - 1, N_OF_RUN).astype(int))]
        balls = exact.values(expression, grid[some].tolist())
        found[run] = all(ball is not None and (expression.is_complex or ball.imag.is_zero()) for ball in balls)
    return found


def ends(expression: Expression, inside: Floats, outside: Floats) -> Floats:
    """As far from `inside` towards `outside` as f is finite and real, carries its digits and does not end."""
    fractions = np.linspace(0, 1, 65)
    rows = np.arange(len(inside))
    for _ in range(4):
        points = inside[:, None] + (outside - inside)[:, None] * fractions
        evaluation = evaluate_real(expression, points[:, :-1].ravel())
        usable = np.isfinite(evaluation.values)
        for slot in evaluation.slots:
            if isinstance(slot, np.ndarray):
                usable &= ~(np.abs(slot) < UNDERFLOW) | (slot == 0)
        usable = usable.reshape(len(rows), -1)
        for kind, q in evaluation.breakables:
            if kind in ("pole", "log"):
                q = q.reshape(usable.shape)
                least = np.abs(q).argmin(axis=1)[:, None]
                dips = (least > 0) & (np.abs(q).min(axis=1) < 0.5 * np.abs(q[:, -1]))[:, None]
                usable &= np.signbit(q) == np.signbit(q[:, :1])
                usable &= ~dips | (np.arange(q.shape[1]) < least)
        n_usable = usable[:, 1:].cumprod(axis=1).sum(axis=1)
        inside, outside = points[rows, n_usable], points[rows, np.minimum(n_usable + 2, 64)]
    return inside


def _poles(expression: Expression, landmarks: Sequence[tuple[float, Break]]) -> list[float]:
    """The poles among the landmarks, except removable singularities like that of sin(x)/x.

    An f that vanishes there may still end there: x**4*exp(acsch(x)) does at 0.
    """
    at = np.array([at for at, kind in landmarks if kind == "pole"])
    h = 1e-7 * np.maximum(1.0, np.abs(at))
    points = np.concatenate([at - h, at + h, at - 1e3 * h, at + 1e3 * h])
    with np.errstate(all="ignore"):
        before, after, *further = real_values(expression, points).reshape(4, -1)
        size = np.maximum(np.abs(further[0]), np.abs(further[1]))
        removable = (np.abs(after - before) <= 1e-3 * size) & (np.abs(after) <= 1.5 * size)
        removable &= np.abs(after) > 1e-3 * size
    return [float(place) for place in at[~removable]]


def _quiet(cells: Floats, size: Floats, informative: Bools) -> Floats:
    """The cells with the smallest values, if these are far below the others: large ones hide what is wrong."""
    smallest = np.minimum(size[:-1], size[1:])[informative]
    first = np.argsort(smallest)[:4]
    found: Floats = cells[first[smallest[first] < QUIET * np.median(smallest)]]
    return found


def survey_grid(expression: Expression, seed: int) -> Floats:
    """Sorted points over the line: dense in [-10, 10], logarithmic to 1e6, and around the expression's constants."""
    n = max(24, min(240, GRID_WORK // (40 * max(1, expression.n_nodes))))
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


def _is_zero(expression: Expression, grid: Floats, values: Numbers, usable: Bools) -> bool:
    """Whether an integrand is zero; raises NoiseError."""
    at = np.flatnonzero(usable)
    at = at[:: max(1, len(at) // 64)]
    # Of random noise a few values are larger than any run's spread.
    larger = at[np.abs(values[at]) > noise(expression, grid[at])[0]]
    if len(at) < MIN_POINTS or len(larger) > 0.05 * len(at):
        return False
    chosen = np.append(larger, at[np.argsort(np.abs(grid[at]))[:3]])
    balls = exact.values(expression, grid[chosen].tolist(), exact.BITS[-1])
    if all(ball is not None and ball.contains(0) for ball in balls):
        return True
    if any(ball is not None and _is_close(complex(ball), values[n]) for ball, n in zip(balls, chosen, strict=True)):
        return False
    raise NoiseError("the integrand is lost in rounding noise")


def _is_close(exactly: complex, value: complex) -> bool:
    return value != 0 and abs(exactly - value) <= QUIET * abs(value)


@lru_cache(maxsize=8)
def jitter(n: int) -> Floats:
    """Factors close to 1, shape (61, n)."""
    return np.asarray(1 + JITTER * np.random.default_rng(12345).uniform(-1, 1, (61, n)))


def noise(expression: Expression, points: Numbers, runs: int = N_JITTERED) -> tuple[Floats, Floats]:
    """Rounding noise of values and derivatives at `points`: the spread of a plain run and some jittered ones."""
    if expression.is_complex:
        points = points.astype(complex)
    plain = expression.evaluate(points)
    jittered = expression.evaluate(np.tile(points, runs), jitter=jitter(runs * len(points)))
    with np.errstate(all="ignore"):
        values = np.abs(jittered.values.reshape(runs, -1) - plain.values).max(axis=0)
        slopes = np.abs(jittered.slopes.reshape(runs, -1) - plain.slopes).max(axis=0)
    return values, slopes
