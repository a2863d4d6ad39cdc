"""Is F an antiderivative of f: the 'strict' rule.

F is right if on one whole component of f's domain F' = f at every point, relative to f's own size, and F does not jump:
its increments are the integrals of f. The component has to reach into x > 0 where any does. Points where floating point
overflows are left out: F and f are analytic between their switches, so agreement on any part of a piece decides for the
whole of it (identity theorem).

One evaluation at the base points decides most answers, right and wrong: see `is_antiderivative`. The others go to
`ladder_lite.verify.rules.by_component`, which takes much longer.
"""

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import RESOLVED, Bools, Evaluation, Expression, Floats, Indices, Numbers
from ladder_lite.verify.expressions.operations import Break
from ladder_lite.verify.numerics import exact
from ladder_lite.verify.numerics.components import TOWARDS_END, ends
from ladder_lite.verify.numerics.integrand import N_NEAR, Integrand, Stretch, both_near, by_place, gaps
from ladder_lite.verify.numerics.quadrature import increments
from ladder_lite.verify.numerics.real_line import evaluate_real, jitter, noise
from ladder_lite.verify.rules.by_component import EXACT_TO, MAX_LEAPS, MOST, NOISY, TOLERANCE, WRONG, agreement, examine
from ladder_lite.verify.rules.growth import JUMP, VISIBLE, Growth

CLEARLY: Final = 1e-5  # an error beyond what lost digits explain
MANY: Final = 0.15  # of a stretch's points
ROUNDING: Final = 1e-14  # of terms that cancel
UNDECIDED: Final = "undecided"
NEARBY: Final = 10  # times the rounding of a point its neighbours may have
BLIND: Final = 1e-8  # closer to an end than this, relative to it, F is not looked at
MOST_UNKNOWN: Final = 0.75  # of the integrals of f towards its ends
FEW: Final = 0.1  # of a stretch's points may be left to rounding noise


@exact.allowance()
def is_antiderivative(answer: Expression, problem: Integrand) -> str | None:
    """None if `answer` is an antiderivative by the strict rule, else what is wrong with it, in a few words."""
    points = problem.points
    if not (answer.is_complex or problem.expression.is_complex):
        evaluation = answer.evaluate(points)
        verdict = _first_look(answer, problem, evaluation)
        if verdict != UNDECIDED or np.isfinite(evaluation.values)[problem.known].all():
            return examine(answer, problem) if verdict == UNDECIDED else verdict
    verdict = _first_look(answer, problem, answer.evaluate(points.astype(complex)))
    return examine(answer, problem) if verdict == UNDECIDED else verdict


def _first_look(answer: Expression, problem: Integrand, evaluation: Evaluation) -> str | None:
    """The verdict where one evaluation decides it, stretch by stretch between the breaks of f."""
    with np.errstate(all="ignore"):
        errors = np.abs(evaluation.slopes - problem.values) / problem.size
    off = ~(errors <= TOLERANCE)
    good = _agreeing(problem.stretches, off)
    if problem.stretches and not good and not problem.may_be_zero:
        # On x > 0: elsewhere it may be wrong, and not all ends of f show in changes of sign. (A constant may be right.)
        plain = (errors > CLEARLY) & problem.telling & evaluation.slopes.any()
        is_wrong = all(np.count_nonzero(plain & s.inside) > MANY * s.n_points for s in problem.stretches)
        return WRONG if is_wrong and not _may_be_rounding(evaluation, problem, plain) else UNDECIDED
    ends_count = bool(good) and answer.curves != () and _breaks_elsewhere(answer, evaluation, problem)
    if ends_count:
        good = _agreeing(problem.parts, off)
    for stretch, n_off in good:
        if (
            not stretch.is_loud
            and np.count_nonzero((errors > EXACT_TO) & stretch.inside) <= MOST * stretch.n_points
            and (not n_off or _is_explained(answer, problem, evaluation, stretch.inside, ~off))
            and (answer.curves == () or _is_continuous(answer, problem, evaluation, stretch, ends_count))
        ):
            return None
    return UNDECIDED


