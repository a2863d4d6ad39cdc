"""The 'strict' rule: decide whether F is an antiderivative of f.

F is right if, on one whole component of f's domain, F' = f at every point (relative to the size of f) and F does not
jump, so that its increments are the integrals of f. The component must reach into x > 0 if any component does. Points
where floating point overflows are left out. F and f are analytic between their switches, so agreement on any part of a
piece decides for the whole piece (identity theorem).

One evaluation at the base points decides most answers, right and wrong. The others go to
`ladder_lite.verify.rules.by_component`, which takes much longer.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Evaluation, Expression, Floats, Indices
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.components import TOWARDS_END, ends
from ladder_lite.verify.numerics.integrand import N_NEAR, Integrand, Stretch, gaps, pairs_within, sort_order
from ladder_lite.verify.numerics.quadrature import increments
from ladder_lite.verify.numerics.real_line import evaluate_real, jitter, noise
from ladder_lite.verify.rules.by_component import EXACT_TO, MOST, NOISY, TOLERANCE, WRONG, agreement, examine
from ladder_lite.verify.rules.growth import JUMP, VISIBLE, Growth

CLEARLY: Final = 1e-5  # a relative error of F' above this cannot be explained by lost digits
MIN_CLEAR_SHARE: Final = 0.15  # clear errors at a larger share of each stretch's points make F wrong
ROUNDING: Final = 1e-14  # error of a sum whose terms cancel, relative to the terms
UNDECIDED: Final = "undecided"  # never returned to the caller: `examine` decides then
NEARBY: Final = 10  # the rounding of F towards an end may be this many times the rounding at the last point
TOO_CLOSE: Final = 1e-8  # F is not evaluated closer to an end than this, relative to the end
MOST_UNKNOWN: Final = 0.75  # largest share of unknown integrals of f towards its ends
MAX_WRONG_SHARE: Final = 0.1  # largest share of a stretch's points that rounding noise may explain


@exact.allowance()
def is_antiderivative(answer: Expression, problem: Integrand) -> str | None:
    """Return None if `answer` is an antiderivative by the strict rule, else what is wrong with it, in a few words."""
    # Real arithmetic is faster. It leaves undecided what leaves the reals where f is known, as log(-x) does for 1/x.
    verdict = _quick_verdict(answer, problem, answer.evaluate(problem.points))
    return examine(answer, problem) if verdict == UNDECIDED else verdict


def _quick_verdict(answer: Expression, problem: Integrand, evaluation: Evaluation) -> str | None:
    """Return the verdict if one evaluation decides it, else UNDECIDED. Tests each stretch between breaks of f."""
    with np.errstate(all="ignore"):
        errors = np.abs(evaluation.slopes - problem.values) / problem.size
    is_wrong = ~(errors <= TOLERANCE)
    agreeing = _agreeing(problem.stretches, is_wrong)
    if problem.stretches and not agreeing and not problem.may_be_zero:
        # F' is clearly not f on any stretch. Only errors at x > 0 count, because elsewhere F may be wrong, and not all
        # ends of f show as a change of sign. A constant F is left to `examine`: f may be zero.
        clear = (errors > CLEARLY) & problem.decisive & evaluation.slopes.any()
        many_clear = all(np.count_nonzero(clear & s.inside) > MIN_CLEAR_SHARE * s.n_points for s in problem.stretches)
        return WRONG if many_clear and not _may_be_rounding(evaluation, problem, clear) else UNDECIDED
    # A polynomial, or a sum of sines (`curves` is empty), cannot jump anywhere.
    check_ends = bool(agreeing) and answer.curves != () and _may_jump_elsewhere(evaluation, problem)
    if check_ends:
        agreeing = _agreeing(problem.parts, is_wrong)
    for stretch, n_wrong in agreeing:
        # Accepted if f is not so large that it hides errors, the small errors of F' look like rounding, rounding noise
        # explains the larger ones, and F does not jump.
        if (
            not stretch.is_loud
            and np.count_nonzero((errors > EXACT_TO) & stretch.inside) <= MOST * stretch.n_points
            and (not n_wrong or _is_explained(answer, problem, evaluation, stretch.inside, ~is_wrong))
            and (answer.curves == () or _is_continuous(answer, problem, evaluation, stretch, check_ends))
        ):
            return None
    return UNDECIDED


def _agreeing(stretches: Iterable[Stretch], is_wrong: Bools) -> list[tuple[Stretch, int]]:
    """Return the stretches on which F' is wrong at no more than a tenth of the points, and the number of these."""
    counts = [(stretch, int(np.count_nonzero(is_wrong & stretch.inside))) for stretch in stretches]
    return [(stretch, n_wrong) for stretch, n_wrong in counts if n_wrong <= MAX_WRONG_SHARE * stretch.n_points]


