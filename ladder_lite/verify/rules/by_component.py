"""The closer look at an answer that one evaluation did not decide: component by component of f's domain.

On each, F' is compared with f at points all over it, and the increments of F with the integrals of f between these
points and the places where F could break. What double precision cannot tell is worked out in ball arithmetic, and
refused where that does not decide.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Breakable, Expression, Floats, Numbers
from ladder_lite.verify.expressions.operations import Break
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.components import MIN_POINTS, Component, NoiseError, sample, survey_grid
from ladder_lite.verify.numerics.integrand import LOUD, N_NEAR, Integrand
from ladder_lite.verify.numerics.quadrature import increments, kronrod
from ladder_lite.verify.numerics.real_line import SMALLEST, evaluate_real, is_known, noise, sizes_of
from ladder_lite.verify.numerics.singularities import brackets, in_turns, locate, zoom
from ladder_lite.verify.rules.growth import CANNOT_TELL, JUMP, JUMPS, NEAR, VISIBLE, Growth

TOLERANCE: Final = 1e-9  # of F' against f, relative
EXACT_TO: Final = 1e-12  # rounding stays below it at most points
MOST: Final = 0.25  # of the points may exceed it
EXACT_TOLERANCE: Final = 1e-25  # in sixty digits
NOISY: Final = 1e-6  # a point whose noise is larger, relative to f, says nothing
EXACT_JUMP: Final = 1e-11  # where it is worked out exactly, and there are no decimals in f or F
POINTS: Final = 32  # per component
LOST: Final = 0.1  # of a component's points, at most, may F have no value or no digits at, where f has both
MAX_PLACES: Final = 64  # An F with more of them is refused.
MAX_FAR: Final = 16  # Of those farther away so many are looked at, the nearest of each kind first.
MAX_LEAPS: Final = 8  # of F at poles of its own, plus one for each turn of f

_BESIDE: Final = (-2, -1, 0, 1, 2)  # of a place: points, in terms of h
WRONG: Final = "its derivative is not the integrand"
_ALL: Final[tuple[Break, ...]] = ("step", "root", "turn", "log", "pole")
_BREAKS: Final = "it may break at more places than can be looked at"


def examine(answer: Expression, problem: Integrand) -> str | None:
    """None if `answer` is an antiderivative by the whole strict rule, else what is wrong with it."""
    try:
        if problem.identically_zero:
            return _examine_zero(answer, problem)
    except NoiseError:
        # Rounding may make up any integrand; but an answer that is wrong in sixty digits is wrong.
        if exact.slopes_agree(answer, problem.expression, (0.7, 1.9, 3.1), EXACT_TOLERANCE) is False:
            return WRONG
        raise
    faults = []
    for component in problem.components:
        fault = _derivative_fault(answer, problem, component) or _continuity_fault(answer, problem, component)
        if fault is None:
            return None
        faults.append(fault)
    return next((fault for fault in faults if fault != WRONG), WRONG)


# --- derivatives ----------------------------------------------------------------------------------------------------


def _derivative_fault(answer: Expression, problem: Integrand, component: Component) -> str | None:
    """What is wrong with F' at points of a component: exactly, where floating point shows an error or cannot tell."""
    points, values = _tested(problem, component)
    if not len(points):
        return CANNOT_TELL
    slopes = _in_reals_if_possible(answer, points)[1]
    with np.errstate(all="ignore"):
        size = sizes_of(values)
        errors = np.abs(slopes - values) / size
    fine = errors <= TOLERANCE
    doubtful = np.flatnonzero(~fine & (np.isfinite(errors) | (np.abs(points) <= NEAR)))
    doubtful = doubtful[np.argsort(-errors[doubtful])]
    agree = partial(agreement, answer, problem.expression)
    agreed = agree(points[doubtful])
    if agreed is False:
        return WRONG
    if agreed is None and len(doubtful) > LOST * len(points):
        return CANNOT_TELL
    points = points[fine]
    points = points[np.argsort(np.abs(np.log(np.abs(points))))]  # those closest to 0 and farthest from it last
    if size.min() > LOUD:
        return None if agree(points, decimals=np.ptp(values.real) / size.max()) else WRONG
    suspicious = not fine.all() or (errors > EXACT_TO).mean() > MOST
    if not suspicious or (agreed := agree(points)):
        return None
    return WRONG if agreed is False else CANNOT_TELL


