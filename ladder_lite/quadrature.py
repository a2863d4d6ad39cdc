"""Quadrature over many panels at once: Gauss-Kronrod, adaptive too, and Clenshaw-Curtis between a panel's nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from ladder_lite.expressions import Expression

Floats = NDArray[np.float64]

# QUADPACK's qk15: the positive nodes, their Kronrod weights, and the Gauss weights of every second one.
_HALF_NODES: Final = (
    0.991455371120812639206854697526329,
    0.949107912342758524526189684047851,
    0.864864423359769072789712788640926,
    0.741531185599394439863864773280788,
    0.586087235467691130294144691693013,
    0.405845151377397166906606412076961,
    0.207784955007898467600689403773245,
)
_HALF_KRONROD: Final = (
    0.022935322010529224963732008058970,
    0.063092092629978553290700663189204,
    0.104790010322250183839876322541518,
    0.140653259715525918745189590510238,
    0.169004726639267902826583426598550,
    0.190350578064785409913256402421014,
    0.204432940075298892414161999234649,
)
_HALF_GAUSS: Final = (
    0.0,
    0.129484966168869693270611432679082,
    0.0,
    0.279705391489276667901467771423780,
    0.0,
    0.381830050505118944950369775488975,
    0.0,
)
N_NODES: Final = 15  # of a Gauss-Kronrod panel
CONVERGED: Final = 1e-9  # estimated error of an adaptive integral, relative to that of |f|
MAX_EVALUATIONS: Final = 12_000_000  # operations times points of one
FAR: Final = 1e30  # where overflow is that of powers: x/(1+x**2) is not 0 at 1e160
MAX_LEVELS: Final = 60  # of halving
DEGREE: Final = 20  # of the polynomial through a Clenshaw-Curtis panel's nodes
SMOOTH: Final = 1e-10  # what its last coefficients may be, relative to the largest value, to be trusted
_NODES: Final = np.array([*(-node for node in _HALF_NODES), 0.0, *reversed(_HALF_NODES)])
_KRONROD: Final = np.array([*_HALF_KRONROD, 0.209482141084727828012999174891714, *reversed(_HALF_KRONROD)])
_GAUSS: Final = np.array([*_HALF_GAUSS, 0.417959183673469387755102040816327, *reversed(_HALF_GAUSS)])


def kronrod(f: Callable[[Floats], NDArray[Any]], low: Floats, high: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """For each panel from `low` to `high`: integral of f, that of |f|, and the uncertainty of either."""
    half = 0.5 * (high - low)
    points = (0.5 * (low + high))[:, None] + half[:, None] * _NODES
    with np.errstate(all="ignore"):
        values = np.real(f(points.ravel())).reshape(points.shape)
        size = np.abs(values)
        integral = half * (values @ _KRONROD)
        absolute = half * (size @ _KRONROD)
        uncertain = np.abs(integral - half * (values @ _GAUSS))
        absolute_uncertain = np.abs(absolute - half * (size @ _GAUSS))
    return integral, absolute, uncertain, absolute_uncertain


def _clenshaw_curtis() -> tuple[Floats, Floats, Floats]:
    """Nodes in [-1, 1], and of values there: the integrals from node to node, the last coefficients of their series."""
    nodes = -np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)
    series = np.linalg.inv(chebyshev.chebvander(nodes, DEGREE))
    integrals = np.diff(chebyshev.chebval(nodes, chebyshev.chebint(series)), axis=1)
    return nodes, np.ascontiguousarray(integrals), np.ascontiguousarray(series[-3:].T)


NODES, _BETWEEN, _LAST = _clenshaw_curtis()


def between_nodes(values: NDArray[Any], half: Floats) -> tuple[Floats, Floats]:
    """Integrals of a function between neighbouring NODES of panels, and the largest size it has in each panel.

    `values` at the nodes, shape (panels, DEGREE + 1), `half` the panels' half widths. The integrals are nan, in shape
    (panels, DEGREE), for a panel on which the function is no polynomial of that degree to one part in 1e10.
    """
    with np.errstate(all="ignore"):
        size = np.abs(values).max(axis=1)
        smooth = np.abs(values @ _LAST).max(axis=1) <= SMOOTH * size
        return np.where(smooth[:, None], half[:, None] * (values @ _BETWEEN), np.nan), size


# --- integrals of an expression: panels halved where they must be ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Integral:
    """Value of a definite integral, the integral of |f| it is measured by, and an estimate of its error."""

    value: float
    scale: float
    error: float


def adaptive(expression: Expression, edges: Floats) -> Integral | None:
    """Integral over the panels between `edges`; None unless f and |f| both converge."""
    low, high = edges[:-1], edges[1:]
    budget = MAX_EVALUATIONS // (N_NODES * (expression.n_nodes + 3))
    value = scale = error = 0.0
    for level in range(MAX_LEVELS):
        budget -= len(low)
        if budget < 0:
            return None
        integral, absolute, *both = kronrod(lambda x: real_line_values(expression, x), low, high)
        uncertain = np.maximum(*both)
        if not np.isfinite(uncertain).all():
            return None
        total = scale + absolute.sum()
        stuck = (high - low) <= 1e-15 * np.maximum(np.abs(low), np.abs(high))
        done = (uncertain <= 1e-2 * CONVERGED * total / (16 + len(low) / 4)) | (uncertain <= 1e-14 * absolute) | stuck
        if level == MAX_LEVELS - 1:
            done[:] = True
        value += integral[done].sum()
        scale += absolute[done].sum()
        error += uncertain[done].sum()
        low, high = low[~done], high[~done]
        if not len(low):
            break
        middle = _middle(low, high)
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    return Integral(float(value), float(scale), float(error)) if error <= CONVERGED * scale else None


def _middle(low: Floats, high: Floats) -> Floats:
    # Across decades the middle is the geometric one: tails and singularities at 0 are power laws.
    wide = (np.sign(low) * np.sign(high) > 0) & (
        np.maximum(np.abs(low), np.abs(high)) / 4 > np.minimum(np.abs(low), np.abs(high))
    )
    with np.errstate(all="ignore"):
        return np.where(wide, np.sign(low) * np.sqrt(np.abs(low)) * np.sqrt(np.abs(high)), 0.5 * low + 0.5 * high)


def real_line_values(expression: Expression, x: Floats) -> Floats:
    """Values on the real line, nan where f is not real; isolated holes (0/0) are filled from beside them."""
    values = _values_at(expression, x)
    for nudge in (1e-9, -1e-9):
        holes = np.flatnonzero(~np.isfinite(values))
        if len(holes):
            values[holes] = _values_at(expression, x[holes] * (1 + nudge) + nudge * 1e-3)
    return values


def _values_at(expression: Expression, x: Floats) -> Floats:
    # Real arithmetic first: it is faster, and infinities inside it stay what they are.
    evaluation = expression.evaluate(x, derivative=False)
    values = np.full(x.shape, np.nan) if expression.is_complex else np.array(evaluation.values.real)
    overflown = (np.abs(x) > FAR) & ~evaluation.is_finite
    values[overflown] = np.nan
    holes = ~np.isfinite(values) & ~overflown
    if holes.any():
        filled = expression.values(x[holes].astype(complex))
        with np.errstate(all="ignore"):
            real = np.abs(filled.imag) <= 1e-9 * np.abs(filled) + 1e-300
            values[holes] = np.where(real, filled.real, np.nan)
    return values


def bisect(sign: Callable[[Floats], NDArray[np.bool_]], low: Floats, high: Floats) -> Floats:
    """For each bracket the place where `sign` changes, all at once."""
    before = sign(low)
    for _ in range(52):
        middle = 0.5 * (low + high)
        same = sign(middle) == before
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return 0.5 * (low + high)
