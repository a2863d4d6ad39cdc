"""The closer look at an answer that one evaluation did not decide: component by component of f's domain.

On each, F' is compared with f at points all over it, and the increments of F with the integrals of f between these
points and the places where F could break. What double precision cannot tell is worked out in sixty digits, and refused
where that is not possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from ladder_lite import exact
from ladder_lite.expressions import Breakable, Expression
from ladder_lite.functions import Break
from ladder_lite.integrands import (
    LOUD,
    MIN_POINTS,
    N_NEAR,
    QUIET,
    SMALLEST,
    Bools,
    Component,
    Floats,
    Integrand,
    NoiseError,
    Numbers,
    evaluate_real,
    is_known,
    noise,
    real_values,
    refined,
    survey_grid,
)
from ladder_lite.landmarks import brackets, locate

TOLERANCE: Final = 1e-9  # of F' against f, relative
EXACT_TO: Final = 1e-12  # rounding stays below it at most points
MOST: Final = 0.25  # of the points may exceed it
EXACT_TOLERANCE: Final = 1e-25  # in sixty digits
NOISY: Final = 1e-6  # a point whose noise is larger, relative to f, says nothing
JUMP: Final = 1e-8  # of an increment of F against the integral of f, relative to that of |f|
VISIBLE: Final = 1e-6  # a jump of this size has to show in half of the increments, or in the exact ones
POINTS: Final = 32  # per component
LOST: Final = 0.1  # of a component's points, at most, may F have no value or no digits at, where f has both
NEAR: Final = 20.0  # far away it may overflow
REACH: Final = 10.0  # All places nearer than this where F may break are looked at.
MAX_PLACES: Final = 64  # An F with more of them is refused.
MAX_FAR: Final = 16  # Of those farther away so many are looked at, the nearest of each kind first.
RUNS: Final = 8  # intervals, at least, over which increments are worked out exactly
MAX_LEAPS: Final = 8  # of F at poles of its own, plus one for each turn of f

WRONG: Final = "its derivative is not the integrand"
_OTHER_BRANCH: Final = "its derivative has an imaginary part that the integrand does not have"
_ALL: Final[tuple[Break, ...]] = ("step", "root", "turn", "log", "pole")
_BREAKS: Final = "it may break at more places than can be looked at"
_JUMPS: Final = "it jumps where the integrand does not"
_CANNOT_TELL: Final = "floating point cannot tell: it overflows or loses its digits"


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
    """What is wrong with F' at points of a component."""
    far = problem.points[N_NEAR:]
    points = np.append(component.sample(POINTS, problem.seed + 2), far[(far > component.low) & (far < component.high)])
    evaluation = evaluate_real(problem.expression, points)
    known = is_known(evaluation)
    points, values = points[known], evaluation.values[known]
    slopes = _in_reals_if_possible(answer, points)[1]
    with np.errstate(all="ignore"):
        size, errors = np.abs(values), np.abs(slopes - values)
        fine = errors <= TOLERANCE * size
        doubtful = np.flatnonzero(~fine & (np.isfinite(errors) | (np.abs(points) <= NEAR)))
        at = points[doubtful]
        allowed = noise(answer, at.astype(complex))[1] + noise(problem.expression, at)[0]
        excused = ~(errors[doubtful] > allowed)
    agree = Agreement(answer, problem.expression)
    if not excused.all() and not agree(at[~excused]):
        imaginary = np.abs((slopes - values).real[doubtful]) <= allowed + TOLERANCE * size[doubtful]
        return _OTHER_BRANCH if imaginary[~excused].all() else WRONG
    if excused.any() and not (agreed := agree(at[excused])):
        if agreed is False:
            return WRONG
        if excused.sum() > LOST * len(points):
            return _CANNOT_TELL
    if fine.sum() < MIN_POINTS and not agree(points):
        return _CANNOT_TELL
    for low, high in pairwise([-np.inf, *component.switches, np.inf]):
        piece = (points > low) & (points < high)
        if piece.sum() >= 2 and not (piece & fine).any() and not agree(points[piece]):
            return _CANNOT_TELL
    if np.min(size, initial=np.inf) > LOUD or "step" in answer.kinds - problem.expression.kinds:
        return None if agree(points[fine], decimals=np.ptp(values.real) / size.max()) else WRONG
    suspicious = not fine.all() or (errors > EXACT_TO * size).mean() > MOST
    return WRONG if suspicious and agree(points[fine]) is False else None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether F' = f in sixty digits."""

    answer: Expression
    integrand: Expression

    def __call__(self, points: Floats, decimals: float = 1.0) -> bool | None:
        """At some of the points, the extreme ones last; None if it cannot be told.

        Exactly, unless there are decimals in f or F: then up to TOLERANCE of f, times `decimals`.
        """
        if not len(points):
            return None
        chosen = points[np.argsort(np.abs(np.log(np.abs(points))))][
            np.unique(np.linspace(0, len(points) - 1, 4).astype(int))
        ]
        rounded = "." in self.answer.source + self.integrand.source
        tolerance = max(EXACT_TOLERANCE, TOLERANCE * decimals if rounded else 0.0)
        return exact.slopes_agree(self.answer, self.integrand, chosen.tolist(), tolerance)


