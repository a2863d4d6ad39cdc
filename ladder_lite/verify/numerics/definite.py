"""Reference values of definite integrals: proper, improper, with endpoint singularities, steps and kinks.

An answer is right if it equals the value to one part in 1e8, or in 1e6 if it contains decimals. It must be real if the
value is. If the value is 0, the answer must be 0 to one part in 1e10 of the integral of |f|. Answers are evaluated in
ball arithmetic, so that neither rounding nor overflow decides.

A reference must be known to one part in 1e8, or known to be 0 to that part of the integral of |f|. Otherwise the
integral is unverifiable. So is a divergent integral, even if its value cancels by symmetry (1/x over [-1, 1]). Three
methods are tried, each with bounded work:

- Adaptive Gauss-Kronrod quadrature on arrays. The panels start from the landmarks of the integrand and are halved until
  the integrals of f and |f| have converged.
- `oscillating_tails`, towards an end where f oscillates without end or decays slowly.
- Tanh-sinh quadrature in ball arithmetic (`exact_integral`), if the others fail, overflow, or lose the digits that
  count.
"""

import json
import math
import threading
from dataclasses import replace
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Floats
from ladder_lite.verify.expressions.parse import Expression, ExpressionError, parse
from ladder_lite.verify.numerics import exact, exact_integral
from ladder_lite.verify.numerics.bounds import bound
from ladder_lite.verify.numerics.components import IntegrandError, survey_grid
from ladder_lite.verify.numerics.oscillating_tails import tail
from ladder_lite.verify.numerics.quadrature import CONVERGED, KNOWN, Integral, Line, adaptive, jumps, kronrod
from ladder_lite.verify.numerics.real_line import noise, real_line_values
from ladder_lite.verify.numerics.singularities import locate

TOLERANCE: Final = 1e-6  # of an answer with a decimal point, relative to the value
EXACT_TOLERANCE: Final = 1e-8  # of an answer without a decimal point
ZERO_TOLERANCE: Final = 1e-10  # of an answer to an integral that is 0, relative to the integral of |f|
DENSE_REACH: Final = 500.0  # steps are searched up to this distance from 0 if the interval is infinite
TAIL: Final = 1e6  # panels are decades beyond this, and closer to 0 than its reciprocal
SMALLEST: Final = 1e-280  # an integral of |f| below this has underflowed
N_LANDMARKS: Final = 40  # at which ball arithmetic cuts the interval, the nearest to 0
GOLDEN: Final = 0.381966  # where an interval is cut: in its middle f may have a pole or a symmetry
NOISE: Final = 30.0  # `real_line.noise` is about this many times the rounding of an integrand
MAX_KEPT: Final = 4096  # references in memory


def wrong_value(answer: Expression, reference: Integral) -> str | None:
    """Return None if `answer` is the value of the integral, else what is wrong with it."""
    if answer.free:
        return "it contains the variable, but the value of a definite integral is a number"
    value = value_of(answer, reference)
    if value is None:
        return "it is not a finite number, or cannot be computed accurately enough"
    error = value - complex(reference.value, reference.imaginary)
    # The imaginary part is never excused by decimals: 3.14159265 + 0.0000001*I is wrong for pi.
    right = abs(error) <= allowed_of(answer, reference) and abs(error.imag) <= _allowed(reference, EXACT_TOLERANCE)
    return None if right else "it is not the value of the integral"


def allowed_of(answer: Expression, reference: Integral) -> float:
    """Return the error up to which `answer` is accepted, in units of 10**`reference.exponent`."""
    return _allowed(reference, TOLERANCE if "." in answer.source else EXACT_TOLERANCE)


def _allowed(reference: Integral, tolerance: float) -> float:
    is_zero = reference.size <= reference.error  # the value cannot be told from 0
    # The reference's own error is added, so that a right answer cannot fail because of it.
    allowed = ZERO_TOLERANCE * reference.scale if is_zero else tolerance * reference.size * (1 + 1e-9)
    return allowed + 2 * reference.error


def value_of(answer: Expression, reference: Integral) -> complex | None:
    """Return the value of a constant answer, in units of 10**`reference.exponent`; None if it cannot be computed."""
    tolerance = 0.01 * _allowed(reference, EXACT_TOLERANCE)
    result = exact.value(answer, reference.exponent, tolerance)
    return result[0] if result and result[1] <= tolerance else None


