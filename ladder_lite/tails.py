"""Integrals to infinity of integrands that never settle: summed lobe by lobe, and the sums extrapolated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Final

import numpy as np

from ladder_lite.expressions import Expression
from ladder_lite.quadrature import Floats, Integral, adaptive, bisect, real_line_values

N_LOBES: Final = 32


def oscillating(expression: Expression, low: float, high: float) -> Integral | None:
    """The integral from `low` to `high`, one or both infinite; None unless the sums of its lobes converge."""
    if math.isinf(low) and math.isinf(high):
        left = oscillating(expression, low, 0.0)
        right = oscillating(expression, 0.0, high)
        if left is None or right is None:
            return None
        return Integral(left.value + right.value, left.scale + right.scale, left.error + right.error)
    sign = -1.0 if math.isinf(low) else 1.0
    start = high if math.isinf(low) else low
    if not math.isfinite(start):
        return None
    # Lobes lie between zeros (sin(x)/x), or between the least values of one that keeps its sign (sin(x)**2/x**2).
    cuts = _cuts(lambda x: real_line_values(expression, x), start, sign)
    limit = _wynn
    if cuts is None:
        cuts = _cuts(lambda x: sign * _slopes_at(expression, x), start, sign, rising=True)
        limit = _levin
    if cuts is None:
        return None
    lobes: list[Integral] = []
    for a, b in itertools.pairwise([start, *cuts]):
        lobe = adaptive(expression, np.linspace(min(a, b), max(a, b), 4))
        if lobe is None:
            return None
        lobes.append(lobe)
    sums = np.cumsum([lobe.value for lobe in lobes])
    value, error = limit(sums)
    scale = float(sum(lobe.scale for lobe in lobes[:8]))
    shrinks = lobes[-1].scale < 0.9 * lobes[1].scale  # else the lobes of cos(x) would be summed as if they died out
    return Integral(value, scale, error) if shrinks and error <= 1e-8 * scale else None


def _cuts(f: Callable[[Floats], Floats], start: float, sign: float, *, rising: bool = False) -> Floats | None:
    """The first N_LOBES zeros of `f` from `start` on, only those where it rises if asked; None if there are fewer."""
    for reach in (30.0, 200.0, 2000.0):
        x = start + sign * np.linspace(0, reach, 60_001)[1:]
        values = f(x)
        changes = np.sign(values[:-1]) * np.sign(values[1:]) < 0
        at = np.flatnonzero(changes & (values[1:] > 0) if rising else changes)[:N_LOBES]
        if len(at) == N_LOBES:
            return bisect(lambda middle: np.signbit(f(middle)), x[at], x[at + 1])
    return None


def _slopes_at(expression: Expression, x: Floats) -> Floats:
    return np.asarray(expression.values_and_derivatives(x.astype(complex))[1].real)


def _levin(sums: Floats) -> tuple[float, float]:
    """Limit of a sequence whose terms shrink like a power of n, by Levin's u transform, and its error.

    Of few terms it knows too little, of many it enlarges their rounding: taken where it changes least.
    """
    import mpmath

    limits = [mpmath.levin(variant="u").update_psum([mpmath.mpf(float(s)) for s in sums[:n]])[0] for n in range(8, 25)]
    changes = np.abs(np.diff(np.array(limits, float)))
    spread = changes[:-1] + changes[1:]
    best = int(spread.argmin())
    return float(limits[best + 1]), 2 * float(spread[best])


def _wynn(sums: Floats) -> tuple[float, float]:
    """Limit of a sequence of partial sums that alternate, by Wynn's epsilon algorithm, and its error."""
    limits = [_epsilon(sums[:n]) for n in range(len(sums) - 6, len(sums) + 1, 2)]
    return limits[-1], float(np.ptp(limits))


def _epsilon(sums: Floats) -> float:
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
