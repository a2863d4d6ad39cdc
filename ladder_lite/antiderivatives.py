"""Is F an antiderivative of f: the 'strict' rule.

F' = f is tested at random points, relative to f's own size, and where F may hide a step between them, its increments
against the integral of f. F is right if it is right at every point of at least one whole component of f's domain, and
does not jump inside it. Points where floating point overflows are left out: as long as F and f are analytic between
their switches, agreement on any part of a piece decides for the whole of it (identity theorem), so each piece needs
some points that do count.

One evaluation at the base points decides most answers, right and wrong. The others go to
`ladder_lite.examination`, component by component, which takes ten times as long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ladder_lite.evaluation import RESOLVED, Evaluation
from ladder_lite.examination import CLEARLY, NOISY, SLACK, TOLERANCE, WRONG, bad_increments, examine
from ladder_lite.expressions import Expression
from ladder_lite.integrands import (
    MIN_POINTS,
    N_NEAR,
    Floats,
    Integrand,
    Numbers,
    gaps,
    noise,
    stretches,
)


def is_antiderivative(answer: Expression, problem: Integrand) -> str | None:
    """None if `answer` is an antiderivative by the strict rule, else what is wrong with it, in a few words."""
    evaluation = _evaluate(answer, problem)
    slopes = evaluation.slopes
    with np.errstate(all="ignore"):
        agree = np.abs(slopes - problem.values) <= TOLERANCE * np.abs(problem.values)
        agree &= problem.known
    noise_over_f = None
    if np.count_nonzero(agree[:N_NEAR]) >= MIN_POINTS:
        noise_over_f = _explained(answer, problem, slopes, problem.known & ~agree)
    if noise_over_f is None:
        # (Only zero has a constant antiderivative, which needs the closer look.)
        if slopes.any() and _is_wrong_everywhere(answer, evaluation, problem):
            return WRONG
    elif (
        noise_over_f <= NOISY  # else digits that f never had are lost in F's own terms
        and not problem.is_loud
        and _has_no_switches(answer, evaluation, problem)
        and (_has_no_steps(answer, evaluation, problem) or not len(bad_increments(evaluation.values, problem)))
    ):
        return None
    return examine(answer, problem)


def _evaluate(answer: Expression, problem: Integrand) -> Evaluation:
    """F at the base points: in real numbers if they suffice, which is much faster."""
    if not answer.is_complex:
        evaluation = answer.evaluate(problem.points)
        with np.errstate(all="ignore"):
            if np.isfinite(evaluation.values + evaluation.slopes)[problem.known].all():
                return evaluation
    return answer.evaluate(problem.points.astype(complex))


def _is_wrong_everywhere(answer: Expression, evaluation: Evaluation, problem: Integrand) -> bool:
    """Whether each stretch between roots and steps has a point where F' is plainly not f: most wrong answers do.

    Inside such a stretch F' - f is one analytic function, poles apart: see `examination._sheets`.
    """
    with np.errstate(all="ignore"):
        differences = evaluation.slopes - problem.values
        counts = problem.known & np.isfinite(differences)
        errors = np.where(counts, np.abs(differences.real) / np.abs(problem.values), 0)
    if counts.sum() < 2 * MIN_POINTS:
        return False
    breakables = problem.breakables + evaluation.breakables
    switches = [breakable for breakable in breakables if breakable.kind in ("root", "step")]
    stretch = stretches(problem.points, switches) if switches else np.zeros(len(counts), np.intp)
    plain = errors > CLEARLY
    in_doubt = []
    for number in np.unique(stretch[counts]):
        inside = counts & (stretch == number)
        if not plain[inside].any():
            return False
        # Errors at most points are not lost digits, unless all that the integrand has is lost digits.
        if 2 * plain[inside].sum() <= inside.sum() or np.median(np.abs(problem.values[inside])) < CLEARLY:
            in_doubt.append(int(np.where(inside, errors, -1).argmax()))
    if not in_doubt:
        return True
    points = problem.points[in_doubt]
    allowed = SLACK * (noise(answer, points.astype(complex))[1] + noise(problem.expression, points)[0])
    return bool((np.abs(differences.real)[in_doubt] > allowed).all())


def _explained(answer: Expression, problem: Integrand, slopes: Numbers, doubtful: NDArray[np.bool_]) -> float | None:
    """The noise, over f's largest value, that explains the points where F' is not f; None if it does not."""
    if not doubtful.any():
        return 0.0
    finite = np.isfinite(slopes) | ~doubtful
    if not finite[:N_NEAR].all() or doubtful.sum() > N_NEAR // 2:
        return None
    if not finite.all() and "root" in problem.expression.kinds:
        return None  # beyond a root's branch point the near points decide nothing
    doubtful = doubtful & finite
    at = problem.points[doubtful]
    if not len(at):
        return 0.0
    allowed = SLACK * (noise(answer, at.astype(slopes.dtype))[1] + noise(problem.expression, at)[0])
    if not (np.abs(slopes[doubtful] - problem.values[doubtful]) <= allowed).all():
        return None
    return float(allowed.max() / np.abs(problem.values[problem.known]).max())


def _has_no_switches(answer: Expression, evaluation: Evaluation, problem: Integrand) -> bool:
    """Whether F has no steps, no branch points of roots but at ends of f's domain, and no steep turns far away.

    (sqrt(x**2)/x is a step.) A root of a linear quantity has one branch point only; any other must be f's own too.
    """
    if "step" in answer.kinds or "step" in problem.expression.kinds:
        return False
    roots = [q for kind, q in problem.breakables if kind == "root"]
    for (kind, q), (_, slot, _) in zip(evaluation.breakables, evaluation.breaks, strict=True):
        slope = evaluation.slopes_of_slots[slot]
        linear = not isinstance(slope, np.ndarray)
        if linear and kind in ("root", "log") and _changes_far(q):
            return False
        if kind == "root":
            if _changes(q, problem.known).any() if linear else not any(_are_proportional(q, r) for r in roots):
                return False
        elif kind == "turn" and np.abs(slope).max() * gaps(problem.seed).max() > RESOLVED and _changes_far(q):
            return False
    return True


def _changes_far(q: Floats) -> bool:
    """Whether a quantity changes its sign beyond the near points."""
    far, ends = np.signbit(q[N_NEAR:]), np.signbit(q[[0, N_NEAR - 1]])
    return bool((far.reshape(2, -1) != ends[:, None]).any())


def _are_proportional(q: Floats, r: Floats) -> bool:
    if np.array_equal(q, r, equal_nan=True):
        return True
    with np.errstate(all="ignore"):
        ratio = q / r
    low, high = np.nanmin(ratio), np.nanmax(ratio)
    return bool(low > 0 and high - low <= 1e-12 * high)


def _has_no_steps(answer: Expression, evaluation: Evaluation, problem: Integrand) -> bool:
    """Whether F cannot jump, or seem to, between near points unless f breaks there; then F' = f at them decides."""
    if answer.is_complex or not evaluation.is_resolved(answer.curves, gaps(problem.seed)):
        return False
    # Where its argument changes sign a logarithm's imaginary part jumps, or its real part breaks (log(Abs(x))).
    logs = (q for kind, q in evaluation.breakables if kind == "log")
    return not any((_changes(q, problem.known) & problem.whole).any() for q in logs)


def _changes(q: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Between which neighbouring near points, known ones, a quantity changes its sign."""
    negative = np.signbit(q[:N_NEAR])
    changes: NDArray[np.bool_] = (negative[1:] != negative[:-1]) & known[: N_NEAR - 1] & known[1:N_NEAR]
    return changes
