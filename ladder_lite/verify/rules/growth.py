"""Check that F grows by the integrals of f, in floating point or ball arithmetic.

Between two neighbouring edges F must grow by the integral of f, F(b) - F(a) = integral of f from a to b. This finds the
steps that a comparison of F' with f cannot see: floor(x) has the derivative 0.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Expression, Floats, Numbers
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.components import QUIET
from ladder_lite.verify.numerics.real_line import SMALLEST

JUMP: Final = 1e-8  # largest error of an increment of F, relative to the integral of |f|
VISIBLE: Final = 1e-6  # an increment is unclear if noise above this, relative to the integral of |f|, could hide a jump
NEAR: Final = 20.0  # farther from 0 than this, F may overflow
JUMPS: Final = "it jumps where the integrand does not"
CANNOT_TELL: Final = "floating point cannot tell: it overflows or loses its digits"


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """The growth that F must have between n sorted edges. All other arrays have one value per interval, n - 1."""

    edges: Floats
    integrals: Numbers  # of f; nan where unknown
    scales: Floats  # integrals of |f|, by which the size of a jump is measured
    slack: Floats  # errors allowed in floating point
    exact_slack: Floats  # errors allowed in ball arithmetic

    def unclear(self, values: Numbers, rounding: Floats) -> Bools:
        """Return the intervals in which F jumps or rounding could hide a jump, from values of F at the edges."""
        known = np.isfinite(self.integrals)
        with np.errstate(all="ignore"):
            errors = np.abs(values[1:] - values[:-1] - self.integrals)
            allowed = self.slack + rounding[1:] + rounding[:-1] + SMALLEST
            known &= np.isfinite(errors) | (np.abs(self.edges[1:]) <= NEAR)  # far away F may overflow
            # With more rounding than this, even a small error would prove nothing.
            clear = allowed <= np.maximum(VISIBLE * self.scales, 2 * self.slack)
            return np.asarray(known & ~(clear & (errors <= allowed)))

    def fault(self, answer: Expression, values: Numbers, rounding: Floats) -> str | None:
        """Return what is wrong with the growth of F, or None. Ball arithmetic decides if floating point does not."""
        # A small step of an F with floor or sign can hide in the slack, so such an F is always computed exactly.
        if "step" not in answer.kinds and not self.unclear(values, rounding).any():
            return None
        # All intervals are computed, not only the unclear ones: rounding noise can look small in one by chance.
        finite = np.isfinite(values[1:]) & np.isfinite(values[:-1])
        known = np.isfinite(self.integrals) & (finite | (np.abs(self.edges[1:]) <= NEAR))
        low, high = self.edges[:-1][known], self.edges[1:][known]
        if not known.any() or len(np.union1d(low, high)) > exact.n_affordable_values(answer):
            return CANNOT_TELL
        integrals, slack = self.integrals[known], self.exact_slack[known]
        increments, errors = exact.increments(answer, low, high)
        # The error bounds of the balls must be small too, or a large jump could stay within them.
        if not (errors <= np.maximum(QUIET * slack.max(), slack)).all():
            return CANNOT_TELL
        floor = QUIET * slack[slack > 0].min(initial=1)  # where f is 0
        is_wrong = np.abs(increments - integrals) > np.maximum(slack, floor) + errors
        return JUMPS if is_wrong.any() else None
