"""Wrong answers made to look right, composed at random from tables of tricks: how many does the verifier accept?

    python benchmarks/verifier_attacks.py                                    # about half an hour on one core
    python benchmarks/verifier_attacks.py --attacks 5000 --only "floor copy"

Each attack takes an integrand of the pool, of the qualifiers or of the labelled cases, a base (a wrong answer) and up
to three wrappers (which leave it wrong). The tricks are the tables below; a new one is one line. In a text, `{f}` is
the integrand, `{F}` a right answer, `{e}` the answer so far; other names in braces are drawn at random (`DRAWN`).

No text is right by design. Each accepted one is compared with the integral in 500 digits, by code that shares none
with the verifier. Those that are right by accident, or wrong by less than the verifier documents that it sees, are
counted apart, as within limits. Writes benchmarks/results/verifier_attacks.json: counts per trick, and the accepted
texts.
"""

import ast
import json
import platform
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

import mpmath
import numpy as np
import typer
from numpy.polynomial.legendre import leggauss
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ladder_lite.verify import verify
from ladder_lite.verify.expressions.functions import SPELLINGS
from ladder_lite.verify.expressions.parse import MAX_CHARS, ExpressionError, parse

HERE = Path(__file__).parent
DATA = HERE.parent / "tests" / "data"
SOURCES = [
    HERE / "undergrad.jsonl",
    HERE / "mit_bee.jsonl",
    DATA / "verifier_cases.jsonl",
    DATA / "verifier_faults.jsonl",
]


class Problem(NamedTuple):
    """An integrand, the bounds of its definite integral if it is one, and a right answer if one is known."""

    integrand: str
    lower: str | None
    upper: str | None
    right: str | None


class Attack(NamedTuple):
    """A wrong answer to a problem, and the tricks that it is made of."""

    problem: Problem
    answer: str
    tricks: tuple[str, ...]


# --- tricks ---------------------------------------------------------------------------------------------------------

# What a name in braces stands for.
DRAWN: dict[str, Callable[[Random], str]] = {
    "N": lambda rng: rng.choice(
        [
            f"10**{rng.randint(1, 16)}",
            f"{rng.choice([3, 7, 11, 13])}**{rng.randint(2, 13)}",
            f"{10 ** rng.uniform(1, 16):.0f}",
        ]
    ),
    "M": lambda rng: f"{rng.randint(1, 9)}*10**{rng.randint(3, 15)}",
    "n": lambda rng: str(rng.randint(3, 12)),
    "m": lambda rng: str(rng.randint(20, 60)),
    "k": lambda rng: str(rng.randint(3, 22)),
    "K": lambda rng: f"10**{rng.randint(3, 20)}",
    "c": lambda rng: f"{rng.randint(1, 499)}/{rng.choice([97, 100, 101])}",
    "s": lambda rng: f"{rng.choice(['', '-'])}{rng.randint(1, 499)}/100",
    "A": lambda rng: f"{rng.choice(['', '-'])}{rng.randint(1, 9)}*10**({rng.randint(-5, 3)})",
    "d": lambda rng: str(rng.randint(2, 9)),
    "h": lambda rng: f"10**(-{rng.randint(3, 7)})",
}