def _may_be_rounding(evaluation: Evaluation, problem: Integrand, clear_errors: Bools) -> bool:
    """Return True if terms of F' are so large that their cancellation could cause the clear error closest to 0."""
    at = int(np.argmin(np.where(clear_errors, np.abs(problem.points), np.inf)))
    terms = [slope[at] for slope in evaluation.slopes_of_slots if isinstance(slope, np.ndarray)]
    error = abs(evaluation.slopes[at] - problem.values[at])
    return bool(error < ROUNDING * max(map(abs, terms), default=0.0))


def _is_explained(answer: Expression, problem: Integrand, evaluation: Evaluation, inside: Bools, agrees: Bools) -> bool:
    """Return True if rounding noise, or an overflow far from 0, explains the few points where F' is not f.

    At the last near point that agrees, F' must then equal f in ball arithmetic, not only to TOLERANCE.
    """
    doubtful = inside & ~agrees
    # Far points where F' overflows are dropped. If f has roots or steps they are kept: its formula may be another one
    # there, about which the near points say nothing.
    if not problem.expression.kinds & {"root", "step"}:
        doubtful[N_NEAR:] &= np.isfinite(evaluation.slopes[N_NEAR:])
    points = problem.points[doubtful]
    if len(points):
        allowed = noise(answer, points.astype(evaluation.slopes.dtype))[1] + noise(problem.expression, points)[0]
        with np.errstate(all="ignore"):
            unexplained = ~(np.abs(evaluation.slopes[doubtful] - problem.values[doubtful]) <= allowed)
        # Large noise would explain any error.
        if unexplained.any() or allowed.max() > NOISY * np.nanmax(problem.size[:N_NEAR]):
            return False
    near = problem.points[:N_NEAR][(inside & agrees)[:N_NEAR]]
    return bool(agreement(answer, problem.expression, near[-1:]))


def _is_continuous(
    answer: Expression, problem: Integrand, evaluation: Evaluation, stretch: Stretch, check_ends: bool
) -> bool:
    """Return True if F clearly does not jump in a stretch: its increments are the integrals of f.

    The gaps between the last points and the ends of the stretch are tested too, if `check_ends` is set or F has
    anything that could break between the points. False means undecided.
    """
    # Increments are known only between near points. Far away, at least no function of F may switch.
    if "step" in answer.kinds or (stretch.goes_far and any(map(_changes_far, _switches(evaluation)))):
        return False
    values = evaluation.values[:N_NEAR]
    if problem.overflown[:N_NEAR].any() or not np.isfinite(values[stretch.inside[:N_NEAR]]).all():
        return False
    if not stretch.is_whole and (problem.removable & np.diff(stretch.inside[:N_NEAR])).any():
        return False  # at a removable break, as of sin(x)/x, the stretch ends but f does not
    near = problem.points[:N_NEAR]
    # The rounding in F, measured by one run in which each operation is off by a random relative error.
    jittered = answer.evaluate(near.astype(values.dtype), derivative=False, jitter=jitter(N_NEAR)).values
    with np.errstate(all="ignore"):
        rounding = np.abs(jittered - values)
        is_clear = not (rounding > VISIBLE * problem.size[:N_NEAR] * gaps(problem.seed)[:N_NEAR]).any()
    # Fast path: nothing in F breaks between the points, so only the ends are left. The rounding at the last near points
    # is tried first; if it is too large, the rounding at the ends is measured, at the cost of another evaluation.
    if is_clear and not np.iscomplexobj(values) and _cannot_jump(answer, evaluation, stretch.inside, problem.seed):
        return (
            not check_ends
            or _is_continuous_at_ends(answer, problem, stretch, rounding)
            or _is_continuous_at_ends(answer, problem, stretch, None)
        )
    # Slow path: compare all increments with the integrals of f.
    growth, pairs = _growth_in(problem, stretch), pairs_within(stretch.inside)
    unknown = np.isnan(growth.integrals) & pairs
    if 2 * unknown.sum() > pairs.sum() or _breaks_within(evaluation, unknown):
        return False
    return not growth.unclear(values, rounding).any() and _is_continuous_at_ends(answer, problem, stretch, None)


