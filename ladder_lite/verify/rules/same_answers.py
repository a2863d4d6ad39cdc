"""Group the answers to one integral that are the same answer, right or wrong, so that a majority vote can count them.

    same_answers({"integrand": "1/x", "variable": "x", "lower": None, "upper": None}, ["log(x)", "x", "log(2*x)"])
    # [0, 1, 0]

Antiderivatives are the same if they differ by one constant on a whole component of the integrand's domain. For 1/x,
log(x) and log(Abs(x)) are the same; so are acosh(x) and log(x+sqrt(x**2-1)) for 1/sqrt(x**2-1). For 1, x and x+floor(x)
are not. Values of a definite integral are the same if they differ by no more than the verifier tolerates.

An answer is compared with the first one of each group. Sameness is not always transitive: two answers may equal a third
one on different components. Then the order of the answers decides. Answers are hostile text; the limits of
`ladder_lite.verify.expressions.parse` bound the work.
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

_QUIET: Final = 1e-10  # points with less noise than this in the slopes count even if both answers are constants
_ROUNDING: Final = 1e-12  # of a difference of two values, relative to these


def same_answers(data: Data, answers: Sequence[str], references: References) -> list[int | None]:
    """Return for each answer the index of the first answer that is the same, or None if it cannot be read.

    All are None if the problem itself is invalid (an integrand that is real nowhere, a divergent integral).
    """
    variable, lower, upper = data["variable"] or "x", data["lower"], data["upper"]
    try:
        problem = prepare(str(data["integrand"]), variable)
        if lower is None and upper is None:
            pieces = _pieces(problem)
            read = partial(problem.read, constant_of_integration=True)
            return _group(answers, lambda text: _Antiderivative(read(text), problem, pieces), _Antiderivative.equals)
        # Answers are compared with each other, not with the value; it only sets the tolerance.
        reference = references.get(str(data["integrand"]), variable, lower, upper)
        read = partial(problem.read, constant_of_integration=False)
        return _group(answers, lambda text: _value(read(text), reference), _are_close)
    except IntegrandError:
        return [None] * len(answers)


def _group(answers: Sequence[str], read: Callable[[str], Any], equal: Callable[[Any, Any], bool]) -> list[int | None]:
    representatives: dict[int, Any] = {}  # the first answer of each group, by its index
    indices: dict[str, int | None] = {}  # results by text, so that a repeated text is read only once
    for index, text in enumerate(answers):
        if text in indices:
            continue
        indices[text] = None
        with suppress(ExpressionError):
            if (answer := read(text)) is not None:
                first = next((n for n, other in representatives.items() if equal(other, answer)), index)
                indices[text] = first
                # An answer that equals no other one starts a group.
                representatives.setdefault(first, answer)
    return [indices[text] for text in answers]


# --- antiderivatives ------------------------------------------------------------------------------------------------


def _pieces(problem: Integrand) -> list[Complexes]:
    """Return sorted points of each component of the integrand's domain, or those near 0 if the integrand is zero."""
    if not problem.components:
        near = problem.points[:N_NEAR]
        return [near[np.isfinite(problem.values[:N_NEAR])].astype(complex)]
    return [sample(component, POINTS, problem.seed + 2).astype(complex) for component in problem.components]


@dataclass(frozen=True, eq=False)
class _Antiderivative:
    """An answer, and the points at which it is compared: one array per component of the integrand's domain."""

    expression: Expression
    problem: Integrand
    pieces: Sequence[Complexes]

    @cached_property
    def evaluated(self) -> list[tuple[Complexes, Complexes]]:
        """Values and slopes on each piece, from one evaluation over all of them."""
        values, slopes = self.expression.values_and_derivatives(np.concatenate(self.pieces))
        ends = np.cumsum([len(piece) for piece in self.pieces])[:-1]
        return list(zip(np.split(values, ends), np.split(slopes, ends), strict=True))

    def equals(self, other: "_Antiderivative") -> bool:
        """Return True if the two differ by one constant on a whole component, one of those that the verifier tests."""
        return any(self._agrees(other, component) for component in range(len(self.pieces)))

    def _agrees(self, other: "_Antiderivative", component: int) -> bool:
        """Return True if the two agree on a component up to a constant.

        Returns False if floating point cannot tell, or if one of them jumps there.
        """
        points = self.pieces[component]
        (values, slopes), (others, other_slopes) = self.evaluated[component], other.evaluated[component]
        with np.errstate(all="ignore"):
            is_finite = np.isfinite(values + slopes + others + other_slopes)
            if is_finite.sum() < MIN_POINTS:
                return False
            points, values, others = points[is_finite], values[is_finite], others[is_finite]
            errors = np.abs(slopes - other_slopes)[is_finite]
            size = np.maximum(np.abs(slopes), np.abs(other_slopes))[is_finite]
            # Measuring the noise takes ten evaluations, so clear differences are ruled out first. By the median: at
            # single points, slopes of equal functions can differ because digits are lost.
            if np.median(errors - CLEARLY * size) > SMALLEST:
                return False
            # Slopes must agree up to their rounding noise, and the noise must be small at enough points.
            noises = [noise(answer.expression, points) for answer in (self, other)]
            allowed = sum(of_slopes for _, of_slopes in noises)
            if (errors > SLOPE_TOLERANCE * size + allowed).any():
                return False
            if (allowed <= np.maximum(NOISY * size, _QUIET)).sum() < MIN_POINTS:
                return False
            # Then values: their difference must be the same at all points as at the one where rounding is smallest.
            magnitude = np.abs(values) + np.abs(others)
            anchor = int(magnitude.argmin())
            steps = np.abs((values - others) - (values - others)[anchor])
            allowed = sum(of_values for of_values, _ in noises) + _ROUNDING * magnitude
            allowed += JUMP * np.abs(values - values[anchor])
            if not (steps <= allowed + allowed[anchor] + SMALLEST).all():
                return False
        if size.min() <= LOUD:
            return True
        with exact.allowance():  # slopes this large can hide a difference in double precision
            near = sorted(points.real.tolist(), key=abs)[:3]
            return exact.grow_alike(self.expression, other.expression, near) is True


# --- values of definite integrals -----------------------------------------------------------------------------------


def _value(answer: Expression, reference: Integral) -> tuple[complex, float] | None:
    """Return the value of an answer, and the error up to which the verifier would still accept it."""
    value = None if answer.free else value_of(answer, reference)
    return None if value is None else (value, allowed_of(answer, reference))


def _are_close(one: tuple[complex, float], other: tuple[complex, float]) -> bool:
    return abs(one[0] - other[0]) <= one[1] + other[1]