# Functions that follow x in steps, with a derivative of 0 between them. Those that jump at poles of tan or where atan's
# argument is infinite do so densely: a few such jumps are right by rule.
COPIES = {
    "floor copy": "floor({N}*x)/{N}",
    "shifted floor copy": "floor({N}*x+{c})/{N}",
    "ceiling copy": "ceiling({N}*x)/{N}",
    "coarse floor copy": "floor({n}*x)/{n}",
    "tangent copy": "x-atan(tan(({M})*x))/({M})",
    "shifted tangent copy": "x-atan(tan(({M})*x+{c}))/({M})",
    "quotient copy": "x-atan(sin(({M})*x)/cos(({M})*x))/({M})",
    "cotangent copy": "x-acot(cot(({M})*x))/({M})",
    "half-angle copy": "x-2*atan(sin(({M})*x)/(1+cos(({M})*x)))/({M})",
    "sine copy": "x-sign(cos({N}*x))*asin(sin({N}*x))/{N}",
    "sine quotient copy": "x-cos({N}*x)/sqrt(cos({N}*x)**2)*asin(sin({N}*x))/{N}",
    "cosine copy": "x-sign(sin({N}*x))*acos(cos({N}*x))/{N}",
    "hyperbolic copy": "x-atanh(I*tan(({M})*x))/(I*({M}))",
    "logarithm copy": "x-log(exp(I*{N}*x))/(I*{N})",
    "logarithm of sines copy": "x-log(cos({N}*x)+I*sin({N}*x))/(I*{N})",
    "power copy": "x-log((-1)**({N}*x))/(I*pi*{N})",
    "root copy": "x+I*log(sqrt(exp(2*I*{N}*x)))/{N}",
}
# Ways of hiding one: what follows equals {u} for x > 0.
DISGUISES = {
    "plain copy": "{u}",
    "cubed copy": "cbrt(({u})**3)",
    "squared copy": "sqrt(({u})**2)",
    "absolute copy": "Abs({u})",
    "exponential copy": "log(exp({u}))",
    "copy with x in it": "({u})+0*x",
    "copy near a constant": "(({u})+10**{k})-10**{k}",
}
# Answers with a derivative of f(u).
FROZEN = {
    "times x": "x*({fu})",
    "times x, shifted": "(x-{s})*({fu})",
    "times the fraction": "(x-({u}))*({fu})",
    "half and half": "x*({fu})/2+({F})/2",
    "second order": "(x-({u}))*({fu})+(x-({u}))**2/2*(({fuh})-({fu}))/{h}",
    "frozen by x": "(x-{s})*({fu})+({F})-({Fu})",
    "frozen difference": "({F})-({Fu})",
    "frozen sum": "({F})+({Fu})",
    "frozen error": "({F})+({u})/10**4",
}
# Added to a right answer: constant between their steps, or nearly so.
STEPS = {
    "floor": "{A}*floor({n}*x+{c})",
    "fast floor": "{A}*floor({N}*x+{c})",
    "ceiling": "{A}*ceiling({n}*x+{c})",
    "sign": "{A}*sign(x-{c})",
    "signs": "{A}*sign(sin({n}*x+{c}))",
    "Heaviside": "{A}*Heaviside(x-{c})",
    "parity": "{A}*(-1)**floor({n}*x)",
    "sawtooth": "{A}*(acos(cos({n}*x+{c}))*sign(sin({n}*x+{c}))-{n}*x)",
    "absolute quotient": "{A}*Abs(x-{c})/(x-{c})",
    "root quotient": "{A}*sqrt((x-{c})**2)/(x-{c})",
    "expanded root quotient": "{A}*sqrt(x**2-2*{c}*x+({c})**2)/(x-{c})",
    "cubic quotient": "{A}*cbrt((x-{c})**3)/Abs(x-{c})",
    "logarithm quotient": "{A}*exp(log((x-{c})**2)/2)/(x-{c})",
    "wave quotient": "{A}*sqrt(cos({n}*x)**2)/cos({n}*x)",
    "roots": "{A}*sqrt(x-{c})*sqrt(1/(x-{c}))",
    "asin of a quotient": "{A}*asin((x-{c})/Abs(x-{c}))",
    "near root quotient": "{A}*(x-{c})/sqrt((x-{c})**2+10**(-{m}))",
    "atan": "{A}*atan({K}*(x-{c}))",
    "tanh": "{A}*tanh({K}*(x-{c}))",
    "erf": "{A}*erf({K}*(x-{c}))",
    "Si": "{A}*Si({K}*(x-{c}))",
    "logistic": "{A}/(1+exp(-{K}*(x-{c})))",
    "double exponential": "{A}*exp(-exp(-{K}*(x-{c})))",
    "high power": "{A}/(1+(x/({c}))**1000)",
    "waves of atan": "{A}*atan({K}*sin({n}*x+{c}))",
    "waves of tanh": "{A}*tanh({K}*sin({n}*x+{c}))",
    "cubic atan": "{A}*atan({K}*(x-{c})**3)",
    "dense stairs": "{A}*(atan(tan({M}*x+{c}))-{M}*x)",
}
# What x may be replaced by in a step.
ARGUMENTS = {
    "plain x": "x",
    "x near 1": "(((1+10**16*x)-1)/10**16)",
    "x near a constant": "((x+10**{k})-10**{k})",
    "x by logarithm": "log(exp(x))",
    "x times one": "(x*(sin(x)**2+cos(x)**2))",
}
# Wrong answers of other kinds.
ERRORS = {
    "a millionth more": "1.000001*({F})",
    "a term in x": "({F})+x/10**5",
    "a term in x**2": "({F})-x**2/10**5",
    "a fast wave": "({F})+sin(1000*x)/10**7",
    "a faster wave": "({F})+sin({N}*x)/({N})",
    "a term that overflows": "({F})+exp({m}*(x-5))",
    "a term that underflows": "({F})+exp(-{m}*x)",
    "twice": "2*({F})",
    "negative": "-({F})",
    "negative on one side": "sqrt(x**2)/x*({F})+x/10**5",
    "another integral's": "{other}",
    "the integrand": "{f}",
    "x times the integrand": "x*({f})",
    "the integrand and a right answer": "({F})+({f})/10**5",
    "polynomial": "{polynomial}",
    "product with a right answer": "({F})*(1+x/10**6)",
}
# Wrappers: {e} is still wrong inside them.
CONSTANTS = {
    "plus a power": "({e})+10**{k}",
    "minus a power": "({e})-{d}*10**{k}",
    "plus exp": "({e})+exp({m})",
    "plus and minus": "(10**{k}+({e}))-10**{k}",
    "in a product": "2*(({e})/2+10**{k})",
    "plus factorial": "({e})+factorial(20)",
    "plus cosine": "({e})+10**{k}*cos({c})",
    "plus one from sines": "({e})+10**{k}*(sin(x)**2+cos(x)**2)",
    "plus one from cosh": "({e})+10**{k}*(cosh(x/9)**2-sinh(x/9)**2)",
    "plus exp(0*x)": "({e})+10**{k}*exp(0*x)",
    "plus exp by exp": "({e})+10**{k}*exp(x)*exp(-x)",
    "plus x by x": "({e})+10**{k}*x/x",
    "plus x**0": "({e})+10**{k}*x**0",
    "plus squares apart": "({e})+10**{k}*sin(x)**2+10**{k}*cos(x)**2",
    "imaginary": "({e})+I*10**{k}",
}
DEAD = {
    "zero tangent": "({e})+0*tan({N}*x)",
    "zero tangents": "({e})+0*(tan({N}*x)+tan({N}*x+1)+tan({N}*x+2)+tan({n}**9*x+1))",
    "zero cosecant": "({e})+0/sin({N}*x)",
    "tangent by itself": "({e})*(tan({N}*x)/tan({N}*x))",
    "zero logarithm": "({e})+0*log(sin({N}*x))",
    "zero overflow": "({e})+0*exp(exp({m}*x))",
    "zero gamma": "({e})+0*gamma(-{n}*x)",
    "zero floor": "({e})+0*floor({N}*x)",
    "zero atan": "({e})+0*atan(sin({m}*x))",
    "zero root": "({e})+0*sqrt(x-{m})",
    "zero pole": "({e})+0/(x-{c})",
    "tiny tangent": "({e})+10**(-30)*tan({N}*x)",
    "tiny atan of tangent": "({e})+atan(tan({N}*x)*10**(-30))",
    "tiny cosecant": "({e})+10**(-30)/sin({N}*x)",
    "tiny stairs": "({e})+10**(-20)*atan(tan({N}*x))",
}
NOISE = {
    "power apart": "({e})+x**41*10**(-8)-x**41*10**(-8)",
    "power around": "(({e})+x**30)-x**30",
    "line apart": "({e})+exp(40)*x-exp(40)*x",
    "line around": "(({e})+10**{k}*x)-10**{k}*x",
    "constant inside": "((({e})/10**{k}+1)-1)*10**{k}",
    "wave around": "(({e})+10**{k}*sin(x))-10**{k}*sin(x)",
    "exponential around": "(({e})+exp({m}*x))-exp({m}*x)",
}
NEUTRAL = {
    "times one from sines": "({e})*(sin(x)**2+cos(x)**2)",
    "by one from cosh": "({e})/(cosh(x/9)**2-sinh(x/9)**2)",
    "times exp(0*x)": "({e})*exp(0*x)",
    "halved twice": "2*({e})/2",
    "negated twice": "-(-({e}))",
    "cubed": "cbrt(({e})**3)",
    "logarithm of exp": "log(exp({e}))",
    "squared": "sqrt(({e})**2)",
    "times x by x": "({e})*(x/x)",
    "plus C": "{e}+C",
}
# Values of a definite integral; {F} is the right one.
VALUES = {
    "a little more": "({F})*(1+10**(-4))",
    "a little beside": "({F})+{A}",
    "number": "{s}",
    "zero": "0",
    "one": "1",
    "negative value": "-({F})",
    "imaginary part": "({F})+I/1000",
    "infinity": "oo",
    "decimals": "{decimals}",
    "integrand as value": "{f}",
    "third beside": "({F})+1/3",
    "right plus dead x": "({F})+1/3+0*x",
}
HIDDEN_VALUES = {
    "around a constant": "(10**{k}+({e}))-10**{k}",
    "constant first": "10**{k}-(10**{k}-({e}))",
    "scaled": "((({e})/10**{k}+1)-1)*10**{k}",
    "sum to zero": "({e})+exp({m})-exp({m})",
    "times one": "({e})*(sin({c})**2+cos({c})**2)",
    "overflow": "({e})*exp(800)/exp(800)",
    "decimal": "1.0*({e})",
}
WRAPPERS = CONSTANTS | DEAD | NOISE | NEUTRAL


