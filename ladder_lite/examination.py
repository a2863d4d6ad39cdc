"""The closer look at an answer that one evaluation did not decide: component by component of f's domain.

Derivatives at points of every component, increments of F where they are not those of f, and both sides of every step,
root, logarithm and turn of F that can be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ladder_lite import exact
from ladder_lite.expressions import Breakable, Expression
from ladder_lite.integrands import (
    MIN_POINTS,
    N_NEAR,
    SMALLEST,
    Component,
    Floats,
    Integrand,
    Numbers,
    evaluate_real,
    is_known,
    noise,
    real_values,
    stretches,
    survey_grid,
)
from ladder_lite.landmarks import locate
from ladder_lite.quadrature import kronrod

TOLERANCE: Final = 1e-9  # of F' against f, relative
SLACK: Final = 30  # rounding noise is a random spread of a few runs: so many times it still counts as noise
NOISY: Final = 1e-6  # a point whose noise is larger, relative to f, says nothing
CLEARLY: Final = 1e-5  # an error beyond what lost digits explain at most points
HIDDEN: Final = 1e-6  # a term below this share of f is too small for errors in it to show
PLAIN: Final = 1e-3  # and above this one it is not
JUMP: Final = 1e-8  # of an increment of F against the integral of f, relative to that of |f|
POINTS: Final = 32  # per component
LOST: Final = 0.1  # of a component's points, at most, may F have no value or no digits at, where f has both
NEAR: Final = 20.0  # far away it may overflow
MAX_COMPONENTS: Final = 6
MAX_SWITCHES: Final = 32  # steps and roots of F that are looked at
MAX_NARROWED: Final = 24  # increments of F that are, the worst first

WRONG: Final = "its derivative is not the integrand"
_OTHER_BRANCH: Final = "its derivative has an imaginary part that the integrand does not have"
_JUMPS: Final = "it jumps where the integrand does not"
_CANNOT_TELL: Final = "floating point cannot tell: it overflows or loses its digits"


@dataclass(frozen=True, slots=True, eq=False)
class _Sampled:
    """F' against f at points of all components at once.

    `counts`: where rounding leaves something to compare; `lost`: where it does not, and not because of f.
    """

    answer: Expression
    integrand: Expression
    component: NDArray[np.intp]  # its number, for each point
    points: Floats
    known: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    wrong_in_reals: NDArray[np.bool_]

    def agrees(self, points: Floats) -> bool | None:
        """Whether F' is f at the nearest of the points after all, in more digits; None if that cannot be told."""
        nearest = points[np.argsort(np.abs(points))]
        return exact.agree(self.answer, self.integrand, nearest[:4].tolist(), TOLERANCE)


def examine(answer: Expression, problem: Integrand) -> str | None:
    """None if `answer` is an antiderivative by the whole strict rule, else what is wrong with it."""
    components = problem.components[:MAX_COMPONENTS]
    if problem.identically_zero:
        return _examine_zero(answer, problem)
    sampled = _sample(answer, problem, components)
    faults = [_derivative_fault(sampled, number, component) for number, component in enumerate(components)]
    if None in faults:
        switches = _faulty_switches(answer, problem)
        increments = bad_increments(answer.values(problem.points[:N_NEAR].astype(complex)), problem)
        for number, component in enumerate(components):
            if faults[number] is None:
                inside = (fault for at, fault in switches if component.low < at < component.high)
                faults[number] = next(inside, None) or _increment_fault(answer, problem, component, increments)
    sheets = sheets_of(problem, answer)
    wrong_sheets = {sheet for sheet, fault in zip(sheets, faults, strict=False) if fault == WRONG}
    faults = [WRONG if sheet in wrong_sheets else fault for sheet, fault in zip(sheets, faults, strict=False)]
    if not any(faults):
        return None
    is_wrong = np.array([fault is not None for fault in faults])[sampled.component]
    for number, fault in enumerate(faults):
        right = sampled.points[sampled.component == number]
        if fault is None and not hides_a_term(answer, problem.expression, right, sampled.points[is_wrong]):
            return None
    return next((fault for fault in faults if fault not in (None, WRONG)), WRONG)


