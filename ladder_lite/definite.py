"""Reference values of definite integrals: proper, improper, with endpoint singularities, steps and kinks.

Adaptive Gauss-Kronrod quadrature on arrays, of bounded work: panels whose edges follow the integrand's own landmarks
are halved until both the integral of f and that of |f| have converged, so that a value that only cancels by symmetry
(1/x over [-1, 1]) is called divergent. What cannot be computed so goes to `ladder_lite.tails` (sin(x)/x to infinity),
and at last to mpmath in a process of its own.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ladder_lite.expressions import Expression, ExpressionError, parse
from ladder_lite.integrands import Floats, IntegrandError, prepare, survey_grid
from ladder_lite.landmarks import locate
from ladder_lite.quadrature import (
    CONVERGED,
    MAX_EVALUATIONS,
    Integral,
    adaptive,
    bisect,
    kronrod,
    real_line_values,
)
from ladder_lite.tails import oscillating

TOLERANCE: Final = 1e-6  # of a decimal answer, relative to the integral of |f|
EXACT_TOLERANCE: Final = 1e-8  # of an answer without a decimal point
DENSE_REACH: Final = 500.0  # steps are looked for this far from the origin where the interval is infinite
TAIL: Final = 1e6  # beyond it, and closer to 0 than its inverse, the line is cut into decades
N_LANDMARKS: Final = 12  # that mpmath is told of
WORKER_TIMEOUT_S: Final = 20.0
TOOK_TOO_LONG: Final = f"the integral could not be computed in {WORKER_TIMEOUT_S:.0f} s"
MAX_KEPT: Final = 4096  # references in memory, where no file keeps them

_INFINITIES: Final = {"oo", "inf", "infinity", "Infinity", "∞", "\\infty"}


def wrong_value(answer: Expression, reference: Integral) -> str | None:
    """None if `answer` is the value of the integral, else what is wrong with it."""
    if answer.free:
        return "a definite integral's value does not depend on its variable"
    value = answer.values(np.zeros(1, complex))[0]
    if not np.isfinite(value):
        return "not a finite number"
    tolerance = TOLERANCE if "." in answer.source else EXACT_TOLERANCE
    allowed = tolerance * reference.scale * (1 + 1e-9) + 2 * reference.error
    return None if abs(value - reference.value) <= allowed else "not the value of the integral"


class References:
    """Reference values, each computed once, failures too; with a `path` they are kept in that JSON lines file."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Integral | str] = {}
        self._lock = threading.Lock()
        if path is not None:
            from ladder_lite.run_dir import read_jsonl

            for row in read_jsonl(path):
                failed = "unverifiable" in row
                self._known[row["integral"]] = row["unverifiable"] if failed else Integral(**row["reference"])

    def get(self, text: str, variable: str, lower: str, upper: str, seed: int = 0) -> Integral:
        """As `reference`, from memory if it was asked before."""
        key = json.dumps([text, variable, lower, upper, seed])
        with self._lock:  # one at a time, for the others mostly want the same
            known = self._known.get(key)
            if known is None:
                known = self._compute(key, text, variable, lower, upper, seed)
        if isinstance(known, str):
            raise IntegrandError(known)
        return known

    def _compute(self, key: str, text: str, variable: str, lower: str, upper: str, seed: int) -> Integral | str:
        found: Integral | str
        try:
            found = reference(text, variable, lower, upper, seed)
            row: dict[str, Any] = {"integral": key, "reference": asdict(found)}
        except IntegrandError as error:
            found = str(error)
            row = {"integral": key, "unverifiable": found}
        if self._path is None and len(self._known) >= MAX_KEPT:
            del self._known[next(iter(self._known))]
        self._known[key] = found
        if self._path is not None and found != TOOK_TOO_LONG:  # (another machine may be faster)
            from ladder_lite.run_dir import append_jsonl

            append_jsonl(self._path, [row])
        return found


def reference(text: str, variable: str, lower: str, upper: str, seed: int = 0) -> Integral:
    """The integral of `text` from `lower` to `upper`; raises IntegrandError if it diverges or cannot be computed."""
    expression = prepare(text, variable, seed).expression
    low, high = _bound(lower, variable), _bound(upper, variable)
    if low == high:
        return Integral(0.0, 0.0, 0.0)
    if low > high:
        flipped = reference(text, variable, upper, lower, seed)
        return Integral(-flipped.value, flipped.scale, flipped.error)
    edges = _panels(expression, low, high, seed)
    found = _twice(expression, edges, _panels(expression, low, high, seed + 1))
    if found is not None and _tails_matter(expression, edges, found.scale, low, high):
        raise IntegrandError("the integral diverges, or converges too slowly")
    if found is None and math.isinf(high - low):
        found = oscillating(expression, low, high)
    if found is None:
        found = _in_worker(text, variable, low, high, _landmarks(expression, low, high, seed))
    if found is None:
        raise IntegrandError("the integral diverges or could not be computed")
    return found


