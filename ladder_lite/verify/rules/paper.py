"""The check of antiderivatives that the paper describes (arXiv 2503.00735), for comparisons; 'strict' judges better.

Around each of five random points in [-10, 10] lies an interval of length 0.1. On each of them F(b) - F(a) must agree
with a quadrature of the integrand to one part in a hundred. A point where either is undefined is replaced by another
one. If too few points are defined, all are drawn again, up to three times; then the answer counts as wrong. The
original bounds a check by seconds; this version bounds it by a number of draws.
"""

import zlib
from typing import Final

import numpy as np

from ladder_lite.verify.expressions.expression import Expression
from ladder_lite.verify.numerics.integrand import IntegrandError
from ladder_lite.verify.numerics.quadrature import kronrod

N_POINTS: Final = 5
REACH: Final = 10.0
LENGTH: Final = 0.1
TOLERANCE: Final = 1e-2
N_TRIES: Final = 4  # the first one and three retries
N_DRAWS: Final = 40  # per try, evaluated together; the first N_POINTS that are defined count
PANELS: Final = 4  # of the quadrature, per interval


def is_antiderivative(answer: Expression, integrand: Expression, seed: int) -> str | None:
    """Return None if `answer` passes the published protocol, else what is wrong with it.

    Raises IntegrandError if the integrand is defined nowhere between -10 and 10.
    """
    # Python's hash() of a string differs from process to process; crc32 gives the same points in every run.
    rng = np.random.default_rng([seed, zlib.crc32(integrand.source.encode())])
    is_defined = False
    for _ in range(N_TRIES):
        centres = rng.uniform(-REACH, REACH, N_DRAWS)
        # Shape (N_DRAWS, PANELS + 1): the edges of the panels of each interval.
        edges = centres[:, None] + LENGTH * np.linspace(-0.5, 0.5, PANELS + 1)
        integrals, _, uncertain, _ = kronrod(integrand.values, edges[:, :-1].ravel(), edges[:, 1:].ravel())
        expected = integrals.reshape(N_DRAWS, PANELS).sum(axis=1)
        uncertainty = uncertain.reshape(N_DRAWS, PANELS).sum(axis=1)
        # F at both ends of each interval, shape (2, N_DRAWS). At complex points log(-x) has a value for x > 0 too.
        values = answer.values(np.stack([edges[:, 0], edges[:, -1]]).astype(complex))
        with np.errstate(all="ignore"):
            increments = values[1] - values[0]
            # A quadrature that is uncertain to more than a thousandth cannot judge to one hundredth.
            usable = np.isfinite(expected) & (uncertainty <= 1e-3 * np.abs(expected) + 1e-12)
            is_defined = is_defined or bool(usable.any())
            usable &= np.isfinite(increments)
            right = np.abs(increments - expected) <= TOLERANCE * np.abs(expected)
        if usable.sum() >= N_POINTS:
            return None if right[usable][:N_POINTS].all() else "its increments are not the integrals of the integrand"
    if not is_defined:
        raise IntegrandError("the integrand is defined nowhere between -10 and 10")
    return "unverifiable by the paper's protocol: undefined at almost all points"
