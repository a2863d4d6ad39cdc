"""Special functions that antiderivatives need, from SciPy. `functions.lookup` imports this module on demand."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from scipy import special

from ladder_lite.verify.expressions.operations import Function, integers

_SQRT_PI: Final = np.sqrt(np.pi)
_LEAST: Final = -1000.0  # trigamma is not computed for smaller arguments


def _li(u: Any) -> Any:
    # li(u) = Ei(log(u)). Adding 0.0 turns -0.0 into 0.0: negative reals count as above the branch cut.
    return special.expi(np.log(u + 0.0))


_LI_OF_2: Final = _li(2.0)


def _at_positive(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a function nan at negative reals, for which SciPy returns only the real part of a complex value."""
    return lambda u: function(u) if np.iscomplexobj(u) else np.where(u > 0, function(u), np.nan)


def _trigamma(u: Any, _value: Any) -> Any:
    # SciPy raises the argument by 1 until it is positive: the derivative of digamma(-10**7*x) would take very long.
    return np.where(u.real > _LEAST, special.polygamma(1, np.maximum(u.real, _LEAST)), np.nan) + 0j


def _factorial(u: Any) -> Any:
    # A constant is real. For real numbers SciPy's values are exact, for complex ones they are not.
    return special.gamma((u if np.ndim(u) else u.real) + 1)


# Name: Function(value, slope, break, quantity that vanishes at the break).
TABLE: Final[dict[str, Function]] = {
    "erf": Function(special.erf, lambda u, v: 2 / _SQRT_PI * np.exp(-u * u)),
    "erfc": Function(special.erfc, lambda u, v: -2 / _SQRT_PI * np.exp(-u * u)),
    "erfi": Function(special.erfi, lambda u, v: 2 / _SQRT_PI * np.exp(u * u)),
    "Si": Function(lambda u: special.sici(u)[0], lambda u, v: np.sin(u) / u),
    "Ci": Function(_at_positive(lambda u: special.sici(u)[1]), lambda u, v: np.cos(u) / u, "log"),
    "Shi": Function(lambda u: special.shichi(u)[0], lambda u, v: np.sinh(u) / u),
    "Chi": Function(_at_positive(lambda u: special.shichi(u)[1]), lambda u, v: np.cosh(u) / u, "log"),
    "Ei": Function(special.expi, lambda u, v: np.exp(u) / u, "log"),
    "E1": Function(_at_positive(special.exp1), lambda u, v: -np.exp(-u) / u, "log"),
    "Li": Function(lambda u: _li(u) - _LI_OF_2, lambda u, v: 1 / np.log(u + 0.0), "log", lambda u: u * (u - 1)),
    "li": Function(_li, lambda u, v: 1 / np.log(u + 0.0), "log", lambda u: u * (u - 1)),
    "fresnels": Function(lambda u: special.fresnel(u)[0], lambda u, v: np.sin(np.pi / 2 * u * u)),
    "fresnelc": Function(lambda u: special.fresnel(u)[1], lambda u, v: np.cos(np.pi / 2 * u * u)),
    # Li2(u), SymPy's polylog(2, u). SciPy's spence(z) is Li2(1 - z).
    "dilog": Function(lambda u: special.spence(1 - u), lambda u, v: -np.log(1 - u + 0.0) / u, "log", lambda u: 1 - u),
    "gamma": Function(special.gamma, lambda u, v: v * special.digamma(u), "pole", integers),
    "loggamma": Function(special.loggamma, lambda u, v: special.digamma(u), "pole", integers),
    "digamma": Function(special.digamma, _trigamma, "pole", integers),
    "factorial": Function(_factorial, lambda u, v: v * special.digamma(u + 1), "pole", integers),
}
