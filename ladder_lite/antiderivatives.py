"""Is F an antiderivative of f: the 'strict' rule.

F' = f is tested at random points, relative to f's own size, and F's increments between them against the integral of f.
F is right if it is right at every point of at least one whole component of f's domain, and does not jump inside it.
Points where floating point overflows are left out: as long as F and f are analytic between their switches, agreement
on any part of a piece decides for the whole of it (identity theorem), so each piece needs some points that do count.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ladder_lite.expressions import Breakable, Complexes, Expression
from ladder_lite.integrands import (
    MIN_POINTS,
    N_NEAR,
    Component,
    Integrand,
    is_known,
    locate,
    noise,
    real_values,
    stretches,
    survey_grid,
)
from ladder_lite.quadrature import kronrod

TOLERANCE: Final = 1e-9  # of F' against f, relative
SLACK: Final = 30  # rounding noise is a random spread of a few runs: so many times it still counts as noise
NOISY: Final = 1e-6  # a point whose noise is larger, relative to f, says nothing
CLEARLY: Final = 1e-5  # an error beyond what lost digits explain at most points
HIDDEN: Final = 1e-6  # a term below this share of f is too small for errors in it to show
PLAIN: Final = 1e-3  # and above this one it is not
JUMP: Final = 1e-8  # of an increment of F against the integral of f, relative to that of |f|
POINTS: Final = 32  # per component
MAX_COMPONENTS: Final = 6

_WRONG: Final = "its derivative is not the integrand"
_OTHER_BRANCH: Final = "its derivative has an imaginary part that the integrand does not have"
_JUMPS: Final = "it jumps where the integrand does not"
_CANNOT_TELL: Final = "floating point cannot tell: it overflows or loses its digits"


def is_antiderivative(answer: Expression, problem: Integrand) -> str | None:
    """None if `answer` is an antiderivative by the strict rule, else what is wrong with it, in a few words."""
    breakables: list[Breakable] = []
    values, slopes = answer.evaluate(problem.points, breakables=breakables)
    known = problem.known
    with np.errstate(all="ignore"):
        errors = np.abs(slopes - problem.values) / np.abs(problem.values)
        agree = errors <= TOLERANCE
    if (
        np.count_nonzero((known & agree)[:N_NEAR]) >= MIN_POINTS
        and _may_skip_switches(answer, breakables, problem)
        and _settled(answer, problem, slopes, known & ~agree)
        and not len(_bad_increments(values[:N_NEAR], problem))
    ):
        return None
    # (Only zero has a constant antiderivative, which needs the closer look.)
    if slopes.any() and _is_wrong_everywhere(answer, breakables, slopes, problem):
        return _WRONG
    return _examine(answer, problem)


def _is_wrong_everywhere(
    answer: Expression, breakables: list[Breakable], slopes: Complexes, problem: Integrand
) -> bool:
    """Whether each stretch between roots and steps has a point where F' is plainly not f: most wrong answers do.

    Inside such a stretch F' - f is one analytic function, poles apart: see `_sheets`.
    """
    with np.errstate(all="ignore"):
        differences = slopes - problem.values
        counts = problem.known & np.isfinite(differences)
        errors = np.where(counts, np.abs(differences.real) / np.abs(problem.values), 0)
    if counts.sum() < 2 * MIN_POINTS:
        return False
    switches = [breakable for breakable in (*problem.breakables, *breakables) if breakable.kind in ("root", "step")]
    stretch = stretches(problem.points, switches) if switches else np.zeros(len(counts), np.intp)
    plain = errors > CLEARLY
    in_doubt = []
    for number in np.unique(stretch[counts]):
        inside = stretch == number
        if not plain[inside].any():
            return False
        if 2 * plain[inside].sum() <= counts[inside].sum():  # at most points it is not lost digits
            in_doubt.append(np.where(inside, errors, -1).argmax())
    if not in_doubt:
        return True
    allowed = SLACK * (noise(answer, problem.points[in_doubt])[1] + problem.value_noise[in_doubt])
    return bool((np.abs(differences.real)[in_doubt] > allowed).all())


def _settled(answer: Expression, problem: Integrand, slopes: Complexes, doubtful: NDArray[np.bool_]) -> bool:
    """Whether rounding alone explains the points where F' is not f, and there are but a few."""
    if not doubtful.any():
        return True
    finite = np.isfinite(slopes) | ~doubtful
    if not finite[:N_NEAR].all() or doubtful.sum() > N_NEAR // 4:
        return False
    if not finite.all() and "root" in problem.expression.kinds:
        return False  # beyond a root's branch point the near points decide nothing
    doubtful = doubtful & finite
    at = problem.points[doubtful]
    if not len(at):
        return True
    allowed = SLACK * (noise(answer, at)[1] + problem.value_noise[doubtful])
    return bool((np.abs(slopes - problem.values)[doubtful] <= allowed).all())


