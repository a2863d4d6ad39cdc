"""Integrals towards an end at which f never settles, or dies out slowly: cut off smoothly, and the cut moved there.

The end is moved to infinity: the new variable is the distance from the start, a multiple of the inverse distance from
a finite end, or the logarithm of either. Integrals up to a smooth cut at R forget what oscillates, and differ from the
limit by powers of R, which Wynn's epsilon algorithm removes when R grows in geometric progression. As that gives
divergent integrals a value too (cos has 0), the plain integral between R and 2 R has to die out as well.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Floats
from ladder_lite.verify.numerics.quadrature import Integral, Line, jumps, kronrod, refined

Function = Callable[[Floats], Floats]
LARGEST: Final = (2048.0, 512.0, 128.0, 32.0, 8.0)  # cuts to try, until one can be afforded
LARGEST_LOGARITHM: Final = 690.0  # exp of it is finite
N_CUTS: Final = 15  # each sqrt(2) times the one before
SHARPNESS: Final = 12.0  # of a cut: it takes a sixth of the way to it
SHRINKS: Final = 0.9  # what an octave may keep of the last but one
UNCERTAIN: Final = 2e-10  # relative to the integral of |f|


def tail(f: Line, start: float, end: float) -> Integral | None:
    """The integral from `start` up or down to `end`; None unless it converges."""
    width = end - start if math.isfinite(end) else math.copysign(1.0, end)

    def moved(
        x: Function, slope: Function, cuts: Sequence[float], lowest: float = 0.0
    ) -> tuple[Integral | None, float]:
        """The integral in a variable whose end is infinity, by the first cut that can be afforded, and that cut."""
        steps = f.steps
        g = Line(
            lambda t: f.values(x(t)) * slope(t),
            lambda t: f.noise(x(t)) * slope(t),
            None if steps is None else (lambda t: steps(x(t))),
            f.cost,
        )
        for cut in cuts:
            at = jumps(g, lowest, cut)
            edges = np.geomspace(cut / 1024, cut, 240)
            edges = np.concatenate([[lowest], edges[edges > lowest]])
            panels = None if at is None else refined(g, np.union1d(edges, at))
            if panels is not None:
                return _to_infinity(g, panels), cut
        return None, 0.0

    if math.isfinite(end):
        found, _ = moved(lambda t: end - width / (1 + t), lambda t: abs(width) / (1 + t) ** 2, LARGEST)
        if found is None and end == 0:
            sign = math.copysign(1.0, start)
            lowest = -math.log(abs(start))
            found, _ = moved(lambda t: sign * np.exp(-t), lambda t: np.exp(-t), [LARGEST_LOGARITHM], lowest)
        return found
    found, cut = moved(lambda t: start + width * t, np.ones_like, LARGEST)
    if found is None and cut == LARGEST[0]:
        found, _ = moved(lambda t: start + width * np.expm1(t), np.exp, [LARGEST_LOGARITHM])
    elif found is None:  # f oscillates fast, as sin(exp(x)) does
        found, _ = moved(lambda t: start + width * np.log1p(t), lambda t: 1 / (1 + t), LARGEST)
    return found


def _to_infinity(f: Line, panels: Floats) -> Integral | None:
    """The integral from 0 to infinity, by cuts up to the end of the panels."""
    from scipy import special

    low, high, integral, absolute, uncertain = panels[:, panels[0].argsort()]
    largest, scale = high[-1], float(absolute.sum())
    so_far = np.cumsum(integral)
    changes = [np.ptp(so_far[(high > end / 2) & (high <= end)]) for end in (largest / 4, largest)]
    kept = changes[1] / changes[0] if changes[1] > 1e-14 * scale else 0.0
    if not kept <= SHRINKS:
        return None
    sums = []
    for cut in largest * 2.0 ** (0.5 * np.arange(1 - N_CUTS, 1)):
        near = low < cut

        def cut_off(t: Floats, cut: float = cut) -> Floats:
            return f.values(t) * special.erfc(SHARPNESS * (t / cut - 0.5)) / 2

        sums.append(kronrod(cut_off, low[near], high[near])[0].sum())
    reach = 2 * changes[1] / (1 - math.sqrt(kept))  # of what is still to come
    value, error = _limit(np.array(sums), reach + 1e-14 * scale)
    error += float(uncertain.sum()) + f.rounding(low, high, scale)
    return Integral(value, scale, error) if error <= UNCERTAIN * scale else None


def _limit(sums: Floats, reach: float) -> tuple[float, float]:
    """The limit of a sequence, within `reach` of its last value, and how far it has settled.

    Of the columns of Wynn's epsilon table the one that has settled most is taken.
    """
    before, row = np.zeros(len(sums) + 1), sums
    limit, error = float(row[-1]), float(np.ptp(row[-3:]))
    with np.errstate(all="ignore"):
        for order in range(1, len(sums) - 2):
            before, row = row, before[1:-1] + 1 / np.diff(row)
            spread = np.ptp(row[-3:])
            if order % 2 == 0 and spread < error and abs(row[-1] - sums[-1]) <= reach:
                limit, error = float(row[-1]), float(spread)
    return limit, 2 * error