@lru_cache(maxsize=256)
def _tested(problem: Integrand, component: Component) -> tuple[Floats, Numbers]:
    """Points of a component, and the values of f there."""
    far = problem.points[N_NEAR:]
    points = np.append(sample(component, POINTS, problem.seed + 2), far[(far > component.low) & (far < component.high)])
    evaluation = evaluate_real(problem.expression, points)
    known = is_known(problem.expression, evaluation)
    return points[known], evaluation.values[known]


def agreement(answer: Expression, integrand: Expression, points: Floats, decimals: float = 1.0) -> bool | None:
    """Whether F' = f in ball arithmetic, at the first and the last of the points and some between; None if unclear.

    Exactly, unless there are decimals in f or F: then up to TOLERANCE of f, times `decimals`.
    """
    if not len(points):
        return None
    chosen = points[np.unique(np.linspace(0, len(points) - 1, 4).astype(int))]
    rounded = "." in answer.source + integrand.source
    tolerance = max(EXACT_TOLERANCE, TOLERANCE * decimals if rounded else 0.0)
    return exact.slopes_agree(answer, integrand, chosen.tolist(), tolerance)


def _in_reals_if_possible(answer: Expression, points: Floats) -> tuple[Numbers, Numbers]:
    """Values and derivatives: complex ones where the real ones are not finite."""
    in_complex = answer.values_and_derivatives(points.astype(complex))
    if answer.is_complex:
        return in_complex
    values, slopes = answer.values_and_derivatives(points)
    real = np.isfinite(values) & np.isfinite(slopes)
    return np.where(real, values, in_complex[0]), np.where(real, slopes, in_complex[1])


# --- jumps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Where F may break: `at` a place, within `h` of it. All places as far as `reach`.

    `is_pole`: not a root, a step or a turn. Over a place F should grow by what is `expected`, give or take `slack`,
    unless it is one at which it `may` jump.
    """

    at: Floats
    h: Floats
    is_pole: Bools
    reach: float
    expected: Numbers
    slack: Floats
    may: Bools


def _continuity_fault(answer: Expression, problem: Integrand, component: Component) -> str | None:
    """Whether F jumps inside a component, other than as it may, or breaks more often there than can be looked at."""
    if answer.curves == ():  # a polynomial, or one of sines and cosines
        return None
    places = _places(answer, problem, component)
    if places is None:
        return _BREAKS
    places = _with_jumps(answer, problem, places)
    if places is None:
        return JUMPS
    if np.count_nonzero(np.abs(places.at[places.may]) <= component.reach) > MAX_LEAPS + problem.turns:
        return _BREAKS
    growth = _growth(answer, problem, component, places)
    if 2 * np.count_nonzero(np.isfinite(growth.integrals)) < max(len(growth.integrals), MIN_POINTS):
        return CANNOT_TELL
    values = _in_reals_if_possible(answer, growth.edges)[0]
    return growth.fault(answer, values, noise(answer, growth.edges.astype(complex))[0])


def _places(answer: Expression, problem: Integrand, component: Component) -> _Places | None:
    """The places where F may break in a component: all near ones and some far ones; None if there are too many."""
    grid = np.unique(np.concatenate([survey_grid(e, problem.seed) for e in (problem.expression, answer)]))
    grid = grid[(grid >= component.low) & (grid <= component.high)]
    breakables = answer.evaluate(grid.astype(complex), derivative=False).breakables
    found = brackets(grid, breakables, _ALL, None)
    is_near = found.distance <= component.reach
    near, far = np.flatnonzero(is_near), np.flatnonzero(~is_near)
    if len(near) > MAX_PLACES or len(np.unique(found.which[far])) > MAX_FAR:
        return None
    looked_at = found.of(np.append(near, far[in_turns(found.which[far], found.distance[far])[:MAX_FAR]]))
    places: list[float] = []
    kinds: list[set[str]] = []
    for place, kind in zoom(answer, breakables, looked_at):
        if not places or place - places[-1] > 1e-5 * max(1.0, abs(place)):
            places.append(place)
            kinds.append(set())
        elif kind != "pole":  # of a root, say, whose own place is the more precise one
            places[-1] = place
        kinds[-1].add(kind)
    at = np.array(places)
    h = np.minimum(1e-6 * np.maximum(1.0, np.abs(at)), 0.25 * np.minimum(at - component.low, component.high - at))
    is_pole = np.array([{"pole"} <= of_place <= {"pole", "log"} for of_place in kinds], bool)
    reach = component.reach if len(far) > MAX_FAR else np.inf  # far away the grid is coarse
    inside = h > 0
    at, h, is_pole = at[inside], h[inside], is_pole[inside]
    return _Places(at, h, is_pole, reach, np.zeros(len(at)), np.zeros(len(at)), np.zeros(len(at), bool))


def _with_jumps(answer: Expression, problem: Integrand, places: _Places) -> _Places | None:
    """Where F jumps as the rule allows: at a root of f's own or in a leap; None if it jumps elsewhere."""
    at, h = places.at, places.h
    expected, slack = _expected(problem.expression, at, h)
    before, after = _in_reals_if_possible(answer, np.concatenate([at - h, at + h]))[0].reshape(2, -1)
    with np.errstate(all="ignore"):
        jump = after - before - expected
        unsure = np.flatnonzero(~(np.abs(jump) <= slack))
        if len(unsure):
            balls = exact.values(problem.expression, (at + np.multiply.outer(_BESIDE, h))[:, unsure].ravel().tolist())
            f = np.array([np.nan if ball is None else complex(ball) for ball in balls], complex)
            of_balls, give_or_take = _trapezium(f.reshape(5, -1), h[unsure])
            # Where f has lost its digits.
            lost = np.isfinite(of_balls) & ~(np.abs(expected[unsure] - of_balls) <= give_or_take)
            expected[unsure[lost]], slack[unsure[lost]] = of_balls[lost], give_or_take[lost]
            grown, errors = exact.increments(answer, (at - h)[unsure], (at + h)[unsure])
            jump[unsure] = grown - expected[unsure]
            slack[unsure] += errors
        jumps: Bools = ~(np.abs(jump) <= slack) & np.isfinite(expected)
        others = jumps & ~_are_roots(problem.expression, at)
        if not problem.expression.is_complex:  # an imaginary part may change where poles of two terms cancel
            others &= ~(places.is_pole & (np.abs(jump.real) <= slack))
        if others.any():
            held, leaps = _with_leaps_held(answer, at, h)
            others &= ~(leaps & (np.abs(held[1] - held[0]) <= slack + 3 * np.abs(expected)))
    return None if others.any() else replace(places, expected=expected, slack=slack, may=jumps)


