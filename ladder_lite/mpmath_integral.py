"""One integral with mpmath, where double precision overflows, loses its digits or cannot approach a singularity.

Run by `ladder_lite.definite` as `python -m ladder_lite.mpmath_integral`, in a process of its own that it can kill: JSON
`{"integrand", "variable", "real_cube_roots", "bounds", "landmarks"}` on stdin, the fields of an `Integral` or `null` on
stdout.
"""

from __future__ import annotations

import itertools
import json
import sys
from functools import cache
from typing import Any, Final

import mpmath

from ladder_lite.exact import decimal, functions, jittered
from ladder_lite.expressions import FOLD, Expression, parse

MEMORY_BYTES: Final = 1 << 30
# Digits of two runs, and what they may differ by. The second pair is for strong singularities: of x**(-9/10), 20 digits
# leave a hundredth of the integral out.
PRECISIONS: Final = ((20, 40, 1e-13), (100, 200, 1e-9))
HOPELESS: Final = 1e-3  # an error, as mpmath estimates it, that more digits will not mend
N_SCALINGS: Final = 4  # of an integral that is small
SMALL: Final = 1e-3
STEP_ERROR: Final = 1e-15  # relative: steps are where double precision saw them
IN_RANGE: Final = (1e-250, 1e250)  # what is given without an exponent


def integrate(expression: Expression, bounds: list[str], landmarks: list[float]) -> dict[str, Any] | None:
    """The integral; None unless two precisions agree (a divergent one's do not)."""
    precisions = PRECISIONS[: 1 if "inf" in bounds or "-inf" in bounds else 2]
    return next((found for p in precisions if (found := _at_precisions(expression, bounds, landmarks, *p))), None)


def _at_precisions(
    expression: Expression, bounds: list[str], landmarks: list[float], less: int, more: int, tolerance: float
) -> dict[str, Any] | None:
    coarse, estimate = _panels(expression, bounds, landmarks, less)
    if not estimate <= HOPELESS * mpmath.fsum(coarse, absolute=True):
        return None
    fine, _ = _panels(expression, bounds, landmarks, more)
    with mpmath.workdps(more):
        total, scale = mpmath.fsum(fine), mpmath.fsum(fine, absolute=True)
        error = mpmath.fsum((p - q for p, q in zip(coarse, fine, strict=True)), absolute=True)
        error += STEP_ERROR * scale if "step" in expression.kinds else 0
        if not error <= tolerance * scale or (not expression.is_complex and abs(mpmath.im(total)) > 1e-12 * scale):
            return None
        exponent = 0 if scale == 0 or IN_RANGE[0] < scale < IN_RANGE[1] else int(mpmath.floor(mpmath.log10(scale)))
        parts = {"value": mpmath.re(total), "imaginary": mpmath.im(total), "scale": scale, "error": error}
        return {"exponent": exponent} | {key: float(part / mpmath.mpf(10) ** exponent) for key, part in parts.items()}


def _panels(expression: Expression, bounds: list[str], landmarks: list[float], digits: int) -> tuple[list[Any], Any]:
    """The integrals between landmarks, with nodes of so many digits, and mpmath's estimate of the error."""
    operations, table = jittered({**FOLD, "**": _power}, mpmath.mp), jittered(functions(mpmath.mp), mpmath.mp)
    number = cache(decimal(mpmath.mp))
    unit = mpmath.mpf(1)  # of the integral: mpmath's quadrature stops at an absolute error

    def value(x: Any) -> Any:
        with mpmath.workdps(2 * digits):  # f may lose digits, and has to be right beside its singularities
            return expression.apply(x, operations, table, number) / unit

    def panel(low: Any, high: Any) -> tuple[Any, Any]:
        # Nodes that are rounded to an end weigh nothing, and f may have a pole there.
        found: tuple[Any, Any] = mpmath.quad(lambda x: 0 if x in (low, high) else value(x), (low, high), error=True)
        return found

    with mpmath.workdps(digits):
        low, high = (_bound(text, expression.variable) for text in bounds)
        edges = sorted({low, high, *(mpmath.mpf(at) for at in landmarks if low < at < high)})
        for _ in range(N_SCALINGS):
            panels, errors = zip(*(panel(*ends) for ends in itertools.pairwise(edges)), strict=True)
            total = mpmath.fsum(panels, absolute=True)
            if total == 0 or total > SMALL:
                break
            unit *= total
        return [unit * found for found in panels], unit * mpmath.fsum(errors)


def _bound(text: str, variable: str) -> Any:
    if text in ("inf", "-inf"):
        return mpmath.mpf(text)
    operations = {**FOLD, "**": _power}
    return mpmath.re(parse(text, variable).apply(None, operations, functions(mpmath.mp), decimal(mpmath.mp)))


def _power(base: Any, exponent: Any) -> Any:
    whole = mpmath.isint(exponent)
    return mpmath.power(base, int(mpmath.re(exponent)) if whole else exponent)


def main() -> None:
    """Answer the request on stdin."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    request = json.load(sys.stdin)
    expression = parse(request["integrand"], request["variable"], real_cube_roots=request["real_cube_roots"])
    try:
        found = integrate(expression, request["bounds"], request["landmarks"])
    except (ValueError, ArithmeticError, MemoryError, mpmath.libmp.NoConvergence):
        found = None
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