class References:
    """A cache of the last MAX_KEPT reference values. Failures are cached too."""

    def __init__(self) -> None:
        self._known: dict[str, Integral | str] = {}  # the integral, or the message of an IntegrandError
        self._lock = threading.Lock()

    def get(self, text: str, variable: str, lower: str | None, upper: str | None, seed: int = 0) -> Integral:
        """Return `reference(...)`, from the cache if possible; raises IntegrandError."""
        if lower is None or upper is None:
            raise IntegrandError(f"the {'lower' if lower is None else 'upper'} bound is missing")
        key = json.dumps([text, variable, lower, upper, seed])
        with self._lock:  # one thread computes while the others wait, because they usually want the same integral
            known = self._known.get(key)
            if known is None:
                try:
                    known = reference(text, variable, lower, upper, seed)
                except IntegrandError as error:
                    known = str(error)
                self._keep(key, known)
        if isinstance(known, str):
            raise IntegrandError(known)
        return known

    def _keep(self, key: str, known: Integral | str) -> None:
        if len(self._known) >= MAX_KEPT:
            del self._known[next(iter(self._known))]  # the oldest: a dict keeps insertion order
        self._known[key] = known


def reference(text: str, variable: str, lower: str, upper: str, seed: int = 0) -> Integral:
    """Compute the integral of `text` from `lower` to `upper`.

    Raises IntegrandError if a text cannot be read, if the integral diverges, or if it cannot be computed.
    """
    try:
        # x**(1/3) means the real cube root, unless the function is complex.
        expression = parse(text, variable, real_cube_roots=True)
        expression = parse(text, variable) if expression.is_complex else expression
    except ExpressionError as error:
        raise IntegrandError(f"the integrand cannot be read: {error}") from None
    try:
        bounds = bound(lower), bound(upper)
    except ValueError as error:
        raise IntegrandError(f"invalid bound: {error}") from None
    low, high = (end.number for end in bounds)
    if low == high:
        return Integral(0.0, 0.0, 0.0)
    if low > high:
        flipped = reference(text, variable, upper, lower, seed)
        return replace(flipped, value=-flipped.value, imaginary=-flipped.imaginary)
    result = _in_double(expression, low, high, seed)
    # If double precision gives 0, the true value may have been lost in rounding or underflow; ball arithmetic decides.
    if result is not None and result.error <= KNOWN * result.size and result.scale > SMALLEST:
        return result
    better = exact_integral.integrate(expression, bounds, _cuts(expression, low, high, seed))
    if result is not None and better is None and result.scale > SMALLEST:
        better = result
    elif result is not None and better is not None and better.exponent == 0:
        better = replace(better, scale=result.scale)  # panels of `exact_integral` are too wide for the kinks of |f|
    if better is None or not better.is_known:
        raise IntegrandError("the integral diverges or could not be computed")
    return better


def _in_double(expression: Expression, low: float, high: float, seed: int) -> Integral | None:
    """Compute the integral in double precision; None if it does not converge."""
    # Two sets of panels, from two seeds, to compare their results.
    edges = [_panels(expression, low, high, seed + n) for n in (0, 1)]
    real = _of_line(_line(expression), edges, low, high)
    if real is None or not expression.is_complex:
        return real
    imaginary = _of_line(_line(expression, imaginary=True), edges, low, high)
    if imaginary is None:
        return None
    return Integral(real.value, real.scale + imaginary.scale, real.error + imaginary.error, imaginary.value)


def _line(expression: Expression, *, imaginary: bool = False) -> Line:
    """Return the real or imaginary part of the integrand."""
    return Line(
        lambda x: real_line_values(expression, x, imaginary=imaginary),
        lambda x: noise(expression, x)[0] / NOISE,
        (lambda x: _step_signs(expression, x)) if "step" in expression.kinds else None,
        expression.n_nodes + 1,
    )


def _of_line(f: Line, edges: list[Floats], low: float, high: float) -> Integral | None:
    """Integrate the real or imaginary part, by two sets of panels if both converge and agree, else by two tails."""
    # A single set may miss a spike, or infinitely many steps.
    first, second = (adaptive(f, some) for some in edges)
    if first is not None and second is not None and not _tails_matter(f, edges[0], first.scale, low, high):
        error = max(first.error, abs(first.value - second.value))
        if error <= 1e-7 * first.scale:
            return replace(first, error=error)
    # Start at a point between the bounds and integrate towards either end. The point is 0.38 of the way between finite
    # bounds, or 0.38 from the finite one, or 0.38 from 0.
    inner = [end for end in (low, high) if math.isfinite(end)]
    start = low + GOLDEN * (high - low) if len(inner) == 2 else sum(inner) + math.copysign(GOLDEN, low + high)
    left = tail(f, start, low)
    right = left and tail(f, start, high)
    if left is None or right is None:
        return None
    return Integral(left.value + right.value, left.scale + right.scale, left.error + right.error)