def _may_jump_elsewhere(evaluation: Evaluation, problem: Integrand) -> bool:
    """Return True if F may jump where f neither breaks nor turns, such as between the last points and an end."""
    # A quantity of F that f has too (the same values at all points) breaks where f does. The cheap comparison of the
    # first value rules out most pairs. A pole of F is no jump; where tanh(1/x) jumps, its turn counts.
    of_f = [q for _, q in problem.breakables]
    return any(
        kind != "pole" and not any(q[0] == p[0] and (q == p).all() for p in of_f) for kind, q in evaluation.breakables
    )


@lru_cache(maxsize=256)
def _sides(problem: Integrand, stretch: Stretch) -> tuple[Indices, Floats, Floats]:
    """Return, for each end of a stretch, the index of the closest near point, the closest point and a point beyond.

    Three arrays of the same length: 2, or less if the stretch has no end on one side.
    """
    order = sort_order(problem.seed)
    ranks = np.flatnonzero(stretch.inside[order])
    is_near = order[ranks] < N_NEAR
    sides = []
    for k, step in ((0, -1), (-1, 1)):  # the left end, then the right one
        beyond = ranks[k] + step
        if not 0 <= beyond < len(order):
            continue  # the stretch reaches the outermost base point
        inside, outside = problem.points[order[[ranks[k], beyond]]]
        if order[beyond] >= N_NEAR:
            # Far points lie far apart, so the nearest known end of f replaces the point beyond. If there is none
            # between two far points, f overflows or underflows at the outer one, and the stretch does not end.
            distance = step * (problem.ends.mean(axis=1) - inside)
            distance[(distance < 0) | (distance > abs(outside - inside))] = np.inf
            if distance.min(initial=np.inf) < np.inf:
                outside = problem.ends[distance.argmin(), max(step, 0)]
            elif not is_near[k]:
                continue
        sides.append((order[ranks[is_near][k]], inside, outside))
    near, inside, outside = np.array(sides).reshape(-1, 3).T
    return near.astype(np.intp), inside, outside


def _is_continuous_at_ends(answer: Expression, problem: Integrand, stretch: Stretch, rounding: Floats | None) -> bool:
    """Return True if F does not jump between the last points of a stretch and its ends.

    The rounding of F at the ends is estimated from its `rounding` at the near points, or measured if that is None.
    """
    growth = _growth_at_ends(problem, stretch)
    if growth is None:
        return True
    edges = growth.edges.astype(complex) if answer.is_complex or problem.expression.is_complex else growth.edges
    unknown = np.isnan(growth.integrals)
    # With two ends, the interval that leads from one side to the other is not tested here.
    unknown[len(TOWARDS_END) :: len(TOWARDS_END) + 1] = False
    evaluation = answer.evaluate(edges, derivative=bool(unknown.any()))
    values = evaluation.values
    if not np.isfinite(values).all() or unknown.mean() > MOST_UNKNOWN:
        return False
    if _breaks_within(evaluation, unknown):
        return False
    if rounding is None:
        with np.errstate(invalid="ignore"):
            roundings = np.abs(answer.evaluate(edges, derivative=False, jitter=jitter(len(edges))).values - values)
    else:
        roundings = np.repeat(NEARBY * rounding[_sides(problem, stretch)[0]], len(TOWARDS_END) + 1)
        roundings += NEARBY * ROUNDING * np.abs(values)  # or most answers would have to be examined
    return not growth.unclear(values, roundings).any()


