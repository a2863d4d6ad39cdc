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

MIN_POINTS: Final = 8  # fewer points with a finite value prove nothing
UNDERFLOW: Final = 1e-290  # smaller numbers lose digits
N_ZEROS: Final = 8  # cells on which the integrand is 0 that contribute points
MAX_COMPONENTS: Final = 6  # components on which an answer may be right
REACH: Final = 10.0  # every place closer to 0 than this at which an answer may break is examined
TOWARDS_END: Final = 0.1 ** np.arange(1, 8)  # 0.1, 0.01, ..., 1e-7: distances from an end
QUIET: Final = 1e-6  # values below this share of the usual size are quiet
MAX_RUNS: Final = 6  # runs of points with overflow that are examined, the longest ones
N_OF_RUN: Final = 8  # points examined per run
GRID_WORK: Final = 1_500_000  # bound on operations times points


class IntegrandError(Exception):
    """The integrand cannot be read, or is finite and real nowhere. This is the fault of the problem, not the answer."""


class NoiseError(IntegrandError):
    """In double precision, the integrand is only rounding noise."""


@dataclass(frozen=True, slots=True, eq=False)
class Component:
    """An interval on which the integrand is finite and real, with the grid intervals (cells) that it consists of."""

    low: float
    high: float
    cells: Floats  # cells on which the integrand is not 0, shape (n, 2)
    quiet: Floats  # some cells on which it is 0 or far smaller than elsewhere, shape (m, 2)
    switches: tuple[float, ...]  # sorted places at which it has a step, a kink or a branch point of a root

    @property
    def reach(self) -> float:
        """Distance from 0 within which the component is examined closely: up to 10 beyond its point nearest to 0."""
        return REACH + max(self.low, -self.high, 0.0)


@lru_cache(maxsize=256)
def sample(component: Component, n: int, seed: int) -> Floats:
    """Return sorted random points of a component.

    They are `n` points in its cells, one in each quiet cell, 7 towards each near end, and 3 on each side of a switch.
    """
    rng = np.random.default_rng(seed)
    cells = component.cells
    # Near cells are preferred, because F is more likely to overflow far from 0.
    near = np.abs(cells).max(axis=1) <= component.reach + REACH
    if near.sum() >= 8:
        cells = cells[near]
    inner = _in_cells(cells, n, rng)
    points = [inner, component.quiet.mean(axis=1)]
    for end, first in ((component.low, inner.min()), (component.high, inner.max())):
        if abs(end) <= component.reach + REACH:
            points.append(end + (first - end) * TOWARDS_END)
    # On each side of a switch the formula of f may be another one, so each piece needs points.
    edges = [component.low, *component.switches, component.high]
    for low, high in pairwise(edges):
        piece = component.cells[(component.cells[:, 0] >= low) & (component.cells[:, 1] <= high)]
        if len(piece) and len(edges) > 2:
            nearest = piece[np.argsort(np.abs(piece).max(axis=1))[:16]]
            points.append(_in_cells(nearest, 3, rng))
    return np.sort(np.concatenate(points))


