"""Reference values of definite integrals: proper, improper, with endpoint singularities, steps and kinks.

An answer is right if it is the value to one part in 1e8, or in 1e6 if it is a decimal number, and real if the value is.
Where the value is 0 no part of it can be missed: there the answer is to be 0 to one part in 1e10 of the integral of
|f|. Answers are worked out in ball arithmetic, so that neither their rounding nor overflow decides.

A value is known to one part in 1e8, or to be 0 to that part of the integral of |f|, else the integral is
unverifiable; so is a divergent one, although its value may cancel by symmetry (1/x over [-1, 1]). Three methods are
tried, of bounded work each:

- adaptive Gauss-Kronrod quadrature on arrays: panels whose edges follow the integrand's own landmarks are halved until
  the integrals of f and of |f| have converged;
- towards an end where f oscillates for ever, or dies out slowly, `oscillating_tails`;
- tanh-sinh quadrature in ball arithmetic (`exact_integral`), also where the others have lost the digits that count, or
  overflow.
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

TOLERANCE: Final = 1e-6  # of a decimal answer, relative to the value
EXACT_TOLERANCE: Final = 1e-8  # of an answer without a decimal point
ZERO_TOLERANCE: Final = 1e-10  # of one to an integral that is 0, relative to the integral of |f|
DENSE_REACH: Final = 500.0  # steps are looked for this far from the origin where the interval is infinite
TAIL: Final = 1e6  # beyond it, and closer to 0 than its inverse, the line is cut into decades
SMALLEST: Final = 1e-280  # an integral of |f| below it has underflowed
N_LANDMARKS: Final = 40  # at which ball arithmetic cuts the interval
GOLDEN: Final = 0.381966  # where an interval is cut: in its middle f may have a pole, and its halves may vanish
NOISE: Final = 30.0  # how many times the rounding of an integrand its noise is, for verdicts
MAX_KEPT: Final = 4096  # references in memory


def wrong_value(answer: Expression, reference: Integral) -> str | None:
    """None if `answer` is the value of the integral, else what is wrong with it."""
    if answer.free:
        return "a definite integral's value does not depend on its variable"
    value = value_of(answer, reference)
    if value is None:
        return "not a finite number, or none that can be worked out"
    off = value - complex(reference.value, reference.imaginary)
    right = abs(off) <= allowed_of(answer, reference) and abs(off.imag) <= _allowed(reference, EXACT_TOLERANCE)
    return None if right else "not the value of the integral"


def allowed_of(answer: Expression, reference: Integral) -> float:
    """What `answer` may be off, in units of `reference`."""
    return _allowed(reference, TOLERANCE if "." in answer.source else EXACT_TOLERANCE)


def _allowed(reference: Integral, tolerance: float) -> float:
    is_zero = reference.size <= reference.error
    allowed = ZERO_TOLERANCE * reference.scale if is_zero else tolerance * reference.size * (1 + 1e-9)
    return allowed + 2 * reference.error


def value_of(answer: Expression, reference: Integral) -> complex | None:
    """The number that an answer without its variable is, in units of `reference`; None if it cannot be told."""
    tolerance = 0.01 * _allowed(reference, EXACT_TOLERANCE)
    found = exact.value(answer, reference.exponent, tolerance)
    return found[0] if found and found[1] <= tolerance else None


class References:
    """Reference values, each computed once, failures too; the last MAX_KEPT are remembered."""

    def __init__(self) -> None:
        self._known: dict[str, Integral | str] = {}
        self._lock = threading.Lock()

    def get(self, text: str, variable: str, lower: str | None, upper: str | None, seed: int = 0) -> Integral:
        """As `reference`, from memory if it was asked before."""
        if lower is None or upper is None:
            raise IntegrandError("one bound is missing")
        key = json.dumps([text, variable, lower, upper, seed])
        with self._lock:  # one at a time, for the others mostly want the same
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
            del self._known[next(iter(self._known))]
        self._known[key] = known


def reference(text: str, variable: str, lower: str, upper: str, seed: int = 0) -> Integral:
    """The integral of `text` from `lower` to `upper`; raises IntegrandError if it diverges or cannot be computed."""
    try:  # By x**(1/3) a real cube root is meant, unless it is a complex function.
        expression = parse(text, variable, real_cube_roots=True)
        expression = parse(text, variable) if expression.is_complex else expression
    except ExpressionError as error:
        raise IntegrandError(f"the integrand cannot be read: {error}") from None
    try:
        bounds = bound(lower), bound(upper)
    except ValueError as error:
        raise IntegrandError(f"a bound is not a real number: {error}") from None
    low, high = (end.number for end in bounds)
    if low == high:
        return Integral(0.0, 0.0, 0.0)
    if low > high:
        flipped = reference(text, variable, upper, lower, seed)
        return replace(flipped, value=-flipped.value, imaginary=-flipped.imaginary)
    found = _in_double(expression, low, high, seed)
    # Double precision cannot tell 0 from what it has lost, nor from what has underflowed.
    if found is not None and found.error <= KNOWN * found.size and found.scale > SMALLEST:
        return found
    better = exact_integral.integrate(expression, bounds, _cuts(expression, low, high, seed))
    if found is not None and better is None and found.scale > SMALLEST:  # else it has underflowed
        better = found
    elif found is not None and better is not None and better.exponent == 0:
        better = replace(better, scale=found.scale)  # its panels are too wide for the kinks of |f|
    if better is None or not better.is_known:
        raise IntegrandError("the integral diverges or could not be computed")
    return better


def _in_double(expression: Expression, low: float, high: float, seed: int) -> Integral | None:
    """The integral in double precision; None if it does not converge."""
    edges = [_panels(expression, low, high, seed + n) for n in (0, 1)]
    real = _of_line(_line(expression), edges, low, high)
    if real is None or not expression.is_complex:
        return real
    imaginary = _of_line(_line(expression, imaginary=True), edges, low, high)
    if imaginary is None:
        return None
    return Integral(real.value, real.scale + imaginary.scale, real.error + imaginary.error, imaginary.value)


def _line(expression: Expression, *, imaginary: bool = False) -> Line:
    """The real or imaginary part of the integrand."""
    return Line(
        lambda x: real_line_values(expression, x, imaginary=imaginary),
        lambda x: noise(expression, x)[0] / NOISE,
        (lambda x: _step_signs(expression, x)) if "step" in expression.kinds else None,
        expression.n_nodes + 1,
    )


def _of_line(f: Line, edges: list[Floats], low: float, high: float) -> Integral | None:
    """The integral of a part, by two sets of panels or two tails."""
    # One set may overlook a spike, or steps without end.
    first, second = (adaptive(f, some) for some in edges)
    if first is not None and second is not None and not _tails_matter(f, edges[0], first.scale, low, high):
        error = max(first.error, abs(first.value - second.value))
        if error <= 1e-7 * first.scale:
            return replace(first, error=error)
    inner = [end for end in (low, high) if math.isfinite(end)]
    start = low + GOLDEN * (high - low) if len(inner) == 2 else sum(inner) + math.copysign(GOLDEN, low + high)
    left = tail(f, start, low)
    right = left and tail(f, start, high)
    if left is None or right is None:
        return None
    return Integral(left.value + right.value, left.scale + right.scale, left.error + right.error)


def _panels(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Sorted panel edges from `low` to `high`, finite ones standing in for infinity (decades of |x|)."""
    grid = _grid(expression, low, high, seed)
    decades = np.geomspace(TAIL, 1e300, 99)
    if low <= 0.0 <= high:
        decades = np.concatenate([decades, 1 / decades])
    edges = np.concatenate([grid[::4], _landmarks(expression, low, high, seed), decades, -decades, [0.0]])
    edges = edges[(edges > low) & (edges < high)]
    edges = np.unique(np.concatenate([edges, [end for end in (low, high) if math.isfinite(end)]]))
    # Towards infinity f may overflow inside although it has died out (x**3/(exp(x) - 1)): see `_tails_matter`.
    alive = np.flatnonzero(np.isfinite(real_line_values(expression, edges)))
    first, last = alive[[0, -1]] if len(alive) else (0, len(edges))
    return edges[first if math.isinf(low) else 0 : last + 1 if math.isinf(high) else len(edges)]


