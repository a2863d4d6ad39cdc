"""Read the bounds of an integral from text."""

import math
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from ladder_lite.verify.expressions.parse import Expression, ExpressionError, parse

_INFINITIES: Final = {"oo", "inf", "infinity", "Infinity", "∞", "\\infty"}


class Bound(NamedTuple):
    """A bound as a double, and as the exact expression, which is None if the bound is infinite."""

    number: float
    exactly: Expression | None


@lru_cache(maxsize=256)
def bound(text: str) -> Bound:
    """Read a finite or infinite bound; raises ValueError if the text is not a real number."""
    bare = text.replace(" ", "")  # "- oo" -> "-oo"
    if bare.lstrip("+-") in _INFINITIES:
        return Bound(-math.inf if bare.startswith("-") else math.inf, None)
    try:
        expression = parse(text)
    except ExpressionError as error:
        raise ValueError(str(error)) from None
    # A constant has the same value at all points, so one arbitrary point is enough. A tiny imaginary part is rounding.
    value = complex(expression.values(np.zeros(1, complex))[0])
    if expression.free or abs(value.imag) > 1e-15 * abs(value.real) or not math.isfinite(value.real):
        raise ValueError(f"{text[:40]!r} is not a real number")
    return Bound(value.real, expression)