def _in_cells(cells: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Return `n` random points spread evenly over the cells, shape (k, 2), whatever their widths."""
    # Cells are counted in units of one: 3.25 is a quarter of the way through cells[3].
    position = (np.arange(n) + rng.uniform(0, 1, n)) * (len(cells) / n)
    index = np.minimum(position.astype(int), len(cells) - 1)
    low, high = cells[index].T
    return np.asarray(low + (high - low) * (position - index))


@exact.allowance()
def survey(expression: Expression, seed: int) -> tuple[Component, ...]:
    """Find the components of an integrand's domain. See `Integrand.components`."""
    grid = survey_grid(expression, seed)
    evaluation = evaluate_real(expression, grid)
    known = is_known(expression, evaluation)
    if np.count_nonzero(known & (evaluation.values != 0)) < MIN_POINTS:
        # The domain may be far from 0 or narrow, as that of sqrt((x-5)*(5.001-x)) is: search around zeros of its parts.
        grid = _grid_around_zeros(expression, grid)
        evaluation = evaluate_real(expression, grid)
        known = is_known(expression, evaluation)
    values = evaluation.values
    usable = np.isfinite(values)
    if _is_zero(expression, grid, values, usable):
        return ()
    usable |= _overflows(expression, grid, evaluation)  # where f overflows, its domain does not end
    landmarks = locate(expression, grid, evaluation.breakables, usable, limit=2 * MAX_FOUND)
    breaks = breaks_at(expression, landmarks)
    switches = sorted({at for at, kind in landmarks if kind in ("step", "root")})
    # Cells are part of the domain if both their ends are usable and no break lies between them.
    edges = usable[:-1] & usable[1:]
    edges[np.searchsorted(grid, [b for b in breaks if grid[0] < b < grid[-1]]) - 1] = False
    components = []
    start = 0
    for end in [*np.flatnonzero(~edges).tolist(), len(grid) - 1]:  # grid[start] to grid[end] is one component
        if end > start:
            informative = (known & (values != 0))[start : end + 1]
            # From points to cells: a cell is informative if f is known and not 0 at either end.
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
        raise IntegrandError("the integrand is finite and real nowhere")
    # Most cells near 0 first, then most cells: these components have the most test points.
    components.sort(key=lambda c: -int((np.abs(c.cells).max(axis=1) <= 20).sum() * 1000 + len(c.cells)))
    components = ([component for component in components if component.high > 0] or components)[:MAX_COMPONENTS]
    # So far components end at grid points. Move each end outwards, towards the next grid point, to where f ends.
    inner = np.array([end for component in components for end in (component.low, component.high)])
    outer = np.searchsorted(grid, inner) + np.tile([-1, 1], len(components))
    limits = ends(expression, inner, grid[np.clip(outer, 0, len(grid) - 1)]).reshape(-1, 2)
    return tuple(replace(c, low=low, high=high) for c, (low, high) in zip(components, limits, strict=True))


def _overflows(expression: Expression, grid: Floats, evaluation: Evaluation) -> Bools:
    """Return a mask of the grid points at which floating point overflows although f has a real value.

    Ball arithmetic decides, at a few points of each run of neighbouring points, for the whole run.
    """
    overflows = np.zeros(len(grid), bool)
    indices = np.flatnonzero(evaluation.overflown)
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    for run in sorted(runs, key=len)[-MAX_RUNS:] if len(indices) else []:
        tested = run[np.unique(np.linspace(0, len(run) - 1, N_OF_RUN).astype(int))]
        balls = exact.values(expression, grid[tested].tolist())
        overflows[run] = all(ball is not None and (expression.is_complex or ball.imag.is_zero()) for ball in balls)
    return overflows


def ends(expression: Expression, inside: Floats, outside: Floats) -> Floats:
    """Return the last points from `inside` towards `outside` at which f is finite, real and carries its digits.

    All three have shape (n,). At `inside`, f must fulfil these conditions.
    """
    fractions = np.linspace(0, 1, 65)
    rows = np.arange(len(inside))
    # Each round tests 64 points per end and zooms in on the two intervals after the last usable one: a factor of 32.
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
                # A quantity that dips to less than half of its size at the far side may vanish without a change of
                # sign, at a double pole. f then ends at the dip.
                dips = (least > 0) & (np.abs(q).min(axis=1) < 0.5 * np.abs(q[:, -1]))[:, None]
                usable &= np.signbit(q) == np.signbit(q[:, :1])
                usable &= ~dips | (np.arange(q.shape[1]) < least)
        # The number of points before the first unusable one.
        n_usable = usable[:, 1:].cumprod(axis=1).sum(axis=1)
        inside, outside = points[rows, n_usable], points[rows, np.minimum(n_usable + 2, 64)]
    return inside


def breaks_at(expression: Expression, landmarks: Sequence[tuple[float, Break]]) -> list[float]:
    """Return the poles and the branch points of logarithms among the landmarks, except removable singularities."""
    x = np.array([place for place, kind in landmarks if kind == "pole"])
    h = 1e-7 * np.maximum(1.0, np.abs(x))
    points = np.concatenate([x - h, x + h, x - 1e3 * h, x + 1e3 * h])
    with np.errstate(all="ignore"):
        before, after, *further = evaluate_real(expression, points).values.reshape(4, -1)
        size = np.maximum(np.abs(further[0]), np.abs(further[1]))
        # Removable, as for sin(x)/x: f is the same on both sides, and no larger than farther away.
        removable = (np.abs(after - before) <= 1e-3 * size) & (np.abs(after) <= 1.5 * size)
        # An f that vanishes at the place may still end there: x**4*exp(acsch(x)) does at 0.
        removable &= np.abs(after) > 1e-3 * size
    return [place for place, kind in landmarks if kind == "log"] + [float(pole) for pole in x[~removable]]


def _quiet(cells: Floats, size: Floats, informative: Bools) -> Floats:
    """Return up to 4 informative cells with the smallest values, if these are far below the others."""
    # Where f is large, the tolerance is too, and hides small errors: in exp(4*x**2) + sin(x), for example.
    smallest = np.minimum(size[:-1], size[1:])[informative]
    first = np.argsort(smallest)[:4]
    return np.asarray(cells[first[smallest[first] < QUIET * np.median(smallest)]])


def survey_grid(expression: Expression, seed: int) -> Floats:
    """Return sorted points: dense in [-10, 10], logarithmic to 1e6, and around the constants of the expression."""
    # A long expression gets fewer points, so that an evaluation has bounded cost.
    n = max(24, min(240, GRID_WORK // (40 * max(1, expression.n_nodes))))
    # The interesting places are often near constants: exp(-(x-2024)**2) lives around 2024. -1 is left out, because it
    # is mostly a minus sign.
    centres = sorted({c for c in expression.constants if 1e-3 < abs(c) < 1e9} - {-1.0}, key=abs)
    return _grid_around(tuple(centres[-8:]), n, seed)


@lru_cache(maxsize=256)
def _grid_around(centres: tuple[float, ...], n: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed + 1)
    away = np.geomspace(1e-6, 1e6, n)
    pieces = [np.linspace(-10, 10, 2 * n), away, -away]
    close = np.geomspace(1e-4, 30, n // 4)
    # Both signs of each constant: x + 50 breaks at -50.
    for centre in [*centres, *(-centre for centre in centres)]:
        pieces += [centre + close, centre - close]
    grid = np.unique(np.concatenate(pieces))
    # A random point of each interval: the edges are often round numbers, where integrands have poles and kinks.
    return grid[:-1] + np.diff(grid) * rng.uniform(0.2, 0.8, len(grid) - 1)


def _grid_around_zeros(expression: Expression, grid: Floats) -> Floats:
    """Add points around the zeros of all subexpressions, where an integrand may live far from 0."""
    close = np.geomspace(1e-4, 30, 30)
    pieces = [grid]
    for zero in expression.zeros(grid)[:24]:
        pieces += [zero + close, zero - close]
    return np.unique(np.concatenate(pieces))


def _is_zero(expression: Expression, grid: Floats, values: Numbers, usable: Bools) -> bool:
    """Return True if an integrand is zero up to rounding; raises NoiseError if that cannot be decided."""
    indices = np.flatnonzero(usable)
    indices = indices[:: max(1, len(indices) // 64)]
    # Even values that are pure noise exceed the measured noise now and then, so one in twenty may.
    larger = indices[np.abs(values[indices]) > noise(expression, grid[indices])[0]]
    if len(indices) < MIN_POINTS or len(larger) > 0.05 * len(indices):
        return False
    # Ball arithmetic decides, at these points and at the three closest to 0.
    chosen = np.append(larger, indices[np.argsort(np.abs(grid[indices]))[:3]])
    balls = exact.values(expression, grid[chosen].tolist(), exact.BITS[-1])
    if all(ball is not None and ball.contains(0) for ball in balls):
        return True
    # If double precision agrees with a ball at any point, the values are not noise.
    for ball, value in zip(balls, values[chosen], strict=True):
        if ball is not None and value != 0 and abs(complex(ball) - value) <= QUIET * abs(value):
            return False
    raise NoiseError("the integrand is lost in rounding noise")