def bad_increments(values: Numbers, problem: Integrand) -> NDArray[np.intp]:
    """Indices of the neighbouring near points between which F does not grow by the integral of f, the worst first."""
    values = values[:N_NEAR]
    integrals, scales = problem.increments
    with np.errstate(all="ignore"):
        size = np.abs(values)
        errors = np.abs(np.diff(values) - integrals)
        allowed = JUMP * scales + 1e-12 * (size[1:] + size[:-1]) + SMALLEST
        bad = np.flatnonzero(errors > allowed)
        return bad[np.argsort(-(errors[bad] / allowed[bad]), kind="stable")] if len(bad) else bad


def hides_a_term(answer: Expression, integrand: Expression, right: Floats, wrong: Floats) -> bool:
    """Whether f is so large at the points `right` that a term, plain to see at `wrong`, cannot be judged there."""
    shares = []
    for points in (right, wrong):
        size = np.abs(real_values(integrand, points))
        at = points.astype(complex)
        values = [np.abs(term.values(at)) for term in integrand.terms]
        slopes = [np.abs(term.values_and_derivatives(at)[1]) for term in answer.terms]
        with np.errstate(all="ignore"):
            share = np.array(values + slopes) / size
        shares.append(np.where(np.isfinite(share), share, 0).max(axis=1))
    return bool(((shares[0] < HIDDEN) & (shares[1] > PLAIN)).any())


def sheets_of(problem: Integrand, *answers: Expression) -> list[tuple[int, int]]:
    """For each component of f, between which roots and steps of f and of the answers it lies.

    Where no root or step comes between, F' - f is one analytic function, poles apart: what is wrong on one component is
    wrong on its neighbour too, even where a term that grows too large hides it. (Logarithms may differ by a branch, an
    imaginary amount.)
    """
    grid = survey_grid(problem.expression, problem.seed)
    at = grid.astype(complex)
    breakables = [
        breakable
        for expression in (problem.expression, *answers)
        for breakable in expression.evaluate(at, derivative=False).breakables
    ]
    numbers = stretches(grid, [breakable for breakable in breakables if breakable.kind in ("root", "step")])
    ends = np.array([[component.low, component.high] for component in problem.components]).reshape(-1, 2)
    found = numbers[np.minimum(np.searchsorted(grid, ends), len(grid) - 1)]
    return [(int(low), int(high)) for low, high in found]


def _sample(answer: Expression, problem: Integrand, components: Sequence[Component]) -> _Sampled:
    far = problem.points[N_NEAR:]
    pieces = [
        np.concatenate([c.sample(POINTS, problem.seed + 2), far[(far > c.low) & (far < c.high)]]) for c in components
    ]
    points = np.concatenate(pieces)
    number = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    evaluation = evaluate_real(problem.expression, points)
    values, known = evaluation.values, is_known(evaluation)
    slopes = _slopes(answer, points)
    known &= noise(problem.expression, points)[0] <= NOISY * np.abs(values)
    wrong, wrong_in_reals = np.zeros((2, len(points)), bool)
    with np.errstate(all="ignore"):
        size = np.abs(values)
        errors = np.abs(slopes - values)
        counts = known & np.isfinite(errors)
        lost = known & ~np.isfinite(errors) & (np.abs(points) <= NEAR)
        doubtful = np.flatnonzero(counts & (errors > TOLERANCE * size))
        if len(doubtful):
            largest = np.array([size[known & (number == n)].max(initial=0) for n in range(len(pieces))])
            at, size = points[doubtful], size[doubtful]
            allowed = SLACK * (noise(answer, at.astype(complex))[1] + noise(problem.expression, at)[0])
            wrong[doubtful] = errors[doubtful] > allowed
            real = np.abs((slopes - values).real[doubtful])
            wrong_in_reals[doubtful] = wrong[doubtful] & (real > allowed + TOLERANCE * size)
            counts[doubtful] &= allowed <= NOISY * size
            lost[doubtful] = ~wrong[doubtful] & (allowed > NOISY * largest[number[doubtful]])
    return _Sampled(answer, problem.expression, number, points, known, counts, lost, wrong, wrong_in_reals)


def _slopes(answer: Expression, points: Floats) -> Numbers:
    """Derivatives of F, in complex numbers where real ones do not do."""
    complex_slopes = answer.values_and_derivatives(points.astype(complex))[1]
    if answer.is_complex:
        return complex_slopes
    slopes = answer.values_and_derivatives(points)[1]
    return np.where(np.isfinite(slopes), slopes, complex_slopes)


