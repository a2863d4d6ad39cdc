"""The strict rule in full, for answers that one evaluation did not decide: component by component of f's domain.

On each component, F' is compared with f at points all over it. Then the increments of F are compared with the integrals
of f, between these points and the places where F could break. Where double precision cannot tell, ball arithmetic is
used; where that does not decide either, the answer is refused.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Breakable, Expression, Floats, Numbers
from ladder_lite.verify.expressions.operations import Break
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.components import MIN_POINTS, Component, NoiseError, sample, survey_grid
from ladder_lite.verify.numerics.integrand import LOUD, N_NEAR, Integrand, sort_order
from ladder_lite.verify.numerics.quadrature import increments, kronrod
from ladder_lite.verify.numerics.real_line import SMALLEST, evaluate_real, is_known, noise, sizes_of
from ladder_lite.verify.numerics.singularities import brackets, locate, round_robin, zoom
from ladder_lite.verify.rules.growth import CANNOT_TELL, JUMP, JUMPS, NEAR, VISIBLE, Growth

TOLERANCE: Final = 1e-9  # largest error of F', relative to f
EXACT_TO: Final = 1e-12  # errors of F' from rounding alone stay below this at most points
MOST: Final = 0.25  # if a larger share of the points exceeds EXACT_TO, ball arithmetic decides
EXACT_TOLERANCE: Final = 1e-25  # largest error of F' in ball arithmetic, relative to f
NOISY: Final = 1e-6  # a point with more rounding noise than this, relative to f, proves nothing
EXACT_JUMP: Final = 1e-11  # as JUMP, for increments in ball arithmetic if neither f nor F contains decimals
POINTS: Final = 32  # random test points per component
ROUGH: Final = 1e-3  # an integral of f with a larger error than this, relative to that of |f|, is unknown
LOST: Final = 0.1  # largest share of a component's points at which F may have no value or no digits although f has
MAX_PLACES: Final = 64  # near places where F may break; an F with more of them is refused
MAX_FAR: Final = 16  # far places that are examined, the nearest of each breaking quantity first
MAX_LEAPS: Final = 8  # jumps that the rule allows, plus one for each turn of f

_BESIDE: Final = (-2, -1, 0, 1, 2)  # points around a place, in units of h
WRONG: Final = "its derivative is not the integrand"
_ALL: Final[tuple[Break, ...]] = ("step", "root", "turn", "log", "pole")
_BREAKS: Final = "it may break at more places than can be examined"


def examine(answer: Expression, problem: Integrand) -> str | None:
    """Return None if `answer` is an antiderivative by the strict rule, else what is wrong with it."""
    try:
        if not problem.components:  # f is zero
            return _examine_zero(answer, problem)
    except NoiseError:
        # f is only rounding noise, so no answer can be accepted. One that is wrong in sixty digits is still wrong.
        if exact.slopes_agree(answer, problem.expression, (0.7, 1.9), EXACT_TOLERANCE) is False:
            return WRONG
        raise
    # One whole component is enough. The one with the most test points comes first.
    faults = []
    for component in problem.components:
        fault = _derivative_fault(answer, problem, component) or _continuity_fault(answer, problem, component)
        if fault is None and not _is_hidden(answer, problem, component):
            return None
        fault = fault or WRONG
        faults.append(fault)
    # "It jumps" is more specific than "its derivative is wrong".
    return next((fault for fault in faults if fault != WRONG), WRONG)


def _is_hidden(answer: Expression, problem: Integrand, component: Component) -> bool:
    """Return whether f is so large on a component that it may hide an error of F', and F' is wrong on another one."""
    return bool(sizes_of(_test_points(problem, component)[1]).min() > LOUD) and any(
        _derivative_fault(answer, problem, other) == WRONG for other in problem.components if other is not component
    )


# --- derivatives ----------------------------------------------------------------------------------------------------


def _derivative_fault(answer: Expression, problem: Integrand, component: Component) -> str | None:
    """Return what is wrong with F' at points of a component, or None."""
    points, values = _test_points(problem, component)
    if not len(points):
        return CANNOT_TELL
    slopes = _in_reals_if_possible(answer, points)[1]
    with np.errstate(all="ignore"):
        size = sizes_of(values)
        errors = np.abs(slopes - values) / size
    agrees = errors <= TOLERANCE
    # Errors in floating point may be rounding, so ball arithmetic checks the largest one and some others. Far from 0,
    # an F' that is not finite may have overflowed, and is skipped.
    doubtful = np.flatnonzero(~agrees & (np.isfinite(errors) | (np.abs(points) <= NEAR)))
    doubtful = doubtful[np.argsort(-errors[doubtful])]
    agree = partial(agreement, answer, problem.expression)
    agreed = agree(points[doubtful])
    # Points without a value of F' are in order, so that those next to the ends of the component are tested: integrals
    # of f are often unknown there, and nothing else would notice an F' that is wrong.
    unknown = doubtful[np.isnan(errors[doubtful])]
    if agreed is False or agree(np.sort(points[unknown])) is False:
        return WRONG
    if agreed is None and len(doubtful) > LOST * len(points):
        return CANNOT_TELL
    points = points[agrees]
    # Sorted by the distance of |x| from 1 on a logarithmic scale (0.9, 3, 0.01, 1e5), because `agreement` takes the
    # first point, the last one and two between.
    points = points[np.argsort(np.abs(np.log(np.abs(points))))]
    if size.min() > LOUD:
        # f is so large everywhere that an error of usual size stays below TOLERANCE of it. With decimals in the text,
        # the tolerance is relative to how much f varies: for 10**9 + cos(x), to 2.
        return None if agree(points, decimals=np.ptp(values.real) / size.max()) else WRONG
    # An error below TOLERANCE can be deliberate: sin(x) + x/10**11. Rounding alone would exceed EXACT_TO at few points.
    suspicious = not agrees.all() or (errors > EXACT_TO).mean() > MOST
    if not suspicious or (agreed := agree(points)):
        return None
    return WRONG if agreed is False else CANNOT_TELL