# --- composition ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def problems() -> list[Problem]:
    """All integrals of the sources, each once, with a right answer where one of its answers is labelled right."""
    found: dict[tuple[str, Any, Any], str | None] = {}
    for row in (json.loads(line) for path in SOURCES for line in path.open(encoding="utf-8")):
        if row.get("variable", "x") != "x" or row.get("accept", True) == "unverifiable":
            continue
        try:
            key = (parse(row["integrand"]).text, row.get("lower"), row.get("upper"))
            right = parse(row["answer"]).text if row.get("accept", True) else None
        except ExpressionError:
            right = None
        if "x" in key[0]:
            found[key] = found.get(key) or right
    return [Problem(*key, right) for key, right in found.items() if key[1] is not None or not _is_zero(key[0])]


def _is_zero(integrand: str) -> bool:
    """Whether an integrand is zero, so that constants are right."""
    with mpmath.workdps(60):
        return all(abs(function_of(integrand)(x)) < 1e-50 for x in (0.71, 1.37, 2.93))


def attacks(seed: int, only: str | None = None) -> Iterator[Attack]:
    """Attacks without end, the same for a seed; with `only`, those of which that trick is a part."""
    rng = Random(seed)
    pool = problems()
    rights = [problem.right for problem in pool if problem.right and problem.lower is None]
    while True:
        problem = rng.choice(pool)
        found = _compose(problem, rights, rng)
        if found is not None and len(found.answer) <= MAX_CHARS and (only is None or only in found.tricks):
            yield found