def _twice(expression: Expression, edges: Floats, others: Floats) -> Integral | None:
    """The integral, if two sets of panels agree on it: one may overlook a spike, or steps without end."""
    first = adaptive(expression, edges)
    second = first and adaptive(expression, others)
    if first is None or second is None or abs(first.value - second.value) > 1e-7 * first.scale:
        return None
    return Integral(first.value, first.scale, max(first.error, abs(first.value - second.value)))


def _in_worker(text: str, variable: str, low: float, high: float, landmarks: Floats) -> Integral | None:
    """The integral by mpmath, in a process that is killed when its time is over."""
    first = sorted(landmarks, key=abs)[:N_LANDMARKS]
    inside = {float(at) for at in [*first, -1.0, 0.0, 1.0] if low < at < high}
    request = {"integrand": text, "variable": variable, "edges": sorted({low, high} | inside)}
    command = [sys.executable, "-m", "ladder_lite.mpmath_integral"]
    try:
        reply = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=WORKER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise IntegrandError(TOOK_TOO_LONG) from None
    if reply.returncode != 0:
        return None
    found = json.loads(reply.stdout)
    return None if found is None else Integral(**found)


def _bound(text: str, variable: str) -> float:
    bare = text.replace(" ", "")
    if bare.lstrip("+-") in _INFINITIES:
        return -math.inf if bare.startswith("-") else math.inf
    try:
        expression = parse(text, variable)
    except ExpressionError as error:
        raise IntegrandError(f"the bound {text!r} cannot be read: {error}") from None
    value = complex(expression.values(np.zeros(1, complex))[0])
    if expression.free or abs(value.imag) > 1e-15 * abs(value) or not math.isfinite(value.real):
        raise IntegrandError(f"the bound {text!r} is not a real number")
    return value.real


def _panels(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Sorted panel edges from `low` to `high`, finite ones standing in for infinity (decades of |x|)."""
    grid = _grid(expression, low, high, seed)
    decades = np.geomspace(TAIL, 1e300, 99)
    if low <= 0.0 <= high:
        decades = np.concatenate([decades, 1 / decades])
    edges = np.concatenate([grid[::4], _landmarks(expression, low, high, seed), decades, -decades, [0.0]])
    edges = edges[(edges > low) & (edges < high)]
    ends = [end for end in (low, high) if math.isfinite(end)]
    return _without_dead_tails(expression, np.unique(np.concatenate([edges, ends])), low, high)


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
    return np.concatenate([found, _jumps(expression, *_near(low, high), seed)])


def _without_dead_tails(expression: Expression, edges: Floats, low: float, high: float) -> Floats:
    """`edges` without those towards infinity where f overflows inside although it has died out (x**3/(exp(x) - 1))."""
    values = real_line_values(expression, edges)
    alive = np.flatnonzero(np.isfinite(values))
    if not len(alive):
        return edges
    first, last = alive[0], alive[-1]
    with np.errstate(all="ignore"):
        dead = np.abs(values * edges) < 1e-20
    if math.isinf(low) and dead[first]:
        edges, values, last = edges[first:], values[first:], last - first
    if math.isinf(high) and dead[alive[-1]]:
        edges = edges[: last + 1]
    return edges


def _tails_matter(expression: Expression, edges: Floats, scale: float, low: float, high: float) -> bool:
    """Whether the last decade before an infinite bound still contributes: the part beyond 1e300 is then not small."""
    ends = [edges[:2]] * math.isinf(low) + [edges[-2:]] * math.isinf(high)
    last = (kronrod(lambda x: real_line_values(expression, x), end[:1], end[1:])[1] for end in ends)
    return any(absolute > CONVERGED * scale for absolute in last)


def _near(low: float, high: float) -> tuple[float, float]:
    if math.isfinite(high - low):
        return low, high
    return max(low, min(high, 0.0) - DENSE_REACH), min(high, max(low, 0.0) + DENSE_REACH)


def _jumps(expression: Expression, low: float, high: float, seed: int) -> Floats:
    """Where the steps of f are: sign changes on a dense array, bisected all at once."""
    if "step" not in expression.kinds or low >= high:
        return np.zeros(0)
    # Of two seeds in a row (`_twice`) one looks three times as closely: steps without end then give two values.
    n = min(120_000, MAX_EVALUATIONS // (8 * expression.n_nodes)) // (1 + 2 * (seed % 2))
    x = np.linspace(low, high, n + 2)[1:-1]
    signs = _step_signs(expression, x)
    which, at = np.nonzero(signs[:, :-1] != signs[:, 1:])
    if not len(at):
        return np.zeros(0)
    if len(at) * expression.n_nodes > MAX_EVALUATIONS // 52:  # halvings
        raise IntegrandError("the integrand has too many steps")
    rows = np.arange(len(at))
    return bisect(lambda middle: _step_signs(expression, middle)[which, rows], x[at], x[at + 1])


def _step_signs(expression: Expression, x: Floats) -> NDArray[np.bool_]:
    breakables = expression.evaluate(x.astype(complex), derivative=False).breakables
    steps = [np.signbit(np.broadcast_to(q, x.shape)) for kind, q in breakables if kind == "step"]
    return np.array(steps)