@lru_cache(maxsize=256)
def _test_points(problem: Integrand, component: Component) -> tuple[Floats, Numbers]:
    """Return points of a component at which f is known, and the values of f there."""
    far = problem.points[N_NEAR:]
    points = np.append(sample(component, POINTS, problem.seed + 2), far[(far > component.low) & (far < component.high)])
    evaluation = evaluate_real(problem.expression, points)
    known = is_known(problem.expression, evaluation)
    return points[known], evaluation.values[known]


def agreement(answer: Expression, integrand: Expression, points: Floats, decimals: float = 1.0) -> bool | None:
    """Return whether F' = f in ball arithmetic, at up to four of the points; None if that cannot be decided.

    If f or F contains decimals, the tolerance is TOLERANCE times `decimals`, relative to f.
    """
    if not len(points):
        return None
    # The first point, the last one, and two between.
    chosen = points[np.unique(np.linspace(0, len(points) - 1, 4).astype(int))]
    # 0.333333333*x**3 is meant as x**3/3, so its derivative cannot be exact.
    rounded = "." in answer.source + integrand.source
    tolerance = max(EXACT_TOLERANCE, TOLERANCE * decimals if rounded else 0.0)
    return exact.slopes_agree(answer, integrand, chosen.tolist(), tolerance)


def _in_reals_if_possible(answer: Expression, points: Floats) -> tuple[Numbers, Numbers]:
    """Return values and derivatives, in complex arithmetic only where real arithmetic gives none."""
    # For example log(-x), which is an antiderivative of 1/x, at x > 0.
    in_complex = answer.values_and_derivatives(points.astype(complex))
    if answer.is_complex:
        return in_complex
    values, slopes = answer.values_and_derivatives(points)
    real = np.isfinite(values) & np.isfinite(slopes)
    return np.where(real, values, in_complex[0]), np.where(real, slopes, in_complex[1])


# --- jumps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Places where F may break. Arrays have one value per place."""

    x: Floats
    h: Floats  # half the width of a place: it reaches from x - h to x + h
    is_pole: Bools  # only a pole: no root, step or turn
    reach: float  # all places with |x| below this are included
    expected: Numbers  # growth of F from x - h to x + h
    slack: Floats  # error allowed in that growth
    may_jump: Bools  # F jumps here, and the rule allows it