def _compose(problem: Problem, rights: list[str], rng: Random) -> Attack | None:
    f, right = problem.integrand, problem.right
    known = {"f": f, "other": rng.choice(rights)} | ({"F": right} if right else {})
    if problem.lower is not None:
        known |= {"decimals": f"{rng.uniform(-3, 3):.6f}"}
        tricks, answer = _draw(VALUES, known, rng)
        wrappers = HIDDEN_VALUES
    else:
        base = rng.choice(["frozen", "frozen", "step", "step", "error"])
        if base == "frozen":
            tricks, answer = _frozen(known, rng)
        elif base == "step" and right:
            tricks, step = _draw(STEPS, known, rng)
            name, argument = _draw(ARGUMENTS, known, rng)
            plain = rng.random() < 0.7
            answer = f"({right})+{step if plain else _put(step, argument)}"
            tricks += () if plain else name
        else:
            if right:
                known["polynomial"] = _polynomial(right, rng)
            tricks, answer = _draw(ERRORS, known, rng)
        wrappers = WRAPPERS
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        name, answer = _draw(wrappers, {"e": answer}, rng)
        tricks += name
    return Attack(problem, answer, tricks)


def _frozen(known: dict[str, str], rng: Random) -> tuple[tuple[str, ...], str]:
    copied, u = _draw(COPIES, known, rng)
    disguised, u = _draw(DISGUISES, {"u": u}, rng) if rng.random() < 0.4 else ((), u)
    h = DRAWN["h"](rng)
    frozen = {"u": u, "fu": _put(known["f"], u), "h": h, "fuh": _put(known["f"], f"{u}+{h}")}
    if "F" in known:
        frozen["Fu"] = _put(known["F"], u)
    name, answer = _draw(FROZEN, known | frozen, rng)
    return (*copied, *disguised, *name), answer


