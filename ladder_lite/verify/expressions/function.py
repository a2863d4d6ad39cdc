"""What a function of an expression is: value, slope, and where it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = Any  # a real or complex array, or a complex scalar while constants are folded
# At reals, a function that is not real there is nan, not complex.
# Where a function breaks on the real line: at a pole, at a logarithm's or root's branch point, or at a step or kink. At
# a turn it does not, but can seem to: atan(10**9*x) does at 0.
Break = Literal["pole", "log", "root", "step", "turn"]


@dataclass(frozen=True, slots=True)
class Function:
    """One function: `value(u)`, `slope(u, value)`, and a real quantity that vanishes where the function breaks."""

    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]
    breaks: Break | None = None
    vanishes: Callable[[Array], Array] | None = None
    real_slope: bool = False  # of a function of |u|: its derivative is the real part of slope * u'

    def forward(self, u: Array, du: Any, _v: Array, _dv: Any) -> tuple[Array, Any]:
        """Value and derivative of a call; a derivative of None is an exact zero."""
        value = self.value(u)
        if du is None:
            return value, None
        slope = self.slope(u, value) * du
        return value, slope.real.astype(slope.dtype) if self.real_slope else slope


def same(u: Array) -> Array:
    """`u` itself."""
    return u


def off_cut(u: Array) -> Array:
    """`u`, without negative zeros."""
    # -0.0 + 0.0 is 0.0: a negative real is always read from above the branch cut, as SymPy and mpmath do.
    return u + 0.0


def integers(u: Array) -> Array:
    """A quantity that vanishes at the integers."""
    return np.sin(np.pi * u)