def _agreeing(stretches: Iterable[Stretch], off: Bools) -> list[tuple[Stretch, int]]:
    """The stretches with FEW points at which F' is `off`, and how many these are."""
    counts = [(stretch, int(np.count_nonzero(off & stretch.inside))) for stretch in stretches]
    return [(stretch, n_off) for stretch, n_off in counts if n_off <= FEW * stretch.n_points]


def _may_be_rounding(evaluation: Evaluation, problem: Integrand, plain: Bools) -> bool:
    """Whether terms of F' are so large, where an error is plain closest to 0, that they may have cancelled to it."""
    at = int(np.argmin(np.where(plain, np.abs(problem.points), np.inf)))
    terms = [slope[at] for slope in evaluation.slopes_of_slots if isinstance(slope, np.ndarray)]
    error = abs(evaluation.slopes[at] - problem.values[at])
    return bool(error < ROUNDING * max(map(abs, terms), default=0.0))


def _is_explained(answer: Expression, problem: Integrand, evaluation: Evaluation, inside: Bools, fine: Bools) -> bool:
    """Whether rounding noise explains the few points of a stretch where F' is not f; of far ones, so does an overflow.

    And beside them F' is f to all digits, not to TOLERANCE only.
    """
    doubtful = inside & ~fine
    if not problem.expression.kinds & {"root", "step"}:  # whose sides have nothing to do with each other
        doubtful[N_NEAR:] &= np.isfinite(evaluation.slopes[N_NEAR:])
    at = problem.points[doubtful]
    if len(at):
        allowed = noise(answer, at.astype(evaluation.slopes.dtype))[1] + noise(problem.expression, at)[0]
        with np.errstate(all="ignore"):
            unexplained = ~(np.abs(evaluation.slopes[doubtful] - problem.values[doubtful]) <= allowed)
        if unexplained.any() or allowed.max() > NOISY * np.nanmax(problem.size[:N_NEAR]):
            return False
    near = problem.points[:N_NEAR][(inside & fine)[:N_NEAR]]
    return bool(agreement(answer, problem.expression, near[-1:]))


def _is_continuous(
    answer: Expression, problem: Integrand, evaluation: Evaluation, stretch: Stretch, ends_count: bool
) -> bool:
    """Whether F plainly does not jump in a stretch: its increments are those of f, and nothing switches far away.

    Nor does it between the last points and the ends of the stretch, if `ends_count` or F may jump between the points.
    """
    if "step" in answer.kinds or (stretch.goes_far and not _has_no_far_switches(evaluation, problem)):
        return False
    values = evaluation.values[:N_NEAR]
    if problem.overflown[:N_NEAR].any() or not np.isfinite(values[stretch.inside[:N_NEAR]]).all():
        return False
    if not stretch.is_whole and (problem.removable & np.diff(stretch.inside[:N_NEAR])).any():
        return False  # f does not end where the stretch does
    near = problem.points[:N_NEAR]
    jittered = answer.evaluate(near.astype(values.dtype), derivative=False, jitter=jitter(N_NEAR)).values
    with np.errstate(all="ignore"):
        rounding = np.abs(jittered - values)
        is_clear = not (rounding > VISIBLE * problem.size[:N_NEAR] * gaps(problem.seed)[:N_NEAR]).any()
    if is_clear and not np.iscomplexobj(values) and _cannot_jump(answer, evaluation, stretch.inside, problem.seed):
        return (
            not ends_count
            or _is_continuous_at_ends(answer, problem, stretch, rounding)
            or _is_continuous_at_ends(answer, problem, stretch, None)
        )
    growth = _growth_in(problem, stretch)
    if growth is None:
        return False
    unknown = np.isnan(growth.integrals) & both_near(stretch.inside)
    if _breaks_within(evaluation, unknown, ("root", "log")):
        return False
    unclear = growth.unclear(values, rounding)
    if unclear.any() and answer.inverse_tangents and not answer.is_complex:
        unclear = growth.unclear(_without_leaps(answer, problem, evaluation), rounding)
    return not unclear.any() and _is_continuous_at_ends(answer, problem, stretch, None)


