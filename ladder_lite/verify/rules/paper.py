"""The paper's own check of an antiderivative (section on verification), for comparisons: 'strict' is the better judge.

Five random points in [-10, 10], an interval of length 0.1 around each: F(b) - F(a) must be within one part in a hundred
of a quadrature of the integrand on every interval. Where either is undefined the point is drawn again. A try that runs
out of draws is repeated with new points, three times; then the answer counts as wrong. Bounded, unlike the original:
draws are counted instead of seconds.
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
N_TRIES: Final = 4  # one and three retries
N_DRAWS: Final = 40  # per try
PANELS: Final = 4


def is_antiderivative(answer: Expression, integrand: Expression, seed: int) -> str | None:
    """None if `answer` passes the published protocol; raises IntegrandError if the integrand is nowhere defined."""
    rng = np.random.default_rng([seed, zlib.crc32(integrand.source.encode())])
    defined = False
    for _ in range(N_TRIES):
        centres = rng.uniform(-REACH, REACH, N_DRAWS)
        edges = centres[:, None] + LENGTH * np.linspace(-0.5, 0.5, PANELS + 1)
        integrals, _, uncertain, _ = kronrod(integrand.values, edges[:, :-1].ravel(), edges[:, 1:].ravel())
        wanted = integrals.reshape(N_DRAWS, PANELS).sum(axis=1)
        doubt = uncertain.reshape(N_DRAWS, PANELS).sum(axis=1)
        values = answer.values(np.stack([edges[:, 0], edges[:, -1]]).astype(complex))
        with np.errstate(all="ignore"):
            grown = values[1] - values[0]
            usable = np.isfinite(wanted) & (doubt <= 1e-3 * np.abs(wanted) + 1e-12)
            defined = defined or bool(usable.any())
            usable &= np.isfinite(grown)
            right = np.abs(grown - wanted) <= TOLERANCE * np.abs(wanted)
        if usable.sum() >= N_POINTS:
            return None if right[usable][:N_POINTS].all() else "its increments are not the integral's"
    if not defined:
        raise IntegrandError("the integrand is nowhere defined between -10 and 10")
    return "unverifiable by the paper's protocol: undefined at almost all points"