def _expected(integrand: Expression, at: Floats, h: Floats) -> tuple[Numbers, Floats]:
    """How far F grows over places by f, give or take what: nan where f is not known there.

    By quadrature where f has no break within 2*`h`, else by its values on both sides, for it may have a kink.
    """
    evaluation = evaluate_real(integrand, (at + np.multiply.outer(_BESIDE, h)).ravel())
    f = evaluation.values.reshape(5, -1).astype(complex)
    expected, slack = _trapezium(f, h)
    is_smooth = np.isfinite(f).all(axis=0)
    with np.errstate(all="ignore"):
        for kind, q in evaluation.breakables:
            if kind != "turn":
                size, negative = np.abs(q).reshape(5, -1), np.signbit(q).reshape(5, -1)
                dips = 2 * size[1:4].min(axis=0) <= size[[0, 4]].min(axis=0)
                is_smooth &= (negative == negative[0]).all(axis=0) & ~dips
        integral, absolute, uncertain, _ = kronrod(integrand.values, at - h, at + h)
        rounding = noise(integrand, np.append(at - h, at + h).astype(complex))[0].reshape(2, -1).sum(axis=0)
        closer = JUMP * absolute + 10 * (uncertain + 2 * h * rounding) + SMALLEST
        is_smooth &= closer < slack
    return np.where(is_smooth, integral, expected), np.where(is_smooth, closer, slack)


def _trapezium(f: Numbers, h: Floats) -> tuple[Numbers, Floats]:
    """The integral of f over places by its values `_BESIDE` them, and what a kink there may add to it."""
    with np.errstate(all="ignore"):
        expected = h * (f[1] + f[3])
        changes = np.abs(f[3] - f[1]) + np.abs(f[1] - f[0]) + np.abs(f[4] - f[3])
        return expected, 1.5 * h * changes + 1e-6 * np.abs(expected) + SMALLEST


def _are_roots(integrand: Expression, at: Floats) -> Bools:
    """At which places some root in f has a branch point."""
    beside = at + 1e-2 * np.maximum(1.0, np.abs(at))
    breakables = integrand.evaluate(np.array([at, beside], complex).ravel(), derivative=False).breakables
    roots = [np.abs(q.reshape(2, -1)) for kind, q in breakables if kind == "root"]
    return np.any([q[0] <= 1e-9 * q[1] for q in roots], axis=0) if roots else np.zeros(len(at), bool)


