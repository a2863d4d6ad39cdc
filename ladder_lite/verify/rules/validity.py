"""Check that an integral is a valid problem: a real function of one variable, and bounds that are different numbers.

`data` is the data of a `Problem`: the texts "integrand", "variable", "lower" and "upper". Both bounds are None for an
antiderivative.
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

# Points at which integrands are evaluated. Each of the two sets of twelve has both signs and several sizes. The odd
# decimals avoid the usual zeros and poles of integrands. Two sets, because `fingerprints` makes a key from each.
_SETS: Final = (
    (-5.23987, -2.71163, -1.27319, -0.41733, -0.13037, 0.08607, 0.36841, 0.61927, 1.43121, 2.21607, 4.17313, 8.30662),
    (-7.14029, -3.30391, -1.74313, -0.57451, -0.21979, 0.05261, 0.27083, 0.74311, 1.19689, 2.68637, 3.35813, 6.58051),
)
POINTS: Final = np.array(_SETS, dtype=np.complex128).ravel()
# Fractions of the way between two bounds, close to both ends too.
_FRACTIONS: Final = np.linspace(0.0071, 0.9533, 11)
_LARGE: Final = 1e9  # the rounding of a larger constant can hide the rest of an integrand: (x + 10**20) - 10**20


def fault(data: Data) -> Fault | None:
    """Return what is wrong with an integral, None if it is valid. The cost is bounded for any text."""
    try:
        function, values = sampled(data)
    except ExpressionError as error:
        return "too_large" if error.reason == "TOO_LARGE" else "unreadable"
    try:
        bounds = bounds_of(data)
    except ValueError:
        return "bad_bounds"
    # The antiderivative of a constant is not a problem. A definite integral of a constant is: from 0 to 1 of exp(2).
    if bounds is None and function.variable not in function.free:
        return "not_one_variable"
    values = values if bounds is None else function.values(_inside(*bounds))
    # The survey of the components is slow, so it runs only if the few values leave a doubt.
    if _is_real_somewhere(function, values):
        return "undefined" if _may_be_zero(function, values) and _components(function) is None else None
    # Not real at any of the points. An antiderivative may still have a domain between or beyond them.
    return "undefined" if bounds is not None or _components(function) is None else None


def sampled(data: Data) -> tuple[Expression, Complexes]:
    """Return the integrand and its values at `POINTS`, shape (24,); raises ExpressionError."""
    return _sampled(str(data["integrand"]), data["variable"] or "x")


@lru_cache(maxsize=256)
def _sampled(integrand: str, variable: str) -> tuple[Expression, Complexes]:
    function = parse(integrand, variable)
    return function, function.values(POINTS)


def bounds_of(data: Data) -> tuple[float, float] | None:
    """Return the bounds as numbers, possibly infinite, or None for an antiderivative.

    Raises ValueError if a bound is missing or not a real number, or if the bounds are equal.
    """
    lower, upper = data.get("lower"), data.get("upper")
    if lower is None and upper is None:
        return None
    if lower is None or upper is None:
        raise ValueError("one bound is missing")
    bounds = bound(lower).number, bound(upper).number
    if bounds[0] == bounds[1]:
        raise ValueError("the bounds are equal")
    return bounds


def _inside(lower: float, upper: float) -> Complexes:
    """Return points between the bounds, some of them close to either bound."""
    low, high = min(lower, upper), max(lower, upper)
    # From 0.05 to 140: distances from the finite bound if the other one is infinite, from 0 if both are.
    offsets = 1 / _FRACTIONS - 1
    if math.isinf(low):
        points = high - offsets if math.isfinite(high) else np.concatenate([-offsets, offsets])
    else:
        points = low + offsets if math.isinf(high) else low * (1 - _FRACTIONS) + high * _FRACTIONS
    return points.astype(np.complex128)


def _is_real_somewhere(function: Expression, values: Complexes) -> bool:
    """Return True if any value is finite and real, or just finite if the function contains I."""
    with np.errstate(all="ignore"):
        real = function.is_complex | (np.abs(values.imag) <= 1e-9 * np.abs(values))
        return bool((np.isfinite(values) & real).any())


def is_zero(data: Data) -> bool:
    """Return True if the integrand of a valid integral is zero up to rounding: there is nothing to learn from it."""
    function, values = sampled(data)
    bounds = bounds_of(data)
    values = values if bounds is None else function.values(_inside(*bounds))
    return _may_be_zero(function, values) and _components(function) == ()


def _may_be_zero(function: Expression, values: Complexes) -> bool:
    """Return True if the function may be zero everywhere, or only rounding noise. Few are; they get a slow check."""
    large = max(map(abs, function.constants), default=0.0)
    with np.errstate(all="ignore"):
        return large > _LARGE or not (np.abs(values[np.isfinite(values)]) > 1e-12 * max(1.0, large)).any()


def _components(function: Expression) -> tuple[Component, ...] | None:
    """Return the components of the domain as the verifier finds them: () for zero, None if there is no domain."""
    try:
        return prepare(function.source, function.variable).components
    except IntegrandError:
        return None
