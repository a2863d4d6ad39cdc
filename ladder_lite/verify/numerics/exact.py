"""Ball arithmetic with Arb (python-flint), for cases in which double precision overflows or cannot tell.

A ball is a number with a bound on its own error, so no rounding can hide a step behind a large constant. Balls do not
overflow: exp(1000) is an ordinary number, and log(x**2022+x**4044) can be evaluated everywhere.

A result of None means that a value could not be determined: it is not finite, may lie on either side of a step, has
lost its digits, or would take too long.
"""

import cmath
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from flint import acb, arb, ctx

from ladder_lite.verify.expressions.expression import Complexes, Expression, Floats
from ladder_lite.verify.expressions.functions import ELEMENTARY, SPECIAL
from ladder_lite.verify.expressions.operations import ARITHMETIC, identity

BITS: Final = (200, 500, 1500)  # precisions, tried in order until the result is accurate enough
MAX_STEP_BITS: Final = 200  # a difference quotient has a step of 2**-200 or more; its error is the square of the step
KNOWN_BITS: Final = 60  # increments with fewer accurate bits are computed again with more precision
MAX_COST: Final = 30_000  # of a verdict, in microseconds of a fast machine
_COSTS: Final = {"**": 3, **dict.fromkeys(SPECIAL, 100)}  # of one operation, if it is not 1 or 2
_MAX_SPECIAL: Final = 1e5  # for larger arguments, special functions can take a hundred times as long
_lock = threading.RLock()  # flint's precision is global to the process

# What the current verdict may still spend. A context variable, so that each thread has a budget of its own.
_remaining = ContextVar("_remaining", default=math.inf)


class UnclearError(Exception):
    """A value cannot be determined at this precision."""


class TooExpensiveError(Exception):
    """The verdict has used up its budget."""


