"""An integrand as the verifier sees it: where it is defined, where it breaks, and points to test answers on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ladder_lite.expressions import Breakable, Complexes, Expression, ExpressionError, parse
from ladder_lite.quadrature import kronrod

N_NEAR: Final = 40  # points in [-10, 10], dense around 0
MIN_POINTS: Final = 8  # of those at which the integrand has a value that floating point can hold
SMALLEST: Final = 1e-280  # values closer to 0 have lost their digits
LARGEST: Final = 1e280
WORK: Final = 1_500_000  # bound on operations times points of one survey
N_JITTERED: Final = 4

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class IntegrandError(Exception):
    """The integrand cannot be read, or is nowhere finite and real: the problem's fault, no answer's."""


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """An interval on which the integrand is finite and real; `cells` are grid intervals where it can be told from 0."""

    low: float
    high: float
    cells: NDArray[np.float64]  # shape (n, 2)
    switches: tuple[float, ...]  # where the integrand has a step, a kink or a root's branch point, sorted

    def sample(self, n: int, seed: int) -> Complexes:
        """`n` random points in the component's cells, near ones first choice, at least 3 on each side of a switch."""
        rng = np.random.default_rng(seed)
        cells = self.cells
        near = np.abs(cells).max(axis=1) <= 20
        if near.sum() >= 8:
            cells = cells[near]
        points = [_in_cells(cells, n, rng)]
        edges = [self.low, *self.switches, self.high]
        for low, high in pairwise(edges):
            piece = self.cells[(self.cells[:, 0] >= low) & (self.cells[:, 1] <= high)]
            if len(piece) and len(edges) > 2:
                points.append(_in_cells(piece[np.argsort(np.abs(piece).max(axis=1))[:16]], 3, rng))
        return np.sort(np.concatenate(points)).astype(complex)


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
    points: Complexes  # near points, sorted, then far points
    values: Complexes
    breakables: list[Breakable]
    known: Bools  # finite, real, and neither underflowing nor overflowing
    _components: tuple[Component, ...] | None = None
    _zero: bool = False
    _increments: tuple[Floats, Floats] | None = None
    _value_noise: Floats | None = None

    @property
    def components(self) -> tuple[Component, ...]:
        """The intervals of the domain, those with the most known points first; raises IntegrandError if none."""
        if self._components is None:
            self._components, self._zero = _survey(self)
        if not self._components and not self._zero:
            raise IntegrandError("the integrand is nowhere finite and real")
        return self._components

    @property
    def identically_zero(self) -> bool:
        """Whether it is zero up to rounding wherever it is defined."""
        return not self.components and self._zero

    @property
    def value_noise(self) -> Floats:
        """Rounding noise of the values."""
        if self._value_noise is None:
            self._value_noise = noise(self.expression, self.points)[0]
        return self._value_noise

    @property
    def increments(self) -> tuple[Floats, Floats]:
        """Integrals of f and of |f| between neighbouring near points; nan where f breaks, or is not real, between."""
        if self._increments is None:
            self._increments = _integrate_between(self)
        return self._increments


def _integrate_between(problem: Integrand) -> tuple[Floats, Floats]:
    f = problem.expression.values
    x = problem.points[:N_NEAR].real
    integrals = np.full(N_NEAR - 1, np.nan)
    scales = np.full(N_NEAR - 1, np.nan)
    if problem.expression.uses_i:
        return integrals, scales
    whole = problem.known[: N_NEAR - 1] & problem.known[1:N_NEAR]
    for kind, q in problem.breakables:
        if kind in ("pole", "log"):
            whole &= np.signbit(q[: N_NEAR - 1]) == np.signbit(q[1:N_NEAR])
    for panels in (1, 4, 16):
        at = np.flatnonzero(whole)
        if not len(at):
            break
        edges = x[at, None] + (x[at + 1] - x[at])[:, None] * np.linspace(0, 1, panels + 1)
        found = kronrod(f, edges[:, :-1].ravel(), edges[:, 1:].ravel())
        integral, absolute, uncertain, _ = (part.reshape(len(at), panels).sum(axis=1) for part in found)
        converged = uncertain <= 1e-9 * absolute
        integrals[at[converged]] = integral[converged]
        scales[at[converged]] = absolute[converged]
        whole[at[converged]] = False
    return integrals, scales


@lru_cache(maxsize=1024)
def prepare(text: str, variable: str = "x", seed: int = 0) -> Integrand:
    """Read an integrand and evaluate it at the base points of `seed`; raises IntegrandError."""
    try:
        expression = parse(text, variable)
    except ExpressionError as error:
        raise IntegrandError(f"the integrand cannot be read: {error}") from None
    points = base_points(seed)
    breakables: list[Breakable] = []
    values = real_values(expression, points, breakables)
    return Integrand(expression, seed, points, values, breakables, is_known(values))


