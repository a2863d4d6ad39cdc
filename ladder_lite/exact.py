"""Sixty digits or more, where double precision overflows or cannot tell.

mpmath's numbers have no largest one, so log(x**2022+x**4044) has a derivative everywhere, and exp(1000) is a number;
and no rounding hides a step behind a large constant. What would take too long is refused: huge exponents and angles,
too many operations.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from ladder_lite.expressions import FOLD, Expression
from ladder_lite.functions import ELEMENTARY, SPECIAL

DIGITS: Final = 60  # as many first,
MORE_DIGITS: Final = 450  # and so many where these are not enough
INCREMENT_DIGITS: Final = 150
MAX_COST: Final = 60_000  # of a verdict, in microseconds or so
_COSTS: Final = {
    "**": 20,
    **dict.fromkeys([*SPECIAL, "factorial"], 400),
    "dilog": 2000,
    "fresnels": 900,
    "fresnelc": 900,
}
MAX_STEPS: Final = 300  # of a constant
MAX_SPECIAL: Final = 20  # calls of special functions in a constant
_MAX_EXPONENT: Final = 1e6  # of e, or of 2; and what a special function takes
_MAX_ANGLE_BITS: Final = 100
_MAX_SPECIAL: Final = 60
_EXPONENTIAL: Final = ("exp", "sinh", "cosh", "tanh", "sech", "csch", "coth")
_ANGULAR: Final = ("sin", "cos", "tan", "sec", "csc", "cot")
_OTHER: Final = ("log", "sqrt", "asin", "acos", "atan", "acot", "asec", "acsc", "asinh", "acosh", "atanh", "acoth")
_LONG: Final = frozenset([*_EXPONENTIAL, *SPECIAL, "factorial"])
_WHOLE: Final = ("floor", "ceiling", "sign")
_OF_REAL_PARTS: Final = {"floor": "floor", "ceiling": "ceil", "sign": "sign"}
_CONSTANTS: Final = {
    "pi": "pi",
    "Pi": "pi",
    "e": "e",
    "E": "e",
    "EulerGamma": "euler",
    "Catalan": "catalan",
    "GoldenRatio": "phi",
}
Key = TypeVar("Key", bound=str)
_local = threading.local()  # mpmath's own context is shared by all threads


class _TooLargeError(Exception):
    """A number that is not worked out."""


class _TooExpensiveError(Exception):
    """A verdict has spent what it may."""


def slopes_agree(answer: Expression, integrand: Expression, points: Sequence[float], tolerance: float) -> bool | None:
    """Whether F' = f, relative to f, at all of the first `points` that can be afforded; None if it cannot be told."""
    context = _guarded()[0]

    def error(point: float) -> Any:
        step = abs(context.mpf(point)) * context.mpf(10) ** (-context.dps * 5 // 12)
        x = point + step  # off round numbers
        slope = (_apply(answer, x + step) - _apply(answer, x - step)) / (2 * step)
        return abs(slope / _apply(integrand, x) - 1)

    def agree(point: float) -> bool:
        first = error(point)
        if first <= tolerance:
            return True
        with context.workdps(MORE_DIGITS):
            second = error(point)
        if second > tolerance and abs(first - second) > first / 2:
            raise _TooLargeError
        return bool(second <= tolerance)

    results = _each(agree, points)
    return all(results) if results else None


def increments(answer: Expression, pairs: Sequence[tuple[float, float]]) -> list[tuple[complex, float]] | None:
    """F(b) - F(a) for each pair (a, b), and what the digits may leave out of it; None if they cannot be told."""
    context = _guarded()[0]

    def increment(pair: tuple[float, float]) -> tuple[complex, float]:
        with context.workdps(INCREMENT_DIGITS):
            before, after = (_apply(answer, context.mpf(at)) for at in pair)
            left_out = (abs(after) + abs(before)) * context.mpf(10) ** (-INCREMENT_DIGITS // 3)
            return complex(after - before), float(left_out)

    grown = _each(increment, pairs)
    return grown if len(grown) == len(pairs) else None


def grow_alike(first: Expression, second: Expression, pairs: Sequence[tuple[float, float]]) -> bool | None:
    """Whether two answers grow alike from a to b, to 25 digits, for the first pairs that can be afforded."""
    context = _guarded()[0]

    def is_alike(pair: tuple[float, float]) -> bool:
        with context.workdps(INCREMENT_DIGITS):
            low, high = (context.mpf(at) for at in pair)
            grown, other = (_apply(answer, high) - _apply(answer, low) for answer in (first, second))
            return bool(abs(grown - other) <= context.mpf(10) ** -25 * abs(grown))

    results = _each(is_alike, pairs)
    return all(results) if results else None


def sizes(expression: Expression, points: Sequence[float]) -> list[float]:
    """The sizes of its values at the first of the points that can be afforded, if any can be told."""
    context = _guarded()[0]
    return _each(lambda x: float(abs(_apply(expression, context.mpf(x)))), points)


def allow() -> None:
    """Begin a verdict, which may cost MAX_COST."""
    _local.left = MAX_COST


def _each(function: Callable[[Any], Any], points: Sequence[Any]) -> list[Any]:
    """Results at the first points, as far as can be afforded; none at all where one cannot be told."""
    context = _guarded()[0]
    found = []
    try:
        for point in points:
            found.append(function(point))
    except _TooExpensiveError:
        return found
    except (_TooLargeError, ArithmeticError, TypeError, ValueError, context.NoConvergence):
        return []
    return found


def n_increments(answer: Expression) -> int:
    """How many increments the verdict may still have worked out."""
    return int(getattr(_local, "left", MAX_COST) / (2 * _cost(answer, INCREMENT_DIGITS)))


def _cost(expression: Expression, digits: int) -> float:
    longer = (digits / DIGITS) ** 1.5
    return sum(1 if name in "+-*/" else longer * _COSTS.get(name, 14) for name in expression.operations) + 1


def _apply(expression: Expression, x: Any) -> Any:
    context, table = _guarded()
    names = expression.operations
    if (context.dps > DIGITS and "dilog" in names) or (
        context.dps > INCREMENT_DIGITS and not {*SPECIAL, "factorial"}.isdisjoint(names)
    ):
        raise _TooLargeError
    _local.left = getattr(_local, "left", MAX_COST) - _cost(expression, context.dps)
    if _local.left < 0:
        raise _TooExpensiveError
    _local.special = MAX_COST
    return expression.apply(x, {**FOLD, "**": _power}, table, decimal(context))


def value(constant: Expression, digits: int = DIGITS, exponent: int = 0) -> tuple[complex, float] | None:
    """The value of an expression without its variable, and its rounding noise, both over 10**`exponent`.

    None if it has none, or none that can be worked out.

    The noise is the difference of two runs whose every operation is off by a random rounding error.
    """
    if len(constant.operations) > MAX_STEPS:
        return None
    context, table = _guarded()
    context.dps = digits
    operations, table = jittered({**FOLD, "**": _power}, context), jittered(table, context)
    try:
        runs = []
        for _ in range(2):
            _local.special = MAX_SPECIAL
            runs.append(constant.apply(context.nan, operations, table, decimal(context)))
        unit = context.mpf(10) ** exponent
        found, noise = complex(runs[0] / unit), float(abs(runs[1] - runs[0]) / unit)
        return (found, noise) if math.isfinite(abs(found) + noise) else None
    except (_TooLargeError, ArithmeticError, TypeError, ValueError, context.NoConvergence):
        return None
    finally:
        context.dps = DIGITS


def jittered(table: Mapping[Key, Callable[..., Any]], context: Any) -> dict[Key, Callable[..., Any]]:
    """The functions, their results off by a random rounding error unless all numbers are whole: noise shows."""
    rng = random.Random(0)

    def jittered(function: Callable[..., Any], makes_whole: bool) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            result = function(*arguments)
            numbers = [result] if makes_whole else [result, *arguments]
            if all(context.isint(u) and context.mag(u) < context.prec for u in numbers):
                return result
            return result * (1 + rng.uniform(-8, 8) * context.eps)

        return run

    return {key: jittered(function, key in _WHOLE) for key, function in table.items()}


def decimal(context: Any) -> Callable[[complex], Any]:
    """The conversion of a text's number: 0.1 is a tenth."""
    return lambda number: context.convert(number if isinstance(number, complex) else repr(number))


def functions(context: Any) -> dict[str, Callable[[Any], Any]]:
    """The functions and constants of an expression, on an mpmath context's numbers."""
    table = {
        "Abs": context.fabs,
        "log_abs": lambda u: context.log(abs(u)),
        "log2": lambda u: context.log(u, 2),
        "cbrt": lambda u: -context.cbrt(-u) if context.im(u) == 0 and context.re(u) < 0 else context.cbrt(u),
        "Heaviside": lambda u: (context.sign(context.re(u)) + 1) / 2,
        "positive": lambda u: context.mpf(context.re(u) > 0),
        **{name: _of_real_part(getattr(context, mpmath_name)) for name, mpmath_name in _OF_REAL_PARTS.items()},
        "Li": lambda u: context.li(u, offset=True),
        "dilog": lambda u: context.polylog(2, u),
        **{name: getattr(context, name.lower()) for name in ("Si", "Ci", "Shi", "Chi", "Ei", "E1")},
        **{name: lambda _, named=named: +getattr(context, named) for name, named in _CONSTANTS.items()},
    }
    names = (ELEMENTARY.keys() | SPECIAL) - table.keys()
    return table | {name: getattr(context, name) for name in names}


def _of_real_part(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda u: function(u.real)


def _guarded() -> tuple[Any, dict[str, Callable[[Any], Any]]]:
    """This thread's context, and its functions, which refuse what takes long."""
    if not hasattr(_local, "context"):
        from mpmath.ctx_mp import MPContext

        _local.context = MPContext()
        _local.context.dps = DIGITS
        _local.functions = {name: _guard(name, function) for name, function in functions(_local.context).items()}
    return _local.context, _local.functions


def _guard(name: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def guarded(u: Any) -> Any:
        if (name in _LONG and abs(u) > _MAX_EXPONENT) or (name in _ANGULAR and _local.context.mag(u) > _MAX_ANGLE_BITS):
            raise _TooLargeError
        if name in SPECIAL:
            # Of far and complex arguments a value takes a hundred times as long.
            if name != "dilog" and (abs(u) > _MAX_SPECIAL or _local.context.im(u)):
                raise _TooLargeError
            _local.special -= 1
            if _local.special < 0:
                raise _TooLargeError
        return function(u)

    return guarded


def _power(base: Any, exponent: Any) -> Any:
    context = _local.context
    base, exponent = context.convert(base), context.convert(exponent)
    if base != 0 and abs(exponent) * (abs(context.mag(base)) + 1) > _MAX_EXPONENT:
        raise _TooLargeError
    return context.power(base, int(exponent.real) if exponent == int(exponent.real) else exponent)