def _continuity_fault(answer: Expression, problem: Integrand, component: Component) -> str | None:
    """Return what is wrong if F jumps where it must not, or may break at too many places of a component; else None."""
    if answer.curves == ():  # a polynomial, or one of sines and cosines
        return None
    places = _places(answer, problem, component)
    if places is None:
        return _BREAKS
    # First the growth of F across each place, then its growth between the places and points of the component.
    expected, slack, is_unresolved = _expected(problem.expression, places.x, places.h)
    if is_unresolved.any():
        return CANNOT_TELL
    places = _with_jumps(answer, problem, replace(places, expected=expected, slack=slack))
    if places is None:
        return JUMPS
    if np.count_nonzero(np.abs(places.x[places.may_jump]) <= component.reach) > MAX_LEAPS + problem.turns:
        return _BREAKS
    growth = _growth(answer, problem, component, places)
    # At least half of the integrals of f must be accurate, or a jump could hide in one of the others.
    accurate = np.isfinite(growth.integrals) & ~(growth.exact_slack > 2 * VISIBLE * growth.scales)
    if 2 * np.count_nonzero(accurate) < max(len(accurate), MIN_POINTS):
        return CANNOT_TELL
    values = _in_reals_if_possible(answer, growth.edges)[0]
    return growth.fault(answer, values, noise(answer, growth.edges.astype(complex))[0])


def _places(answer: Expression, problem: Integrand, component: Component) -> _Places | None:
    """Return the near places where F may break in a component and some far ones; None if there are too many."""
    # The grid follows the constants of both texts: sign(x - 60) brings points around 60. The samples add points towards
    # the ends.
    grids = [survey_grid(e, problem.seed) for e in (problem.expression, answer)]
    grid = np.unique(np.concatenate([*grids, sample(component, POINTS, problem.seed + 2)]))
    grid = grid[(grid >= component.low) & (grid <= component.high)]
    # Intervals of the grid in which a breaking quantity changes its sign or dips towards 0.
    breakables = answer.evaluate(grid.astype(complex), derivative=False).breakables
    found = brackets(grid, breakables, _ALL, None)
    is_near = found.distance <= component.reach
    near, far = np.flatnonzero(is_near), np.flatnonzero(~is_near)
    if len(near) > MAX_PLACES or len(np.unique(found.quantity[far])) > MAX_FAR:
        return None
    # Far from 0, the grid is coarse and not all components are real: log(sin(x)) is undefined in between. So a
    # component that is far as a whole has to be examined as a whole.
    if len(far) > MAX_FAR and not (component.low <= NEAR and component.high >= -NEAR):
        return None
    # Far quantities take turns, so that one with many zeros, such as sin(30*x), does not hide a step of another.
    chosen = found.of(np.append(near, far[round_robin(found.quantity[far], found.distance[far])[:MAX_FAR]]))
    places: list[float] = []
    kinds: list[set[str]] = []
    for place, kind in zoom(answer, breakables, chosen):
        if not places or place - places[-1] > 1e-5 * max(1.0, abs(place)):
            places.append(place)
            kinds.append(set())
        elif kind != "pole":  # two breaks at one place: that of a root or step is located more precisely than a pole
            places[-1] = place
        kinds[-1].add(kind)
    x = np.array(places)
    # Half widths: 1e-6, relative far from 0, but no more than a quarter of the way to an end of the component.
    h = np.minimum(1e-6 * np.maximum(1.0, np.abs(x)), 0.25 * np.minimum(x - component.low, component.high - x))
    is_pole = np.array([{"pole"} <= kinds_of_place <= {"pole", "log"} for kinds_of_place in kinds], bool)
    reach = component.reach if len(far) > MAX_FAR else np.inf  # not all far places are examined
    inside = h > 0
    x, h, is_pole = x[inside], h[inside], is_pole[inside]
    return _Places(x, h, is_pole, reach, np.zeros(len(x)), np.zeros(len(x)), np.zeros(len(x), bool))