def _breaks_elsewhere(answer: Expression, evaluation: Evaluation, problem: Integrand) -> bool:
    """Whether F may jump where f does not break or turn: between a stretch's last points and its ends, for example.

    At a pole it does not, unless something turns there as well, as in tanh(1/x).
    """
    of_f = [q for _, q in problem.breakables]
    return any(
        (kind != "pole" or "turn" in answer.kinds) and not any(q[0] == p[0] and (q == p).all() for p in of_f)
        for kind, q in evaluation.breakables
    )


@lru_cache(maxsize=256)
def _sides(problem: Integrand, stretch: Stretch) -> tuple[Indices, Floats, Floats]:
    """Of each end of a stretch: the near point closest to it (its index), the closest of all points, a place beyond.

    A stretch that stops short of a far point because f overflows or underflows there does not end.
    """
    order = by_place(problem.seed)
    at = np.flatnonzero(stretch.inside[order])
    is_near = order[at] < N_NEAR
    sides = []
    for k, step in ((0, -1), (-1, 1)):
        beyond = at[k] + step
        if not 0 <= beyond < len(order):
            continue
        inside, outside = problem.points[order[[at[k], beyond]]]
        if order[beyond] >= N_NEAR:
            distance = step * (problem.ends.mean(axis=1) - inside)
            distance[(distance < 0) | (distance > abs(outside - inside))] = np.inf
            if distance.min(initial=np.inf) < np.inf:
                outside = problem.ends[distance.argmin(), max(step, 0)]
            elif not is_near[k]:
                continue
        sides.append((order[at[is_near][k]], inside, outside))
    near, inside, outside = np.array(sides).reshape(-1, 3).T
    return near.astype(np.intp), inside, outside


def _is_continuous_at_ends(answer: Expression, problem: Integrand, stretch: Stretch, rounding: Floats | None) -> bool:
    """Whether F does not jump between a stretch's last points and its ends.

    Its `rounding` at the near points tells that at the ends; it is measured if not given.
    """
    growth = _growth_at_ends(problem, stretch)
    if growth is None:
        return True
    edges = growth.edges.astype(complex) if answer.is_complex or problem.expression.is_complex else growth.edges
    evaluation = answer.evaluate(edges, derivative=False)
    values, unknown = evaluation.values, np.isnan(growth.integrals)
    unknown[len(TOWARDS_END) :: len(TOWARDS_END) + 1] = False  # from the one side to the other, if there are two
    if not np.isfinite(values).all() or unknown.mean() > MOST_UNKNOWN:
        return False
    if _breaks_within(evaluation, unknown, ("root", "log", "turn")):
        return False
    if rounding is None:
        with np.errstate(invalid="ignore"):
            roundings = np.abs(answer.evaluate(edges, derivative=False, jitter=jitter(len(edges))).values - values)
    else:
        roundings = np.repeat(NEARBY * rounding[_sides(problem, stretch)[0]], len(TOWARDS_END) + 1)
        roundings += NEARBY * ROUNDING * np.abs(values)
    return not growth.unclear(values, roundings).any()


def _cannot_jump(answer: Expression, evaluation: Evaluation, inside: Bools, seed: int) -> bool:
    """Whether nothing in F breaks in a stretch, or turns so fast that it may look like a break."""
    pairs = both_near(inside)
    for kind, q in evaluation.breakables:
        if kind != "turn":
            negative = np.signbit(q[:N_NEAR])
            if ((negative[1:] != negative[:-1]) & pairs).any():
                return False
    return evaluation.is_resolved(answer.curves, gaps(seed))


def _breaks_within(evaluation: Evaluation, intervals: Bools, kinds: Collection[Break]) -> bool:
    """Whether F breaks in ways of these kinds in some of the intervals between its first points."""
    n = len(intervals) + 1
    return bool(intervals.any()) and any(
        (np.diff(np.signbit(q[:n])) & intervals).any() for kind, q in evaluation.breakables if kind in kinds
    )