def _panels(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Return sorted edges of panels from `low` to `high`; towards infinity, decades of |x| up to 1e300."""
    grid = _grid(expression, low, high, seed)
    decades = np.geomspace(TAIL, 1e300, 99)
    # f may be singular at 0, as 1/sqrt(x) is. Decades down to 1e-300 approach it.
    if low <= 0.0 <= high:
        decades = np.concatenate([decades, 1 / decades])
    edges = np.concatenate([grid[::4], _landmarks(expression, low, high, seed), decades, -decades, [0.0]])
    edges = edges[(edges > low) & (edges < high)]
    edges = np.unique(np.concatenate([edges, [end for end in (low, high) if math.isfinite(end)]]))
    # Far away, parts of f may overflow although f has decayed: x**3/(exp(x) - 1). Infinite ends are cut off there, and
    # `_tails_matter` checks that nothing is lost.
    alive = np.flatnonzero(np.isfinite(real_line_values(expression, edges)))
    first, last = alive[[0, -1]] if len(alive) else (0, len(edges))
    return edges[first if math.isinf(low) else 0 : last + 1 if math.isinf(high) else len(edges)]


def _grid(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Return sorted points between the bounds, dense even if a finite interval is narrow or far from 0."""
    grid = survey_grid(expression, seed)
    if math.isfinite(high - low):
        grid = np.unique(np.concatenate([grid, np.linspace(low, high, 801)[1:-1]]))
    return grid[(grid > low) & (grid < high)]


def _landmarks(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Return places of poles, branch points, steps and kinks of f, at which panels must end."""
    grid = _grid(expression, low, high, seed)
    if len(grid) < 3:
        return np.zeros(0)
    breakables = expression.evaluate(grid.astype(complex), derivative=False).breakables
    found = np.unique([at for at, _ in locate(expression, grid, breakables, kinds=("pole", "log", "root"), limit=200)])
    # Quadrature needs a singularity exactly on an edge. Most are at simple numbers: 1.9999999998 -> 2.
    simple = np.round(found, 6)
    found = np.where(np.abs(simple - found) <= 1e-8 * (1 + np.abs(found)), simple, found)
    if math.isinf(high - low):
        low, high = max(low, min(high, 0.0) - DENSE_REACH), min(high, max(low, 0.0) + DENSE_REACH)
    # Of two successive seeds, one searches three times as densely. If f has infinitely many steps, the two results
    # differ, and the integral is not accepted.
    steps = jumps(_line(expression), low, high, 1 + 2 * (seed % 2))
    if steps is None:
        raise IntegrandError("the integrand has too many steps between the bounds")
    return np.concatenate([found, steps])


def _tails_matter(f: Line, edges: Floats, scale: float, low: float, high: float) -> bool:
    """Return True if the part of an infinite interval beyond the last panel may not be negligible."""
    # It may not be negligible if the last decade still contributes, or if it contributes about as much as the decade
    # before, however little: 1/x has the same integral over every decade.
    if len(edges) < 3:
        return True
    for end, ends in ((low, edges[2::-1]), (high, edges[-3:])):
        if math.isinf(end):
            # Integrals of |f| over the two outermost panels, the outer one last.
            before, last = kronrod(f.values, *np.sort([ends[:-1], ends[1:]], axis=0))[1]
            if last > CONVERGED * scale or last > 0.9 * before > 0:
                return True
    return False


def _cuts(expression: Expression, low: float, high: float, seed: int) -> list[float]:
    """Return the places at which ball arithmetic cuts the interval."""
    edges = {-1.0, 0.0, 1.0, *sorted(_landmarks(expression, low, high, seed).tolist(), key=abs)[:N_LANDMARKS]}
    if math.isfinite(high - low):
        edges.add(low + GOLDEN * (high - low))
    return sorted(edges)


def _step_signs(expression: Expression, x: Floats) -> Bools:
    """Return the signs of all quantities that change sign at steps, shape (quantities, points)."""
    breakables = expression.evaluate(x.astype(complex), derivative=False).breakables
    return np.array([np.signbit(q) for kind, q in breakables if kind == "step"])