def _with_jumps(answer: Expression, problem: Integrand, places: _Places) -> _Places | None:
    """Return the places with the jumps that the rule allows marked; None if F jumps at another place.

    Allowed are jumps at a branch point of a root in f, and those of an inverse tangent whose argument is infinite.
    """
    x, h, expected, slack = places.x, places.h, places.expected, places.slack
    before, after = _in_reals_if_possible(answer, np.concatenate([x - h, x + h]))[0].reshape(2, -1)
    with np.errstate(all="ignore"):
        jump = after - before - expected
        unclear = np.flatnonzero(~(np.abs(jump) <= slack))
        if len(unclear):
            # Compute f and F at these places in ball arithmetic. `balls` has f at 5 points of each, shape (5 n,).
            balls = exact.values(problem.expression, (x + np.multiply.outer(_BESIDE, h))[:, unclear].ravel().tolist())
            f = np.array([np.nan if ball is None else complex(ball) for ball in balls], complex)
            exactly_expected, exact_slack = _trapezium(f.reshape(5, -1), h[unclear])
            # Where double precision disagrees with the balls, f has lost its digits, and the balls replace it.
            lost = np.isfinite(exactly_expected) & ~(np.abs(expected[unclear] - exactly_expected) <= exact_slack)
            expected[unclear[lost]], slack[unclear[lost]] = exactly_expected[lost], exact_slack[lost]
            growth, errors = exact.increments(answer, (x - h)[unclear], (x + h)[unclear])
            jump[unclear] = growth - expected[unclear]
            slack[unclear] += errors
        jumps: Bools = ~(np.abs(jump) <= slack)  # also where f is unknown
        unexplained = jumps & ~_are_roots(problem.expression, x)
        if not problem.expression.is_complex:  # where poles of two terms cancel, the imaginary part may jump
            unexplained &= ~(places.is_pole & (np.abs(jump.real) <= slack))
        if unexplained.any():
            # A leap explains a jump only if F is continuous without it.
            values, leaps = _without_leaps(answer, x, h)
            unexplained &= ~(leaps & (np.abs(values[1] - values[0]) <= slack + 3 * np.abs(expected)))
    return None if unexplained.any() else replace(places, expected=expected, slack=slack, may_jump=jumps)


def _expected(integrand: Expression, x: Floats, h: Floats) -> tuple[Numbers, Floats, Bools]:
    """Return the integrals of f across places, error bounds of these, and a mask of those that could not be computed.

    Integrals are nan where f is unknown.
    """
    # The trapezium rule, with an error bound that covers a kink of f, is the fallback. Quadrature replaces it where f
    # has no break within 2*h.
    evaluation = evaluate_real(integrand, (x + np.multiply.outer(_BESIDE, h)).ravel())
    f = evaluation.values.reshape(5, -1).astype(complex)
    expected, slack = _trapezium(f, h)
    is_smooth = np.isfinite(f).all(axis=0)
    with np.errstate(all="ignore"):
        for kind, q in evaluation.breakables:
            if kind != "turn":
                size, negative = np.abs(q).reshape(5, -1), np.signbit(q).reshape(5, -1)
                # A quantity that halves towards the place may vanish there without a change of sign.
                dips = 2 * size[1:4].min(axis=0) <= size[[0, 4]].min(axis=0)
                is_smooth &= (negative == negative[0]).all(axis=0) & ~dips
        integral, absolute, uncertain, _ = kronrod(integrand.values, x - h, x + h)
        rounding = noise(integrand, np.append(x - h, x + h).astype(complex))[0].reshape(2, -1).sum(axis=0)
        # Errors: JUMP, that of the quadrature, and that of rounding in f at both ends.
        quadrature_slack = JUMP * absolute + 10 * (uncertain + 2 * h * rounding) + SMALLEST
        # Where f oscillates inside a place, neither rule knows the integral, and any step could hide in its error.
        is_unresolved = is_smooth & ~(uncertain <= np.fmax(VISIBLE * absolute + SMALLEST, 20 * h * rounding))
        is_smooth &= quadrature_slack < slack
    return np.where(is_smooth, integral, expected), np.where(is_smooth, quadrature_slack, slack), is_unresolved


def _trapezium(f: Numbers, h: Floats) -> tuple[Numbers, Floats]:
    """Return integrals across places from f at the points `_BESIDE` them, shape (5, n), and bounds for a kink there."""
    with np.errstate(all="ignore"):
        expected = h * (f[1] + f[3])
        changes = np.abs(np.diff(f[[0, 1, 3, 4]], axis=0)).sum(axis=0)
        return expected, 1.5 * h * changes + 1e-6 * np.abs(expected) + SMALLEST


def _are_roots(integrand: Expression, x: Floats) -> Bools:
    """Return a mask of the places at which a root in f has a branch point."""
    # There the radicand is far smaller than at a hundredth beside the place.
    beside = x + 1e-2 * np.maximum(1.0, np.abs(x))
    breakables = integrand.evaluate(np.array([x, beside], complex).ravel(), derivative=False).breakables
    roots = [np.abs(q.reshape(2, -1)) for kind, q in breakables if kind == "root"]
    return np.any([q[0] <= 1e-9 * q[1] for q in roots], axis=0) if roots else np.zeros(len(x), bool)


