"""Quadrature over many panels at once: Gauss-Kronrod, also adaptive, and Clenshaw-Curtis between nodes of a panel."""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Final

import numpy as np
from numpy.polynomial import chebyshev

from ladder_lite.verify.expressions.expression import Bools, Expression, Floats, Numbers

# QUADPACK's qk15 rule: the nodes up to 0, their Kronrod weights, and the Gauss weights of every second node. The other
# nodes follow by symmetry.
_QK15: Final = np.array(
    [
        (-0.9914553711208126, 0.022935322010529224, 0.0),
        (-0.9491079123427585, 0.06309209262997856, 0.1294849661688697),
        (-0.8648644233597691, 0.10479001032225019, 0.0),
        (-0.7415311855993945, 0.14065325971552592, 0.27970539148927664),
        (-0.5860872354676911, 0.1690047266392679, 0.0),
        (-0.4058451513773972, 0.19035057806478542, 0.3818300505051189),
        (-0.20778495500789848, 0.20443294007529889, 0.0),
        (0.0, 0.20948214108472782, 0.4179591836734694),
    ]
)
KNOWN: Final = 1e-8  # largest error of a value, relative to the value
CONVERGED: Final = 1e-9  # largest estimated error of an adaptive integral, relative to the integral of |f|
MAX_PANELS: Final = 1000  # in one round of quadrature; an integrand that needs more oscillates fast
KINKS: Final = 1e6  # the integral of |f| may be this much less accurate: |f| has a kink at each zero of f
MAX_EVALUATIONS: Final = 15_000_000  # operations times points, for one integral
AT_A_POINT: Final = 1e-5  # largest part of the integral of |f| that a panel too narrow to halve may have
N_NOISY: Final = 2000  # panels at which the rounding of f is measured
MAX_LEVELS: Final = 60  # times that a panel is halved
N_HALVINGS: Final = 52  # of an interval around a step: one for each bit of a double's mantissa
DEGREE: Final = 20  # of the polynomial through the nodes of a Clenshaw-Curtis panel
SMOOTH: Final = 1e-10  # the last coefficients must be smaller than this, relative to the largest value
# Three arrays of shape (15,): the left half, and the right half mirrored with nodes of the opposite sign.
_NODES, _KRONROD, _GAUSS = np.ascontiguousarray(np.concatenate([_QK15, _QK15[-2::-1] * (-1, 1, 1)]).T)