def _derivative_fault(sampled: _Sampled, number: int, component: Component) -> str | None:
    inside = sampled.component == number
    points, known, counts = sampled.points[inside], sampled.known[inside], sampled.counts[inside]
    wrong, lost = points[sampled.wrong[inside]], points[sampled.lost[inside]]
    if len(wrong) and (len(wrong) > 0.5 * len(points) or not sampled.agrees(wrong)):
        return WRONG if sampled.wrong_in_reals[inside].any() else _OTHER_BRANCH
    if len(lost) > LOST * len(points):
        agrees = sampled.agrees(lost)
        if not agrees:
            return _CANNOT_TELL if agrees is None else WRONG
    elif counts.sum() < MIN_POINTS:
        return _CANNOT_TELL
    for low, high in pairwise([-np.inf, *component.switches, np.inf]):
        piece = (points > low) & (points < high)
        if (piece & known).sum() >= 2 and not (piece & counts).any():
            return "it is undefined on a part of the domain"
    return None


def _increment_fault(
    answer: Expression, problem: Integrand, component: Component, increments: NDArray[np.intp]
) -> str | None:
    """Whether F jumps between near points of the component, other than across a pole of a subexpression of its own."""
    x = problem.points
    for index in increments[: max(4, min(MAX_NARROWED, 2000 // (answer.n_nodes + 1)))]:
        if component.low <= x[index] and x[index + 1] <= component.high:
            at = _narrow(answer, problem.expression, x[index], x[index + 1])
            if at is not None and not _turns_at_a_pole(answer, at):
                return _JUMPS
    return None


def _narrow(answer: Expression, integrand: Expression, low: float, high: float) -> float | None:
    """Where in [low, high] the increment of F differs from the integral of f, as closely as rounding lets one see."""
    for level in range(9):
        edges = np.linspace(low, high, 17)
        integrals, scales, uncertain, _ = kronrod(integrand.values, edges[:-1], edges[1:])
        values = answer.values(edges)
        at: Numbers = edges if np.isfinite(values).all() else edges.astype(complex)
        values = answer.values(at)
        allowed = SLACK * noise(answer, at)[0]
        with np.errstate(all="ignore"):
            excess = np.abs(np.diff(values) - integrals) - JUMP * scales - SMALLEST
            excess -= allowed[1:] + allowed[:-1] + uncertain
        if not np.isfinite(excess).all() or excess.max() <= 0:
            # One level may be the quadrature; two are a step, a smooth one or one that noise hides further in. But f
            # may be as steep as F is.
            slopes, wanted = answer.values_and_derivatives(at)[1], real_values(integrand, edges)
            steep = (np.abs(slopes - wanted) <= 1e-6 * np.abs(wanted)).all()
            return None if level < 2 or steep else float(0.5 * (low + high))
        worst = int(excess.argmax())
        low, high = edges[worst], edges[worst + 1]
    return float(0.5 * (low + high))


def _turns_at_a_pole(answer: Expression, at: float) -> bool:
    """Whether a pole of tan and its like, or an infinite argument of atan and its like, excuses a jump."""
    h = 1e-6 * max(1.0, abs(at))
    evaluation = answer.evaluate(np.array([at - h, at + h, at - 10 * h, at + 10 * h], complex), derivative=False)
    with np.errstate(all="ignore"):
        for kind, slot, vanishes in evaluation.breaks:
            u = np.real(evaluation.slots[slot])
            infinite = np.abs(u[:2]).min() > max(1e4, 5 * np.abs(u[2:]).max())
            if kind == "turn" and infinite and u[0] * u[1] < 0:
                return True
            if kind == "pole" and vanishes is not None:  # (of a function: a division may hide a step, Abs(x)/x)
                q = np.real(vanishes(evaluation.slots[slot]))
                if q[0] * q[1] <= 0 or np.abs(q[:2]).max() < 1e-4:
                    return True
    return False


def _faulty_switches(answer: Expression, problem: Integrand) -> list[tuple[float, str]]:
    """Steps, roots and turns of F at which it jumps, or beside which its derivative is wrong, and which of the two.

    A jump at a root is none if f has its root there too.
    """
    if not answer.kinds & {"step", "root", "turn", "log"}:
        return []
    grid = np.unique(np.concatenate([survey_grid(e, problem.seed) for e in (problem.expression, answer)]))
    breakables = answer.evaluate(grid.astype(complex), derivative=False).breakables
    found = locate(answer, grid, breakables, kinds=("step", "root", "turn", "log"), limit=MAX_SWITCHES)
    if not found:
        return []
    at = np.array([place for place, _ in found])
    shared = np.array([kind == "root" for _, kind in found]) & _are_roots(problem.expression, at)
    h = 1e-7 * np.maximum(1.0, np.abs(at))
    points = at[:, None] + h[:, None] * np.array([-1, 1, -1e3, 1e3, -3e5, 3e5])
    flat = points.ravel()
    values, slopes = (part.reshape(points.shape) for part in answer.values_and_derivatives(flat.astype(complex)))
    wanted = real_values(problem.expression, flat).reshape(points.shape)
    with np.errstate(all="ignore"):
        defined = np.isfinite(wanted).all(axis=1)
        jump = np.abs(values[:, 1] - values[:, 0] - h * (wanted[:, 0] + wanted[:, 1]))
        jump -= h * (1.5 * np.abs(wanted[:, :2]).sum(axis=1) + 1e-12)
        jumps = defined & ~shared & np.isfinite(values[:, :2]).all(axis=1) & (jump > 0)
        if jumps.any():
            allowed = SLACK * noise(answer, points[jumps, :2].ravel().astype(complex))[0].reshape(-1, 2).sum(axis=1)
            jumps[jumps] = jump[jumps] > allowed
        # A side where all points are wrong; one point alone may have lost its digits.
        error = np.abs(slopes - wanted)[:, 2:]
        wrong = np.isfinite(error) & (error > CLEARLY * np.abs(wanted[:, 2:]))
        wrong_beside = (
            defined
            & np.array([kind != "log" for _, kind in found])
            & (wrong[:, 0::2].all(axis=1) | wrong[:, 1::2].all(axis=1))
        )
    faults = [(float(place), _JUMPS) for place in at[jumps]]
    return faults + [(float(place), WRONG) for place in at[wrong_beside & ~jumps]]


def _are_roots(integrand: Expression, at: Floats) -> NDArray[np.bool_]:
    """At which places some root in f has a branch point too."""
    beside = at + 1e-2 * np.maximum(1.0, np.abs(at))
    breakables = integrand.evaluate(np.array([at, beside], complex).ravel(), derivative=False).breakables
    roots = [np.abs(q.reshape(2, -1)) for kind, q in breakables if kind == "root"]
    return np.any([q[0] <= 1e-5 * q[1] for q in roots], axis=0) if roots else np.zeros(len(at), bool)


def _examine_zero(answer: Expression, problem: Integrand) -> str | None:
    """An integrand that is zero up to rounding: every constant, and nothing else, is right."""
    points = problem.points[:N_NEAR].astype(complex)
    values, slopes = answer.values_and_derivatives(points)
    counts = np.isfinite(slopes) & np.isfinite(problem.values[:N_NEAR])
    value_noise, slope_noise = noise(answer, points)
    if counts.sum() < MIN_POINTS or not (slope_noise[counts] <= 1e-10).all():
        return _CANNOT_TELL
    broken = np.zeros(N_NEAR + 1, bool)  # where it is undefined, a constant may become another
    near = [Breakable(kind, q[:N_NEAR]) for kind, q in problem.breakables]
    landmarks = locate(problem.expression, problem.points[:N_NEAR], near)
    broken[np.searchsorted(problem.points[:N_NEAR], [at for at, _ in landmarks])] = True
    steps = np.abs(np.diff(values)) > SLACK * (value_noise[1:] + value_noise[:-1]) + JUMP
    steps &= counts[1:] & counts[:-1] & ~broken[1:-1]
    # Not any(): where all runs happen to round alike, noise shows none.
    if steps.any() or (np.abs(slopes)[counts] > SLACK * slope_noise[counts]).mean() > 0.25:
        return "the integrand is zero everywhere, the answer is not a constant"
    return None