def _with_leaps_held(answer: Expression, at: Floats, h: Floats) -> tuple[Numbers, Bools]:
    """F on both sides of places, shape (2, places), with inverse tangents of what is infinite there held constant.

    Also returns at which places there are any.
    """
    points = np.concatenate([at - h, at + h, at - 10 * h, at + 10 * h]).astype(complex)
    slots = answer.evaluate(points, derivative=False).slots
    held, leaps = {}, np.zeros(len(at), bool)
    for name, slot, argument in answer.inverse_tangents:
        u = slots[argument].real.reshape(4, -1) ** (1 if name == "atan" else -1)
        infinite = (u[0] * u[1] < 0) & (np.abs(u[:2]).min(axis=0) > 5 * np.abs(u[2:]).max(axis=0))
        leaps |= infinite
        before, after = slots[slot].reshape(4, -1)[:2]
        held[slot] = np.concatenate([before, np.where(infinite, before, after)])
    return answer.evaluate(points[: 2 * len(at)], derivative=False, held=held).values.reshape(2, -1), leaps


def _growth(answer: Expression, problem: Integrand, component: Component, places: _Places) -> Growth:
    """Between points of a component and the places where F may break, but not across those where it may jump."""
    points = sample(component, POINTS, problem.seed + 2)
    at, h = places.at, places.h
    points = points[~(np.abs(points[:, None] - at) <= h).any(axis=1)]
    edges = np.sort(np.concatenate([points, at - h, at + h]))
    edges = edges[np.abs(edges) <= places.reach]
    width = np.diff(edges)
    interval, place = np.nonzero(np.abs(0.5 * (edges[1:] + edges[:-1])[:, None] - at) <= h)
    apart = np.isin(np.arange(len(width)), interval)
    integrals, scales, errors = _integrals(problem, edges.tobytes(), apart.tobytes())
    scales = np.where(apart, np.maximum(np.append(scales[1:], 0), np.append(0, scales[:-1])), scales)
    tolerance = JUMP if "." in answer.source + problem.expression.source else EXACT_JUMP
    allowed, exactly_allowed = JUMP * scales, tolerance * scales + errors
    integrals = integrals.copy()
    integrals[interval] = np.where(places.may, np.nan, places.expected)[place]
    allowed[interval] = exactly_allowed[interval] = places.slack[place]
    return Growth(edges, integrals, scales, allowed, apart, exactly_allowed)


@lru_cache(maxsize=256)
def _integrals(problem: Integrand, edges: bytes, apart: bytes) -> tuple[Numbers, Floats, Floats]:
    """Integrals of f between edges, but not where these are apart, those of its size, and their errors."""
    x = np.frombuffer(edges)
    integrals, scales, errors = increments(problem.expression, x, ~np.frombuffer(apart, bool), within=1e-13)
    noises = noise(problem.expression, x.astype(complex))[0]
    errors = 10 * (errors + np.diff(x) * np.maximum(noises[1:], noises[:-1]))
    return np.where(errors <= VISIBLE * scales, integrals, np.nan).astype(complex), scales, errors


def _examine_zero(answer: Expression, problem: Integrand) -> str | None:
    """An integrand that is zero: every constant, and nothing else, is right."""
    points = problem.points[:N_NEAR].astype(complex)
    values, slopes = answer.values_and_derivatives(points)
    counts = np.isfinite(slopes) & np.isfinite(problem.values[:N_NEAR])
    value_noise, slope_noise = noise(answer, points)
    if counts.sum() < MIN_POINTS or not ((slope_noise <= 1e-10) & (value_noise <= JUMP))[counts].all():
        return CANNOT_TELL
    ends = np.repeat(values[[0, -1]], (len(problem.points) - N_NEAR) // 2)
    with np.errstate(invalid="ignore"):
        steps_far = np.abs(answer.values(problem.points[N_NEAR:].astype(complex)) - ends) > JUMP
    broken = np.zeros(N_NEAR + 1, bool)  # where it is undefined, a constant may become another
    near = [Breakable(kind, q[:N_NEAR]) for kind, q in problem.breakables]
    landmarks = locate(problem.expression, problem.points[:N_NEAR], near)
    broken[np.searchsorted(problem.points[:N_NEAR], [at for at, _ in landmarks])] = True
    steps = np.abs(np.diff(values)) > (value_noise[1:] + value_noise[:-1]) + JUMP
    steps &= counts[1:] & counts[:-1] & ~broken[1:-1]
    # Not any(): where all runs happen to round alike, noise shows none.
    if steps.any() or steps_far.any() or (np.abs(slopes)[counts] > slope_noise[counts]).mean() > 0.25:
        return "the integrand is zero everywhere, the answer is not a constant"
    return None
