"""Ball arithmetic, where double precision overflows or cannot tell: Arb's numbers, by python-flint.

They have no largest one, so log(x**2022+x**4044) has a derivative everywhere, and exp(1000) is a number; and each one
carries a bound of its own error, so no rounding hides a step behind a large constant. What is returned is known that
well, or it is None: where a value is not finite, may be on either side of a step or of a branch cut, has lost too many
digits, or would take too long.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

from flint import acb, arb, ctx

from ladder_lite.expressions import FOLD, Expression
from ladder_lite.functions import ELEMENTARY, SPECIAL, same

BITS: Final = (200, 1500)  # the second where the first are not enough
INCREMENT_BITS: Final = 500
KNOWN_BITS: Final = 60  # of an increment; with fewer it is worked out again
MAX_COST: Final = 30_000  # of a verdict, in microseconds or so
_COSTS: Final = {"**": 3, **dict.fromkeys([*SPECIAL, "factorial"], 60)}
_lock = threading.RLock()  # the precision is that of the process
_local = threading.local()


class UnclearError(Exception):
    """A number that is not known."""


class TooExpensiveError(Exception):
    """A verdict has spent what it may."""


def allow(cost: float = MAX_COST) -> None:
    """Begin a verdict, or what else may cost that much."""
    _local.left = cost


@contextmanager
def working(bits: int) -> Iterator[None]:
    """Work with so many binary digits."""
    with _lock, ctx.workprec(bits):
        yield


def slopes_agree(answer: Expression, integrand: Expression, points: Sequence[float], tolerance: float) -> bool | None:
    """Whether F' = f, relative to f, at all of the first `points` that can be afforded; None if it cannot be told."""

    def agree(point: float) -> bool:
        for bits in BITS:
            ctx.prec = bits
            step = arb(abs(point)) * arb(2) ** (-bits * 5 // 12)
            x = point + step  # off round numbers
            slope = (apply(answer, x + step) - apply(answer, x - step)) / (2 * step)
            error = abs(slope / apply(integrand, x) - 1)
            if error <= tolerance:
                return True
        if not error > tolerance:
            raise UnclearError
        return False

    results = _each(agree, points)
    return all(results) if results else None


def increments(answer: Expression, pairs: Sequence[tuple[float, float]]) -> list[tuple[complex, float]] | None:
    """F(b) - F(a) for each pair (a, b), and a bound of its error; None if they cannot be told."""

    def increment(pair: tuple[float, float]) -> tuple[complex, float]:
        for bits in (INCREMENT_BITS, BITS[1]):
            ctx.prec = bits
            before, after = (apply(answer, arb(at)) for at in pair)
            if (after - before).rel_accuracy_bits() >= KNOWN_BITS:
                break
        return _known(after - before)

    grown = _each(increment, pairs)
    return grown if len(grown) == len(pairs) else None


def grow_alike(first: Expression, second: Expression, pairs: Sequence[tuple[float, float]]) -> bool | None:
    """Whether two answers grow alike from a to b, to 25 digits, for the first pairs that can be afforded."""

    def is_alike(pair: tuple[float, float]) -> bool:
        ctx.prec = INCREMENT_BITS
        grown, other = (apply(answer, arb(pair[1])) - apply(answer, arb(pair[0])) for answer in (first, second))
        return bool(abs(grown - other) <= abs(grown) * arb(10) ** -25)

    results = _each(is_alike, pairs)
    return all(results) if results else None


def sizes(expression: Expression, points: Sequence[float]) -> list[float]:
    """Bounds of its values at the first of the points that can be afforded, if any can be told."""

    def size(point: float) -> float:
        ctx.prec = BITS[0]
        found = apply(expression, arb(point)).abs_upper()
        return float(found)

    return _each(size, points)


def value(constant: Expression, exponent: int = 0, tolerance: float = 0.0) -> tuple[complex, float] | None:
    """The value of an expression without its variable and a bound of its error, both over 10**`exponent`.

    With more digits where the error is above `tolerance`. None if it has no value, or none that can be worked out.
    """
    allow()

    def scaled(bits: int) -> tuple[complex, float]:
        ctx.prec = bits
        return _known(apply(constant) / arb(10) ** exponent)

    found = _each(scaled, BITS[:1])
    if not found or found[0][1] > tolerance:
        found = _each(scaled, BITS[1:]) or found
    return found[0] if found else None


def n_increments(answer: Expression) -> int:
    """How many increments the verdict may still have worked out."""
    return int(getattr(_local, "left", MAX_COST) / (2 * _cost(answer, INCREMENT_BITS)))


def _each(function: Callable[[Any], Any], points: Sequence[Any]) -> list[Any]:
    """Results at the first points, as far as can be afforded; none at all where one cannot be told."""
    found = []
    with working(BITS[0]):
        try:
            for point in points:
                found.append(function(point))
        except TooExpensiveError:
            return found
        except (UnclearError, ArithmeticError):
            return []
    return found


def _known(number: Any) -> tuple[complex, float]:
    """A ball as a number and a bound of its error."""
    found, error = complex(number), float(number.rad())
    if not abs(found) + error < math.inf:
        raise UnclearError
    return found, error + 1e-16 * abs(found)


@lru_cache(maxsize=64)
def _cost(expression: Expression, bits: int) -> float:
    longer: float = (bits / BITS[0]) ** 1.3
    return longer * sum(_COSTS.get(name, 2 if name[0].isalpha() else 1) for name in expression.operations)


def apply(expression: Expression, x: Any = "nan") -> Any:
    """Its value at a ball, or that of a constant, a finite one; raises UnclearError and TooExpensiveError."""
    _local.left = getattr(_local, "left", MAX_COST) - _cost(expression, ctx.prec)
    if _local.left < 0:
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


def _exponential_integral(u: Any) -> Any:
    """E1; Arb's own takes thousands of times as long for some arguments."""
    return -(-u).ei() if u.real > 0 and u.imag.is_zero() else u.expint(1)


def _called(
    name: str, argument: Callable[[Any], Any] = same, result: Callable[[Any], Any] = same
) -> Callable[[Any], Any]:
    def call(u: Any) -> Any:
        return result(getattr(argument(u), name)())

    return call


def _of_reciprocal(name: str) -> Callable[[Any], Any]:
    return _called(name, lambda u: 1 / u)


def _of_real_part(name: str) -> Callable[[Any], Any]:
    return _called(name, lambda u: u.real, acb)


def _constant(value: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda _: acb(value())


_CONSTANTS: Final[dict[str, Callable[[], Any]]] = {
    **dict.fromkeys(("pi", "Pi"), arb.pi),
    **dict.fromkeys(("e", "E"), arb.const_e),
    "EulerGamma": arb.const_euler,
    "Catalan": arb.const_catalan,
    "GoldenRatio": lambda: (1 + arb(5).sqrt()) / 2,
}
_RECIPROCALS: Final = {"cot": "tan", "sec": "cos", "csc": "sin"}
_SPELLED: Final = {
    **{name: name.lower() for name in ("Si", "Ci", "Shi", "Chi", "Ei")},
    "fresnels": "fresnel_s",
    "fresnelc": "fresnel_c",
    "loggamma": "lgamma",
}
_OPERATIONS: Final[dict[Any, Callable[[Any, Any], Any]]] = FOLD | {
    "only": lambda u, v: v if _is_positive(u - 0.5) else acb(0),
    "where": lambda u, v: v if _is_positive(u - 0.5) else acb(0.7),
}
_FUNCTIONS: Final[dict[str, Callable[[Any], Any]]] = {
    **{name: _called(_SPELLED.get(name, name)) for name in ELEMENTARY.keys() | SPECIAL},
    **{f"a{name}{h}": _of_reciprocal(f"a{inverse}{h}") for name, inverse in _RECIPROCALS.items() for h in ("", "h")},
    **{name: _of_real_part(arb_name) for name, arb_name in (("floor", "floor"), ("ceiling", "ceil"), ("sign", "sgn"))},
    **{name: _constant(value) for name, value in _CONSTANTS.items()},
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
    "E1": _exponential_integral,
}
