"""Does F grow by the integrals of f: the increments of an answer, in floating point or ball arithmetic."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Expression, Floats, Numbers
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.components import QUIET
from ladder_lite.verify.numerics.real_line import SMALLEST

JUMP: Final = 1e-8  # of an increment of F against the integral of f, relative to that of |f|
VISIBLE: Final = 1e-6  # a jump of this size has to show in half of the increments, or in the exact ones
NEAR: Final = 20.0  # far away it may overflow
RUNS: Final = 16  # edges, at least, between which increments are worked out exactly
JUMPS: Final = "it jumps where the integrand does not"
CANNOT_TELL: Final = "floating point cannot tell: it overflows or loses its digits"


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """How much F has to grow from an edge to the next: by `integrals` (nan where unknown), give or take `slack`.

    `scales`: integrals of |f|, against which a jump has to show. `apart`: intervals at places where F may break, which
    are looked at one by one. `exact_slack`: what is allowed where F is worked out exactly.
    """

    edges: Floats
    integrals: Numbers
    scales: Floats
    slack: Floats
    apart: Bools
    exact_slack: Floats

    def unclear(self, values: Numbers, rounding: Floats) -> Bools:
        """Where an F with these `values` at the edges jumps, or rounding might hide that it does."""
        known = np.isfinite(self.integrals)
        with np.errstate(all="ignore"):
            errors = np.abs(values[1:] - values[:-1] - self.integrals)
            allowed = self.slack + rounding[1:] + rounding[:-1] + SMALLEST
            known &= np.isfinite(errors) | (np.abs(self.edges[1:]) <= NEAR)  # far away F may overflow
            clear = allowed <= np.maximum(VISIBLE * self.scales, 2 * self.slack)
            return np.asarray(known & ~(clear & (errors <= allowed)))

    def fault(self, answer: Expression, values: Numbers, rounding: Floats) -> str | None:
        """Whether F grows otherwise, exactly; unless it has no steps and floating point shows that it does not."""
        if "step" not in answer.kinds and not self.unclear(values, rounding).any():
            return None
        # Everywhere, for by chance an interval shows little of its rounding.
        finite = np.isfinite(values[1:]) & np.isfinite(values[:-1])
        known = np.isfinite(self.integrals) & (finite | (np.abs(self.edges[1:]) <= NEAR))
        kept = self._affordable(answer, known)
        if kept is None:
            return CANNOT_TELL
        *starts, end = np.flatnonzero(kept)
        integrals, slack = (
            np.add.reduceat(part[:end], starts) for part in (np.where(known, self.integrals, np.nan), self.exact_slack)
        )
        grown, errors = exact.increments(answer, self.edges[kept][:-1], self.edges[kept][1:])
        known = np.isfinite(integrals)
        with np.errstate(invalid="ignore"):
            is_told = errors <= np.maximum(QUIET * slack[known].max(initial=0), slack)
            least = QUIET * slack[known & (slack > 0)].min(initial=1)  # where f is 0
            off = np.abs(grown - integrals) > np.maximum(slack, least) + errors
        if not is_told[known].all():
            return CANNOT_TELL
        return JUMPS if off[known].any() else None

    def _affordable(self, answer: Expression, known: Bools) -> Bools | None:
        """The edges of known intervals, or as many of them as F can be worked out at; None if these are too few."""
        kept: Bools = np.append(known, False) | np.append(False, known)
        beside: Bools = kept & (np.append(self.apart, False) | np.append(False, self.apart))
        others = np.flatnonzero(kept & ~beside)
        n_others = exact.n_values(answer) - np.count_nonzero(beside)
        if known.any() and len(others) <= n_others:
            return kept
        if n_others < RUNS or not known.any():
            return None
        beside[others[np.linspace(0, len(others) - 1, n_others).astype(int)]] = True
        return beside
