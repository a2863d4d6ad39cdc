"""Integrals towards an end at which f oscillates without end or decays slowly: smooth cuts that move towards the end.

A change of variables moves the end to infinity. The new variable is the distance from the start, a multiple of the
reciprocal distance from a finite end, or the logarithm of either. Integrals up to a smooth cut at R average out the
oscillation. They differ from the limit by powers of R, which Wynn's epsilon algorithm removes if R grows geometrically.

That would give divergent integrals a value too (0 for cos), so the plain integral between R and 2 R must also decay.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Floats
from ladder_lite.verify.numerics.quadrature import Integral, Line, jumps, kronrod, refined

Function = Callable[[Floats], Floats]
LARGEST: Final = (2048.0, 512.0, 128.0, 32.0, 8.0)  # largest cuts to try, until one is affordable
LARGEST_LOGARITHM: Final = 690.0  # exp(690) is finite
N_CUTS: Final = 15  # each sqrt(2) times the one before
SHARPNESS: Final = 12.0  # of a cut at R: it falls from 1 to 0 around R/2, within about R/6
SHRINKS: Final = 0.9  # the integral over the last octave must be smaller than this times that two octaves before
UNCERTAIN: Final = 2e-10  # largest error, relative to the integral of |f|


def tail(f: Line, start: float, end: float) -> Integral | None:
    """Return the integral from `start` up or down to `end`, or None if it does not converge."""
    width = end - start if math.isfinite(end) else math.copysign(1.0, end)

    def moved(
        x: Function, slope: Function, cuts: Sequence[float], lowest: float = 0.0
    ) -> tuple[Integral | None, float]:
        """Integrate in a new variable t from `lowest` to infinity, with x(t) and its slope dx/dt.

        Returns the integral and the largest cut that was affordable: (None, cut) if it does not converge, and
        (None, 0.0) if no cut was affordable.
        """
        steps = f.steps
        g = Line(
            lambda t: f.values(x(t)) * slope(t),
            lambda t: f.noise(x(t)) * slope(t),
            None if steps is None else (lambda t: steps(x(t))),
            f.cost,
        )
        for cut in cuts:
            at = jumps(g, lowest, cut)
            # Panels grow with t, and steps of f are edges.
            edges = np.geomspace(cut / 1024, cut, 240)
            edges = np.concatenate([[lowest], edges[edges > lowest]])
            panels = None if at is None else refined(g, np.union1d(edges, at))
            if panels is not None:
                return _to_infinity(g, panels), cut
        return None, 0.0

    if math.isfinite(end):
        # t = width/(end - x) - 1 moves a finite end to infinity: sin(1/x) on (0, 1) becomes sin(1 + t)/(1 + t)**2.
        settled, _ = moved(lambda t: end - width / (1 + t), lambda t: abs(width) / (1 + t) ** 2, LARGEST)
        if settled is None and end == 0:
            # t = -log|x|, for an f with a strong singularity: 1/(x*log(x)**2). Only towards 0, because only there are
            # doubles dense enough to come within 1e-299 of the end.
            sign = math.copysign(1.0, start)
            lowest = -math.log(abs(start))
            settled, _ = moved(lambda t: sign * np.exp(-t), lambda t: np.exp(-t), [LARGEST_LOGARITHM], lowest)
        return settled
    settled, cut = moved(lambda t: start + width * t, np.ones_like, LARGEST)
    if settled is None and cut == LARGEST[0]:
        # The first cut was affordable, but f decays slowly: x = start + exp(t) - 1 reaches 1e299.
        settled, _ = moved(lambda t: start + width * np.expm1(t), np.exp, [LARGEST_LOGARITHM])
    elif settled is None:  # f oscillates ever faster, as sin(exp(x)) does: slow it down with x = start + log(1 + t)
        settled, _ = moved(lambda t: start + width * np.log1p(t), lambda t: 1 / (1 + t), LARGEST)
    return settled


def _to_infinity(f: Line, panels: Floats) -> Integral | None:
    """Return the integral of `f` up to infinity by smooth cuts on `panels`, shape (5, n); None if it diverges."""
    from scipy import special

    low, high, integral, absolute, uncertain = panels[:, panels[0].argsort()]
    largest, scale = high[-1], float(absolute.sum())
    # The plain integral must settle: compare how much it still varies within the last octave and two octaves earlier.
    so_far = np.cumsum(integral)
    changes = [np.ptp(so_far[(high > end / 2) & (high <= end)]) for end in (largest / 4, largest)]
    kept = changes[1] / changes[0] if changes[1] > 1e-14 * scale else 0.0
    if not kept <= SHRINKS:
        return None
    sums = []  # integrals up to N_CUTS smooth cuts, from largest/128 to largest
    for cut in largest * 2.0 ** (0.5 * np.arange(1 - N_CUTS, 1)):
        near = low < cut

        def smoothly_cut(t: Floats, cut: float = cut) -> Floats:
            return f.values(t) * special.erfc(SHARPNESS * (t / cut - 0.5)) / 2

        sums.append(kronrod(smoothly_cut, low[near], high[near])[0].sum())
    # Two octaves keep the share `kept` of the variation, so a geometric series bounds what is still to come.
    reach = 2 * changes[1] / (1 - math.sqrt(kept))
    value, error = _limit(np.array(sums), reach + 1e-14 * scale)
    error += float(uncertain.sum()) + f.rounding(low, high, scale)
    return Integral(value, scale, error) if error <= UNCERTAIN * scale else None


def _limit(sums: Floats, reach: float) -> tuple[float, float]:
    """Return the limit of a sequence, which must be within `reach` of its last value, and an estimate of its error."""
    # Each even column of Wynn's epsilon table is a sequence with the same limit that converges faster. Of these, the
    # one whose last three values vary least is taken.
    before, row = np.zeros(len(sums) + 1), sums
    limit, error = float(row[-1]), float(np.ptp(row[-3:]))
    with np.errstate(all="ignore"):
        for order in range(1, len(sums) - 2):
            before, row = row, before[1:-1] + 1 / np.diff(row)
            spread = np.ptp(row[-3:])
            if order % 2 == 0 and spread < error and abs(row[-1] - sums[-1]) <= reach:
                limit, error = float(row[-1]), float(spread)
    return limit, 2 * error
