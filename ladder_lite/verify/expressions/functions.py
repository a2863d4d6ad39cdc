"""The allow-list of functions that an expression may call, with their values, derivatives, breaks and spellings.

`lookup("sin")` returns the function of that name, or None if the name is not on the list. SciPy is imported with the
first special function, so that `import ladder_lite.verify` is fast.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ladder_lite.verify.expressions.operations import Array, Function, integers, words


@lru_cache(maxsize=256)
def lookup(name: str) -> Function | None:
    """Return the function called `name` in any spelling, or None."""
    name = SPELLINGS.get(name, name)
    if name in ELEMENTARY:
        return ELEMENTARY[name]
    if name in SPECIAL:
        from ladder_lite.verify.expressions import special_functions

        return special_functions.TABLE[name]
    return None


# Names that `parse` handles itself: functions of two or more arguments, SymPy's wrappers of a number (S(2) is 2), and
# conditions.
OF_TWO = frozenset(words("log Log polylog root Pow Rational expint Ei Max Min"))
NUMBERS = frozenset(["S", "Integer", "Float", "Rational"])
CONDITIONAL = frozenset(words("Piecewise And Or Not Eq Ne Lt Le Gt Ge"))


# Adding 0.0 turns an imaginary part of -0.0 into 0.0, so that negative reals always lie above the branch cut, as in
# SymPy and mpmath: log(-1) = +i*pi.
def _log(u: Array) -> Array:
    return np.log(u + 0.0)


def _sqrt(u: Array) -> Array:
    return np.sqrt(u + 0.0)


def _cbrt(u: Array) -> Array:
    """Return the real cube root of a real number, and the principal cube root of a complex one."""
    if not np.iscomplexobj(u):
        return np.cbrt(u)
    return np.where(u.imag == 0, np.cbrt(u.real), (u + 0.0) ** (1 / 3))


def _abs(u: Array) -> Array:
    return np.abs(u).astype(u.dtype)


def _sign(u: Array) -> Array:
    return np.sign(u.real).astype(u.dtype)


def _one_minus_square(u: Array) -> Array:
    return 1 - u * u


def _off_unit(u: Array) -> Array:
    return u * (1 - u * u)


def _sech(u: Array) -> Array:
    """Return 1/cosh(u), 0 where cosh overflows."""
    # For reals, 1/inf is 0. A complex cosh overflows to nan instead, so large arguments are replaced; the limit is 710.
    if not np.iscomplexobj(u):
        return 1 / np.cosh(u)
    far = np.abs(u.real) > 700
    return np.where(far, 0, 1 / np.cosh(np.where(far, 0, u)))


def _reciprocal_of(value: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda u: value(1 / u)


def _flat(u: Array, _v: Array) -> Array:
    return u * 0  # the derivative of a step, in the shape and type of u; nan where u is infinite


# Name: Function(value, slope, break, quantity that vanishes at the break). In `slope`, v is the value.
ELEMENTARY: dict[str, Function] = {
    "exp": Function(np.exp, lambda u, v: v),
    "log": Function(_log, lambda u, v: 1 / u, "log"),
    "log2": Function(lambda u: _log(u) / np.log(2), lambda u, v: 1 / (u * np.log(2)), "log"),
    "log10": Function(lambda u: _log(u) / np.log(10), lambda u, v: 1 / (u * np.log(10)), "log"),
    # log(Abs(u)) is a single function, because it has no kink: it is smooth on both sides of its pole at u = 0.
    "log_abs": Function(lambda u: np.log(_abs(u)), lambda u, v: 1 / u, "log", real_slope=True),
    "sqrt": Function(_sqrt, lambda u, v: 0.5 / v, "root"),
    "cbrt": Function(_cbrt, lambda u, v: v / (3 * u), "root"),
    "Abs": Function(_abs, lambda u, v: np.conj(u) / v, "step", real_slope=True),
    "sign": Function(_sign, _flat, "step"),
    "positive": Function(lambda u: (u.real > 0).astype(u.dtype), _flat, "step"),
    "Heaviside": Function(lambda u: (_sign(u) + 1) / 2, _flat, "step"),
    "floor": Function(lambda u: np.floor(u.real).astype(u.dtype), _flat, "step", integers),
    "ceiling": Function(lambda u: np.ceil(u.real).astype(u.dtype), _flat, "step", integers),
    "sin": Function(np.sin, lambda u, v: np.cos(u)),
    "cos": Function(np.cos, lambda u, v: -np.sin(u)),
    "tan": Function(np.tan, lambda u, v: 1 + v * v, "pole", np.cos),
    "cot": Function(lambda u: 1 / np.tan(u), lambda u, v: -1 - v * v, "pole", np.sin),
    "sec": Function(lambda u: 1 / np.cos(u), lambda u, v: v * np.tan(u), "pole", np.cos),
    "csc": Function(lambda u: 1 / np.sin(u), lambda u, v: -v / np.tan(u), "pole", np.sin),
    "sinh": Function(np.sinh, lambda u, v: np.cosh(u)),
    "cosh": Function(np.cosh, lambda u, v: np.sinh(u)),
    "tanh": Function(np.tanh, lambda u, v: _sech(u) ** 2),
    "coth": Function(lambda u: 1 / np.tanh(u), lambda u, v: -1 / np.sinh(u) ** 2, "pole", np.sinh),
    "sech": Function(_sech, lambda u, v: -v * np.tanh(u)),
    "csch": Function(lambda u: 1 / np.sinh(u), lambda u, v: -v / np.tanh(u), "pole", np.sinh),
    "asin": Function(np.arcsin, lambda u, v: 1 / _sqrt(1 - u * u), "root", _one_minus_square),
    "acos": Function(np.arccos, lambda u, v: -1 / _sqrt(1 - u * u), "root", _one_minus_square),
    "atan": Function(np.arctan, lambda u, v: 1 / (1 + u * u)),
    # SymPy's acot: it jumps at 0, from -pi/2 to pi/2.
    "acot": Function(_reciprocal_of(np.arctan), lambda u, v: -1 / (1 + u * u), "pole"),
    "asec": Function(_reciprocal_of(np.arccos), lambda u, v: 1 / (u * u * _sqrt(1 - 1 / (u * u))), "root", _off_unit),
    "acsc": Function(_reciprocal_of(np.arcsin), lambda u, v: -1 / (u * u * _sqrt(1 - 1 / (u * u))), "root", _off_unit),
    "asinh": Function(np.arcsinh, lambda u, v: 1 / _sqrt(1 + u * u)),
    "acosh": Function(np.arccosh, lambda u, v: 1 / (_sqrt(u - 1) * _sqrt(u + 1)), "root", _one_minus_square),
    "atanh": Function(np.arctanh, lambda u, v: 1 / (1 - u * u), "log", _one_minus_square),
    "acoth": Function(_reciprocal_of(np.arctanh), lambda u, v: 1 / (1 - u * u), "log", _one_minus_square),
    "asech": Function(
        _reciprocal_of(np.arccosh),
        lambda u, v: -1 / (u * u * _sqrt(1 / u - 1) * _sqrt(1 / u + 1)),
        "root",
        lambda u: u * (1 - u),
    ),
    "acsch": Function(_reciprocal_of(np.arcsinh), lambda u, v: -1 / (u * u * _sqrt(1 + 1 / (u * u))), "pole"),
}


SPECIAL = frozenset(
    words("erf erfc erfi Si Ci Shi Chi Ei E1 li Li fresnels fresnelc dilog gamma loggamma digamma factorial")
)

# Each line: the name on the list, then its other spellings. `notation` lowers other capitals, as in Sin or ARCTAN.
_SPELLINGS_OF = """
    log     ln Log log_e
    log2    log_2
    log10   lg log_10
    exp     exp_polar
    sin     sen
    tan     tg
    cot     ctg
    csc     cosec
    atan    arctg atg
    cbrt    cuberoot
    Abs     abs fabs absolute RealAbs
    sign    sgn signum
    ceiling ceil
    Heaviside heaviside unitstep heavisidetheta
    Si      sinintegral
    Ci      cosintegral
    Shi     sinhintegral
    Chi     coshintegral
    Ei      ei expi expintegralei
    E1      E_1 exp1 e1
    li      logintegral
    dilog   Li2 Li_2
    fresnels FresnelS
    fresnelc FresnelC
    loggamma lgamma lngamma gammaln
    digamma psi
    Pow     pow power
    Max     max maximum
    Min     min minimum
"""
# Spelling -> name. Inverse functions have regular ones: arcsin, arsinh, argtanh, ...
SPELLINGS: dict[str, str] = {
    f"{prefix}{name}{h}": f"a{name}{h}"
    for prefix in ("arc", "ar", "arg")
    for name in ("sin", "cos", "tan", "cot", "sec", "csc")
    for h in ("", "h")
} | {spelling: name for name, *spellings in map(words, _SPELLINGS_OF.strip().splitlines()) for spelling in spellings}

# Everything that can be called. `positive` and `log_abs` are internal: only the parser creates them.
NAMES = frozenset({*ELEMENTARY, *SPECIAL, *SPELLINGS} | OF_TWO | NUMBERS | CONDITIONAL) - {"positive", "log_abs"}

CONSTANTS: dict[str, complex] = {
    **dict.fromkeys(("pi", "Pi"), math.pi),
    **dict.fromkeys(("e", "E"), math.e),
    **dict.fromkeys(("i", "I"), 1j),
    "EulerGamma": 0.5772156649015329,
    "Catalan": 0.915965594177219,
    "GoldenRatio": (1 + math.sqrt(5)) / 2,
}
SYMBOLS = frozenset({*CONSTANTS, "oo"})  # names of numbers, including infinity
