"""Ball arithmetic, where double precision overflows or cannot tell: Arb's numbers, by python-flint.

They have no largest one, so log(x**2022+x**4044) has a derivative everywhere, and exp(1000) is a number; and each one
carries a bound of its own error, so no rounding hides a step behind a large constant. None means that a value could not
be told: it is not finite, may be on either side of a step, has lost its digits, or would take too long.
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

BITS: Final = (200, 500, 1500)  # more where the first are not enough
MAX_STEP_BITS: Final = 200  # of a difference quotient, whose error is the square of the step
KNOWN_BITS: Final = 60  # of an increment; with fewer it is worked out again
MAX_COST: Final = 30_000  # of a verdict, in microseconds or so of a fast machine
_COSTS: Final = {"**": 3, **dict.fromkeys([*SPECIAL, "factorial"], 100)}
_MAX_SPECIAL: Final = 1e5  # Of larger arguments special functions may take a hundred times as long.
_lock = threading.RLock()  # the precision is that of the process


_left = ContextVar("_left", default=math.inf)  # what may still be spent


class UnclearError(Exception):
    """A number that is not known."""


class TooExpensiveError(Exception):
    """A verdict has spent what it may."""


@contextmanager
def allowance(cost: float = MAX_COST) -> Iterator[None]:
    """What is worked out may cost that much."""
    before = _left.set(cost)
    try:
        yield
    finally:
        _left.reset(before)


@contextmanager
def working(bits: int) -> Iterator[None]:
    """Work with so many binary digits."""
    with _lock, ctx.workprec(bits):
        yield


def slopes_agree(answer: Expression, integrand: Expression, points: Sequence[float], tolerance: float) -> bool | None:
    """Whether F' = f, relative to f, at all of the first `points` that can be afforded; None if it cannot be told."""
    n_agreeing = 0
    try:
        for point in points:
            for bits in BITS:
                error = _error_of_slope(answer, integrand, point, bits)
                if error <= tolerance:
                    break
            else:
                return False if error > tolerance else None
            n_agreeing += 1
    except TooExpensiveError:
        pass
    return True if n_agreeing >= min(2, len(points)) > 0 else None