def _draw(table: dict[str, str], known: dict[str, str], rng: Random) -> tuple[tuple[str, ...], str]:
    """One of the table's tricks, of those whose names are known or can be drawn."""
    usable = [name for name, form in table.items() if set(re.findall(r"\{(\w+)\}", form)) <= known.keys() | DRAWN]
    name = rng.choice(usable)
    drawn = {letter: draw(rng) for letter, draw in DRAWN.items()}
    return (name,), table[name].format(**(drawn | known))


def _put(text: str, u: str) -> str:
    """`text` with `u` for x."""
    return re.sub(r"\bx\b", lambda _: f"({u})", text)


def _polynomial(right: str, rng: Random) -> str:
    """A polynomial through a right answer's values."""
    at = [mpmath.mpf(k + 1) / 2 for k in range(rng.randint(3, 9))]
    values = [function_of(right)(x) for x in at]
    if not all(mpmath.isfinite(value) and not mpmath.im(value) for value in values):
        return "x"
    coefficients = mpmath.lu_solve(mpmath.matrix([[x**k for k in range(len(at))] for x in at]), mpmath.matrix(values))
    return "+".join(f"({mpmath.nstr(c, 17)})*x**{k}".replace("e", "*10**") for k, c in enumerate(coefficients))


# --- independent check ----------------------------------------------------------------------------------------------

DIGITS = 500
LIMIT = 1e-7  # of an increment relative to that of |f|, and of a derivative: ten times and more what verify() documents
EDGES = tuple(n / 8 - 12.034 for n in range(193))
FAR = (*range(-410, -10, 10), *range(12, 413, 10))  # for an integrand that has no domain near
DEPTH = 24  # of halvings around a pole, a step or a kink
SMALLEST = 1e-14  # differences below it are none
MAX_CELLS = 3000
GAP = mpmath.mpf("1e-8")  # to either side of a point where the integrand is undefined
WIDTH = 1e-3  # of a component at least: slivers between a pole and its gap are none
UNDEFINED_AT = {
    **dict.fromkeys(("log", "acot", "asec", "acsc"), "{}"),
    **dict.fromkeys(("tan", "sec"), "cos({})"),
    **dict.fromkeys(("cot", "csc"), "sin({})"),
    **dict.fromkeys(("coth", "csch"), "sinh({})"),
}
NODES, WEIGHTS = (np.array(leggauss(12)) / 2 + np.array([[0.5], [0]])).tolist()  # over [0, 1]
LARGEST = 1e60  # integrands end where they are larger
NAMES = """
exp log sqrt sign floor sin cos tan cot sec csc sinh cosh tanh coth sech csch asin acos atan acot asec acsc asinh acosh
atanh acoth asech acsch factorial gamma loggamma digamma erf erfc erfi fresnels fresnelc li log10 polylog pi mpf
"""


