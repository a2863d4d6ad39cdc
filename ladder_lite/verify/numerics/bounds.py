"""The bound of an integral, text -> number."""

import math
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from ladder_lite.verify.expressions.parse import Expression, ExpressionError, parse

_INFINITIES: Final = {"oo", "inf", "infinity", "Infinity", "∞", "\\infty"}


class Bound(NamedTuple):
    """A bound as a number, and as the expression that it is exactly, None for an infinite one."""

    number: float
    exactly: Expression | None


@lru_cache(maxsize=256)
def bound(text: str) -> Bound:
    """Read a bound, an infinite one included; ValueError if it is none."""
    bare = text.replace(" ", "")
    if bare.lstrip("+-") in _INFINITIES:
        return Bound(-math.inf if bare.startswith("-") else math.inf, None)
    try:
        expression = parse(text)
    except ExpressionError as error:
        raise ValueError(str(error)) from None
    value = complex(expression.values(np.zeros(1, complex))[0])
    if expression.free or abs(value.imag) > 1e-15 * abs(value.real) or not math.isfinite(value.real):
        raise ValueError("no real number")
    return Bound(value.real, expression)