def real_values(expression: Expression, points: Complexes, breakables: list[Breakable] | None = None) -> Complexes:
    """Values of an integrand, nan where it is not real unless it contains I itself.

    In real arithmetic: where a subexpression leaves the reals the value is nan at once, while in complex arithmetic a
    large real term can hide an imaginary part, as in log(x)+sinh(x). An integrand that is real by way of complex
    numbers only, like sqrt(-1-x**2)**2, is thus real nowhere.
    """
    if expression.uses_i:
        return expression.evaluate(points, derivative=False, breakables=breakables)[0]
    values, _ = expression.evaluate(points.real, derivative=False, breakables=breakables)
    if np.iscomplexobj(values):  # a constant in it is complex, as (-8)**(1/3) is
        values = np.where(values.imag == 0, values, np.nan)
    return values.astype(complex)


def is_known(values: Complexes) -> Bools:
    """Where an integrand's value is finite and carries its digits."""
    with np.errstate(all="ignore"):
        size = np.abs(values)
        return (size > SMALLEST) & (size < LARGEST)


def stretches(points: Complexes, breakables: list[Breakable]) -> NDArray[np.intp]:
    """The number of the stretch each point lies in: no breakable quantity changes its sign inside a stretch."""
    order = np.argsort(points.real)
    broken = np.zeros(len(points), dtype=np.intp)
    for _, quantity in breakables:
        negative = np.signbit(np.broadcast_to(quantity, points.shape)[order])
        broken[1:] |= negative[1:] != negative[:-1]
    numbers = np.empty(len(points), dtype=np.intp)
    numbers[order] = np.cumsum(broken)
    return numbers


@lru_cache(maxsize=64)
def base_points(seed: int) -> Complexes:
    """The points every integrand is tried on first: stratified, dense around 0; reproducible for a seed."""
    rng = np.random.default_rng(seed)
    strata = (np.arange(N_NEAR) + rng.uniform(0, 1, N_NEAR)) / N_NEAR * 2 - 1
    near = np.sinh(3 * strata)
    # Far points, out to 1600, which an answer must not contradict.
    sizes = np.array([15.0, 40.0, 200.0, 800.0]) * rng.uniform(1, 2, 4)
    far = np.concatenate([-sizes[::-1], sizes])
    return np.concatenate([near, far]).astype(complex)


# --- the survey: components of the domain ---------------------------------------------------------------------------


def _survey(problem: Integrand) -> tuple[tuple[Component, ...], bool]:
    expression = problem.expression
    grid = survey_grid(expression, problem.seed)
    breakables: list[Breakable] = []
    values = real_values(expression, grid, breakables)
    known = is_known(values)
    if known.sum() < MIN_POINTS:
        grid = _grid_around_zeros(expression, grid)
        breakables = []
        values = real_values(expression, grid, breakables)
        known = is_known(values)
    usable = np.isfinite(values)
    if _only_noise(expression, grid, values, usable):
        return (), bool(usable.sum() >= MIN_POINTS)
    x = grid.real
    breaks = locate(expression, grid, breakables, frozenset({"pole", "log"}), usable)
    switches = locate(expression, grid, breakables, frozenset({"step", "root"}), usable)
    edges = usable[:-1] & usable[1:]
    edges[np.searchsorted(x, [b for b in breaks if x[0] < b < x[-1]]) - 1] = False
    components = []
    start = 0
    for end in [*np.flatnonzero(~edges), len(x) - 1]:
        if end > start:
            informative = known[start:end] | known[start + 1 : end + 1]
            cells = np.stack([x[start:end], x[start + 1 : end + 1]], axis=1)[informative]
            if len(cells) >= 2:
                inside = tuple(s for s in switches if x[start] < s < x[end])
                components.append(Component(float(x[start]), float(x[end]), cells, inside))
        start = end + 1
    components.sort(key=lambda c: -int((np.abs(c.cells).max(axis=1) <= 20).sum() * 1000 + len(c.cells)))
    return tuple(components), False