def _bounded(function: Callable[[Any], Any], limit: float) -> Callable[[Any], Any]:
    """`function`, for arguments of which mpmath can hold its value."""

    def bounded(u: Any) -> Any:
        if function is mpmath.exp and mpmath.re(u) < -limit:
            return mpmath.mpf(0)
        if abs(u) > limit:
            raise OverflowError
        return function(u)

    return bounded


FUNCTIONS: dict[str, Any] = {name: getattr(mpmath, name) for name in NAMES.split()} | {
    **{name.capitalize(): getattr(mpmath, name) for name in ("si", "ci", "shi", "chi", "ei")},
    "Abs": abs,
    "ceiling": mpmath.ceil,
    "Heaviside": lambda u: (mpmath.sign(u) + 1) / 2,
    "cbrt": lambda u: mpmath.cbrt(u) if mpmath.im(u) else mpmath.sign(u) * mpmath.cbrt(abs(u)),
    "log2": lambda u: mpmath.log(u, 2),
    "dilog": lambda u: mpmath.polylog(2, u),
    "E1": mpmath.e1,
    "I": mpmath.mpc(0, 1),
    "E": mpmath.e,
    "e": mpmath.e,
    "EulerGamma": mpmath.euler,
    "Catalan": mpmath.catalan,
    "oo": mpmath.inf,
    "C": 0,
}
LIMITS = dict.fromkeys(("exp", "sinh", "cosh", "tanh", "coth", "sech", "csch"), 1e300)
LIMITS |= dict.fromkeys(("gamma", "factorial", "loggamma", "digamma"), 1e30)
FUNCTIONS |= {name: _bounded(FUNCTIONS[name], limit) for name, limit in LIMITS.items()}
FUNCTIONS |= {alias: FUNCTIONS[name] for alias, name in SPELLINGS.items() if name in FUNCTIONS}
FAILS = (ArithmeticError, ValueError, TypeError, NameError, mpmath.libmp.NoConvergence)


class Cell(NamedTuple):
    """An interval, and the integrals of f and of |f| over it; that of f is None at a step or a kink."""

    low: Any
    high: Any
    integral: Any
    size: Any


def function_of(text: str) -> Callable[[Any], Any]:
    """A text of our own as a function of mpmath's numbers; nan where it fails."""
    code = compile(re.sub(r"(?<![\w.])\d+(\.\d+)?", r"mpf('\g<0>')", text.strip()), "<text>", "eval")

    def value(x: Any) -> Any:
        try:
            return eval(code, FUNCTIONS | {"x": mpmath.mpmathify(x)})
        except FAILS:
            return mpmath.nan

    return value


def is_right(problem: Problem, answer: str) -> bool:
    """Whether an answer is right, up to LIMIT, on one whole component of the domain that reaches x > 0."""
    with mpmath.workdps(DIGITS):
        F, right = function_of(answer), function_of(problem.right) if problem.right else None
        if problem.lower is not None:
            return bool(right and abs(F(mpmath.rand()) - right(0)) <= 10 * LIMIT * max(1, abs(right(0))))
        f = function_of(problem.integrand)
        return any(all(_agrees(cell, f, F, right) for cell in cells) for cells in components(problem.integrand))