def _without_leaps(answer: Expression, x: Floats, h: Floats) -> tuple[Numbers, Bools]:
    """Return F on both sides of places, shape (2, n), without leaps, and a mask of the places that have one.

    A leap is the jump by pi of an inverse tangent whose argument passes through infinity, as atan(tan(x/2)) has at pi.
    """
    points = np.concatenate([x - h, x + h, x - 10 * h, x + 10 * h]).astype(complex)
    slots = answer.evaluate(points, derivative=False).slots
    overrides, leaps = {}, np.zeros(len(x), bool)
    for name, slot, argument in answer.inverse_tangents:
        u = slots[argument].real.reshape(4, -1) ** (1 if name == "atan" else -1)
        # The argument, or for acot its reciprocal, changes sign through infinity: close to the place it is much larger
        # than farther away.
        infinite = (u[0] * u[1] < 0) & (np.abs(u[:2]).min(axis=0) > 5 * np.abs(u[2:]).max(axis=0))
        leaps |= infinite
        before, after = slots[slot].reshape(4, -1)[:2]
        # Keep the inverse tangent at its value before the place.
        overrides[slot] = np.concatenate([before, np.where(infinite, before, after)])
    return answer.evaluate(points[: 2 * len(x)], derivative=False, overrides=overrides).values.reshape(2, -1), leaps


def _growth(answer: Expression, problem: Integrand, component: Component, places: _Places) -> Growth:
    """Return the growth of F between points of a component and the places, except across places where it may jump."""
    points = sample(component, POINTS, problem.seed + 2)
    x, h = places.x, places.h
    points = points[~(np.abs(points[:, None] - x) <= h).any(axis=1)]
    edges = np.sort(np.concatenate([points, x - h, x + h]))
    edges = edges[np.abs(edges) <= places.reach]
    # Intervals whose middle lies in a place are the places themselves: `interval[k]` is that of place `place[k]`.
    width = np.diff(edges)
    interval, place = np.nonzero(np.abs(0.5 * (edges[1:] + edges[:-1])[:, None] - x) <= h)
    at_break = np.isin(np.arange(len(width)), interval)
    integrals, scales, errors = _integrals(problem, edges.tobytes(), at_break.tobytes())  # bytes can be cached
    # No integral is computed across a place. Its scale is the larger one of its neighbours.
    scales = np.where(at_break, np.maximum(np.append(scales[1:], 0), np.append(0, scales[:-1])), scales)
    tolerance = JUMP if "." in answer.source + problem.expression.source else EXACT_JUMP
    # Towards an end, rounding in f can make an integral less accurate. Then only larger jumps are seen.
    allowed = JUMP * scales + np.where(errors > VISIBLE * scales, errors, 0.0)
    exact_slack = tolerance * scales + errors
    # The original belongs to the cache.
    integrals = integrals.copy()
    integrals[interval] = np.where(places.may_jump, np.nan, places.expected)[place]
    allowed[interval] = exact_slack[interval] = places.slack[place]
    return Growth(edges, integrals, scales, allowed, exact_slack)


@lru_cache(maxsize=256)
def _integrals(problem: Integrand, edges: bytes, at_break: bytes) -> tuple[Numbers, Floats, Floats]:
    """Return integrals of f and of |f| between edges, except at breaks, and error bounds; cached for all answers."""
    x = np.frombuffer(edges)
    integrals, scales, errors = increments(problem.expression, x, ~np.frombuffer(at_break, bool), within=1e-13)
    noises = noise(problem.expression, x.astype(complex))[0]
    errors = 10 * (errors + np.diff(x) * np.maximum(noises[1:], noises[:-1]))
    return np.where(errors <= ROUGH * scales, integrals, np.nan).astype(complex), scales, errors


def _examine_zero(answer: Expression, problem: Integrand) -> str | None:
    """Check an answer to an integrand that is zero: constants are right, and nothing else is."""
    order = sort_order(problem.seed)
    x, is_finite = problem.points[order], np.isfinite(problem.values[order])
    # Where the integrand is undefined, one constant may become another. sqrt(x**2)/x is right for
    # (sqrt(x**2)-x**2/sqrt(x**2))/x, which is 0 except at 0.
    breakables = [Breakable(kind, q[order]) for kind, q in problem.breakables]
    undefined = np.searchsorted(x, [place for place, _ in locate(problem.expression, x, breakables)])
    counts = is_finite[1:] & is_finite[:-1] & ~np.isin(np.arange(1, len(x)), undefined)
    increments, errors = exact.increments(answer, x[:-1][counts], x[1:][counts])
    if len(errors) < MIN_POINTS or not (errors <= JUMP).all():
        return CANNOT_TELL
    if (np.abs(increments) > errors).any():
        return "the integrand is zero everywhere, and the answer is not a constant"
    return None
