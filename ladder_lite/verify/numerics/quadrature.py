"""Quadrature over many panels at once: Gauss-Kronrod, adaptive too, and Clenshaw-Curtis between a panel's nodes."""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Final

import numpy as np
from numpy.polynomial import chebyshev

from ladder_lite.verify.expressions.expression import Bools, Expression, Floats, Numbers

# QUADPACK's qk15: the nodes up to 0, their Kronrod weights, and the Gauss weights of every second one.
_QK15: Final = np.array(
    [
        (-0.991455371120812639206854697526329, 0.022935322010529224963732008058970, 0.0),
        (
            -0.949107912342758524526189684047851,
            0.063092092629978553290700663189204,
            0.129484966168869693270611432679082,
        ),
        (-0.864864423359769072789712788640926, 0.104790010322250183839876322541518, 0.0),
        (
            -0.741531185599394439863864773280788,
            0.140653259715525918745189590510238,
            0.279705391489276667901467771423780,
        ),
        (-0.586087235467691130294144691693013, 0.169004726639267902826583426598550, 0.0),
        (
            -0.405845151377397166906606412076961,
            0.190350578064785409913256402421014,
            0.381830050505118944950369775488975,
        ),
        (-0.207784955007898467600689403773245, 0.204432940075298892414161999234649, 0.0),
        (0.0, 0.209482141084727828012999174891714, 0.417959183673469387755102040816327),
    ]
)
KNOWN: Final = 1e-8  # what a value may be off, relative to itself
CONVERGED: Final = 1e-9  # estimated error of an adaptive integral, relative to that of |f|
MAX_PANELS: Final = 1000  # of one round of quadrature; an integrand that needs more oscillates fast
KINKS: Final = 1e6  # how much less well the integral of |f| is to be known: |f| has a kink at each zero of f
MAX_EVALUATIONS: Final = 15_000_000  # operations times points of one
AT_A_POINT: Final = 1e-5  # what the narrowest panel there is may have of the integral of |f|
N_NOISY: Final = 2000  # panels in which the rounding of f is looked at
MAX_LEVELS: Final = 60  # of halving panels
N_HALVINGS: Final = 52  # of an interval around a step
DEGREE: Final = 20  # of the polynomial through a Clenshaw-Curtis panel's nodes
SMOOTH: Final = 1e-10  # what its last coefficients may be, relative to the largest value, to be trusted
_NODES, _KRONROD, _GAUSS = np.ascontiguousarray(np.concatenate([_QK15, _QK15[-2::-1] * (-1, 1, 1)]).T)


def kronrod(f: Callable[[Floats], Numbers], low: Floats, high: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """For each panel from `low` to `high`: integral of f, that of |f|, and the uncertainty of either."""
    half = 0.5 * (high - low)
    points = (0.5 * (low + high))[:, None] + half[:, None] * _NODES
    with np.errstate(all="ignore"):
        values = f(points.ravel()).reshape(points.shape)
        size = np.abs(values)
        integral = half * (values @ _KRONROD)
        absolute = half * (size @ _KRONROD)
        uncertain = np.abs(integral - half * (values @ _GAUSS))
        absolute_uncertain = np.abs(absolute - half * (size @ _GAUSS))
    return integral, absolute, uncertain, absolute_uncertain


# Clenshaw-Curtis: nodes in [-1, 1], and of values there: the integrals from node to node, the last coefficients of
# their series.
NODES: Final = -np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)
_SERIES: Final = np.linalg.inv(chebyshev.chebvander(NODES, DEGREE))
_BETWEEN: Final = np.ascontiguousarray(np.diff(chebyshev.chebval(NODES, chebyshev.chebint(_SERIES)), axis=1))
_LAST: Final = np.ascontiguousarray(_SERIES[-3:].T)


def between_nodes(values: Numbers, half: Floats) -> tuple[Floats, Floats]:
    """Integrals of a function between neighbouring NODES of panels, and the largest size it has in each panel.

    `values` at the nodes, shape (panels, DEGREE + 1), `half` the panels' half widths. The integrals are nan, in shape
    (panels, DEGREE), for a panel on which the function is no polynomial of that degree to one part in 1e10.
    """
    with np.errstate(all="ignore"):
        size = np.abs(values).max(axis=1)
        smooth = np.abs(values @ _LAST).max(axis=1) <= SMOOTH * size
        return np.where(smooth[:, None], half[:, None] * (values @ _BETWEEN), np.nan), size


def increments(
    expression: Expression,
    edges: Floats,
    wanted: Bools,
    integrals: Numbers | None = None,
    scales: Floats | None = None,
    within: float = CONVERGED,
) -> tuple[Numbers, Floats, Floats]:
    """Integrals of f between neighbouring edges, those of its size, and their errors: of the `wanted` ones without one.

    By quadrature, `within` a part of the integral of its size where possible; nan where it does not converge.
    """
    low, width = edges[:-1], np.diff(edges)
    if integrals is None or scales is None:
        integrals = np.full(len(low), np.nan, complex if expression.is_complex else float)
        scales = np.zeros(len(low))
    errors = np.zeros(len(low))
    rest = np.isnan(integrals) & wanted
    for panels in (1, 4, 16, 64):
        at = np.flatnonzero(rest)
        if not len(at) or len(at) * panels > MAX_PANELS:
            break
        ends = low[at, None] + width[at, None] * (np.arange(panels + 1) / panels)
        found = kronrod(expression.values, ends[:, :-1].ravel(), ends[:, 1:].ravel())
        integral, absolute, uncertain, _ = (part.reshape(len(at), panels).sum(axis=1) for part in found)
        converged = uncertain <= CONVERGED * absolute
        integrals[at[converged]] = integral[converged]
        scales[at[converged]] = absolute[converged]
        errors[at[converged]] = uncertain[converged]
        rest[at[uncertain <= within * absolute]] = False
    return integrals, scales, errors