def _in_reals_if_possible(answer: Expression, points: Floats) -> tuple[Numbers, Numbers]:
    """Values and derivatives: complex ones where the real ones are not finite."""
    in_complex = answer.values_and_derivatives(points.astype(complex))
    if answer.is_complex:
        return in_complex
    values, slopes = answer.values_and_derivatives(points)
    real = np.isfinite(values) & np.isfinite(slopes)
    return np.where(real, values, in_complex[0]), np.where(real, slopes, in_complex[1])


# --- jumps ----------------------------------------------------------------------------------------------------------


def _continuity_fault(answer: Expression, problem: Integrand, component: Component) -> str | None:
    """Whether F jumps inside a component, other than as it may, or breaks more often there than can be looked at."""
    if answer.curves == ():  # a polynomial, or one of sines and cosines
        return None
    found = _places(answer, problem, component)
    if found is None:
        return _BREAKS
    places, is_pole, reach = found
    jumps, slack = _jumps(answer, problem, places, is_pole)
    if jumps is None:
        return _JUMPS
    if np.count_nonzero(np.abs(places[jumps]) <= REACH) > MAX_LEAPS + problem.turns:
        return _BREAKS
    growth = _growth(problem, component, places, jumps, slack, REACH if jumps.any() else reach)
    if 2 * np.count_nonzero(np.isfinite(growth.integrals)) < max(len(growth.integrals), MIN_POINTS):
        return _CANNOT_TELL
    values = _in_reals_if_possible(answer, growth.edges)[0]
    return growth.fault(answer, values, noise(answer, growth.edges.astype(complex))[0])


def _places(answer: Expression, problem: Integrand, component: Component) -> tuple[Floats, Bools, float] | None:
    """Where F may break in a component, whether at a pole, and as far as where these places are all there is.

    All near places and some far ones; None if there are too many.
    """
    grid = np.unique(np.concatenate([survey_grid(e, problem.seed) for e in (problem.expression, answer)]))
    grid = grid[(grid >= component.low) & (grid <= component.high)]
    breakables = answer.evaluate(grid.astype(complex), derivative=False).breakables
    near = np.abs(grid) <= REACH
    near |= ~near.any()
    of_near, of_far = (brackets(grid, breakables, _ALL, part)[0] for part in (near, ~near))
    if len(of_near) > MAX_PLACES or len(np.unique(of_far)) > MAX_FAR:
        return None
    found = locate(answer, grid, breakables, near, _ALL, MAX_PLACES)
    found = sorted([*found, *locate(answer, grid, breakables, ~near, _ALL, MAX_FAR)])
    places: list[float] = []
    kinds: list[set[str]] = []
    for at, kind in found:
        if not places or at - places[-1] > 1e-5 * max(1.0, abs(at)):
            places.append(at)
            kinds.append(set())
        elif kind != "pole":  # of a root, say, whose own place is the more precise one
            places[-1] = at
        kinds[-1].add(kind)
    is_pole = np.array([{"pole"} <= of_place <= {"pole", "log"} for of_place in kinds], bool)
    return np.array(places), is_pole, REACH if len(of_far) > MAX_FAR else np.inf  # far away the grid is coarse


def _jumps(answer: Expression, problem: Integrand, at: Floats, is_pole: Bools) -> tuple[Bools | None, Floats]:
    """At which places F jumps as the rule allows: at a root of f's own or in a leap; None if it jumps at another.

    And by how much it may grow there more than f does beside, for f may have a kink.
    """
    h = _beside(at)
    points = np.concatenate([at - h, at + h, at - 2 * h, at + 2 * h])
    values = _in_reals_if_possible(answer, points[: 2 * len(at)])[0].reshape(2, -1)
    before, after, *further = real_values(problem.expression, points).reshape(4, -1)
    with np.errstate(all="ignore"):
        grown = h * (before + after)
        changes = np.abs(after - before) + np.abs(before - further[0]) + np.abs(after - further[1])
        slack = 1.5 * h * changes + 1e-6 * np.abs(grown) + SMALLEST
        allowed = slack + noise(answer, points[: 2 * len(at)].astype(complex))[0].reshape(2, -1).sum(axis=0)
        jump = values[1] - values[0] - grown
        jumps: Bools = np.abs(jump) > allowed
        others = jumps & ~_are_roots(problem.expression, at)
        if not problem.expression.is_complex:  # an imaginary part may change where poles of two terms cancel
            others &= ~(is_pole & (np.abs(jump.real) <= allowed))
        if others.any():
            held, leaps = _with_leaps_held(answer, at, h)
            others &= ~(leaps & (np.abs(held[1] - held[0]) <= allowed + 3 * np.abs(grown)))
    return None if others.any() else jumps, slack


