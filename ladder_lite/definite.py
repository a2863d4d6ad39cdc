"""Reference values of definite integrals: proper, improper, with endpoint singularities, steps and kinks.

Adaptive Gauss-Kronrod quadrature on arrays, of bounded work: panels whose edges follow the integrand's own landmarks
are halved until both the integral of f and that of |f| have converged, so that a value that only cancels by symmetry
(1/x over [-1, 1]) is called divergent. Oscillating tails (sin(x)/x to infinity) are summed lobe by lobe and
extrapolated.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ladder_lite.expressions import Expression, ExpressionError, parse
from ladder_lite.integrands import Floats, IntegrandError, prepare, survey_grid
from ladder_lite.landmarks import locate
from ladder_lite.quadrature import N_NODES, kronrod

TOLERANCE: Final = 1e-6  # of a decimal answer, relative to the integral of |f|
EXACT_TOLERANCE: Final = 1e-8  # of an answer without a decimal point
CONVERGED: Final = 1e-9  # estimated error of a reference value, relative to the integral of |f|
MAX_EVALUATIONS: Final = 12_000_000  # operations times points
MAX_LEVELS: Final = 60
DENSE_REACH: Final = 500.0  # steps are looked for this far from the origin where the interval is infinite
TAIL: Final = 1e6  # beyond it, and closer to 0 than its inverse, the line is cut into decades
N_LOBES: Final = 32
N_LANDMARKS: Final = 12  # that mpmath is told of
WORKER_TIMEOUT_S: Final = 20.0

_INFINITIES: Final = {"oo", "inf", "infinity", "Infinity", "∞", "\\infty"}


@dataclass(frozen=True, slots=True)
class Reference:
    """Value of a definite integral, the integral of |f| it is measured by, and an estimate of its error."""

    value: float
    scale: float
    error: float


def wrong_value(answer: Expression, reference: Reference) -> str | None:
    """None if `answer` is the value of the integral, else what is wrong with it."""
    if answer.free:
        return "a definite integral's value does not depend on its variable"
    value = answer.values(np.zeros(1, complex))[0]
    if not np.isfinite(value):
        return "not a finite number"
    tolerance = TOLERANCE if "." in answer.source else EXACT_TOLERANCE
    allowed = tolerance * reference.scale * (1 + 1e-9) + 2 * reference.error
    return None if abs(value - reference.value) <= allowed else "not the value of the integral"


@lru_cache(maxsize=1024)
def reference(text: str, variable: str, lower: str, upper: str, seed: int = 0) -> Reference:
    """The integral of `text` from `lower` to `upper`; raises IntegrandError if it diverges or cannot be computed."""
    expression = prepare(text, variable, seed).expression
    low, high = _bound(lower, variable), _bound(upper, variable)
    if low == high:
        return Reference(0.0, 0.0, 0.0)
    if low > high:
        flipped = reference(text, variable, upper, lower, seed)
        return Reference(-flipped.value, flipped.scale, flipped.error)
    edges = _panels(expression, low, high, seed)
    found = _twice(expression, edges, _panels(expression, low, high, seed + 1))
    if found is not None and _tails_matter(expression, edges, found.scale, low, high):
        raise IntegrandError("the integral diverges, or converges too slowly")
    if found is None and math.isinf(high - low):
        found = _oscillating(expression, low, high, seed)
    if found is None:
        found = _in_worker(text, variable, low, high, _landmarks(expression, low, high, seed))
    if found is None:
        raise IntegrandError("the integral diverges or could not be computed")
    return found


def _twice(expression: Expression, edges: Floats, others: Floats) -> Reference | None:
    """The integral, if two sets of panels agree on it: one may overlook a spike, or steps without end."""
    first = _adaptive(expression, edges)
    second = first and _adaptive(expression, others)
    if first is None or second is None or abs(first.value - second.value) > 1e-7 * first.scale:
        return None
    return Reference(first.value, first.scale, max(first.error, abs(first.value - second.value)))


def _in_worker(text: str, variable: str, low: float, high: float, landmarks: Floats) -> Reference | None:
    """The integral by mpmath, in a process that is killed when its time is over."""
    first = sorted(landmarks, key=abs)[:N_LANDMARKS]
    inside = {float(at) for at in [*first, -1.0, 0.0, 1.0] if low < at < high}
    request = {"integrand": text, "variable": variable, "edges": sorted({low, high} | inside)}
    command = [sys.executable, "-m", "ladder_lite.mpmath_integral"]
    try:
        reply = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=WORKER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    if reply.returncode != 0:
        return None
    found = json.loads(reply.stdout)
    return None if found is None else Reference(**found)


def _bound(text: str, variable: str) -> float:
    bare = text.replace(" ", "")
    if bare.lstrip("+-") in _INFINITIES:
        return -math.inf if bare.startswith("-") else math.inf
    try:
        expression = parse(text, variable)
    except ExpressionError as error:
        raise IntegrandError(f"the bound {text!r} cannot be read: {error}") from None
    value = complex(expression.values(np.zeros(1, complex))[0])
    if expression.free or abs(value.imag) > 1e-15 * abs(value) or not math.isfinite(value.real):
        raise IntegrandError(f"the bound {text!r} is not a real number")
    return value.real


def _panels(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Sorted panel edges from `low` to `high`, finite ones standing in for infinity (decades of |x|)."""
    grid = _grid(expression, low, high, seed)
    decades = np.geomspace(TAIL, 1e300, 99)
    if low <= 0.0 <= high:
        decades = np.concatenate([decades, 1 / decades])
    edges = np.concatenate([grid[::4], _landmarks(expression, low, high, seed), decades, -decades, [0.0]])
    edges = edges[(edges > low) & (edges < high)]
    ends = [end for end in (low, high) if math.isfinite(end)]
    return _without_dead_tails(expression, np.unique(np.concatenate([edges, ends])), low, high)


