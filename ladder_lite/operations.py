"""One array operation of an expression: its value and derivative, what may break, what is plain about its sign."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ladder_lite.functions import Break, Function

Complexes = NDArray[np.complex128]
Operation = Literal["+", "-", "*", "/", "**", "call"]


class Breakable(NamedTuple):
    """A real quantity of an expression, on the evaluated points, that vanishes where the expression may break."""

    kind: Break
    vanishing: NDArray[np.float64]


class Step(NamedTuple):
    """`slot` = `left` operation `right`, or `function` of `left`; slots hold constants and earlier results."""

    slot: int
    operation: Operation
    left: int
    right: int
    function: Function | None
    name: str  # of the function called
    breaks: bool  # whether it can break on the real line: 1/(1+x**2) and sqrt(1+x**2) cannot


def apply(
    operation: Operation,
    function: Function | None,
    left: int,
    right: int,
    values: list[Any],
    slopes: list[Any],
    breakables: list[Breakable] | None,
) -> tuple[Any, Any]:
    """Value and derivative of one operation (forward differentiation; slope None is an exact zero)."""
    u, du = values[left], slopes[left]
    if function is not None:
        value = function.value(u)
        if breakables is not None and function.breaks is not None and function.vanishes is not None:
            breakables.append(Breakable(function.breaks, function.vanishes(u).real))
        if du is None:
            return value, None
        slope = function.slope(u, value) * du
        return value, slope.real + 0j if function.real_slope else slope
    v, dv = values[right], slopes[right]
    if operation == "*":
        if dv is None:
            return u * v, None if du is None else du * v
        return u * v, u * dv if du is None else du * v + u * dv
    if operation == "+":
        return u + v, du if dv is None else dv if du is None else du + dv
    if operation == "-":
        return u - v, du if dv is None else -dv if du is None else du - dv
    if operation == "/":
        if breakables is not None and isinstance(v, np.ndarray):
            breakables.append(Breakable("pole", v.real))
        value = u / v
        if dv is None:
            return value, None if du is None else du / v
        return value, -value * dv / v if du is None else (du - value * dv) / v
    return _power(u, du, v, dv, breakables)


def _power(u: Any, du: Any, v: Any, dv: Any, breakables: list[Breakable] | None) -> tuple[Any, Any]:
    if isinstance(v, np.ndarray):
        # As in functions, reals are read from above the cut.
        log: Any = np.log(u + 0.0) if isinstance(u, np.ndarray) else np.log(complex(u))
        if isinstance(u, float) and u > 0:
            log = math.log(u)
        if breakables is not None and isinstance(u, np.ndarray):
            breakables.append(Breakable("log", u.real))
        value = np.exp(v * log)
        if dv is None:
            return value, None if du is None else value * v * du / u
        slope = value * log * dv
        return value, slope if du is None else slope + value * v * du / u
    if breakables is not None:
        if v.real < 0:
            breakables.append(Breakable("pole", u.real))
        if v != int(v.real):
            breakables.append(Breakable("root", u.real))
    if v == 2:
        return u * u, None if du is None else 2 * u * du
    if v == -1:
        value = 1 / u
        return value, None if du is None else -value * value * du
    if v == 0.5:
        value = np.sqrt(u + 0.0)
        return value, None if du is None else 0.5 * du / value
    if v == int(v.real):
        # Of a real base in reals: a complex power would leave rounding in the imaginary part.
        real = isinstance(u, np.ndarray) and not u.imag.any()
        lower = (u.real ** (v.real - 1)).astype(u.dtype) if real else u ** (v - 1)
        return lower * u, None if du is None else v * lower * du
    value = (u + 0.0) ** v
    return value, None if du is None else v * value / u * du


def rounding(jitter: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Factors that differ from 1 by random rounding errors of a few units in the last place."""
    return 1 + 4e-16 * jitter.uniform(-1, 1, shape)


# --- signs: what is plain about a quantity on the real line, without computing it -----------------------------------

UNKNOWN, REAL, NOT_NEGATIVE, POSITIVE = range(4)
_REAL_FUNCTIONS: Final = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "sinh",
        "tanh",
        "atan",
        "asinh",
        "erf",
        "cbrt",
        "sign",
        "floor",
        "ceiling",
        "Heaviside",
        "Si",
        "Shi",
    ]
)


def breaks_of(operation: Operation, exponent: complex | None) -> tuple[Break, ...]:
    """How an operation can break where its base, or divisor, vanishes; `exponent` is None unless constant."""
    if operation == "/":
        return ("pole",)
    if operation != "**":
        return ()
    if exponent is None:
        return ("log",)
    pole: tuple[Break, ...] = ("pole",) if exponent.real < 0 else ()
    return pole if exponent == int(exponent.real) else (*pole, "root")


def sign_of_constant(value: complex) -> int:
    """The sign of a constant."""
    if value.imag != 0:
        return UNKNOWN
    return POSITIVE if value.real > 0 else REAL if value.real < 0 else NOT_NEGATIVE


def sign_of(operation: Operation, name: str, u: int, v: int, right: complex | None, same: bool) -> int:
    """The sign of a result from those of its operands; `right` is the second one if constant."""
    if operation == "call":
        return _sign_of_call(name, u)
    if operation == "**":
        return _sign_of_power(u, v, right)
    low, high = min(u, v), max(u, v)
    if low == UNKNOWN:
        return UNKNOWN
    if operation == "+":
        return high if low >= NOT_NEGATIVE else REAL
    if operation == "-":
        return REAL
    if operation == "*" and same:
        return max(NOT_NEGATIVE, u)
    return low if low >= NOT_NEGATIVE else REAL


def _sign_of_call(name: str, u: int) -> int:
    if name == "Abs":
        return max(NOT_NEGATIVE, u)
    if u == UNKNOWN:
        return UNKNOWN
    if name in ("exp", "cosh"):
        return POSITIVE
    if name == "sqrt" or (name == "cbrt" and u >= NOT_NEGATIVE):
        return u if u >= NOT_NEGATIVE else UNKNOWN
    return REAL if name in _REAL_FUNCTIONS or (name == "log" and u == POSITIVE) else UNKNOWN


def _sign_of_power(u: int, v: int, exponent: complex | None) -> int:
    if UNKNOWN in (u, v):
        return UNKNOWN
    if u == POSITIVE:
        return POSITIVE
    if exponent is None or exponent != int(exponent.real):
        return NOT_NEGATIVE if u == NOT_NEGATIVE and exponent is not None else UNKNOWN
    return NOT_NEGATIVE if u == NOT_NEGATIVE or exponent.real % 2 == 0 else REAL