@contextmanager
def allowance(cost: float = MAX_COST) -> Iterator[None]:
    """Limit the cost of all evaluations in this context. Also works as a decorator."""
    before = _remaining.set(cost)
    try:
        yield
    finally:
        _remaining.reset(before)


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Compute with a precision of `bits` binary digits in this context."""
    with _lock, ctx.workprec(bits):
        yield


def slopes_agree(answer: Expression, integrand: Expression, points: Sequence[float], tolerance: float) -> bool | None:
    """Return whether F' = f at all of the first points that the budget allows; None if that cannot be decided.

    `tolerance` is relative to f. At least two points, or all if there are fewer, must agree for True.
    """
    n_agreeing = 0
    try:
        for point in points:
            for bits in BITS:
                # A ball. The comparisons below are True only if they hold for the whole ball, so both can be False.
                error = _error_of_slope(answer, integrand, point, bits)
                if error <= tolerance:
                    break
            else:  # no precision was enough for agreement
                return False if error > tolerance else None
            n_agreeing += 1
    except TooExpensiveError:
        pass
    return True if n_agreeing >= min(2, len(points)) > 0 else None


def _error_of_slope(answer: Expression, integrand: Expression, point: float, bits: int) -> Any:
    """Return |F'/f - 1| as a ball, or |F'| if f is 0, by a central difference quotient; nan if a value is unclear."""
    with precision(bits):
        # A step of 5/12 of the digits leaves 7/12 of them in the difference of the two values.
        step = arb(abs(point)) * arb(2) ** -min(bits * 5 // 12, MAX_STEP_BITS)
        x = point + step  # not exactly at a round number, where a function may have a step
        try:
            slope = (apply(answer, x + step) - apply(answer, x - step)) / (2 * step)
            value = apply(integrand, x)
            return abs(slope) if value.is_zero() else abs(slope / value - 1)
        except UnclearError:
            return arb.nan()


def values(expression: Expression, points: Iterable[Any], bits: int = BITS[0]) -> list[Any]:
    """Return the values at points as balls; None for each one that is unclear or too expensive."""
    found = []
    with precision(bits):
        for point in points:
            try:
                found.append(apply(expression, point))
            except (UnclearError, TooExpensiveError):
                found.append(None)
    return found


def increments(answer: Expression, low: Floats, high: Floats) -> tuple[Complexes, Floats]:
    """Return F(high) - F(low) for each pair, and bounds on the errors; both are nan if they cannot be determined."""
    growth, errors = np.full(len(low), np.nan, complex), np.full(len(low), np.nan)
    for bits in BITS:
        unknown = np.flatnonzero(np.isnan(errors)).tolist()
        # An edge that two intervals share is evaluated once.
        edges = np.unique([low[unknown], high[unknown]]).tolist()
        balls = dict(zip(edges, values(answer, edges, bits), strict=True))
        with precision(bits):
            for n in unknown:
                before, after = balls[low[n]], balls[high[n]]
                if before is not None and after is not None:
                    increment = after - before
                    if bits == BITS[-1] or increment.rel_accuracy_bits() >= KNOWN_BITS:
                        growth[n], errors[n] = _with_error(increment)
    return growth, errors


def n_affordable_values(answer: Expression) -> int:
    """Return the number of values of the answer that the remaining budget of the verdict allows."""
    return int(min(_remaining.get(), MAX_COST) / _cost(answer, BITS[0]))


def grow_alike(first: Expression, second: Expression, edges: Sequence[float]) -> bool | None:
    """Return whether two answers have the same increments between edges, to 25 digits; None if that is unclear."""
    balls = [values(answer, edges, BITS[-1]) for answer in (first, second)]
    if any(ball is None for of_answer in balls for ball in of_answer):
        return None
    with precision(BITS[-1]):
        growth, others = ([after - before for before, after in pairwise(of_answer)] for of_answer in balls)
        return all(abs(u - v) <= abs(u) * arb(10) ** -25 for u, v in zip(growth, others, strict=True))


def value(constant: Expression, exponent: int = 0, tolerance: float = 0.0) -> tuple[complex, float] | None:
    """Return the value of a constant expression and a bound on its error, both divided by 10**`exponent`.

    The precision is raised until the error is below `tolerance`. None if the value cannot be determined.
    """
    found = None
    with allowance():
        for bits in BITS:
            [ball] = values(constant, ["nan"], bits)  # the variable is nan, because the value must not depend on it
            if ball is not None:
                with precision(bits):
                    found = _with_error(ball / arb(10) ** exponent)
                if found[1] <= tolerance:
                    break
    return found if found and cmath.isfinite(found[0]) and math.isfinite(found[1]) else None


def _with_error(ball: Any) -> tuple[complex, float]:
    """Convert a ball to a number and a bound on its error."""
    number = complex(ball)
    # The radius of the ball, and the rounding of its middle to double precision.
    return number, float(ball.rad()) + 1e-16 * math.hypot(number.real, number.imag)


@lru_cache(maxsize=64)
def _cost(expression: Expression, bits: int) -> float:
    """Return the estimated cost of one evaluation, in microseconds: 1 for arithmetic, 2 for elementary functions."""
    factor: float = (bits / BITS[0]) ** 0.7
    return factor * sum(_COSTS.get(name, 2 if name[0].isalpha() else 1) for name in expression.operations)


def apply(expression: Expression, x: Any = "nan") -> Any:
    """Return the value at a ball, as a finite ball. Raises UnclearError, and TooExpensiveError if the budget is spent.

    `x` may be left out for a constant expression.
    """
    _remaining.set(_remaining.get() - _cost(expression, ctx.prec))
    if _remaining.get() < 0:
        raise TooExpensiveError
    found = expression.apply(acb(x), _OPERATIONS, _FUNCTIONS, _number)
    if not found.is_finite():
        raise UnclearError
    return found


def _number(number: complex) -> Any:
    """Convert a number of the text to a ball: 0.1 becomes a tenth, not the double nearest to it."""
    is_exact = isinstance(number, complex) or number.is_integer() or not math.isfinite(number)
    return acb(number) if is_exact else acb(arb(repr(number)))


def _is_positive(u: Any) -> bool:
    # Both comparisons are False if the ball reaches to both sides of 0.
    if not (u.real > 0 or u.real <= 0):
        raise UnclearError
    return bool(u.real > 0)


def _cbrt(u: Any) -> Any:
    # The real cube root of a real number: -8 -> -2. Arb's own is the principal one, 1 + i*sqrt(3).
    if not u.imag.is_zero():
        return u.root(3)
    return acb(u.real.root(3)) if _is_positive(u) else acb(-(-u.real).root(3))


_Function = Callable[[Any], Any]


def _method(name: str, argument: _Function = identity) -> _Function:
    # flint's functions are methods of a ball: sin(u) is u.sin(), and asec(u) is (1/u).acos().
    return lambda u: getattr(argument(u), name)()


_RECIPROCALS: Final = {"cot": "tan", "sec": "cos", "csc": "sin", "coth": "tanh", "sech": "cosh", "csch": "sinh"}
# Conditions are 0 or 1, so 0.5 separates them. "where" gives an arbitrary argument, 0.7, to pieces that do not count.
_OPERATIONS: Final[dict[Any, Callable[[Any, Any], Any]]] = ARITHMETIC | {
    "only": lambda u, v: v if _is_positive(u - 0.5) else acb(0),
    "where": lambda u, v: v if _is_positive(u - 0.5) else acb(0.7),
}


def _limited(function: _Function) -> _Function:
    """Refuse arguments of a special function that would take too long."""

    def call(u: Any) -> Any:
        if not abs(u) <= _MAX_SPECIAL:
            raise UnclearError
        return function(u)

    return call


_FUNCTIONS: Final[dict[str, _Function]] = {
    **{name: _method(name) for name in ELEMENTARY.keys() | SPECIAL},
    **{name: _method(name.lower()) for name in ("Si", "Ci", "Shi", "Chi", "Ei")},
    **{f"a{name}": _method(f"a{inverse}", lambda u: 1 / u) for name, inverse in _RECIPROCALS.items()},
    "floor": lambda u: acb(u.real.floor()),
    "ceiling": lambda u: acb(u.real.ceil()),
    "sign": lambda u: acb(u.real.sgn()),
    **dict.fromkeys(("pi", "Pi"), lambda _: acb(arb.pi())),
    **dict.fromkeys(("e", "E"), lambda _: acb(arb.const_e())),
    "EulerGamma": lambda _: acb(arb.const_euler()),
    "Catalan": lambda _: acb(arb.const_catalan()),
    "GoldenRatio": lambda _: acb((1 + arb(5).sqrt()) / 2),
    "fresnels": acb.fresnel_s,
    "fresnelc": acb.fresnel_c,
    "loggamma": acb.lgamma,
    "Abs": lambda u: acb(abs(u)),
    "log_abs": lambda u: acb(abs(u)).log(),
    "log2": lambda u: u.log() / arb.const_log2(),
    "log10": lambda u: u.log() / arb.const_log10(),
    "cbrt": _cbrt,
    "Heaviside": lambda u: (acb(u.real.sgn()) + 1) / 2,
    "positive": lambda u: acb(_is_positive(u)),
    "factorial": lambda u: (u + 1).gamma(),
    "Li": lambda u: u.li(offset=True),
    "dilog": lambda u: u.polylog(2),
    # For a positive real, -Ei(-u): Arb's expint takes thousands of times as long for some arguments.
    "E1": lambda u: -(-u).ei() if u.real > 0 and u.imag.is_zero() else u.expint(1),
}
_FUNCTIONS.update({name: _limited(_FUNCTIONS[name]) for name in SPECIAL})