def _agrees(cell: Cell, f: Callable[[Any], Any], F: Callable[[Any], Any], right: Callable[[Any], Any] | None) -> bool:
    """Whether F grows over a cell as the right answer does, or the integral, and its derivative is f at a point."""
    low, high, integral, size = cell
    increment, h = F(high) - F(low), mpmath.mpf(10) ** (-DIGITS // 4)
    # A known answer may be right on another component only.
    wanted = [right(high) - right(low)] if right else [increment] if integral is None else []
    wanted += [] if integral is None else [integral]
    at = low + (high - low) * mpmath.mpf("0.3819660112501051")
    slope, value = (F(at + h) - F(at - h)) / (2 * h), f(at)
    grows = any(abs(increment - right) <= LIMIT * size + SMALLEST for right in wanted)
    return bool(grows and abs(slope - value) <= LIMIT * abs(value) + SMALLEST)


@lru_cache(maxsize=2000)
def components(integrand: str, edges: tuple[float, ...] = EDGES) -> list[list[Cell]]:
    """The components of the integrand's domain that reach x > 0, or all if none does, cut into cells."""
    f = function_of(integrand)
    found: list[list[Cell]] = [[]]
    budget = MAX_CELLS

    def integrals(low: Any, high: Any) -> tuple[Any, Any]:
        """Of f and of |f|; infinite where f is nowhere finite and real, nan where it is so in places."""
        values = [f(low + (high - low) * node) for node in NODES]
        fine = [abs(value) < LARGEST and ("I" in integrand or not mpmath.im(value)) for value in values]
        if not all(fine):
            return mpmath.nan, mpmath.nan if any(fine) else mpmath.inf
        products = [weight * value * (high - low) for weight, value in zip(WEIGHTS, values, strict=True)]
        return mpmath.fsum(products), mpmath.fsum(map(abs, products))

    def cut(low: Any, high: Any, depth: int, usual: Any) -> None:
        nonlocal budget
        budget -= 1
        middle = low + (high - low) * mpmath.mpf("0.4878")
        whole, size = integrals(low, high)
        if abs(integrals(low, middle)[0] + integrals(middle, high)[0] - whole) <= 1e-10 * size:
            found[-1].append(Cell(low, high, whole, size))
        elif depth and budget > 0 and size != mpmath.inf:
            cut(low, middle, depth - 1, usual)
            cut(middle, high, depth - 1, usual)
        elif not depth and size <= 1e3 * usual * (high - low) and mpmath.isfinite(f(round(float(middle), 6))):
            found[-1].append(Cell(low, high, None, size))
        else:
            found.append([])

    with mpmath.workdps(30):
        gaps = _gaps(integrand, edges)
        beside = [at + side for at in gaps for side in (-GAP, GAP)]
        for low, high in pairwise(sorted([*map(mpmath.mpf, edges), *beside])):
            if any(low <= at <= high for at in gaps):
                found.append([])
            else:
                cut(low, high, DEPTH, abs(f(low)) + abs(f(high)))
    found = [cells for cells in found if cells and cells[-1].high - cells[0].low > WIDTH and any(c.size for c in cells)]
    if not found and edges == EDGES:
        return components(integrand, FAR)
    return [cells for cells in found if cells[-1].high > 0] or found


def _gaps(integrand: str, edges: tuple[float, ...]) -> list[Any]:
    """Where the integrand is undefined though it may have a limit: real zeros of what it divides by, and the like."""
    vanish = []
    for node in ast.walk(ast.parse(integrand, mode="eval")):
        match node:
            case (
                ast.BinOp(op=ast.Div(), right=ast.BinOp(left=divisor, op=ast.Pow()))
                | ast.BinOp(op=ast.Div(), right=divisor)
            ):
                vanish.append(ast.unparse(divisor))
            case ast.BinOp(left=base, op=ast.Pow(), right=ast.UnaryOp(op=ast.USub())):
                vanish.append(ast.unparse(base))
            case ast.Call(func=ast.Name(id=name), args=[argument]) if name in UNDEFINED_AT:
                vanish.append(UNDEFINED_AT[name].format(ast.unparse(argument)))
    found = []
    grid = [mpmath.mpf(low + (high - low) * k / 4) for low, high in pairwise(edges) for k in range(4)]
    for q in map(function_of, {text for text in vanish if "x" in text}):
        for low, high in pairwise(grid):
            if mpmath.sign(mpmath.re(q(low))) * mpmath.sign(mpmath.re(q(high))) < 0:
                for _ in range(60):
                    middle = (low + high) / 2
                    same = mpmath.sign(mpmath.re(q(middle))) == mpmath.sign(mpmath.re(q(low)))
                    low, high = (middle, high) if same else (low, middle)
                found.append(low)
    return found


# --- run ------------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What the verifier said to an attack: accepted, within limits, refused or unverifiable; and how long it took."""

    attack: Attack
    verdict: str
    ms: float


def tried(attack: Attack) -> Outcome:
    """The verifier on one attack, by the processor's time: the quickest of some tries if the first was slow."""
    f, lower, upper, _ = attack.problem
    if lower is not None:
        verify(f, "0", lower=lower, upper=upper)  # the integral's value is no answer's cost
    times: list[float] = []
    while len(times) < TRIES and min(times, default=SLOW_MS + 1) > SLOW_MS:
        answer = attack.answer + " " * len(times)  # another text, for verdicts are remembered
        started = time.process_time()
        grade = verify(f, answer, lower=lower, upper=upper)
        times.append((time.process_time() - started) * 1e3)
    verdict = {0.0: "refused", None: "unverifiable"}.get(grade.reward, "accepted")
    if verdict == "accepted" and is_right(attack.problem, attack.answer):
        verdict = "within limits"
    return Outcome(attack, verdict, min(times))


def main(
    attacks_: Annotated[int, typer.Option("--attacks", help="Attacks in all.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Decides the attacks.")] = 0,
    only: Annotated[str | None, typer.Option(metavar="TRICK", help="Attacks with this trick in them only.")] = None,
    out: Annotated[Path, typer.Option(help="File for the counts.")] = HERE / "results" / "verifier_attacks.json",
) -> None:
    if only is not None and only not in TRICKS:
        raise typer.BadParameter(f"one of {', '.join(TRICKS)}", param_hint="--only")
    verify("sin(x)/x", "Si(x)")  # imports SciPy
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    slowest: defaultdict[str, float] = defaultdict(float)
    kept: dict[str, list[dict[str, Any]]] = {"accepted": [], "slow": []}
    source = attacks(seed, only)
    for _ in track(range(attacks_), "attacks", console=Console(stderr=True)):
        outcome = tried(next(source))
        attack, verdict, ms = outcome
        for trick in ("all", *attack.tricks):
            counts[trick][verdict] += 1
            slowest[trick] = max(slowest[trick], ms)
        if verdict in kept or ms > SLOW_MS:
            row = {**attack.problem._asdict(), "answer": attack.answer, "tricks": attack.tricks, "ms": round(ms, 1)}
            kept[verdict if verdict in kept else "slow"].append(row)
    figures: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"one core of {platform.machine()}, Python {platform.python_version()}",
        "attacks": attacks_,
        "tricks": {
            trick: {"tried": counts[trick].total(), **counts[trick], "slowest_ms": round(slowest[trick], 1)}
            for trick in ("all", *TRICKS)
            if trick in counts
        },
        **kept,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    _print(figures["tricks"])


def _print(rows: dict[str, dict[str, Any]]) -> None:
    table = Table("trick", "tried", "accepted", "within limits", "unverifiable", "slowest ms")
    for trick, row in rows.items():
        cells = (str(row.get(key, 0)) for key in ("tried", "accepted", "within limits", "unverifiable", "slowest_ms"))
        table.add_row(trick, *cells)
    Console().print(table)


SLOW_MS = 100
TRIES = 4  # a busy machine now and then stops for a while
TRICKS = [*COPIES, *DISGUISES, *FROZEN, *STEPS, *ARGUMENTS, *ERRORS, *WRAPPERS, *VALUES, *HIDDEN_VALUES]

if __name__ == "__main__":
    typer.run(main)