@lru_cache(maxsize=256)
def _growth_in(problem: Integrand, stretch: Stretch) -> Growth | None:
    """How F has to grow in a stretch; None where f is hard to integrate."""
    before = stretch.inside[: N_NEAR - 1]
    integrals, scales = problem.increments
    if 2 * np.count_nonzero(np.isfinite(integrals) & before) < np.count_nonzero(before):
        return None
    integrals = np.where(both_near(stretch.inside), integrals, np.nan)
    slack = JUMP * scales
    return Growth(problem.points[:N_NEAR], integrals, scales, slack, np.zeros(N_NEAR - 1, bool), slack)


@lru_cache(maxsize=256)
def _growth_at_ends(problem: Integrand, stretch: Stretch) -> Growth | None:
    """How F has to grow from the first and last near points of a stretch towards its ends, where it has some."""
    at, inside, outside = _sides(problem, stretch)
    if not len(at):
        return None
    near, found = problem.points[at], ends(problem.expression, inside, outside)
    distance = np.abs(near - found)
    distances = np.clip(np.multiply.outer(TOWARDS_END, distance), BLIND * np.abs(found), distance)
    edges = np.sort(np.concatenate([near, (found + np.sign(near - found) * distances).ravel()]))
    wanted = ~(np.isin(edges[:-1], near) & np.isin(edges[1:], near))  # not from the one side to the other
    integrals, scales, _ = increments(problem.expression, edges, wanted)
    with np.errstate(over="ignore"):
        # For x is rounded as well.
        lost = NEARBY * ROUNDING * np.abs(edges * evaluate_real(problem.expression, edges).values)
        slack = JUMP * scales + lost[1:] + lost[:-1]
    return Growth(edges, integrals, np.full(len(slack), scales.max()), slack, np.zeros(len(slack), bool), slack)


def _without_leaps(answer: Expression, problem: Integrand, evaluation: Evaluation) -> Numbers:
    """F at the near points, its inverse tangents continued where their arguments pass through infinity.

    Unchanged if that is more often than `MAX_LEAPS` allows.
    """
    held, leaps = {}, 0
    for name, slot, argument in answer.inverse_tangents:
        u, slope = evaluation.slots[argument][:N_NEAR], evaluation.slopes_of_slots[argument]
        away = u * np.broadcast_to(slope, problem.points.shape)[:N_NEAR] * (1 if name == "atan" else -1) > 0
        leap = np.where((u[1:] * u[:-1] < 0) & away[:-1] & ~away[1:], np.sign(u[:-1]), 0)  # through infinity
        leaps += int(np.count_nonzero(leap))
        held[slot] = evaluation.slots[slot][:N_NEAR] + np.append(0, np.cumsum(np.pi * leap))
    if leaps > MAX_LEAPS + problem.turns:
        return evaluation.values[:N_NEAR]
    return answer.evaluate(problem.points[:N_NEAR], derivative=False, held=held).values


def _has_no_far_switches(evaluation: Evaluation, problem: Integrand) -> bool:
    """Whether F shows, beyond the near points, no change of sign of roots, logarithms or steep turns.

    (Steps in disguise come of them: sqrt(x**2)/x. Near ones show in the increments.)
    """
    for (kind, q), (_, slot, _) in zip(evaluation.breakables, evaluation.breaks, strict=True):
        slope = evaluation.slopes_of_slots[slot]
        if kind != "pole" and _changes_far(q) and (kind != "turn" or _is_steep(slope, problem.seed)):
            return False
        if kind in ("root", "log") and isinstance(slope, np.ndarray) and _changes_far(slope):
            return False
    return True


def _is_steep(slope: Floats, seed: int) -> bool:
    far = np.abs(slope[N_NEAR:]) if isinstance(slope, np.ndarray) else np.full(8, abs(slope))
    far = np.sort(far[~np.isnan(far)])
    return bool(len(far) and far[len(far) // 2] * gaps(seed).max() > RESOLVED)  # not at a pole only


def _changes_far(q: Floats) -> bool:
    """Whether a quantity changes its sign beyond the near points."""
    far, ends = np.signbit(q[N_NEAR:].real), np.signbit(q[[0, N_NEAR - 1]].real)
    return bool((far.reshape(2, -1) != ends[:, None]).any())
