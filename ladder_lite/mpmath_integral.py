"""One integral with mpmath, for integrands whose singularities double precision cannot approach.

Run by `ladder_lite.definite` as `python -m ladder_lite.mpmath_integral`, in a process of its own that it can kill: JSON
`{"integrand", "variable", "edges"}` on stdin, `{"value", "scale", "error"}` or `null` on stdout.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any, Final

import mpmath

from ladder_lite.expressions import Expression, parse
from ladder_lite.functions import ELEMENTARY, SPECIAL

MEMORY_BYTES: Final = 1 << 30
_RENAMED: Final = {
    "Abs": "fabs",
    "ceiling": "ceil",
    "Si": "si",
    "Ci": "ci",
    "Shi": "shi",
    "Chi": "chi",
    "Ei": "ei",
}


def integrate(expression: Expression, edges: list[float]) -> dict[str, float] | None:
    """Integral over the panels between `edges`; None unless two precisions agree (a divergent one's do not).

    The second pair is for strong singularities: of x**(-9/10), 20 digits leave a hundredth of the integral out.
    """
    return _at_precisions(expression, edges, (20, 40)) or _at_precisions(expression, edges, (100, 200))


def _at_precisions(expression: Expression, edges: list[float], precisions: tuple[int, int]) -> dict[str, float] | None:
    results = []
    for digits in precisions:
        with mpmath.workdps(digits):
            functions = _functions()

            def value(x: Any, functions: dict[str, Callable[[Any], Any]] = functions) -> Any:
                return expression.apply(x, _power, functions)

            panels = [mpmath.quad(value, pair) for pair in itertools.pairwise(edges)]
            results.append(panels)
    coarse, fine = results
    scale = mpmath.fsum(abs(p) for p in fine)
    error = mpmath.fsum(abs(p - q) for p, q in zip(coarse, fine, strict=True))
    total = mpmath.fsum(fine)
    if not mpmath.isfinite(total) or abs(mpmath.im(total)) > 1e-12 * scale or error > 1e-8 * scale:
        return None
    return {"value": float(mpmath.re(total)), "scale": float(scale), "error": float(error)}


def _power(base: Any, exponent: Any) -> Any:
    whole = isinstance(exponent, float) and exponent == int(exponent)
    return mpmath.power(base, int(exponent) if whole else exponent)


def _functions() -> dict[str, Callable[[Any], Any]]:
    table: dict[str, Callable[[Any], Any]] = {
        "log_abs": lambda u: mpmath.log(abs(u)),
        "log2": lambda u: mpmath.log(u, 2),
        "cbrt": lambda u: -mpmath.cbrt(-u) if mpmath.im(u) == 0 and mpmath.re(u) < 0 else mpmath.cbrt(u),
        "Heaviside": lambda u: (mpmath.sign(u) + 1) / 2,
        "dilog": lambda u: mpmath.polylog(2, u),
    }
    names = (ELEMENTARY.keys() | SPECIAL) - table.keys()
    return table | {name: getattr(mpmath, _RENAMED.get(name, name)) for name in names}


def main() -> None:
    """Answer the request on stdin."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    request = json.load(sys.stdin)
    expression = parse(request["integrand"], request["variable"])
    try:
        found = integrate(expression, request["edges"])
    except (ValueError, ArithmeticError, MemoryError, mpmath.libmp.NoConvergence):
        found = None
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
