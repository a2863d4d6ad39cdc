"""Which answers to one integral are the same answer, whatever their verdicts: what a majority vote counts.

    same_answers({"integrand": "1/x", "variable": "x", "lower": None, "upper": None}, ["log(x)", "x", "log(2*x)"])
    # [0, 1, 0]

Antiderivatives are the same where they differ by one constant on a whole component of the integrand's domain: log(x)
and log(Abs(x)) are for 1/x, acosh(x) and log(x+sqrt(x**2-1)) for 1/sqrt(x**2-1); x and x+floor(x) are not for 1. Values
of a definite integral are the same within what the verifier allows each of them.

An answer is compared with the first one of each group, so the order decides where sameness is not transitive (two
answers that equal a third, on different components). Answers are hostile text: the bounds on the work are those of
`ladder_lite.expressions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar

import numpy as np

from ladder_lite.definite import EXACT_TOLERANCE, TOLERANCE, References
from ladder_lite.examination import CLEARLY, JUMP, MAX_COMPONENTS, NOISY, POINTS, SLACK
from ladder_lite.examination import TOLERANCE as SLOPE_TOLERANCE
from ladder_lite.expressions import Complexes, Expression, ExpressionError, parse
from ladder_lite.integrands import MIN_POINTS, N_NEAR, SMALLEST, Integrand, IntegrandError, noise, prepare
from ladder_lite.validity import Data

_QUIET: Final = 1e-10  # noise of slopes that says enough whatever their size: both are those of constants
_ROUNDING: Final = 1e-12  # of the values that are subtracted
Answer = TypeVar("Answer")


def same_answers(data: Data, answers: Sequence[str], references: References) -> list[int | None]:
    """For each answer the place of the first one that is the same; None for one that cannot be read.

    `references` has the values of definite integrals, of which only the size of the integrand counts here. Nothing can
    be compared where the problem itself is no integral (nowhere real, divergent): all None.
    """
    try:
        if data["lower"] is None and data["upper"] is None:
            return _group(answers, _antiderivatives(data), _Antiderivative.equals)
        return _group(answers, _values(data, references), _Value.equals)
    except IntegrandError:
        return [None] * len(answers)


def _group(
    answers: Sequence[str], read: Callable[[str], Answer | None], equal: Callable[[Answer, Answer], bool]
) -> list[int | None]:
    heads: dict[int, Answer] = {}
    places: dict[str, int | None] = {}
    for place, text in enumerate(answers):
        if text not in places:
            answer = read(text)
            places[text] = None
            if answer is not None:
                at = next((at for at, head in heads.items() if equal(head, answer)), place)
                places[text] = at
                heads.setdefault(at, answer)
    return [places[text] for text in answers]


# --- antiderivatives


def _antiderivatives(data: Data) -> Callable[[str], "_Antiderivative | None"]:
    problem = prepare(str(data["integrand"]), data["variable"] or "x")
    pieces = _pieces(problem)
    # To an integral of cbrt(x) people answer x**(4/3), and mean real roots: read as the verifier does.
    real = "cbrt" in problem.expression.functions

    def read(text: str) -> _Antiderivative | None:
        try:
            expression = parse(text, problem.expression.variable, constant_of_integration=True, real_cube_roots=real)
        except ExpressionError:
            return None
        return _Antiderivative(expression, pieces)

    return read


def _pieces(problem: Integrand) -> list[Complexes]:
    """Points of each component of the integrand's domain, sorted; of zero's, those near the origin."""
    if problem.identically_zero:
        near = problem.points[:N_NEAR]
        return [near[np.isfinite(problem.values[:N_NEAR])].astype(complex)]
    components = problem.components[:MAX_COMPONENTS]
    return [component.sample(POINTS, problem.seed + 2).astype(complex) for component in components]


@dataclass(frozen=True, eq=False)
class _Antiderivative:
    """An answer to compare, at points of the integrand's domain, one array for each of its components."""

    expression: Expression
    pieces: Sequence[Complexes]

    @cached_property
    def _evaluated(self) -> list[tuple[Complexes, Complexes]]:
        """Values and slopes on each piece."""
        values, slopes = self.expression.values_and_derivatives(np.concatenate(self.pieces))
        ends = np.cumsum([len(piece) for piece in self.pieces])[:-1]
        return list(zip(np.split(values, ends), np.split(slopes, ends), strict=True))

    def equals(self, other: "_Antiderivative") -> bool:
        """Whether the two differ by one constant on a whole piece."""
        return any(
            self._agrees(other, points, *ours, *theirs)
            for points, ours, theirs in zip(self.pieces, self._evaluated, other._evaluated, strict=True)
        )

    def _agrees(
        self,
        other: "_Antiderivative",
        points: Complexes,
        values: Complexes,
        slopes: Complexes,
        others: Complexes,
        other_slopes: Complexes,
    ) -> bool:
        with np.errstate(all="ignore"):
            finite = np.isfinite(values + slopes + others + other_slopes)
            errors = np.abs(slopes - other_slopes)[finite]
            size = np.maximum(np.abs(slopes), np.abs(other_slopes))[finite]
            # Most answers that differ do so plainly, and noise takes ten evaluations.
            if len(errors) < MIN_POINTS or np.median(errors - CLEARLY * size) > SMALLEST:
                return False
            mine, its = noise(self.expression, points[finite]), noise(other.expression, points[finite])
            allowed = SLACK * (mine[1] + its[1])
            if (allowed <= np.maximum(NOISY * size, _QUIET)).sum() < MIN_POINTS:
                return False
            if (errors > SLOPE_TOLERANCE * size + allowed).any():
                return False
            values, others = values[finite], others[finite]
            magnitude = np.abs(values) + np.abs(others)
            anchor = int(magnitude.argmin())
            steps = np.abs((values - others) - (values - others)[anchor])
            allowed = SLACK * (mine[0] + its[0]) + _ROUNDING * magnitude + JUMP * np.abs(values - values[anchor])
            return bool((steps <= allowed + allowed[anchor] + SMALLEST).all())


# --- values of definite integrals


@dataclass(frozen=True, slots=True)
class _Value:
    """A number; `allowed` is what it may be off for the verifier to call it right."""

    value: complex
    allowed: float

    def equals(self, other: "_Value") -> bool:
        return abs(self.value - other.value) <= self.allowed + other.allowed


def _values(data: Data, references: References) -> Callable[[str], _Value | None]:
    variable, lower, upper = data["variable"] or "x", data["lower"], data["upper"]
    if lower is None or upper is None:
        raise IntegrandError("one bound is missing")
    scale = references.get(str(data["integrand"]), variable, lower, upper).scale
    real = "cbrt" in prepare(str(data["integrand"]), variable).expression.functions

    def read(text: str) -> _Value | None:
        try:
            expression = parse(text, variable, real_cube_roots=real)
        except ExpressionError:
            return None
        value = complex(expression.values(np.zeros(1, complex))[0])
        if expression.free or not np.isfinite(value):
            return None
        return _Value(value, scale * (TOLERANCE if "." in expression.source else EXACT_TOLERANCE))

    return read
