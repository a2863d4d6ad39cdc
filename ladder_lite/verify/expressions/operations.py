"""The parts of an expression: functions and operations, their values, derivatives, breaks and signs."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import numpy as np

# A real or complex array, or a complex scalar while constants are folded. In a real array, a value that is not real is
# nan: sqrt(-1.0) -> nan.
Array = Any
# How a function breaks on the real line: a pole, a branch point of a logarithm or of a root, a step or kink. At a
# "turn" it does not break, but it can look like it: atan(10**9*x) has a turn at 0.
Break = Literal["pole", "log", "root", "step", "turn"]
# "only" is the second operand where the first one is 1, and 0 elsewhere. "where" is the same, but elsewhere it is the
# second operand's value at one of the points where the first one is 1.
Operation = Literal["+", "-", "*", "/", "**", "call", "only", "where"]
# (u, u', v, v') -> (value, derivative). A derivative of None is an exact zero. A call has its operand twice: u and v.
Forward = Callable[[Any, Any, Any, Any], tuple[Any, Any]]

MAX_MULTIPLIED: Final = 64  # whole powers up to this are computed by products, which is faster and as accurate as pow


def words(text: str) -> list[str]:
    """Split a text into words; keeps tables of words short."""
    return text.split()


def identity(u: Array) -> Array:
    """Return `u`."""
    return u


@dataclass(frozen=True, slots=True)
class Function:
    """A function of one argument: how to evaluate it, and where it breaks."""

    value: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]  # slope(u, value(u)): many derivatives need the value, tan' = 1 + tan**2
    breaks: Break | None = None
    vanishes: Callable[[Array], Array] = identity  # a quantity that is 0 where the function breaks: cos(u) for tan(u)
    real_slope: bool = False  # for a function of |u|: its derivative is the real part of slope * u'

    def forward(self, u: Array, du: Any, _v: Array, _dv: Any) -> tuple[Array, Any]:
        """Return value and derivative of a call, by the chain rule."""
        value = self.value(u)
        if du is None:
            return value, None
        slope = self.slope(u, value) * du
        return value, slope.real.astype(slope.dtype) if self.real_slope else slope


def integers(u: Array) -> Array:
    """Return a quantity that vanishes at the integers."""
    return np.sin(np.pi * u)


# Arithmetic for any kind of number: Python's, NumPy's, or balls. `parse` relies on this order of the keys.
ARITHMETIC: Final[dict[Operation, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}


class Step(NamedTuple):
    """One operation of an expression: slot = forward(left, right). Slots contain x, constants and earlier results."""

    slot: int  # of the result
    forward: Forward
    left: int
    right: int
    operation: Operation
    name: str  # of the function, if the operation is a call, else ""


def _multiply(u: Any, du: Any, v: Any, dv: Any) -> tuple[Any, Any]:
    # A missing derivative saves its products, and keeps inf * 0 = nan out of the sum.
    if dv is None:
        return u * v, None if du is None else du * v
    return u * v, u * dv if du is None else du * v + u * dv


def _divide(u: Any, du: Any, v: Any, dv: Any) -> tuple[Any, Any]:
    value = u / v
    if dv is None:
        return value, None if du is None else du / v
    return value, -value * dv / v if du is None else (du - value * dv) / v


def _power(u: Any, du: Any, v: Any, dv: Any) -> tuple[Any, Any]:
    """Return u**v = exp(v*log(u)) and its derivative, for an exponent that varies."""
    # Adding 0.0 puts negative reals above the branch cut, as in `functions`: log(-1) = i*pi.
    log: Any = np.log(u + 0.0) if isinstance(u, np.ndarray) else np.emath.log(u)
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
    # u is a condition, exactly 0 or 1 up to jitter. np.where keeps a nan or inf of v out of the points not chosen.
    chosen = np.real(u) > 0.5
    return np.where(chosen, v, 0.0), None if dv is None else np.where(chosen, dv, 0.0)


def _where(u: Any, _du: Any, v: Any, dv: Any) -> tuple[Any, Any]:
    chosen = np.real(u) > 0.5
    valid = v[chosen]
    return np.where(chosen, v, valid[0] if len(valid) else v), None if dv is None else np.where(chosen, dv, 0.0)


@lru_cache(maxsize=256)
def _whole_power(n: int) -> Forward:
    def forward(u: Any, du: Any, _v: Any, _dv: Any) -> tuple[Any, Any]:
        lower = _product(u, n - 1)  # u**(n - 1) serves the value and the derivative
        return lower * u, None if du is None else n * lower * du

    return forward


def _product(u: Any, n: int) -> Any:
    """Return u**n by repeated squaring, or by the power function for a large n."""
    if abs(n) > MAX_MULTIPLIED:
        # For real values in a complex array, a complex power would leave rounding in the imaginary part.
        return u**n if u.imag.any() else (u.real**n).astype(u.dtype)
    if n < 0:
        return 1 / _product(u, -n)
    power = u
    # Binary digits after the leading one: 13 = 0b1101, so u -> u**3 -> u**6 -> u**13.
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
    -1: _reciprocal,
    0.5: _square_root,
}


def forward_of(operation: Operation, exponent: complex | None) -> Forward:
    """Return the function that computes an operation; `exponent` is that of a power, None if it is not constant."""
    if operation != "**" or exponent is None:
        return _FORWARD[operation]
    if exponent in _POWERS:
        return _POWERS[exponent]
    # _whole_power computes u**(n - 1) first, which does not work for n = 0 and 1.
    return _fixed_power if exponent != int(exponent.real) or exponent in (0, 1) else _whole_power(int(exponent.real))


def breaks_of(exponent: complex | None) -> tuple[Break, ...]:
    """Return how a power can break where its base vanishes; `exponent` is None if it is not constant.

    Examples: -1 -> ("pole",), 0.5 -> ("root",), -0.5 -> ("pole", "root"), 2 -> (), None -> ("log",).
    """
    if exponent is None:
        return ("log",)
    pole: tuple[Break, ...] = ("pole",) if exponent.real < 0 else ()
    return pole if exponent == int(exponent.real) else (*pole, "root")


# --- signs of quantities on the real line, as far as they follow from the formula -----------------------------------

UNKNOWN, REAL, NOT_NEGATIVE, POSITIVE = range(4)  # each implies those before it; UNKNOWN may be complex
_REAL_FUNCTIONS: Final = frozenset(
    words("sin cos tan sinh tanh atan asinh erf Si Shi cbrt sign positive floor ceiling Heaviside")
)


def sign_of_constant(value: complex) -> int:
    """Return the sign of a constant: -2 -> REAL, 0 -> NOT_NEGATIVE, 3 -> POSITIVE, 1j -> UNKNOWN."""
    if value.imag != 0:
        return UNKNOWN
    return POSITIVE if value.real > 0 else REAL if value.real < 0 else NOT_NEGATIVE


def sign_of(operation: Operation, name: str, u: int, v: int, right: complex | None, is_square: bool) -> int:
    """Return the sign of a result from the signs `u` and `v` of its operands.

    `right` is the value of the second operand if it is constant; `is_square`: both operands are the same.
    """
    if operation == "call":
        return _sign_of_call(name, u)
    if operation in ("only", "where"):
        return min(v, REAL)
    if operation == "**":
        return _sign_of_power(u, v, right)
    low, high = (u, v) if u < v else (v, u)  # the weaker and the stronger statement
    if low == UNKNOWN:
        return UNKNOWN
    if operation == "+":
        return high if low >= NOT_NEGATIVE else REAL  # x**2 + 1 is positive
    if operation == "-":
        return REAL
    if operation == "*" and is_square:
        return max(NOT_NEGATIVE, u)
    # Products and quotients.
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
