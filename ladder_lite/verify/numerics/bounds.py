"""The bound of an integral, text -> number."""

import math
from functools import lru_cache
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.parse import ExpressionError, parse

_INFINITIES: Final = {"oo", "inf", "infinity", "Infinity", "∞", "\\infty"}


@lru_cache(maxsize=256)
def bound(text: str) -> float:
    """A bound as a number, an infinite one included; ValueError if it is none."""
    bare = text.replace(" ", "")
    if bare.lstrip("+-") in _INFINITIES:
        return -math.inf if bare.startswith("-") else math.inf
    try:
        expression = parse(text)
    except ExpressionError as error:
        raise ValueError(str(error)) from None
    value = complex(expression.values(np.zeros(1, complex))[0])
    if expression.free or abs(value.imag) > 1e-15 * abs(value.real) or not math.isfinite(value.real):
        raise ValueError("no real number")
    return value.real
