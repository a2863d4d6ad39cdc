"""F' against f in sixty digits, at the few points where double precision overflows or has lost the digits that count.

mpmath's numbers have no largest one, so log(x**2022+x**4044) has a derivative everywhere. Arguments whose exponential
would be too long a number are refused, and so are special functions: a point takes a bounded time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from ladder_lite.expressions import Expression

DIGITS: Final = 60
MAX_OPERATIONS: Final = 1200  # of all points together
_MAX_EXPONENT: Final = 1e6  # of e, or of 2
_MAX_ANGLE_BITS: Final = 100
_EXPONENTIAL: Final = ("exp", "sinh", "cosh", "tanh", "sech", "csch", "coth")
_ANGULAR: Final = ("sin", "cos", "tan", "sec", "csc", "cot")
_OTHER: Final = ("log", "sqrt", "asin", "acos", "atan", "acot", "asec", "acsc", "asinh", "acosh", "atanh", "acoth")
_local = threading.local()  # mpmath's own context is shared by all threads


class _TooLargeError(Exception):
    """A number that is not worked out."""


def agree(answer: Expression, integrand: Expression, points: Sequence[float], tolerance: float) -> bool | None:
    """Whether F' = f, relative to f, at all of the first `points` that can be afforded; None if it cannot be told."""
    affordable = MAX_OPERATIONS // (4 * (answer.n_nodes + integrand.n_nodes + 1))
    if not affordable or not (answer.functions | integrand.functions) <= _functions().keys():
        return None
    context = _context()
    step = context.mpf(10) ** (-DIGITS // 3)
    try:
        for point in points[:affordable]:
            x = context.mpf(point) + step  # off round numbers
            before, after = (answer.apply(at, _power, _functions()) for at in (x - step, x + step))
            slope, value = (after - before) / (2 * step), integrand.apply(x, _power, _functions())
            if not abs(slope - value) <= tolerance * abs(value):
                return False
    except (_TooLargeError, ArithmeticError, ValueError):
        return None
    return True


def _context() -> Any:
    if not hasattr(_local, "context"):
        from mpmath.ctx_mp import MPContext

        _local.context = MPContext()
        _local.context.dps = DIGITS
    return _local.context


def _functions() -> dict[str, Callable[[Any], Any]]:
    if not hasattr(_local, "functions"):
        context = _context()
        _local.functions = {
            **{name: _guarded(getattr(context, name), _is_long) for name in _EXPONENTIAL},
            **{name: _guarded(getattr(context, name), _is_far) for name in _ANGULAR},
            **{name: getattr(context, name) for name in _OTHER},
            "log_abs": lambda u: context.log(abs(u)),
        }
    functions: dict[str, Callable[[Any], Any]] = _local.functions
    return functions


def _guarded(function: Callable[[Any], Any], refuse: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def guarded(u: Any) -> Any:
        if refuse(u):
            raise _TooLargeError
        return function(u)

    return guarded


def _is_long(u: Any) -> bool:
    return bool(abs(u) > _MAX_EXPONENT)


def _is_far(u: Any) -> bool:
    return bool(_context().mag(u) > _MAX_ANGLE_BITS)


def _power(base: Any, exponent: Any) -> Any:
    context = _context()
    base, exponent = context.convert(base), context.convert(exponent)
    if base != 0 and abs(exponent) * abs(context.mag(base)) > _MAX_EXPONENT:
        raise _TooLargeError
    return context.power(base, int(exponent.real) if exponent == int(exponent.real) else exponent)