def survey_grid(expression: Expression, seed: int) -> Complexes:
    """Sorted points over the line: dense in [-10, 10], logarithmic to 1e6, and around the expression's constants."""
    n = max(24, min(240, WORK // (40 * max(1, expression.n_nodes))))
    rng = np.random.default_rng(seed + 1)
    away = np.geomspace(1e-6, 1e6, n)
    pieces = [np.linspace(-10, 10, 2 * n), away, -away]
    centres = {c for c in expression.constants if 1e-3 < abs(c) < 1e9} - {-1.0}
    close = np.geomspace(1e-4, 30, n // 4)
    for centre in sorted(centres, key=abs)[-8:]:
        for at in (centre, -centre):
            pieces += [at + close, at - close]
    grid = np.unique(np.concatenate(pieces))
    gaps = np.diff(grid)
    # Off the round numbers, where integrands have their poles and kinks.
    return (grid[:-1] + gaps * rng.uniform(0.2, 0.8, len(gaps))).astype(complex)


def _grid_around_zeros(expression: Expression, grid: Complexes) -> Complexes:
    """`grid` and points around the zeros of every subexpression: where an integrand lives far from the origin."""
    close = np.geomspace(1e-4, 30, 30)
    pieces = [grid.real]
    for zero in expression.zeros(grid)[:24]:
        pieces += [zero + close, zero - close]
    return np.unique(np.concatenate(pieces)).astype(complex)


def _only_noise(expression: Expression, grid: Complexes, values: Complexes, usable: Bools) -> bool:
    if not usable.any():
        return True
    points = grid[usable][:: max(1, int(usable.sum()) // 64)]
    plain = values[usable][:: max(1, int(usable.sum()) // 64)]
    # Of random noise a few values are larger than any run's spread.
    return bool((np.abs(plain) <= 30 * noise(expression, points)[0]).mean() >= 0.95)


def noise(expression: Expression, points: Complexes) -> tuple[Floats, Floats]:
    """Rounding noise of values and derivatives at `points`: the spread of a plain run and four jittered ones."""
    plain = expression.evaluate(points)
    runs = expression.evaluate(np.tile(points, N_JITTERED), jitter=np.random.default_rng(12345))
    with np.errstate(all="ignore"):
        value_noise, slope_noise = (
            np.abs(run.reshape(N_JITTERED, -1) - first).max(axis=0) for run, first in zip(runs, plain, strict=True)
        )
    return value_noise, slope_noise


def locate(
    expression: Expression,
    grid: Complexes,
    breakables: list[Breakable],
    kinds: frozenset[str],
    usable: Bools,
    limit: int = 48,
) -> list[float]:
    """Where the quantities of `kinds` vanish on the line: zooms in on sign changes and dips between grid points."""
    wanted = [index for index, (kind, _) in enumerate(breakables) if kind in kinds]
    if not wanted:
        return []
    x = grid.real
    brackets: list[tuple[int, float, float]] = []
    with np.errstate(all="ignore"):
        for index in wanted:
            q = np.broadcast_to(breakables[index].vanishing, x.shape)
            seen = np.isfinite(q)
            changes = np.flatnonzero(seen[:-1] & seen[1:] & (np.sign(q[:-1]) != np.sign(q[1:])))
            size = np.abs(q)
            dips = 1 + np.flatnonzero(
                (size[1:-1] <= size[:-2])
                & (size[1:-1] <= size[2:])
                & (size[1:-1] < 0.5 * np.maximum(size[:-2], size[2:]))
            )
            brackets += [(index, x[i], x[i + 1]) for i in changes if usable[max(0, i - 1) : i + 3].any()]
            brackets += [(index, x[i - 1], x[i + 1]) for i in dips if usable[max(0, i - 1) : i + 2].any()]
    brackets.sort(key=lambda b: min(abs(b[1]), abs(b[2])))
    brackets = brackets[:limit]
    if not brackets:
        return []
    which = np.array([b[0] for b in brackets])
    low = np.array([b[1] for b in brackets])
    high = np.array([b[2] for b in brackets])
    rows = np.arange(len(brackets))
    fractions = np.linspace(0, 1, 9)
    first = np.zeros(0)
    for _ in range(14):
        points = low[:, None] + (high - low)[:, None] * fractions
        found: list[Breakable] = []
        expression.evaluate(points.ravel().astype(complex), derivative=False, breakables=found)
        q = np.stack([np.broadcast_to(b.vanishing, points.size) for b in found]).reshape(len(found), *points.shape)
        size = np.abs(q[which, rows])
        size[~np.isfinite(size)] = np.inf
        if not first.size:
            first = np.where(np.isfinite(size), size, 0).max(axis=1)
        best = size.argmin(axis=1)
        low, high = points[rows, np.maximum(best - 1, 0)], points[rows, np.minimum(best + 1, 8)]
    vanished = size.min(axis=1) <= 1e-5 * first
    return sorted({float((a + b) / 2) for a, b in zip(low[vanished], high[vanished], strict=True)})
