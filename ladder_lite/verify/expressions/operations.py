"""What an expression is made of: functions and operations, the value and derivative of each, and where it may break.

And what is plain about its sign.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import numpy as np

Array = Any  # a real or complex array, or a complex scalar while constants are folded
# At reals, a function that is not real there is nan, not complex.
# Where a function breaks on the real line: at a pole, at a logarithm's or root's branch point, or at a step or kink. At
# a turn it does not, but can seem to: atan(10**9*x) does at 0.
Break = Literal["pole", "log", "root", "step", "turn"]
# "only" is the second operand where the first is 1, else 0; "where" is it too, else its value at some such point.
Operation = Literal["+", "-", "*", "/", "**", "call", "only", "where"]
# (u, u', v, v') -> (value, derivative); a derivative of None is an exact zero. A call has its one operand twice.
Forward = Callable[[Any, Any, Any, Any], tuple[Any, Any]]

MAX_MULTIPLIED: Final = 64  # whole powers up to this one are products: faster than, and as exact as, a power function


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def identity(u: Array) -> Array:
    """`u` itself."""
    return u


@dataclass(frozen=True, slots=True)
class Function:
    """One function: `value(u)`, `slope(u, value)`, and a real quantity that vanishes where the function breaks."""

    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]
    breaks: Break | None = None
    vanishes: Callable[[Array], Array] = identity
    real_slope: bool = False  # of a function of |u|: its derivative is the real part of slope * u'

    def forward(self, u: Array, du: Any, _v: Array, _dv: Any) -> tuple[Array, Any]:
        """Value and derivative of a call; a derivative of None is an exact zero."""
        value = self.value(u)
        if du is None:
            return value, None
        slope = self.slope(u, value) * du
        return value, slope.real.astype(slope.dtype) if self.real_slope else slope


def integers(u: Array) -> Array:
    """A quantity that vanishes at the integers."""
    return np.sin(np.pi * u)


# Arithmetic of any kind of number.
ARITHMETIC: Final[dict[Operation, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}


class Step(NamedTuple):
    """`slot` = `forward` of `left` and `right`; slots hold constants and earlier results."""

    slot: int
    forward: Forward
    left: int
    right: int
    operation: Operation
    name: str  # of the function called


def _multiply(u: Any, du: Any, v: Any, dv: Any) -> tuple[Any, Any]:
    if dv is None:
        return u * v, None if du is None else du * v
    return u * v, u * dv if du is None else du * v + u * dv


def _divide(u: Any, du: Any, v: Any, dv: Any) -> tuple[Any, Any]:
    value = u / v
    if dv is None:
        return value, None if du is None else du / v
    return value, -value * dv / v if du is None else (du - value * dv) / v


def _power(u: Any, du: Any, v: Any, dv: Any) -> tuple[Any, Any]:
    """A power whose exponent varies."""
    # As in functions, reals are read from above the cut.
    log: Any = np.log(u + 0.0) if isinstance(u, np.ndarray) else np.log(complex(u))
    if isinstance(u, float) and u > 0:
        log = math.log(u)
    value = np.exp(v * log)
    if dv is None:
        return value, None if du is None else value * v * du / u
    slope = value * log * dv
    return value, slope if du is None else slope + value * v * du / u


def _reciprocal(u: Any, du: Any, _v: Any, _dv: Any) -> tuple[Any, Any]:
    value = 1 / u
    return value, None if du is None else -value * value * du


def _square_root(u: Any, du: Any, _v: Any, _dv: Any) -> tuple[Any, Any]:
    value = np.sqrt(u + 0.0)
    return value, None if du is None else 0.5 * du / value


def _fixed_power(u: Any, du: Any, v: Any, _dv: Any) -> tuple[Any, Any]:
    value = (u + 0.0) ** v
    return value, None if du is None else v * value / u * du


def _only(u: Any, _du: Any, v: Any, dv: Any) -> tuple[Any, Any]:
    chosen = np.real(u) > 0.5
    return np.where(chosen, v, 0.0), None if dv is None else np.where(chosen, dv, 0.0)


def _where(u: Any, _du: Any, v: Any, dv: Any) -> tuple[Any, Any]:
    chosen = np.real(u) > 0.5
    at = v[chosen]
    return np.where(chosen, v, at[0] if len(at) else v), None if dv is None else np.where(chosen, dv, 0.0)


@lru_cache(maxsize=256)
def _whole_power(n: int) -> Forward:
    def forward(u: Any, du: Any, _v: Any, _dv: Any) -> tuple[Any, Any]:
        lower = _product(u, n - 1)
        return lower * u, None if du is None else n * lower * du

    return forward


def _product(u: Any, n: int) -> Any:
    """u**n by repeated squaring, or for a large n by the power function, of reals in reals."""
    if abs(n) > MAX_MULTIPLIED:
        # A complex power would leave rounding in the imaginary part.
        return u**n if u.imag.any() else (u.real**n).astype(u.dtype)
    if n < 0:
        return 1 / _product(u, -n)
    power = u
    for digit in f"{n:b}"[1:]:
        power = power * power
        if digit == "1":
            power = power * u
    return power


_FORWARD: Final[dict[Operation, Forward]] = {
    "+": lambda u, du, v, dv: (u + v, du if dv is None else dv if du is None else du + dv),
    "-": lambda u, du, v, dv: (u - v, du if dv is None else -dv if du is None else du - dv),
    "*": _multiply,
    "/": _divide,
    "**": _power,
    "only": _only,
    "where": _where,
}
_POWERS: Final[dict[complex, Forward]] = {
    2: lambda u, du, _v, _dv: (u * u, None if du is None else 2 * u * du),
    -1: _reciprocal,
    0.5: _square_root,
}


def forward_of(operation: Operation, exponent: complex | None) -> Forward:
    """The function of an operation; `exponent` is None unless it is a power with a constant one."""
    if operation != "**" or exponent is None:
        return _FORWARD[operation]
    if exponent in _POWERS:
        return _POWERS[exponent]
    return _fixed_power if exponent != int(exponent.real) or exponent in (0, 1) else _whole_power(int(exponent.real))


def breaks_of(exponent: complex | None) -> tuple[Break, ...]:
    """How a power can break where its base vanishes; `exponent` is None unless constant."""
    if exponent is None:
        return ("log",)
    pole: tuple[Break, ...] = ("pole",) if exponent.real < 0 else ()
    return pole if exponent == int(exponent.real) else (*pole, "root")


# --- signs: what is plain about a quantity on the real line, without computing it -----------------------------------

UNKNOWN, REAL, NOT_NEGATIVE, POSITIVE = range(4)
_REAL_FUNCTIONS: Final = frozenset(
    words("sin cos tan sinh tanh atan asinh erf Si Shi cbrt sign positive floor ceiling Heaviside")
)


def sign_of_constant(value: complex) -> int:
    """The sign of a constant."""
    if value.imag != 0:
        return UNKNOWN
    return POSITIVE if value.real > 0 else REAL if value.real < 0 else NOT_NEGATIVE


def sign_of(operation: Operation, name: str, u: int, v: int, right: complex | None, same: bool) -> int:
    """The sign of a result from those of its operands; `right` is the second one if constant."""
    if operation == "call":
        return _sign_of_call(name, u)
    if operation in ("only", "where"):
        return min(v, REAL)
    if operation == "**":
        return _sign_of_power(u, v, right)
    low, high = (u, v) if u < v else (v, u)
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