def _grid(expression: Expression, low: float, high: float, seed: int) -> Floats:
    grid = survey_grid(expression, seed)
    if math.isfinite(high - low):
        grid = np.unique(np.concatenate([grid, np.linspace(low, high, 801)[1:-1]]))
    return grid[(grid > low) & (grid < high)]


def _landmarks(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Where f has poles, branch points, steps and kinks."""
    grid = _grid(expression, low, high, seed)
    if len(grid) < 3:
        return np.zeros(0)
    breakables = expression.evaluate(grid.astype(complex), derivative=False).breakables
    found = np.unique([at for at, _ in locate(expression, grid, breakables, kinds=("pole", "log", "root"), limit=200)])
    simple = np.round(found, 6)  # most are simple numbers, and quadrature wants a singularity exactly on an edge
    found = np.where(np.abs(simple - found) <= 1e-8 * (1 + np.abs(found)), simple, found)
    if math.isinf(high - low):
        low, high = max(low, min(high, 0.0) - DENSE_REACH), min(high, max(low, 0.0) + DENSE_REACH)
    # Of two seeds in a row one looks three times as closely: steps without end then give two values.
    steps = jumps(_line(expression), low, high, 1 + 2 * (seed % 2))
    if steps is None:
        raise IntegrandError("the integrand has too many steps")
    return np.concatenate([found, steps])


def _tails_matter(f: Line, edges: Floats, scale: float, low: float, high: float) -> bool:
    """Whether the last decade before an infinite bound still contributes: the part beyond 1e300 is then not small.

    Nor is it where that is about what the decade before contributed, however little.
    """
    if len(edges) < 3:
        return True
    for end, ends in ((low, edges[2::-1]), (high, edges[-3:])):
        if math.isinf(end):
            before, last = kronrod(f.values, *np.sort([ends[:-1], ends[1:]], axis=0))[1]
            if last > CONVERGED * scale or last > 0.9 * before > 0:
                return True
    return False


def _cuts(expression: Expression, low: float, high: float, seed: int) -> list[float]:
    """Where ball arithmetic cuts the interval."""
    edges = {-1.0, 0.0, 1.0, *sorted(_landmarks(expression, low, high, seed).tolist(), key=abs)[:N_LANDMARKS]}
    if math.isfinite(high - low):
        edges.add(low + GOLDEN * (high - low))
    return sorted(edges)


def _step_signs(expression: Expression, x: Floats) -> Bools:
    breakables = expression.evaluate(x.astype(complex), derivative=False).breakables
    return np.array([np.signbit(q) for kind, q in breakables if kind == "step"])