def _may_skip_switches(answer: Expression, breakables: list[Breakable], problem: Integrand) -> bool:
    """Whether F has no steps, and no roots with a branch point but f's own: others may hide a sign (sqrt(x**2)/x)."""
    if "step" in answer.kinds or "step" in problem.expression.kinds:
        return False
    roots = [q for kind, q in problem.breakables if kind == "root"]
    return all(kind != "root" or any(np.array_equal(q, r) for r in roots) for kind, q in breakables)


def _bad_increments(values: Complexes, problem: Integrand) -> NDArray[np.intp]:
    """Indices of the neighbouring near points between which F does not grow by the integral of f."""
    integrals, scales = problem.increments
    with np.errstate(all="ignore"):
        size = np.abs(values)
        errors = np.abs(np.diff(values) - integrals)
        allowed = JUMP * scales + 1e-12 * (size[1:] + size[:-1])
        return np.flatnonzero(errors > allowed)


def _examine(answer: Expression, problem: Integrand) -> str | None:
    """The whole rule, component by component."""
    components = problem.components
    if problem.identically_zero:
        return _examine_zero(answer, problem)
    judged: list[tuple[str | None, Complexes, tuple[int, int]]] = []
    wrong_sheets = set()
    for component, sheet in zip(components[:MAX_COMPONENTS], _sheets(answer, problem), strict=False):
        far = problem.points[N_NEAR:]
        far = far[(far.real > component.low) & (far.real < component.high)]
        points = np.concatenate([component.sample(POINTS, problem.seed + 2), far])
        fault = _derivative_fault(answer, problem.expression, points, component)
        if fault == _WRONG:
            wrong_sheets.add(sheet)
        fault = fault or _increment_fault(answer, problem, component)
        fault = fault or _switches_fault(answer, problem, component)
        judged.append((fault, points, sheet))
    faults = [_WRONG if sheet in wrong_sheets else fault for fault, _, sheet in judged]
    if not any(faults):
        return None
    wrong = np.concatenate([points for fault, (_, points, _) in zip(faults, judged, strict=True) if fault])
    for fault, (_, points, _) in zip(faults, judged, strict=True):
        if fault is None and not _hides_a_term(answer, problem.expression, points, wrong):
            return None
    return next((fault for fault in faults if fault not in (None, _WRONG)), _WRONG)


def _hides_a_term(answer: Expression, integrand: Expression, right: Complexes, wrong: Complexes) -> bool:
    """Whether f is so large at the points `right` that a term, plain to see at `wrong`, cannot be judged there."""
    shares = []
    for points in (right, wrong):
        size = np.abs(real_values(integrand, points))
        values = [np.abs(term.values(points)) for term in integrand.terms]
        slopes = [np.abs(term.values_and_derivatives(points)[1]) for term in answer.terms]
        with np.errstate(all="ignore"):
            share = np.array(values + slopes) / size
        shares.append(np.where(np.isfinite(share), share, 0).max(axis=1))
    return bool(((shares[0] < HIDDEN) & (shares[1] > PLAIN)).any())


def _sheets(answer: Expression, problem: Integrand) -> list[tuple[int, int]]:
    """For each component, between which roots and steps of f and F it lies.

    Where no root or step comes between, F' - f is one analytic function, poles apart: what is wrong on one component is
    wrong on its neighbour too, even where a term that grows too large hides it. (Logarithms may differ by a branch, an
    imaginary amount.)
    """
    grid = survey_grid(problem.expression, problem.seed)
    breakables: list[Breakable] = []
    problem.expression.evaluate(grid, derivative=False, breakables=breakables)
    answer.evaluate(grid, derivative=False, breakables=breakables)
    numbers = stretches(grid, [breakable for breakable in breakables if breakable.kind in ("root", "step")])
    ends = np.array([[component.low, component.high] for component in problem.components]).reshape(-1, 2)
    found = numbers[np.minimum(np.searchsorted(grid.real, ends), len(grid) - 1)]
    return [(int(low), int(high)) for low, high in found]


def _derivative_fault(answer: Expression, integrand: Expression, points: Complexes, component: Component) -> str | None:
    values = real_values(integrand, points)
    _, slopes = answer.evaluate(points)
    known = is_known(values)
    with np.errstate(all="ignore"):
        size = np.abs(values)
        errors = np.abs(slopes - values)
        counts = known & np.isfinite(errors)
        doubtful = counts & (errors > TOLERANCE * size)
        if doubtful.any():
            at = points[doubtful]
            allowed = SLACK * (noise(answer, at)[1] + noise(integrand, at)[0])
            wrong = errors[doubtful] > allowed
            if wrong.any():
                real = np.abs((slopes - values).real[doubtful])
                return _OTHER_BRANCH if (real <= allowed + TOLERANCE * size[doubtful])[wrong].all() else _WRONG
            counts[doubtful] &= allowed <= NOISY * size[doubtful]
    if counts.sum() < MIN_POINTS:
        return _CANNOT_TELL
    edges = [-np.inf, *component.switches, np.inf]
    x = points.real
    for low, high in pairwise(edges):
        piece = (x > low) & (x < high)
        if (piece & known).sum() >= 2 and not (piece & counts).any():
            return "it is undefined on a part of the domain"
    return None