def _error_of_slope(answer: Expression, integrand: Expression, point: float, bits: int) -> Any:
    with working(bits):
        step = arb(abs(point)) * arb(2) ** -min(bits * 5 // 12, MAX_STEP_BITS)
        x = point + step  # off round numbers
        try:
            slope = (apply(answer, x + step) - apply(answer, x - step)) / (2 * step)
            value = apply(integrand, x)
            return abs(slope) if value.is_zero() else abs(slope / value - 1)
        except UnclearError:
            return arb.nan()


def values(expression: Expression, points: Iterable[Any], bits: int = BITS[0]) -> list[Any]:
    """Its values at points, as balls: None where one cannot be told, or afforded."""
    found = []
    with working(bits):
        for point in points:
            try:
                found.append(apply(expression, point))
            except (UnclearError, TooExpensiveError):
                found.append(None)
    return found


def increments(answer: Expression, low: Floats, high: Floats) -> tuple[Complexes, Floats]:
    """F(high) - F(low) for each pair, and bounds of the errors; nan where they cannot be told."""
    grown, errors = np.full(len(low), np.nan, complex), np.full(len(low), np.nan)
    for bits in BITS:
        unknown = np.flatnonzero(np.isnan(errors)).tolist()
        at = np.unique([low[unknown], high[unknown]]).tolist()
        balls = dict(zip(at, values(answer, at, bits), strict=True))
        with working(bits):
            for n in unknown:
                before, after = balls[low[n]], balls[high[n]]
                if before is not None and after is not None:
                    increment = after - before
                    if bits == BITS[-1] or increment.rel_accuracy_bits() >= KNOWN_BITS:
                        grown[n], errors[n] = _known(increment)
    return grown, errors


def n_values(answer: Expression) -> int:
    """At how many edges of increments the verdict can still afford a value."""
    return int(min(_left.get(), MAX_COST) / _cost(answer, BITS[0]))


def grow_alike(first: Expression, second: Expression, edges: Sequence[float]) -> bool | None:
    """Whether two answers grow alike from edge to edge, to 25 digits."""
    balls = [values(answer, edges, BITS[-1]) for answer in (first, second)]
    if any(ball is None for of_answer in balls for ball in of_answer):
        return None
    with working(BITS[-1]):
        grown, others = ([after - before for before, after in pairwise(of_answer)] for of_answer in balls)
        return all(abs(u - v) <= abs(u) * arb(10) ** -25 for u, v in zip(grown, others, strict=True))


def value(constant: Expression, exponent: int = 0, tolerance: float = 0.0) -> tuple[complex, float] | None:
    """The value of an expression without its variable and a bound of its error, both over 10**`exponent`.

    With more digits where the error is above `tolerance`. None if it has no value, or none that can be worked out.
    """
    found = None
    with allowance():
        for bits in BITS:
            [ball] = values(constant, ["nan"], bits)
            if ball is not None:
                with working(bits):
                    found = _known(ball / arb(10) ** exponent)
                if found[1] <= tolerance:
                    break
    return found if found and cmath.isfinite(found[0]) and math.isfinite(found[1]) else None


def _known(ball: Any) -> tuple[complex, float]:
    """A ball as a number and a bound of its error."""
    number = complex(ball)
    return number, float(ball.rad()) + 1e-16 * math.hypot(number.real, number.imag)


@lru_cache(maxsize=64)
def _cost(expression: Expression, bits: int) -> float:
    longer: float = (bits / BITS[0]) ** 0.7
    return longer * sum(_COSTS.get(name, 2 if name[0].isalpha() else 1) for name in expression.operations)


def apply(expression: Expression, x: Any = "nan") -> Any:
    """Its value at a ball, or that of a constant, a finite one; raises UnclearError and TooExpensiveError."""
    _left.set(_left.get() - _cost(expression, ctx.prec))
    if _left.get() < 0:
        raise TooExpensiveError
    found = expression.apply(acb(x), _OPERATIONS, _FUNCTIONS, _number)
    if not found.is_finite():
        raise UnclearError
    return found


def _number(number: complex) -> Any:
    """A text's number: 0.1 is a tenth."""
    is_exact = isinstance(number, complex) or number.is_integer() or not math.isfinite(number)
    return acb(number) if is_exact else acb(arb(repr(number)))


def _is_positive(u: Any) -> bool:
    if not (u.real > 0 or u.real <= 0):
        raise UnclearError
    return bool(u.real > 0)


def _cbrt(u: Any) -> Any:
    if not u.imag.is_zero():
        return u.root(3)
    return acb(u.real.root(3)) if _is_positive(u) else acb(-(-u.real).root(3))


_Function = Callable[[Any], Any]


def _called(name: str, argument: _Function = identity) -> _Function:
    return lambda u: getattr(argument(u), name)()


_RECIPROCALS: Final = {"cot": "tan", "sec": "cos", "csc": "sin", "coth": "tanh", "sech": "cosh", "csch": "sinh"}
_OPERATIONS: Final[dict[Any, Callable[[Any, Any], Any]]] = ARITHMETIC | {
    "only": lambda u, v: v if _is_positive(u - 0.5) else acb(0),
    "where": lambda u, v: v if _is_positive(u - 0.5) else acb(0.7),
}


def _bounded(function: _Function) -> _Function:
    def call(u: Any) -> Any:
        if not abs(u) <= _MAX_SPECIAL:
            raise UnclearError
        return function(u)

    return call


_FUNCTIONS: Final[dict[str, _Function]] = {
    **{name: _called(name) for name in ELEMENTARY.keys() | SPECIAL},
    **{name: _called(name.lower()) for name in ("Si", "Ci", "Shi", "Chi", "Ei")},
    **{f"a{name}": _called(f"a{inverse}", lambda u: 1 / u) for name, inverse in _RECIPROCALS.items()},
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
    # Arb's own takes thousands of times as long for some arguments.
    "E1": lambda u: -(-u).ei() if u.real > 0 and u.imag.is_zero() else u.expint(1),
}
_FUNCTIONS.update({name: _bounded(_FUNCTIONS[name]) for name in SPECIAL})
