"""An expression on the real line: its values, where these carry their digits, and the rounding noise in them."""

from functools import lru_cache
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Evaluation, Expression, Floats, Numbers

SMALLEST: Final = 1e-90  # closer to 0, parts of a value (its cubes and squares) may have lost their digits
LARGEST: Final = 1e290
N_JITTERED: Final = 4
JITTER: Final = 1.2e-14  # a run is off by so much in each operation, many times its rounding
FAR: Final = 1e30  # where overflow is that of powers: x/(1+x**2) is not 0 at 1e160


def evaluate_real(expression: Expression, points: Floats) -> Evaluation:
    """An evaluation at real points without derivatives: nan where a value is not real unless the text contains I.

    In real arithmetic: where a subexpression leaves the reals the value is nan at once, while in complex arithmetic a
    large real term can hide an imaginary part, as in log(x)+sinh(x). An integrand that is real by way of complex
    numbers only, like sqrt(-1-x**2)**2, is thus real nowhere.
    """
    return expression.evaluate(points.astype(complex) if expression.is_complex else points, derivative=False)


def is_known(expression: Expression, evaluation: Evaluation) -> Bools:
    """Where an integrand's value is finite and carries its digits, because no part of it overflows or underflows.

    A 0 has underflowed, unless the integrand may be 0 on an interval, as one with steps may.
    """
    with np.errstate(all="ignore"):
        size = np.abs(evaluation.values)
        counts = (size > SMALLEST) | (size == 0) if expression.kinds & {"step", "root"} else size > SMALLEST
        return np.asarray(evaluation.is_finite & counts & (size < LARGEST))


def sizes_of(values: Numbers) -> Floats:
    """Sizes of an integrand's values, by which errors are measured: where it is 0, what is usual elsewhere."""
    size = np.abs(values)
    others = size[size > 0]
    return np.where(size == 0, np.median(others) if len(others) else 1.0, size)


@lru_cache(maxsize=8)
def jitter(n: int) -> Floats:
    """Factors close to 1, shape (61, n)."""
    return np.asarray(1 + JITTER * np.random.default_rng(12345).uniform(-1, 1, (61, n)))


def noise(expression: Expression, points: Numbers, runs: int = N_JITTERED) -> tuple[Floats, Floats]:
    """Rounding noise of values and derivatives at `points`: the spread of a plain run and some jittered ones."""
    if expression.is_complex:
        points = points.astype(complex)
    plain = expression.evaluate(points)
    jittered = expression.evaluate(np.tile(points, runs), jitter=jitter(runs * len(points)))
    with np.errstate(all="ignore"):
        values = np.abs(jittered.values.reshape(runs, -1) - plain.values).max(axis=0)
        slopes = np.abs(jittered.slopes.reshape(runs, -1) - plain.slopes).max(axis=0)
    return values, slopes


def real_line_values(expression: Expression, x: Floats, *, imaginary: bool = False) -> Floats:
    """Values on the real line, nan where f is not real; isolated holes (0/0) are filled from beside them.

    Of an expression with complex constants: the real or the imaginary part.
    """
    values = _values_at(expression, x, imaginary)
    for nudge in (1e-9, -1e-9):
        holes = np.flatnonzero(~np.isfinite(values))
        if len(holes):
            values[holes] = _values_at(expression, x[holes] * (1 + nudge) + nudge * 1e-3, imaginary)
    return values


def _values_at(expression: Expression, x: Floats, imaginary: bool) -> Floats:
    if expression.is_complex:
        found = expression.values(x.astype(complex))
        return np.array(found.imag if imaginary else found.real)
    # Real arithmetic first: it is faster, and infinities inside it stay what they are.
    evaluation = expression.evaluate(x, derivative=False)
    values = np.array(evaluation.values.real)
    overflown = (np.abs(x) > FAR) & ~evaluation.is_finite
    values[overflown] = np.nan
    holes = ~np.isfinite(values) & ~overflown
    if holes.any():
        filled = expression.values(x[holes].astype(complex))
        with np.errstate(all="ignore"):
            real = np.abs(filled.imag) <= 1e-9 * np.abs(filled) + 1e-300
            values[holes] = np.where(real, filled.real, np.nan)
    return values