def kronrod(f: Callable[[Floats], Numbers], low: Floats, high: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return for each panel from `low` to `high` the integral of f, that of |f|, and the uncertainties of both.

    All arrays have shape (panels,). `f` is called once, with all points.
    """
    half = 0.5 * (high - low)
    points = (0.5 * (low + high))[:, None] + half[:, None] * _NODES
    with np.errstate(all="ignore"):
        values = f(points.ravel()).reshape(points.shape)
        size = np.abs(values)
        integral = half * (values @ _KRONROD)
        absolute = half * (size @ _KRONROD)
        # The difference to the Gauss rule on 7 of the nodes: a pessimistic estimate of the error of the Kronrod rule.
        uncertain = np.abs(integral - half * (values @ _GAUSS))
        absolute_uncertain = np.abs(absolute - half * (size @ _GAUSS))
    return integral, absolute, uncertain, absolute_uncertain


# Clenshaw-Curtis on [-1, 1]. These matrices map values at NODES to the coefficients of a Chebyshev series, to the
# integrals of the series from node to node, and to its last three coefficients.
NODES: Final = -np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)
_SERIES: Final = np.linalg.inv(chebyshev.chebvander(NODES, DEGREE))
_BETWEEN: Final = np.ascontiguousarray(np.diff(chebyshev.chebval(NODES, chebyshev.chebint(_SERIES)), axis=1))
_LAST: Final = np.ascontiguousarray(_SERIES[-3:].T)


def between_nodes(values: Numbers, half: Floats) -> tuple[Floats, Floats]:
    """Return integrals of a function between neighbouring NODES of panels, and its largest size in each panel.

    `values` are those at the nodes, shape (panels, DEGREE + 1), and `half` the half widths of the panels. The integrals
    have shape (panels, DEGREE). They are nan in a panel on which no polynomial of that degree fits to 1e-10.
    """
    with np.errstate(all="ignore"):
        size = np.abs(values).max(axis=1)
        smooth = np.abs(values @ _LAST).max(axis=1) <= SMOOTH * size
        return np.where(smooth[:, None], half[:, None] * (values @ _BETWEEN), np.nan), size


def increments(
    expression: Expression,
    edges: Floats,
    needed: Bools,
    integrals: Numbers | None = None,
    scales: Floats | None = None,
    within: float = CONVERGED,
) -> tuple[Numbers, Floats, Floats]:
    """Return integrals of f between neighbouring edges, those of |f|, and their errors, each of shape (edges - 1,).

    Computes the integrals that are `needed` and nan in `integrals`. They stay nan if the quadrature does not converge
    to CONVERGED, relative to the integral of |f|. Panels are subdivided further until the error is `within` that part.
    """
    low, width = edges[:-1], np.diff(edges)
    if integrals is None or scales is None:
        integrals = np.full(len(low), np.nan, complex if expression.is_complex else float)
        scales = np.zeros(len(low))
    errors = np.zeros(len(low))
    rest = np.isnan(integrals) & needed
    # Each round splits the intervals that are not accurate enough yet into four times as many panels.
    for panels in (1, 4, 16, 64):
        at = np.flatnonzero(rest)
        if not len(at) or len(at) * panels > MAX_PANELS:
            break
        ends = low[at, None] + width[at, None] * (np.arange(panels + 1) / panels)
        found = kronrod(expression.values, ends[:, :-1].ravel(), ends[:, 1:].ravel())
        integral, absolute, uncertain, _ = (part.reshape(len(at), panels).sum(axis=1) for part in found)
        # A result is kept as soon as it has converged; `within` may ask for another round to improve it.
        converged = uncertain <= CONVERGED * absolute
        integrals[at[converged]] = integral[converged]
        scales[at[converged]] = absolute[converged]
        errors[at[converged]] = uncertain[converged]
        rest[at[uncertain <= within * absolute]] = False
    return integrals, scales, errors


# --- integrals of an expression: panels halved where they must be ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Integral:
    """A definite integral in units of 10**`exponent`."""

    value: float  # the real part
    scale: float  # the integral of |f|
    error: float
    imaginary: float = 0.0
    exponent: int = 0  # not 0 only if a double cannot hold the integral: exp(1000) is 1.97e434

    @property
    def size(self) -> float:
        """Absolute value of the integral."""
        return abs(complex(self.value, self.imaginary))

    @property
    def is_known(self) -> bool:
        """True if the value is known to one part in 1e8, or known to be 0 to that part of the integral of |f|."""
        is_zero = self.size <= self.error <= KNOWN * self.scale
        return all(map(math.isfinite, astuple(self))) and (is_zero or self.error <= KNOWN * self.size)


@dataclass(frozen=True, slots=True)
class Line:
    """A function on the real line, with what quadrature needs to know about it."""

    values: Callable[[Floats], Floats]
    noise: Callable[[Floats], Floats]  # rounding noise of the values
    steps: Callable[[Floats], Bools] | None  # signs of quantities that change sign at its steps, shape (quantities, n)
    cost: int  # operations per point

    def rounding(self, low: Floats, high: Floats, scale: float) -> float:
        """Return a bound on the error that rounding causes in the sum over the panels; `scale`: integral of |f|."""
        # The noise is measured at the middle of every n-th panel. It is independent in each panel, so squares add up.
        # The factor 3 stands for three standard deviations.
        every = 1 + len(low) // N_NOISY
        low, high = low[::every], high[::every]
        with np.errstate(all="ignore"):
            noise = self.noise(0.5 * low + 0.5 * high) * (high - low)
            return 3 * math.sqrt(every * np.nansum(noise**2)) + 1e-15 * scale


def adaptive(f: Line, edges: Floats) -> Integral | None:
    """Return the integral over the panels between `edges`, or None if that of f or |f| does not converge."""
    panels = refined(f, edges)
    if panels is None:
        return None
    value, scale, error = (float(part.sum()) for part in panels[2:])
    if not error <= CONVERGED * scale < math.inf:
        return None
    return Integral(value, scale, error + f.rounding(panels[0], panels[1], scale))


def refined(f: Line, edges: Floats) -> Floats | None:
    """Return panels on which f has converged, by halving those between `edges`.

    The result has shape (5, panels): low, high, integral of f, that of |f|, and uncertainty. It is None if f is not
    finite, has a pole, or needs too many panels.
    """
    low, high = edges[:-1], edges[1:]
    budget = MAX_EVALUATIONS // (len(_NODES) * (f.cost + 3))  # panels; a panel takes 15 evaluations
    total = 0.0
    found = []
    for level in range(MAX_LEVELS):
        budget -= len(low)
        if budget < 0:
            return None
        integral, absolute, uncertain, size_uncertain = kronrod(f.values, low, high)
        if not np.isfinite(absolute).all():
            return None
        # Panels that cannot be halved any more: their ends are neighbouring doubles, or the last level is reached.
        stuck = ((high - low) <= 1e-15 * np.maximum(np.abs(low), np.abs(high))) | (level == MAX_LEVELS - 1)
        # The error allowed in a panel is its share of a hundredth of CONVERGED, relative to the current estimate of the
        # integral of |f|.
        allowed = 1e-2 * CONVERGED * (total + absolute.sum()) / (16 + len(low) / 4)
        done = (uncertain <= np.maximum(allowed, 1e-14 * absolute)) & (size_uncertain <= KINKS * allowed) | stuck
        found.append(np.array([low, high, integral, absolute, uncertain])[:, done])
        total += absolute[done].sum()
        # A panel that cannot be halved must be certain or negligible, and must not hold much of the integral.
        vague = stuck & (uncertain > 0.1 * absolute) & (absolute > 1e-13 * total)
        if vague.any() or (absolute[stuck] > AT_A_POINT * total).any():
            return None  # a pole, or a singularity that is nearly one
        low, high = low[~done], high[~done]
        if not len(low):
            break
        middle = _middle(low, high)
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    return np.concatenate(found, axis=1)


def _middle(low: Floats, high: Floats) -> Floats:
    # Across decades take the geometric mean, because tails and singularities at 0 are power laws: [1, 10000] -> 100.
    a, b = np.abs(low), np.abs(high)
    wide = (np.sign(low) * np.sign(high) > 0) & (np.maximum(a, b) / 4 > np.minimum(a, b))
    with np.errstate(all="ignore"):
        return np.where(wide, np.sign(low) * np.sqrt(a) * np.sqrt(b), 0.5 * low + 0.5 * high)


def jumps(f: Line, low: float, high: float, divisor: int = 1) -> Floats | None:
    """Return the places of steps of f between `low` and `high`, or None if there are too many.

    Steps are searched on a dense grid, made `divisor` times coarser.
    """
    if f.steps is None:
        return np.zeros(0)
    x = np.linspace(low, high, min(120_000, MAX_EVALUATIONS // (10 * f.cost)) // divisor + 2)[1:-1]
    # Shape (quantities, n). A quantity that changes sign between two points has a step there.
    found = f.steps(x)
    quantity, at = np.nonzero(found[:, :-1] != found[:, 1:])
    if not len(at):
        return np.zeros(0)
    if len(at) * f.cost > MAX_EVALUATIONS // N_HALVINGS:
        return None
    # Bisection of all steps together: keep the half in which the sign of the step's quantity changes.
    rows = np.arange(len(at))
    before, left, right = found[quantity, at], x[at], x[at + 1]
    for _ in range(N_HALVINGS):
        middle = 0.5 * (left + right)
        is_before = f.steps(middle)[quantity, rows] == before
        left, right = np.where(is_before, middle, left), np.where(is_before, right, middle)
    return 0.5 * (left + right)
