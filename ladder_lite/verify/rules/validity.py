"""Whether an integral is a problem at all: a real function of one variable, and bounds that are different numbers.

`data` is that of a `Problem`: integrand, variable, lower and upper, all text, the bounds None for an antiderivative.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal

import numpy as np

from ladder_lite.verify.expressions.parse import Complexes, Expression, ExpressionError, parse
from ladder_lite.verify.numerics.bounds import bound
from ladder_lite.verify.numerics.integrand import Component, IntegrandError, prepare

Data = Mapping[str, str | None]
Fault = Literal["unreadable", "not_one_variable", "undefined", "too_large", "bad_bounds"]

# Where integrands are looked at: two sets of twelve, both signs and several sizes in each, on no usual zero or pole.
_SETS: Final = (
    (-5.23987, -2.71163, -1.27319, -0.41733, -0.13037, 0.08607, 0.36841, 0.61927, 1.43121, 2.21607, 4.17313, 8.30662),
    (-7.14029, -3.30391, -1.74313, -0.57451, -0.21979, 0.05261, 0.27083, 0.74311, 1.19689, 2.68637, 3.35813, 6.58051),
)
POINTS: Final = np.array(_SETS, dtype=np.complex128).ravel()
_FRACTIONS: Final = np.array([0.0071, 0.0437, 0.1273, 0.2361, 0.3719, 0.4583, 0.5417, 0.6367, 0.7549, 0.8761, 0.9533])
_LARGE: Final = 1e9  # a constant in whose rounding an integrand can be lost


def fault(data: Data) -> Fault | None:
    """What is wrong with an integral, None if it is one; of bounded cost, whatever the texts."""
    try:
        function, values = sampled(data)
    except ExpressionError as error:
        return "too_large" if error.reason == "TOO_LARGE" else "unreadable"
    try:
        bounds = bounds_of(data)
    except ValueError:
        return "bad_bounds"
    if bounds is None and function.variable not in function.free:
        return "not_one_variable"
    values = values if bounds is None else function.values(_inside(*bounds))
    if _is_real(function, values):
        return "undefined" if _is_doubtful(function, values) and _components(function) is None else None
    return "undefined" if bounds is not None or _components(function) is None else None


def sampled(data: Data) -> tuple[Expression, Complexes]:
    """The integrand and its values at `POINTS`; raises ExpressionError."""
    return _sampled(str(data["integrand"]), data["variable"] or "x")


@lru_cache(maxsize=256)
def _sampled(integrand: str, variable: str) -> tuple[Expression, Complexes]:
    function = parse(integrand, variable)
    return function, function.values(POINTS)


def bounds_of(data: Data) -> tuple[float, float] | None:
    """The bounds as numbers, infinite ones included, None for an antiderivative; ValueError if they are none."""
    lower, upper = data["lower"], data["upper"]
    if lower is None and upper is None:
        return None
    if lower is None or upper is None:
        raise ValueError("one bound is missing")
    bounds = bound(lower).number, bound(upper).number
    if bounds[0] == bounds[1]:
        raise ValueError("the bounds are equal")
    return bounds


def _inside(lower: float, upper: float) -> Complexes:
    """Points between the bounds, from close to the one to close to the other."""
    low, high = min(lower, upper), max(lower, upper)
    far = 1 / _FRACTIONS - 1
    if math.isinf(low):
        points = high - far if math.isfinite(high) else np.concatenate([-far, far])
    else:
        points = low + far if math.isinf(high) else low * (1 - _FRACTIONS) + high * _FRACTIONS
    return points.astype(np.complex128)


def _is_real(function: Expression, values: Complexes) -> bool:
    """Whether any value is finite, and real where the function does not hold I."""
    with np.errstate(all="ignore"):
        real = function.is_complex | (np.abs(values.imag) <= 1e-9 * np.abs(values))
        return bool((np.isfinite(values) & real).any())


def is_zero(data: Data) -> bool:
    """Whether an integral without a fault is one of zero, up to rounding: nothing to learn from."""
    function, values = sampled(data)
    bounds = bounds_of(data)
    values = values if bounds is None else function.values(_inside(*bounds))
    return _is_doubtful(function, values) and _components(function) == ()


def _is_doubtful(function: Expression, values: Complexes) -> bool:
    """Whether it may be zero everywhere, or only rounding noise: few are, and these are looked at more closely."""
    large = max(map(abs, function.constants), default=0.0)
    with np.errstate(all="ignore"):
        return large > _LARGE or not (np.abs(values[np.isfinite(values)]) > 1e-12 * max(1.0, large)).any()


def _components(function: Expression) -> tuple[Component, ...] | None:
    """The components of its domain, by the survey that the verifier makes; none if it is zero, None if it has none."""
    try:
        return prepare(function.source, function.variable).components
    except IntegrandError:
        return None