def _grid(expression: Expression, low: float, high: float, seed: int) -> Floats:
    grid = survey_grid(expression, seed)
    if math.isfinite(high - low):
        grid = np.unique(np.concatenate([grid, np.linspace(low, high, 801)[1:-1]]))
    return grid[(grid > low) & (grid < high)]


def _landmarks(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Where f has poles, branch points, steps and kinks."""
    grid = _grid(expression, low, high, seed)
    if len(grid) < 3:
        return np.zeros(0)
    breakables = expression.evaluate(grid.astype(complex), derivative=False).breakables
    found = np.unique([at for at, _ in locate(expression, grid, breakables, kinds=("pole", "log", "root"), limit=200)])
    simple = np.round(found, 6)  # most are simple numbers, and quadrature wants a singularity exactly on an edge
    found = np.where(np.abs(simple - found) <= 1e-8 * (1 + np.abs(found)), simple, found)
    return np.concatenate([found, _jumps(expression, *_near(low, high), seed)])


def _without_dead_tails(expression: Expression, edges: Floats, low: float, high: float) -> Floats:
    """`edges` without those towards infinity where f overflows inside although it has died out (x**3/(exp(x) - 1))."""
    values = _real_values(expression, edges)
    alive = np.flatnonzero(np.isfinite(values))
    if not len(alive):
        return edges
    first, last = alive[0], alive[-1]
    with np.errstate(all="ignore"):
        dead = np.abs(values * edges) < 1e-100
    if math.isinf(low) and dead[first]:
        edges, values, last = edges[first:], values[first:], last - first
    if math.isinf(high) and dead[alive[-1]]:
        edges = edges[: last + 1]
    return edges


def _tails_matter(expression: Expression, edges: Floats, scale: float, low: float, high: float) -> bool:
    """Whether the last decade before an infinite bound still contributes: the part beyond 1e300 is then not small."""
    ends = [edges[:2]] * math.isinf(low) + [edges[-2:]] * math.isinf(high)
    return any(kronrod(lambda x: _real_values(expression, x), end[:1], end[1:])[1] > CONVERGED * scale for end in ends)


def _near(low: float, high: float) -> tuple[float, float]:
    if math.isfinite(high - low):
        return low, high
    return max(low, min(high, 0.0) - DENSE_REACH), min(high, max(low, 0.0) + DENSE_REACH)


def _jumps(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Where the steps of f are: sign changes on a dense array, bisected all at once."""
    if "step" not in expression.kinds or low >= high:
        return np.zeros(0)
    n = min(120_000, MAX_EVALUATIONS // (8 * expression.n_nodes)) // (1 + 2 * (seed % 2))
    x = np.linspace(low, high, n + 2)[1:-1]
    signs = _step_signs(expression, x)
    which, at = np.nonzero(signs[:, :-1] != signs[:, 1:])
    if not len(at):
        return np.zeros(0)
    rows = np.arange(len(at))
    return _bisect(lambda middle: _step_signs(expression, middle)[which, rows], x[at], x[at + 1])


def _bisect(sign: Callable[[Floats], NDArray[np.bool_]], low: Floats, high: Floats) -> Floats:
    """For each bracket the place where `sign` changes, all at once."""
    before = sign(low)
    for _ in range(52):
        middle = 0.5 * (low + high)
        same = sign(middle) == before
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return 0.5 * (low + high)


def _step_signs(expression: Expression, x: Floats) -> NDArray[np.bool_]:
    breakables = expression.evaluate(x.astype(complex), derivative=False).breakables
    steps = [np.signbit(np.broadcast_to(q, x.shape)) for kind, q in breakables if kind == "step"]
    return np.array(steps)


def _adaptive(expression: Expression, edges: Floats) -> Reference | None:
    """Integral over the panels between `edges`; None unless f and |f| both converge."""
    low, high = edges[:-1], edges[1:]
    budget = MAX_EVALUATIONS // (N_NODES * (expression.n_nodes + 3))
    value = scale = error = 0.0
    for level in range(MAX_LEVELS):
        budget -= len(low)
        if budget < 0:
            return None
        integral, absolute, *both = kronrod(lambda x: _real_values(expression, x), low, high)
        uncertain = np.maximum(*both)
        if not np.isfinite(uncertain).all():
            return None
        total = scale + absolute.sum()
        stuck = (high - low) <= 1e-15 * np.maximum(np.abs(low), np.abs(high))
        done = (uncertain <= 1e-2 * CONVERGED * total / (16 + len(low) / 4)) | (uncertain <= 1e-14 * absolute) | stuck
        if level == MAX_LEVELS - 1:
            done[:] = True
        value += integral[done].sum()
        scale += absolute[done].sum()
        error += uncertain[done].sum()
        low, high = low[~done], high[~done]
        if not len(low):
            break
        middle = _middle(low, high)
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    return Reference(float(value), float(scale), float(error)) if error <= CONVERGED * scale else None


def _middle(low: Floats, high: Floats) -> Floats:
    # Across decades the middle is the geometric one: tails and singularities at 0 are power laws.
    wide = (np.sign(low) * np.sign(high) > 0) & (
        np.maximum(np.abs(low), np.abs(high)) / 4 > np.minimum(np.abs(low), np.abs(high))
    )
    with np.errstate(all="ignore"):
        return np.where(wide, np.sign(low) * np.sqrt(np.abs(low)) * np.sqrt(np.abs(high)), 0.5 * low + 0.5 * high)


def _real_values(expression: Expression, x: Floats) -> Floats:
    """Values on the real line, nan where f is not real; isolated holes (0/0) are filled from beside them."""
    values = _values_at(expression, x)
    for nudge in (1e-9, -1e-9):
        holes = np.flatnonzero(~np.isfinite(values))
        if len(holes):
            values[holes] = _values_at(expression, x[holes] * (1 + nudge) + nudge * 1e-3)
    return values


def _values_at(expression: Expression, x: Floats) -> Floats:
    # Real arithmetic first: it is faster, and infinities inside it stay what they are.
    values = np.full(x.shape, np.nan) if expression.uses_i else np.array(expression.values(x).real)
    holes = ~np.isfinite(values)
    if holes.any():
        filled = expression.values(x[holes].astype(complex))
        with np.errstate(all="ignore"):
            real = np.abs(filled.imag) <= 1e-9 * np.abs(filled) + 1e-300
            values[holes] = np.where(real, filled.real, np.nan)
    return values


def _oscillating(expression: Expression, low: float, high: float, seed: int) -> Reference | None:
    """An integral to infinity whose integrand keeps changing sign: lobes between zeros, extrapolated (Wynn)."""
    if math.isinf(low) and math.isinf(high):
        left = _oscillating(expression, low, 0.0, seed)
        right = _oscillating(expression, 0.0, high, seed)
        if left is None or right is None:
            return None
        return Reference(left.value + right.value, left.scale + right.scale, left.error + right.error)
    sign = -1.0 if math.isinf(low) else 1.0
    start = high if math.isinf(low) else low
    if not math.isfinite(start):
        return None
    for reach in (30.0, 200.0, 2000.0):
        x = start + sign * np.linspace(0, reach, 60_001)[1:]
        values = _real_values(expression, x)
        changes = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)[:N_LOBES]
        if len(changes) == N_LOBES:
            break
    else:
        return None
    zeros = _bisect(lambda at: np.signbit(_real_values(expression, at)), x[changes], x[changes + 1])
    lobes: list[Reference] = []
    for a, b in itertools.pairwise([start, *zeros]):
        lobe = _adaptive(expression, np.linspace(min(a, b), max(a, b), 4))
        if lobe is None:
            return None
        lobes.append(lobe)
    sums = np.cumsum([lobe.value for lobe in lobes])
    limits = [_wynn(sums[:n]) for n in range(N_LOBES - 6, N_LOBES + 1, 2)]
    scale = float(sum(lobe.scale for lobe in lobes[:8]))
    error = float(np.ptp(limits))
    shrinks = lobes[-1].scale < 0.9 * lobes[1].scale  # else the lobes of cos(x) would be summed as if they died out
    return Reference(limits[-1], scale, error) if shrinks and error <= 1e-8 * scale else None


def _wynn(sums: NDArray[np.float64]) -> float:
    """Limit of a sequence of partial sums by Wynn's epsilon algorithm."""
    before, row = np.zeros(len(sums) + 1), np.asarray(sums, float)
    best = float(row[-1])
    with np.errstate(all="ignore"):
        for order in range(1, len(sums)):
            difference = np.diff(row)
            if not difference.all():
                break
            before, row = row, before[1:-1] + 1 / difference
            if order % 2 == 0 and np.isfinite(row[-1]):
                best = float(row[-1])
            if order >= 24:
                break
    return best