def _increment_fault(answer: Expression, problem: Integrand, component: Component) -> str | None:
    """Whether F jumps between near points of the component, other than across a pole of a subexpression of its own."""
    x = problem.points[:N_NEAR].real
    for index in _bad_increments(answer.values(problem.points[:N_NEAR]), problem):
        low, high = x[index], x[index + 1]
        if component.low <= low and high <= component.high:
            at = _narrow(answer, problem.expression, low, high)
            if at is not None and not _has_pole(answer, at):
                return _JUMPS
    return None


def _narrow(answer: Expression, integrand: Expression, low: float, high: float) -> float | None:
    """Where in [low, high] the increment of F differs from the integral of f, however short the interval."""
    for _ in range(36):
        edges = np.array([low, 0.5 * (low + high), high])
        integrals, scales, uncertain, _ = kronrod(integrand.values, edges[:-1], edges[1:])
        values = answer.values(edges.astype(complex))
        allowed = SLACK * noise(answer, edges.astype(complex))[0]
        with np.errstate(all="ignore"):
            excess = np.abs(np.diff(values) - integrals) - JUMP * scales - allowed[1:] - allowed[:-1] - uncertain
        if not np.isfinite(excess).all() or excess.max() <= 0:
            return None
        half = int(excess.argmax())
        low, high = edges[half], edges[half + 1]
    return float(0.5 * (low + high))


def _has_pole(answer: Expression, at: float) -> bool:
    h = 1e-6 * max(1.0, abs(at))
    breakables: list[Breakable] = []
    answer.evaluate(np.array([at - h, at + h], complex), derivative=False, breakables=breakables)
    poles = [np.broadcast_to(q, 2) for kind, q in breakables if kind == "pole"]
    return any(q[0] * q[1] <= 0 or np.abs(q).max() < 1e-4 for q in poles)


def _switches_fault(answer: Expression, problem: Integrand, component: Component) -> str | None:
    """Whether F jumps, or goes wrong, at a step or root of its own inside the component."""
    if not answer.kinds & {"step", "root"}:
        return None
    grid = np.concatenate([survey_grid(expression, problem.seed) for expression in (problem.expression, answer)])
    grid = np.unique(grid[(grid.real > component.low) & (grid.real < component.high)])
    if len(grid) < 3:
        return None
    breakables: list[Breakable] = []
    answer.evaluate(grid, derivative=False, breakables=breakables)
    everywhere = np.ones(len(grid), bool)
    for kind in ("step", "root"):
        for at in locate(answer, grid, breakables, frozenset({kind}), everywhere, limit=16):
            shared = kind == "root" and any(abs(at - s) <= 1e-7 * (1 + abs(at)) for s in component.switches)
            fault = _switch_fault(answer, problem.expression, at, shared)
            if fault is not None:
                return fault
    return None


def _switch_fault(answer: Expression, integrand: Expression, at: float, shared: bool) -> str | None:
    """At one switch of F: a jump (unless f has the same root there), or a wrong derivative on both sides."""
    h = 1e-7 * max(1.0, abs(at))
    points = np.array([at - h, at + h, at - 1e3 * h, at + 1e3 * h, at - 3e5 * h, at + 3e5 * h], complex)
    values, slopes = answer.evaluate(points)
    wanted = real_values(integrand, points)
    if not np.isfinite(wanted).all():
        return None
    with np.errstate(all="ignore"):
        if np.isfinite(values[:2]).all() and not shared:
            jump = abs(values[1] - values[0] - h * (wanted[0] + wanted[1]))
            allowed = SLACK * noise(answer, points[:2])[0].sum()
            if jump > 1.5 * h * np.abs(wanted[:2]).sum() + allowed + 1e-12 * h:
                return _JUMPS
        error = np.abs(slopes - wanted)[2:]
        # A side where all points are wrong; one point alone may have lost its digits.
        wrong = np.isfinite(error) & (error > 1e-5 * np.abs(wanted[2:]))
        if wrong[0::2].all() or wrong[1::2].all():
            return _WRONG
    return None


def _examine_zero(answer: Expression, problem: Integrand) -> str | None:
    """An integrand that is zero up to rounding: every constant, and nothing else, is right."""
    points = problem.points[:N_NEAR]
    _, slopes = answer.evaluate(points)
    counts = np.isfinite(slopes)
    slope_noise = noise(answer, points)[1]
    if counts.sum() < MIN_POINTS or not (slope_noise[counts] <= 1e-10).all():
        return _CANNOT_TELL
    # Not any(): where all runs happen to round alike, noise shows none.
    if (np.abs(slopes)[counts] > SLACK * slope_noise[counts]).mean() > 0.25:
        return "the integrand is zero everywhere, its derivative is not"
    return None
