"""Which answers to one integral are the same answer, whatever their verdicts: what a majority vote counts.

    same_answers({"integrand": "1/x", "variable": "x", "lower": None, "upper": None}, ["log(x)", "x", "log(2*x)"])
    # [0, 1, 0]

Antiderivatives are the same where they differ by one constant on a whole component of the integrand's domain: log(x)
and log(Abs(x)) are for 1/x, acosh(x) and log(x+sqrt(x**2-1)) for 1/sqrt(x**2-1); x and x+floor(x) are not for 1. Values
of a definite integral are the same within what the verifier allows each of them.

An answer is compared with the first one of each group, so the order decides where sameness is not transitive (two
answers that equal a third, on different components). Answers are hostile text: the bounds on the work are those of
`ladder_lite.verify.expressions.parse`.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import numpy as np

from ladder_lite.verify.expressions.parse import Complexes, Expression, ExpressionError
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.components import MIN_POINTS, sample
from ladder_lite.verify.numerics.definite import References, allowed_of, value_of
from ladder_lite.verify.numerics.integrand import LOUD, N_NEAR, Integrand, IntegrandError, prepare
from ladder_lite.verify.numerics.quadrature import Integral
from ladder_lite.verify.numerics.real_line import SMALLEST, noise
from ladder_lite.verify.rules.by_component import NOISY, POINTS
from ladder_lite.verify.rules.by_component import TOLERANCE as SLOPE_TOLERANCE
from ladder_lite.verify.rules.growth import JUMP
from ladder_lite.verify.rules.strict import CLEARLY
from ladder_lite.verify.rules.validity import Data

_QUIET: Final = 1e-10  # noise of slopes that says enough whatever their size: both are those of constants
_ROUNDING: Final = 1e-12  # of the values that are subtracted


def same_answers(data: Data, answers: Sequence[str], references: References) -> list[int | None]:
    """For each answer the place of the first one that is the same; None for one that cannot be read.

    `references` has the values of definite integrals, of which only the size counts here. Nothing can
    be compared where the problem itself is no integral (nowhere real, divergent): all None.
    """
    variable, lower, upper = data["variable"] or "x", data["lower"], data["upper"]
    try:
        problem = prepare(str(data["integrand"]), variable)
        if lower is None and upper is None:
            pieces = _pieces(problem)
            read = partial(problem.read, constant_of_integration=True)
            return _group(answers, lambda text: _Antiderivative(read(text), problem, pieces))
        reference = references.get(str(data["integrand"]), variable, lower, upper)
        return _group(answers, lambda text: _value(problem.read(text, constant_of_integration=False), reference))
    except IntegrandError:
        return [None] * len(answers)


def _group(answers: Sequence[str], read: Callable[[str], Any]) -> list[int | None]:
    heads: dict[int, Any] = {}
    places: dict[str, int | None] = {}
    for place, text in enumerate(answers):
        if text in places:
            continue
        places[text] = None
        with suppress(ExpressionError):
            if (answer := read(text)) is not None:
                at = next((at for at, head in heads.items() if head.equals(answer)), place)
                places[text] = at
                heads.setdefault(at, answer)
    return [places[text] for text in answers]


# --- antiderivatives


def _pieces(problem: Integrand) -> list[Complexes]:
    """Points of each component of the integrand's domain, sorted; of zero's, those near the origin."""
    if problem.identically_zero:
        near = problem.points[:N_NEAR]
        return [near[np.isfinite(problem.values[:N_NEAR])].astype(complex)]
    return [sample(component, POINTS, problem.seed + 2).astype(complex) for component in problem.components]


@dataclass(frozen=True, eq=False)
class _Antiderivative:
    """An answer to compare at points of the integrand's domain, an array for each of the components looked at."""

    expression: Expression
    problem: Integrand
    pieces: Sequence[Complexes]

    @cached_property
    def evaluated(self) -> list[tuple[Complexes, Complexes]]:
        """Values and slopes on each piece."""
        values, slopes = self.expression.values_and_derivatives(np.concatenate(self.pieces))
        ends = np.cumsum([len(piece) for piece in self.pieces])[:-1]
        return list(zip(np.split(values, ends), np.split(slopes, ends), strict=True))

    def equals(self, other: "_Antiderivative") -> bool:
        """Whether the two differ by one constant on a whole component, of those that the verifier looks at."""
        # The closer look takes ten evaluations: only where what is plain leaves something to decide.
        numbers = range(len(self.pieces))
        return any(not self._differs_plainly(other, number) and self._agrees(other, number) for number in numbers)

    def _differs_plainly(self, other: "_Antiderivative", number: int) -> bool:
        slopes, other_slopes = self.evaluated[number][1], other.evaluated[number][1]
        with np.errstate(all="ignore"):
            errors = np.abs(slopes - other_slopes)
            finite = np.isfinite(errors)
            size = np.maximum(np.abs(slopes), np.abs(other_slopes))
            excess = (errors - CLEARLY * size)[finite]
        return len(excess) >= MIN_POINTS and bool(np.median(excess) > SMALLEST)

    def _agrees(self, other: "_Antiderivative", number: int) -> bool:
        """Whether the two agree on a piece up to a constant; False if floating point cannot tell or one jumps there."""
        points = self.pieces[number]
        (values, slopes), (others, other_slopes) = self.evaluated[number], other.evaluated[number]
        with np.errstate(all="ignore"):
            finite = np.isfinite(values + slopes + others + other_slopes)
            if finite.sum() < MIN_POINTS:
                return False
            points, values, others = points[finite], values[finite], others[finite]
            errors = np.abs(slopes - other_slopes)[finite]
            size = np.maximum(np.abs(slopes), np.abs(other_slopes))[finite]
            noises = [noise(answer.expression, points) for answer in (self, other)]
            allowed = sum(of_slopes for _, of_slopes in noises)
            if (errors > SLOPE_TOLERANCE * size + allowed).any():
                return False
            if (allowed <= np.maximum(NOISY * size, _QUIET)).sum() < MIN_POINTS:
                return False
            magnitude = np.abs(values) + np.abs(others)
            anchor = int(magnitude.argmin())
            steps = np.abs((values - others) - (values - others)[anchor])
            allowed = sum(of_values for of_values, _ in noises) + _ROUNDING * magnitude
            allowed += JUMP * np.abs(values - values[anchor])
            if not (steps <= allowed + allowed[anchor] + SMALLEST).all():
                return False
        if size.min() <= LOUD:
            return True
        with exact.allowance():  # slopes that are so large may hide a difference
            near = sorted(points.real.tolist(), key=abs)[:3]
            return exact.grow_alike(self.expression, other.expression, near) is True


# --- values of definite integrals


@dataclass(frozen=True, slots=True)
class _Value:
    """A number; `allowed` is what it may be off for the verifier to call it right."""

    value: complex
    allowed: float

    def equals(self, other: "_Value") -> bool:
        return abs(self.value - other.value) <= self.allowed + other.allowed


def _value(answer: Expression, reference: Integral) -> _Value | None:
    value = None if answer.free else value_of(answer, reference)
    return None if value is None else _Value(value, allowed_of(answer, reference))
