"""One integral in ball arithmetic, where double precision overflows, loses its digits or cannot approach a singularity.

Tanh-sinh quadrature (Takahasi and Mori, 1974) between landmarks, exp-sinh towards infinity, twice, the second time with
more digits and closer to the ends: the two agree only if the integral converges.
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

# How many binary digits closer to an end than the panel is wide the nodes of a run come, and what it may differ by from
# the run before. The last ones are for strong singularities: of x**(-9/10), 140 digits leave a ten-thousandth out.
RUNS: Final = ((70, 0.0), (140, 1e-13), (330, 1e-9), (660, 1e-9))
WORKING: Final = 3  # times as many digits f is evaluated with, for it may lose some beside its singularities
MAX_COST: Final = 4_000_000  # of an integral, in microseconds or so
FIRST_LEVEL: Final = 3  # nodes are 2**-3 apart, then 2**-4, ...
LAST_LEVEL: Final = 8
CONVERGED: Final = 1e-11  # change from a level to the next, of the integral of |f|: its error is about the square
HOPELESS: Final = 1e-3  # a change that more digits will not mend
ROUNDING: Final = 1e-16
STEP_ERROR: Final = 1e-15  # relative: steps are where double precision saw them
IN_RANGE: Final = (1e-250, 1e250)  # what is given without an exponent


def integrate(expression: Expression, bounds: Sequence[Bound], landmarks: Sequence[float]) -> Integral | None:
    """The integral between two bounds; None unless two runs agree.

    Those of a divergent one do not.
    """
    try:
        with exact.allowance(MAX_COST):
            with exact.working(WORKING * RUNS[-1][0]):
                low, high = (exact.apply(end.exactly).real if end.exactly else arb(end.number) for end in bounds)
            edges = [low, *(arb(at) for at in sorted(landmarks) if low < at and at < high), high]
            return _converged(expression, edges)
    except (exact.UnclearError, exact.TooExpensiveError):
        return None


@dataclass(frozen=True, slots=True)
class _Panel:
    """The integrals of f and |f| between two edges, and the last change of the first."""

    integral: Any
    size: Any
    change: Any


def _converged(expression: Expression, edges: list[Any]) -> Integral | None:
    before: list[_Panel] = []
    last_change = arb.pos_inf()
    for reach, tolerance in RUNS:
        level = FIRST_LEVEL + bool(before)
        panels = [_panel(expression, low, high, reach, level) for low, high in pairwise(edges)]
        with exact.working(reach):
            total, size = sum(panel.integral for panel in panels), sum(panel.size for panel in panels)
            if not sum(panel.change for panel in panels) <= HOPELESS * size:
                return None
            if before:
                change = sum(abs(p.integral - q.integral) for p, q in zip(before, panels, strict=True))
                # What is left out near the ends has to shrink: of 1 + 10**(-12)/x it does not.
                if change <= tolerance * size and (change <= last_change / 2 or change <= ROUNDING * size):
                    found = _in_units(expression, total, size, change)
                    if found is not None and found.is_known:
                        return found
                last_change = change
            before = panels
    return None


def _in_units(expression: Expression, total: Any, size: Any, error: Any) -> Integral | None:
    if not expression.is_complex and not abs(total.imag) <= 1e-12 * size:
        return None
    if "step" in expression.kinds:
        error += STEP_ERROR * size
    exponent = 0
    if not (size == 0 or IN_RANGE[0] < size < IN_RANGE[1]):
        exponent = math.floor(float(size.log() / arb.const_log10()))
    unit = arb(10) ** exponent
    value, scale, known_to, imaginary = (
        float(part / unit) for part in (total.real, size, error.abs_upper(), total.imag)
    )
    return Integral(value, scale, known_to, imaginary, exponent)


def _panel(expression: Expression, low: Any, high: Any, reach: int, level: int) -> _Panel:
    with exact.working(WORKING * reach):
        total, size = acb(0), arb(0)
        last = None
        for n in range(level, LAST_LEVEL + 1):
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
    nodes = []
    for q, weight, is_middle in _nodes(reach, level, is_first):
        if low.is_finite() and high.is_finite():
            near = (high - low) * q / (1 + q)
            weight = weight * (high - low) * q / (1 + q) ** 2
            nodes += [(low + near, weight)] + ([] if is_middle else [(high - near, weight)])
        else:
            end, sign = (low, 1) if low.is_finite() else (high, -1)
            nodes += [(end + sign * q, weight * q)] + ([] if is_middle else [(end + sign / q, weight / q)])
    return nodes


@lru_cache(maxsize=32)
def _nodes(reach: int, level: int, is_first: bool) -> list[tuple[Any, Any, bool]]:
    """exp(-pi*sinh(t)) and pi*cosh(t) for t >= 0, `level` apart: all, or those between the ones of the level before."""
    n = int(math.asinh(reach * math.log(2) / math.pi) * 2**level)
    found = []
    with exact.working(WORKING * reach):
        for k in range(0 if is_first else 1, n + 1, 1 if is_first else 2):
            t = arb(k) / 2**level
            found.append(((-arb.pi() * t.sinh()).exp(), arb.pi() * t.cosh(), k == 0))
    return found
