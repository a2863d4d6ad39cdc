"""Definite integrals in ball arithmetic, for integrands with which double precision fails.

That is where it overflows, loses its digits, or cannot come close enough to a singularity. The method is tanh-sinh
quadrature between landmarks (Takahasi and Mori, 1974) and exp-sinh quadrature towards infinity. It runs at least twice,
each time with more digits and closer to the ends; two runs agree only if the integral converges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

from flint import acb, arb

from ladder_lite.verify.expressions.expression import Expression
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.bounds import Bound
from ladder_lite.verify.numerics.quadrature import Integral

# For each run: the reach n, and the largest relative change since the run before. Nodes come within 2**-n of an end,
# relative to the panel. Reaches above 140 are for strong singularities: with 140, x**(-9/10) loses a ten-thousandth.
RUNS: Final = ((70, 0.0), (140, 1e-13), (330, 1e-9), (660, 1e-9))
WORKING: Final = 3  # f is evaluated with 3 n binary digits, because it can lose digits beside its singularities
MAX_COST: Final = 4_000_000  # of an integral, in microseconds of a fast machine
FIRST_LEVEL: Final = 3  # nodes are 2**-3 apart, then 2**-4, ...
LAST_LEVEL: Final = 8
CONVERGED: Final = 1e-11  # largest change between levels, relative to the integral of |f|; the error is its square
HOPELESS: Final = 1e-3  # more digits do not help against a larger change
ROUNDING: Final = 1e-16
STEP_ERROR: Final = 1e-15  # relative error if f has steps, because they were located in double precision
IN_RANGE: Final = (1e-250, 1e250)  # sizes that need no exponent


def integrate(expression: Expression, bounds: Sequence[Bound], landmarks: Sequence[float]) -> Integral | None:
    """Return the integral between two bounds; None if no two runs agree, as for a divergent integral."""
    try:
        with exact.allowance(MAX_COST):
            with exact.precision(WORKING * RUNS[-1][0]):
                # Bounds are computed from their text: pi is not the double nearest to it.
                low, high = (exact.apply(end.exactly).real if end.exactly else arb(end.number) for end in bounds)
            edges = [low, *(arb(at) for at in sorted(landmarks) if low < at and at < high), high]
            return _converged(expression, edges)
    except (exact.UnclearError, exact.TooExpensiveError):
        return None


@dataclass(frozen=True, slots=True)
class _Panel:
    """The result of one run between two edges, as balls."""

    integral: Any  # of f
    size: Any  # integral of |f|
    change: Any  # of the integral between the last two levels


def _converged(expression: Expression, edges: list[Any]) -> Integral | None:
    """Run until two successive runs agree; None if they never do."""
    before: list[_Panel] = []
    last_change = arb.pos_inf()
    for reach, tolerance in RUNS:
        level = FIRST_LEVEL + bool(before)  # nodes of later runs are denser too
        panels = [_panel(expression, low, high, reach, level) for low, high in pairwise(edges)]
        with exact.precision(reach):
            total, size = sum(panel.integral for panel in panels), sum(panel.size for panel in panels)
            if not sum(panel.change for panel in panels) <= HOPELESS * size:
                return None
            if before:
                change = sum(abs(p.integral - q.integral) for p, q in zip(before, panels, strict=True))
                # The part left out near the ends must shrink from run to run. For 1 + 10**(-12)/x it does not.
                if change <= tolerance * size and (change <= last_change / 2 or change <= ROUNDING * size):
                    found = _in_units(expression, total, size, change)
                    if found is not None and found.is_known:
                        return found
                last_change = change
            before = panels
    return None


def _in_units(expression: Expression, total: Any, size: Any, error: Any) -> Integral | None:
    """Convert balls to an Integral; None if it should be real and is not."""
    if not expression.is_complex and not abs(total.imag) <= 1e-12 * size:
        return None
    if "step" in expression.kinds:
        error += STEP_ERROR * size
    exponent = 0
    if not (size == 0 or IN_RANGE[0] < size < IN_RANGE[1]):
        exponent = math.floor(float(size.log() / arb.const_log10()))  # 1.97e434 -> 434
    unit = arb(10) ** exponent
    value, scale, known_to, imaginary = (
        float(part / unit) for part in (total.real, size, error.abs_upper(), total.imag)
    )
    return Integral(value, scale, known_to, imaginary, exponent)


def _panel(expression: Expression, low: Any, high: Any, reach: int, level: int) -> _Panel:
    """Integrate between two edges, halving the distance of the nodes from `level` on until the sum converges."""
    with exact.precision(WORKING * reach):
        total, size = acb(0), arb(0)
        last = None
        for n in range(level, LAST_LEVEL + 1):
            # The first level takes all nodes; each later one adds those between the nodes so far.
            for x, weight in _nodes_between(low, high, reach, n, is_first=last is None):
                value = weight * exact.apply(expression, x)
                total, size = total + value, size + abs(value)
            step = arb(2) ** -n
            if last is not None:
                change = abs(total * step - last)
                if change <= CONVERGED * size * step or size == 0:
                    break
            last = total * step
        return _Panel(total * step, size * step, change)


def _nodes_between(low: Any, high: Any, reach: int, level: int, *, is_first: bool) -> list[tuple[Any, Any]]:
    """Return nodes x between two edges and their weights."""
    nodes = []
    for q, weight, is_middle in _nodes(reach, level, is_first):
        # q falls from 1 at t = 0 to about 2**-reach. Each t gives two nodes, for t and -t; t = 0 gives one.
        if low.is_finite() and high.is_finite():
            # tanh-sinh: the distance `near` from one end and from the other. Adding it to the end, instead of computing
            # x from the middle, keeps the digits close to the ends.
            near = (high - low) * q / (1 + q)
            weight = weight * (high - low) * q / (1 + q) ** 2
            nodes += [(low + near, weight)] + ([] if is_middle else [(high - near, weight)])
        else:
            # exp-sinh: distances q and 1/q from the finite end.
            end, sign = (low, 1) if low.is_finite() else (high, -1)
            nodes += [(end + sign * q, weight * q)] + ([] if is_middle else [(end + sign / q, weight / q)])
    return nodes


@lru_cache(maxsize=32)
def _nodes(reach: int, level: int, is_first: bool) -> list[tuple[Any, Any, bool]]:
    """Return tuples (q, weight, t == 0) for t >= 0 in steps of 2**-level: q = exp(-pi*sinh(t)), weight = pi*cosh(t).

    If not `is_first`, return only the t that the level before does not have.
    """
    n = int(math.asinh(reach * math.log(2) / math.pi) * 2**level)
    found = []
    with exact.precision(WORKING * reach):
        for k in range(0 if is_first else 1, n + 1, 1 if is_first else 2):
            t = arb(k) / 2**level
            found.append(((-arb.pi() * t.sinh()).exp(), arb.pi() * t.cosh(), k == 0))
    return found