# --- integrals of an expression: panels halved where they must be ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Integral:
    """A definite integral: `value` and `imaginary` part, `scale`, which is the integral of |f|, and `error`.

    All in units of 10**`exponent`, which is 1 unless floating point cannot hold the integral.
    """

    value: float
    scale: float
    error: float
    imaginary: float = 0.0
    exponent: int = 0

    @property
    def size(self) -> float:
        """Of the value."""
        return abs(complex(self.value, self.imaginary))

    @property
    def is_known(self) -> bool:
        """Whether the value, or that it is 0, is known well enough."""
        is_zero = self.size <= self.error <= KNOWN * self.scale
        return all(map(math.isfinite, astuple(self))) and (is_zero or self.error <= KNOWN * self.size)


@dataclass(frozen=True, slots=True)
class Line:
    """A function on the real line: values, their rounding noise, what changes sign at its steps, cost in operations."""

    values: Callable[[Floats], Floats]
    noise: Callable[[Floats], Floats]
    steps: Callable[[Floats], Bools] | None
    cost: int

    def rounding(self, low: Floats, high: Floats, scale: float) -> float:
        """What the rounding of f, independent in each panel, and of their sum may come to."""
        every = 1 + len(low) // N_NOISY
        low, high = low[::every], high[::every]
        with np.errstate(all="ignore"):
            noise = self.noise(0.5 * low + 0.5 * high) * (high - low)
            return 3 * math.sqrt(every * np.nansum(noise**2)) + 1e-15 * scale


def adaptive(f: Line, edges: Floats) -> Integral | None:
    """Integral over the panels between `edges`; None unless f and |f| both converge."""
    panels = refined(f, edges)
    if panels is None:
        return None
    value, scale, error = (float(part.sum()) for part in panels[2:])
    if not error <= CONVERGED * scale < math.inf:
        return None
    return Integral(value, scale, error + f.rounding(panels[0], panels[1], scale))


def refined(f: Line, edges: Floats) -> Floats | None:
    """Panels that f needs, halves of those between `edges`: rows low, high, integral of f, that of |f|, uncertainty."""
    low, high = edges[:-1], edges[1:]
    budget = MAX_EVALUATIONS // (len(_NODES) * (f.cost + 3))
    total = 0.0
    found = []
    for level in range(MAX_LEVELS):
        budget -= len(low)
        if budget < 0:
            return None
        integral, absolute, uncertain, size_uncertain = kronrod(f.values, low, high)
        if not np.isfinite(absolute).all():
            return None
        stuck = ((high - low) <= 1e-15 * np.maximum(np.abs(low), np.abs(high))) | (level == MAX_LEVELS - 1)
        allowed = 1e-2 * CONVERGED * (total + absolute.sum()) / (16 + len(low) / 4)
        done = (uncertain <= np.maximum(allowed, 1e-14 * absolute)) & (size_uncertain <= KINKS * allowed) | stuck
        found.append(np.array([low, high, integral, absolute, uncertain])[:, done])
        total += absolute[done].sum()
        vague = stuck & (uncertain > 0.1 * absolute) & (absolute > 1e-13 * total)
        if vague.any() or (absolute[stuck] > AT_A_POINT * total).any():  # a pole, or a singularity that is nearly one
            return None
        low, high = low[~done], high[~done]
        if not len(low):
            break
        middle = _middle(low, high)
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    return np.concatenate(found, axis=1)


def _middle(low: Floats, high: Floats) -> Floats:
    # Across decades the middle is the geometric one: tails and singularities at 0 are power laws.
    a, b = np.abs(low), np.abs(high)
    wide = (np.sign(low) * np.sign(high) > 0) & (np.maximum(a, b) / 4 > np.minimum(a, b))
    with np.errstate(all="ignore"):
        return np.where(wide, np.sign(low) * np.sqrt(a) * np.sqrt(b), 0.5 * low + 0.5 * high)


def jumps(f: Line, low: float, high: float, looks: int = 1) -> Floats | None:
    """Where f has steps between `low` and `high`, as a dense array shows, which `looks` divides; None if too many."""
    if f.steps is None:
        return np.zeros(0)
    x = np.linspace(low, high, min(120_000, MAX_EVALUATIONS // (10 * f.cost)) // looks + 2)[1:-1]
    found = f.steps(x)
    which, at = np.nonzero(found[:, :-1] != found[:, 1:])
    if not len(at):
        return np.zeros(0)
    if len(at) * f.cost > MAX_EVALUATIONS // N_HALVINGS:
        return None
    rows = np.arange(len(at))
    before, left, right = found[which, at], x[at], x[at + 1]
    for _ in range(N_HALVINGS):
        middle = 0.5 * (left + right)
        same = f.steps(middle)[which, rows] == before
        left, right = np.where(same, middle, left), np.where(same, right, middle)
    return 0.5 * (left + right)