def _beside(at: Floats) -> Floats:
    return 1e-6 * np.maximum(1.0, np.abs(at))


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
    return answer.values_holding(points[: 2 * len(at)], held).reshape(2, -1), leaps


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """How much F has to grow from an edge to the next: by `integrals` (nan where unknown), give or take `slack`.

    `scales`: integrals of |f|, against which a jump has to show. `apart`: intervals at places where F may break, which
    are looked at one by one.
    """

    edges: Floats
    integrals: Numbers
    scales: Floats
    slack: Floats
    apart: Bools

    def unclear(self, values: Numbers, rounding: Floats) -> Bools | None:
        """Where rounding might hide a jump of an F with these `values` at the edges; None if it plainly jumps."""
        known = np.isfinite(self.integrals)
        with np.errstate(all="ignore"):
            errors = np.abs(values[1:] - values[:-1] - self.integrals)
            allowed = self.slack + rounding[1:] + rounding[:-1] + SMALLEST
            known &= np.isfinite(errors) | (np.abs(self.edges[1:]) <= NEAR)  # far away F may overflow
            clear = allowed <= np.maximum(VISIBLE * self.scales, 2 * self.slack)
            if (clear & (errors > allowed)).any():
                return None
            unclear: Bools = known & ~(clear & (errors <= allowed))
        return unclear

    def fault(self, answer: Expression, values: Numbers, rounding: Floats) -> str | None:
        """Whether F grows otherwise: exactly, if rounding might hide it, and always for an F with steps."""
        unclear = self.unclear(values, rounding)
        if unclear is None:
            return _JUMPS
        finite = np.isfinite(values[1:]) & np.isfinite(values[:-1])
        known = np.isfinite(self.integrals) & (finite | (np.abs(self.edges[1:]) <= NEAR))
        if "step" in answer.kinds:
            unclear = known
        if not unclear.any():
            return None
        # Everywhere, for by chance an interval shows little of its rounding; and a step may be taken back by the next.
        places, at = np.flatnonzero(unclear & self.apart), np.flatnonzero(known & ~self.apart)
        n_runs = max(RUNS, min(4 * RUNS, exact.n_increments(answer) // 2)) if "step" in answer.kinds else RUNS
        wide = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
        runs = [part for run in wide for part in np.array_split(run, -(-n_runs * len(run) // (len(at) + 1)) or 1)]
        runs = [run for run in [*runs, *places[:, None]] if len(run)]
        grown = exact.increments(answer, [(self.edges[run[0]], self.edges[run[-1] + 1]) for run in runs])
        least = QUIET * float(self.slack[known].max())
        if grown is None or any(
            left_out > max(least, self.slack[run].sum()) for (_, left_out), run in zip(grown, runs, strict=True)
        ):
            return _CANNOT_TELL
        off = (
            abs(step - self.integrals[run].sum()) > self.slack[run].sum() + left_out
            for (step, left_out), run in zip(grown, runs, strict=True)
        )
        return _JUMPS if any(off) else None


def _growth(
    problem: Integrand, component: Component, places: Floats, jumps: Bools, slack: Floats, reach: float
) -> Growth:
    """Between points of a component and the places where F may break, but not across those where it may jump."""
    h = _beside(places)
    edges = np.sort(np.concatenate([component.sample(POINTS, problem.seed + 2), places - h, places + h]))
    if component.low < reach and component.high > -reach:
        edges = edges[np.abs(edges) <= reach]
    middle, width = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    interval, place = np.nonzero(np.abs(middle[:, None] - places) <= h)
    apart = np.isin(np.arange(len(width)), interval)
    integrals, scales = refined(problem.expression, edges, ~apart)
    f = real_values(problem.expression, edges)
    integrals[interval] = np.where(jumps[place], np.nan, (0.5 * width * (f[1:] + f[:-1]))[interval])
    scales = np.where(apart, np.maximum(np.append(scales[1:], 0), np.append(0, scales[:-1])), scales)
    allowed = JUMP * scales
    allowed[interval] = np.maximum(allowed[interval], slack[place])
    return Growth(edges, integrals, scales, allowed, apart)


def _examine_zero(answer: Expression, problem: Integrand) -> str | None:
    """An integrand that is zero: every constant, and nothing else, is right."""
    points = problem.points[:N_NEAR].astype(complex)
    values, slopes = answer.values_and_derivatives(points)
    counts = np.isfinite(slopes) & np.isfinite(problem.values[:N_NEAR])
    value_noise, slope_noise = noise(answer, points)
    if counts.sum() < MIN_POINTS or not ((slope_noise <= 1e-10) & (value_noise <= JUMP))[counts].all():
        return _CANNOT_TELL
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