def _cannot_jump(answer: Expression, evaluation: Evaluation, inside: Bools, seed: int) -> bool:
    """Return True if nothing in F breaks in a stretch, or turns so fast that it could look like a break."""
    pairs = pairs_within(inside)
    for kind, q in evaluation.breakables:
        if kind != "turn":
            negative = np.signbit(q[:N_NEAR])
            if ((negative[1:] != negative[:-1]) & pairs).any():
                return False
    return evaluation.is_resolved(answer.curves, gaps(seed))


def _breaks_within(evaluation: Evaluation, intervals: Bools) -> bool:
    """Return True if F may jump in any of the masked intervals between its first points: f has no integral there."""
    n = len(intervals) + 1
    return any((np.diff(np.signbit(q[:n])) & intervals).any() for q in _switches(evaluation))


@lru_cache(maxsize=256)
def _growth_in(problem: Integrand, stretch: Stretch) -> Growth:
    """Return the growth that F must have in a stretch."""
    integrals, scales = problem.increments
    integrals = np.where(pairs_within(stretch.inside), integrals, np.nan)
    slack = JUMP * scales
    return Growth(problem.points[:N_NEAR], integrals, scales, slack, slack)


@lru_cache(maxsize=256)
def _growth_at_ends(problem: Integrand, stretch: Stretch) -> Growth | None:
    """Return the growth that F must have from the outermost near points of a stretch to its ends; None without ends."""
    indices, inside, outside = _sides(problem, stretch)
    if not len(indices):
        return None
    near, limits = problem.points[indices], ends(problem.expression, inside, outside)
    # From each near point, edges approach the end by tenths: 0.1, 0.01, ..., 1e-7 of the distance from it.
    distance = np.abs(near - limits)
    distances = np.clip(np.multiply.outer(TOWARDS_END, distance), TOO_CLOSE * np.abs(limits), distance)
    edges = np.sort(np.concatenate([near, (limits + np.sign(near - limits) * distances).ravel()]))
    needed = ~(np.isin(edges[:-1], near) & np.isin(edges[1:], near))  # not the interval from one side to the other
    integrals, scales, _ = increments(problem.expression, edges, needed)
    with np.errstate(over="ignore"):
        # An edge x is itself rounded, which changes the integral by f times the rounding of x.
        lost_digits = NEARBY * ROUNDING * np.abs(edges * evaluate_real(problem.expression, edges).values)
        slack = JUMP * scales + lost_digits[1:] + lost_digits[:-1]
    return Growth(edges, integrals, np.full(len(slack), scales.max()), slack, slack)


def _switches(evaluation: Evaluation) -> Iterator[Floats]:
    """Yield quantities that change sign where a root, a logarithm or a turn of F may switch.

    Such switches can be steps in disguise: sqrt((x-50)**2)/(x-50).
    """
    for (kind, q), (_, slot, _) in zip(evaluation.breakables, evaluation.breaks, strict=True):
        if kind != "pole":
            yield q.real
        # A quantity can touch 0 without changing sign, as (x-50)**2 does. Then its slope changes sign.
        slope = evaluation.slopes_of_slots[slot]
        if kind in ("root", "log") and isinstance(slope, np.ndarray):
            yield slope.real


def _changes_far(q: Floats) -> bool:
    """Return True if a quantity changes its sign from the outermost near point to a far point on the same side."""
    far, ends = np.signbit(q[N_NEAR:]), np.signbit(q[[0, N_NEAR - 1]])
    return bool((far.reshape(2, -1) != ends[:, None]).any())
