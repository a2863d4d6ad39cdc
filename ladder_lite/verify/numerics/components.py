"""The components of an integrand's domain: the intervals on which it is finite and real."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Evaluation, Expression, Floats, Numbers
from ladder_lite.verify.expressions.operations import Break
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.real_line import evaluate_real, is_known, noise
from ladder_lite.verify.numerics.singularities import MAX_FOUND, locate

MIN_POINTS: Final = 8  # of those at which the integrand has a value that floating point can hold
UNDERFLOW: Final = 1e-290  # numbers below it lose digits
N_ZEROS: Final = 8  # cells in which the integrand is 0 that points are taken from
MAX_COMPONENTS: Final = 6  # that an answer may be right on
REACH: Final = 10.0  # All places nearer than this where an answer may break are looked at.
TOWARDS_END: Final = 0.1 ** np.arange(1, 8)
QUIET: Final = 1e-6  # of the usual size
MAX_RUNS: Final = 6  # of points at which it overflows that are looked at, the longest
N_OF_RUN: Final = 8  # points of each
GRID_WORK: Final = 1_500_000  # bound on operations times points


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


@lru_cache(maxsize=256)
def sample(component: Component, n: int, seed: int) -> Floats:
    """`n` random points in a component's cells, near ones first choice, at least 3 on each side of a switch.

    And some towards its ends.
    """
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


@exact.allowance()
def survey(expression: Expression, seed: int) -> tuple[Component, ...]:
    """The components of an integrand's domain, as `Integrand.components`."""
    grid = survey_grid(expression, seed)
    evaluation = evaluate_real(expression, grid)
    known = is_known(expression, evaluation)
    if np.count_nonzero(known & (evaluation.values != 0)) < MIN_POINTS:
        grid = _grid_around_zeros(expression, grid)
        evaluation = evaluate_real(expression, grid)
        known = is_known(expression, evaluation)
    values = evaluation.values
    usable = np.isfinite(values)
    if _is_zero(expression, grid, values, usable):
        return ()
    usable |= _overflows(expression, grid, evaluation)
    landmarks = locate(expression, grid, evaluation.breakables, usable, limit=2 * MAX_FOUND)
    breaks = breaks_at(expression, landmarks)
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
    return tuple(replace(c, low=low, high=high) for c, (low, high) in zip(components, found, strict=True))


def _overflows(expression: Expression, grid: Floats, evaluation: Evaluation) -> Bools:
    """Where floating point overflows on the way to a real value, which a few points of each run of them tell."""
    found = np.zeros(len(grid), bool)
    at = np.flatnonzero(evaluation.overflown)
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


def breaks_at(expression: Expression, landmarks: Sequence[tuple[float, Break]]) -> list[float]:
    """The poles and branch points of logarithms among the landmarks, except removable singularities, as of sin(x)/x.

    An f that vanishes there may still end there: x**4*exp(acsch(x)) does at 0.
    """
    at = np.array([at for at, kind in landmarks if kind == "pole"])
    h = 1e-7 * np.maximum(1.0, np.abs(at))
    points = np.concatenate([at - h, at + h, at - 1e3 * h, at + 1e3 * h])
    with np.errstate(all="ignore"):
        before, after, *further = evaluate_real(expression, points).values.reshape(4, -1)
        size = np.maximum(np.abs(further[0]), np.abs(further[1]))
        removable = (np.abs(after - before) <= 1e-3 * size) & (np.abs(after) <= 1.5 * size)
        removable &= np.abs(after) > 1e-3 * size
    return [at for at, kind in landmarks if kind == "log"] + [float(place) for place in at[~removable]]


def _quiet(cells: Floats, size: Floats, informative: Bools) -> Floats:
    """The cells with the smallest values, if these are far below the others: large ones hide what is wrong."""
    smallest = np.minimum(size[:-1], size[1:])[informative]
    first = np.argsort(smallest)[:4]
    return np.asarray(cells[first[smallest[first] < QUIET * np.median(smallest)]])


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
    for ball, value in zip(balls, values[chosen], strict=True):
        if ball is not None and value != 0 and abs(complex(ball) - value) <= QUIET * abs(value):
            return False
    raise NoiseError("the integrand is lost in rounding noise")
