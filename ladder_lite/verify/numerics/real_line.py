"""Evaluate expressions on the real line: values, whether these carry their digits, and their rounding noise."""

from functools import lru_cache
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Bools, Evaluation, Expression, Floats, Numbers

SMALLEST: Final = 1e-90  # closer to 0, the squares and cubes inside a value may have lost their digits
LARGEST: Final = 1e290
N_JITTERED: Final = 4  # jittered runs per noise measurement
JITTER: Final = 1.2e-14  # relative error of each operation in a jittered run; about 50 times the machine epsilon
FAR: Final = 1e30  # from here on powers overflow: at 1e160, x/(1+x**2) comes out as 0, which it is not


def evaluate_real(expression: Expression, points: Floats) -> Evaluation:
    """Evaluate at real points, without derivatives. Values that are not real are nan, unless the text contains I.

    An integrand that is real only by way of complex numbers, such as sqrt(-1-x**2)**2, thus counts as real nowhere.
    """
    # In real arithmetic, the value is nan as soon as a subexpression leaves the reals. In complex arithmetic, a large
    # real term can hide an imaginary part, as in log(x)+sinh(x).
    return expression.evaluate(points.astype(complex) if expression.is_complex else points, derivative=False)


def is_known(expression: Expression, evaluation: Evaluation) -> Bools:
    """Return a mask of the points at which an integrand is finite and no part of it overflows or underflows."""
    with np.errstate(all="ignore"):
        # A value of 0 counts as an underflow, unless the integrand can be 0 on an interval, as Heaviside(x) is.
        size = np.abs(evaluation.values)
        counts = (size > SMALLEST) | (size == 0) if expression.kinds & {"step", "root"} else size > SMALLEST
        return np.asarray(evaluation.is_finite & counts & (size < LARGEST))


def sizes_of(values: Numbers) -> Floats:
    """Return the sizes of an integrand's values, by which errors are measured: the median size where it is 0."""
    size = np.abs(values)
    others = size[size > 0]
    return np.where(size == 0, np.median(others) if len(others) else 1.0, size)


@lru_cache(maxsize=8)
def jitter(n: int) -> Floats:
    """Return random factors close to 1, shape (61, n): a row for each operation, reused in turn."""
    # A fixed seed: the same arguments must always give the same grade.
    return np.asarray(1 + JITTER * np.random.default_rng(12345).uniform(-1, 1, (61, n)))


def noise(expression: Expression, points: Numbers, runs: int = N_JITTERED) -> tuple[Floats, Floats]:
    """Measure the rounding noise of values and derivatives at `points`, by how far jittered runs deviate."""
    if expression.is_complex:
        points = points.astype(complex)
    unperturbed = expression.evaluate(points)
    # All runs in one evaluation: the points are repeated, each copy with factors of its own.
    jittered = expression.evaluate(np.tile(points, runs), jitter=jitter(runs * len(points)))
    with np.errstate(all="ignore"):
        values = np.abs(jittered.values.reshape(runs, -1) - unperturbed.values).max(axis=0)
        slopes = np.abs(jittered.slopes.reshape(runs, -1) - unperturbed.slopes).max(axis=0)
    return values, slopes


def real_line_values(expression: Expression, x: Floats, *, imaginary: bool = False) -> Floats:
    """Return values on the real line, nan where f is not real. Isolated holes (0/0) are filled from beside them.

    If the expression contains complex constants, return the real or the imaginary part.
    """
    values = _values_at(expression, x, imaginary)
    for nudge in (1e-9, -1e-9):  # just to the right, then to the left: sin(x)/x at 0 is filled with 1
        holes = np.flatnonzero(~np.isfinite(values))
        if len(holes):
            values[holes] = _values_at(expression, x[holes] * (1 + nudge) + nudge * 1e-3, imaginary)
    return values


def _values_at(expression: Expression, x: Floats, imaginary: bool) -> Floats:
    if expression.is_complex:
        found = expression.values(x.astype(complex))
        return np.array(found.imag if imaginary else found.real)
    # Real arithmetic first: it is faster, and in complex arithmetic an infinity can turn into nan.
    evaluation = expression.evaluate(x, derivative=False)
    values = np.array(evaluation.values.real)
    overflown = (np.abs(x) > FAR) & ~evaluation.is_finite
    values[overflown] = np.nan
    holes = ~np.isfinite(values) & ~overflown
    if holes.any():
        filled = expression.values(x[holes].astype(complex))
        with np.errstate(all="ignore"):
            # Real by way of complex numbers; the tolerance is for rounding in the imaginary part.
            real = np.abs(filled.imag) <= 1e-9 * np.abs(filled) + 1e-300
            values[holes] = np.where(real, filled.real, np.nan)
    return values
