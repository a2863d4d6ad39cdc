"""Attack the verifier with wrong answers that look right, composed at random from tables of tricks.

    python benchmarks/verifier_attacks.py                                    # about half an hour on one core
    python benchmarks/verifier_attacks.py --attacks 5000 --only "floor copy"

Each attack consists of an integrand, a base and up to three wrappers. The integrand comes from the undergraduate pool,
the qualifying exams or the labelled cases. The base is a wrong answer, and wrappers change it without making it right.
Bases and wrappers are called tricks. The tables below contain them; to add one, add a line. In a trick, `{f}` is the
integrand, `{F}` a right answer, and `{e}` the answer so far. Other names in braces are drawn at random (`DRAWN`).

All attacks are meant to be wrong. Each accepted answer is compared with the integral with 500 digits, by code that is
independent of the verifier. Answers that happen to be right, or whose error is smaller than the verifier's documented
limits, are counted separately as "within limits". Writes benchmarks/results/verifier_attacks.json: the counts for each
trick, and the accepted answers.
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
    """A wrong answer to a problem, and the names of its tricks."""

    problem: Problem
    answer: str
    tricks: tuple[str, ...]


# --- tricks ---------------------------------------------------------------------------------------------------------

# Random values for names in braces.
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

# Step functions close to x, whose derivative is 0 between the steps. Copies that jump at poles of tan, or where atan's
# argument is infinite, must have many jumps: by the verifier's rules, an answer with a few such jumps is right.
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
# Ways to hide such a copy {u}: each of these texts equals {u} for x > 0.
DISGUISES = {
    "plain copy": "{u}",
    "cubed copy": "cbrt(({u})**3)",
    "squared copy": "sqrt(({u})**2)",
    "absolute copy": "Abs({u})",
    "exponential copy": "log(exp({u}))",
    "copy with x in it": "({u})+0*x",
    "copy near a constant": "(({u})+10**{k})-10**{k}",
}
# Answers whose derivative is f(u) instead of f(x), with u a copy of x.
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
# Terms that are added to a right answer. They are constant between their steps, or nearly so.
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
# Replacements for x in a step.
ARGUMENTS = {
    "plain x": "x",
    "x near 1": "(((1+10**16*x)-1)/10**16)",
    "x near a constant": "((x+10**{k})-10**{k})",
    "x by logarithm": "log(exp(x))",
    "x times one": "(x*(sin(x)**2+cos(x)**2))",
}
# Other wrong answers.
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
# Wrappers: they contain the wrong answer {e} and do not correct it. These add a constant, or what equals one.
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
# Wrappers with a part that has no effect on the value, but poles, jumps or overflow of its own.
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
# Wrappers that add and subtract the same term, whose rounding errors remain.
NOISE = {
    "power apart": "({e})+x**41*10**(-8)-x**41*10**(-8)",
    "power around": "(({e})+x**30)-x**30",
    "line apart": "({e})+exp(40)*x-exp(40)*x",
    "line around": "(({e})+10**{k}*x)-10**{k}*x",
    "constant inside": "((({e})/10**{k}+1)-1)*10**{k}",
    "wave around": "(({e})+10**{k}*sin(x))-10**{k}*sin(x)",
    "exponential around": "(({e})+exp({m}*x))-exp({m}*x)",
}
# Wrappers that rewrite the answer.
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
# Answers to a definite integral; {F} is the right value.
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
# Wrappers for answers to a definite integral.
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
    """Return all integrals of the sources, without duplicates, each with a right answer if the sources have one."""
    right_answers: dict[tuple[str, Any, Any], str | None] = {}
    for row in (json.loads(line) for path in SOURCES for line in path.open(encoding="utf-8")):
        if row.get("variable", "x") != "x" or row.get("accept", True) == "unverifiable":
            continue
        try:
            key = (parse(row["integrand"]).text, row.get("lower"), row.get("upper"))
            right = parse(row["answer"]).text if row.get("accept", True) else None
        except ExpressionError:
            right = None
        if "x" in key[0]:
            right_answers[key] = right_answers.get(key) or right
    # Any constant is a right antiderivative of zero.
    return [Problem(*key, right) for key, right in right_answers.items() if key[1] is not None or not _is_zero(key[0])]


def _is_zero(integrand: str) -> bool:
    with mpmath.workdps(60):
        return all(abs(function_of(integrand)(x)) < 1e-50 for x in (0.71, 1.37, 2.93))


def attacks(seed: int, only: str | None = None) -> Iterator[Attack]:
    """Yield attacks endlessly, the same for the same seed; with `only`, those that contain this trick."""
    rng = Random(seed)
    pool = problems()
    antiderivatives = [problem.right for problem in pool if problem.right and problem.lower is None]
    while True:
        problem = rng.choice(pool)
        attack = _compose(problem, antiderivatives, rng)
        if len(attack.answer) <= MAX_CHARS and (only is None or only in attack.tricks):
            yield attack


def _compose(problem: Problem, antiderivatives: list[str], rng: Random) -> Attack:
    f, right = problem.integrand, problem.right
    known = {"f": f, "other": rng.choice(antiderivatives)} | ({"F": right} if right else {})
    if problem.lower is not None:  # a definite integral
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
            keep_x = rng.random() < 0.7
            answer = f"({right})+{step if keep_x else _substitute(step, argument)}"
            tricks += () if keep_x else name
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
    """Compose an answer in which a step function u replaces x in places: its tricks, and its text."""
    copy, u = _draw(COPIES, known, rng)
    disguise, u = _draw(DISGUISES, {"u": u}, rng) if rng.random() < 0.4 else ((), u)
    h = DRAWN["h"](rng)
    frozen = {"u": u, "fu": _substitute(known["f"], u), "h": h, "fuh": _substitute(known["f"], f"{u}+{h}")}
    if "F" in known:
        frozen["Fu"] = _substitute(known["F"], u)
    name, answer = _draw(FROZEN, known | frozen, rng)
    return (*copy, *disguise, *name), answer


def _draw(table: dict[str, str], known: dict[str, str], rng: Random) -> tuple[tuple[str, ...], str]:
    """Draw a trick whose names in braces are known or can be drawn; return its name in a tuple, and its text."""
    usable = [name for name, form in table.items() if set(re.findall(r"\{(\w+)\}", form)) <= known.keys() | DRAWN]
    name = rng.choice(usable)
    drawn = {letter: draw(rng) for letter, draw in DRAWN.items()}
    return (name,), table[name].format(**(drawn | known))


def _substitute(text: str, u: str) -> str:
    """Replace x by `u`."""
    return re.sub(r"\bx\b", lambda _: f"({u})", text)


def _polynomial(right: str, rng: Random) -> str:
    """Return a polynomial that interpolates a right answer at 3 to 9 points."""
    points = [mpmath.mpf(k + 1) / 2 for k in range(rng.randint(3, 9))]
    values = [function_of(right)(x) for x in points]
    if not all(mpmath.isfinite(value) and not mpmath.im(value) for value in values):
        return "x"
    coefficients = mpmath.lu_solve([[x**k for k in range(len(points))] for x in points], values)
    return "+".join(f"({mpmath.nstr(c, 17)})*x**{k}".replace("e", "*10**") for k, c in enumerate(coefficients))


# --- independent check ----------------------------------------------------------------------------------------------

DIGITS = 500
# Largest accepted error of an increment, relative to the integral of |f|, and of a derivative, relative to f. It is at
# least ten times the limit that verify() documents.
LIMIT = 1e-7
EDGES = tuple(n / 8 - 12.034 for n in range(193))  # of the cells, from -12.034 to 11.966
FAR = (*range(-410, -10, 10), *range(12, 413, 10))  # edges for an integrand whose domain is farther away
DEPTH = 24  # maximum number of halvings around a pole, a step or a kink
SMALLEST = 1e-14  # absolute differences below it are ignored
MAX_CELLS = 3000
GAP = mpmath.mpf("1e-8")  # width of the gap on either side of a point where the integrand is undefined
WIDTH = 1e-3  # minimum width of a component: slivers between a pole and its gap do not count
# Functions that are undefined at zeros of another one: log at the zeros of its argument, tan at those of cos.
UNDEFINED_AT = {
    **dict.fromkeys(("log", "acot", "asec", "acsc"), "{}"),
    **dict.fromkeys(("tan", "sec"), "cos({})"),
    **dict.fromkeys(("cot", "csc"), "sin({})"),
    **dict.fromkeys(("coth", "csch"), "sinh({})"),
}
NODES, WEIGHTS = (np.array(leggauss(12)) / 2 + np.array([[0.5], [0]])).tolist()  # Gauss-Legendre on [0, 1]
LARGEST = 1e60  # where an integrand is larger, it counts as undefined
NAMES = """
exp log sqrt sign floor sin cos tan cot sec csc sinh cosh tanh coth sech csch asin acos atan acot asec acsc asinh acosh
atanh acoth asech acsch factorial gamma loggamma digamma erf erfc erfi fresnels fresnelc li log10 polylog pi mpf
"""


def _bounded(function: Callable[[Any], Any], limit: float) -> Callable[[Any], Any]:
    """Limit a function to arguments for which mpmath can represent its value; others raise OverflowError."""

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
    """An interval with the integrals of f and of |f| over it; that of f is None at a step or a kink of f."""

    low: Any
    high: Any
    integral: Any
    size: Any


def function_of(text: str) -> Callable[[Any], Any]:
    """Compile a text of this program to a function of mpmath's numbers; its value is nan where evaluation fails.

    The text is executed: it must be composed here, or read from the project's own files.
    """
    # Numbers become mpf, so that 1/3 has all digits.
    code = compile(re.sub(r"(?<![\w.])\d+(\.\d+)?", r"mpf('\g<0>')", text.strip()), "<text>", "eval")

    def value(x: Any) -> Any:
        try:
            return eval(code, FUNCTIONS | {"x": mpmath.mpmathify(x)})
        except FAILS:
            return mpmath.nan

    return value


def is_right(problem: Problem, answer: str) -> bool:
    """Return whether an answer is right, up to LIMIT, on one whole component of the domain that reaches x > 0."""
    with mpmath.workdps(DIGITS):
        F, right = function_of(answer), function_of(problem.right) if problem.right else None
        if problem.lower is not None:
            return bool(right and abs(F(mpmath.rand()) - right(0)) <= 10 * LIMIT * max(1, abs(right(0))))
        f = function_of(problem.integrand)
        return any(all(_agrees(cell, f, F, right) for cell in cells) for cells in components(problem.integrand))


def _agrees(cell: Cell, f: Callable[[Any], Any], F: Callable[[Any], Any], right: Callable[[Any], Any] | None) -> bool:
    """Return whether F's increment over a cell is right and its derivative equals f at a point of the cell.

    The increment must match that of the right answer or the integral of f.
    """
    low, high, integral, size = cell
    increment, h = F(high) - F(low), mpmath.mpf(10) ** (-DIGITS // 4)
    # Either may match, because the known right answer may be right on another component only. If neither is known,
    # only the derivative is checked.
    expected = [right(high) - right(low)] if right else [increment] if integral is None else []
    expected += [] if integral is None else [integral]
    x = low + (high - low) * mpmath.mpf("0.3819660112501051")  # an arbitrary point
    slope, value = (F(x + h) - F(x - h)) / (2 * h), f(x)
    grows = any(abs(increment - candidate) <= LIMIT * size + SMALLEST for candidate in expected)
    return bool(grows and abs(slope - value) <= LIMIT * abs(value) + SMALLEST)


@lru_cache(maxsize=2000)
def components(integrand: str, edges: tuple[float, ...] = EDGES) -> list[list[Cell]]:
    """Return the components of the integrand's domain that reach x > 0, or all if none does, divided into cells."""
    f = function_of(integrand)
    found: list[list[Cell]] = [[]]
    budget = MAX_CELLS

    def integrals(low: Any, high: Any) -> tuple[Any, Any]:
        """Return the integrals of f and of |f|.

        If f is undefined at some nodes, both are nan. If it is undefined at all of them, that of |f| is infinite.
        """
        values = [f(low + (high - low) * node) for node in NODES]
        defined = [abs(value) < LARGEST and ("I" in integrand or not mpmath.im(value)) for value in values]
        if not all(defined):
            return mpmath.nan, mpmath.nan if any(defined) else mpmath.inf
        products = [weight * value * (high - low) for weight, value in zip(WEIGHTS, values, strict=True)]
        return mpmath.fsum(products), mpmath.fsum(map(abs, products))

    def cut(low: Any, high: Any, depth: int, typical: Any) -> None:
        """Add the cells between `low` and `high`; `typical` is the size of f at the ends of the uncut interval."""
        nonlocal budget
        budget -= 1
        middle = low + (high - low) * mpmath.mpf("0.4878")  # not the exact middle, which may be a special point of f
        whole, size = integrals(low, high)
        if abs(integrals(low, middle)[0] + integrals(middle, high)[0] - whole) <= 1e-10 * size:
            found[-1].append(Cell(low, high, whole, size))  # f is smooth here
        elif depth and budget > 0 and size != mpmath.inf:
            cut(low, middle, depth - 1, typical)
            cut(middle, high, depth - 1, typical)
        elif not depth and size <= 1e3 * typical * (high - low) and mpmath.isfinite(f(round(float(middle), 6))):
            found[-1].append(Cell(low, high, None, size))  # f is bounded: a step or a kink
        else:
            found.append([])  # a pole, or outside the domain: the component ends

    with mpmath.workdps(30):
        gaps = _gaps(integrand, edges)
        gap_ends = [x + offset for x in gaps for offset in (-GAP, GAP)]
        for low, high in pairwise(sorted([*map(mpmath.mpf, edges), *gap_ends])):
            if any(low <= x <= high for x in gaps):
                found.append([])
            else:
                cut(low, high, DEPTH, abs(f(low)) + abs(f(high)))
    found = [cells for cells in found if cells and cells[-1].high - cells[0].low > WIDTH and any(c.size for c in cells)]
    if not found and edges == EDGES:
        return components(integrand, FAR)
    return [cells for cells in found if cells[-1].high > 0] or found


def _gaps(integrand: str, edges: tuple[float, ...]) -> list[Any]:
    """Return the points where the integrand is undefined although it may have a limit there.

    They are real zeros of divisors and of the expressions in UNDEFINED_AT, found by changes of sign.
    """
    vanish = []  # texts of expressions whose zeros are gaps
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
        for low, high in pairwise(grid):  # a change of sign is a zero, or a pole of q
            if mpmath.sign(mpmath.re(q(low))) * mpmath.sign(mpmath.re(q(high))) < 0:
                for _ in range(60):  # bisection
                    middle = (low + high) / 2
                    same_sign = mpmath.sign(mpmath.re(q(middle))) == mpmath.sign(mpmath.re(q(low)))
                    low, high = (middle, high) if same_sign else (low, middle)
                found.append(low)
    return found


# --- run ------------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """The verdict on an attack (accepted, within limits, refused or unverifiable) and the time it took."""

    attack: Attack
    verdict: str
    ms: float


def tried(attack: Attack) -> Outcome:
    """Grade an attack, and measure the processor time. A slow grading is repeated, and the fastest one counts."""
    f, lower, upper, _ = attack.problem
    if lower is not None:
        verify(f, "0", lower=lower, upper=upper)  # computes the integral's value, so that it is not measured below
    times: list[float] = []
    while len(times) < TRIES and min(times, default=SLOW_MS + 1) > SLOW_MS:
        answer = attack.answer + " " * len(times)  # a different text, because verdicts are cached
        started = time.process_time()
        grade = verify(f, answer, lower=lower, upper=upper)
        times.append((time.process_time() - started) * 1e3)
    verdict = {0.0: "refused", None: "unverifiable"}.get(grade.reward, "accepted")
    if verdict == "accepted" and is_right(attack.problem, attack.answer):
        verdict = "within limits"
    return Outcome(attack, verdict, min(times))


def main(
    attacks_: Annotated[int, typer.Option("--attacks", help="Total number of attacks.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Seed of the attacks.")] = 0,
    only: Annotated[str | None, typer.Option(metavar="TRICK", help="Only attacks that contain this trick.")] = None,
    out: Annotated[Path, typer.Option(help="File for the counts.")] = HERE / "results" / "verifier_attacks.json",
) -> None:
    """Attack the verifier with wrong answers that look right, and count those that it accepts."""
    if only is not None and only not in TRICKS:
        raise typer.BadParameter(f"must be one of {', '.join(TRICKS)}", param_hint="--only")
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
TRIES = 4  # a busy machine may pause a process now and then
TRICKS = [*COPIES, *DISGUISES, *FROZEN, *STEPS, *ARGUMENTS, *ERRORS, *WRAPPERS, *VALUES, *HIDDEN_VALUES]

if __name__ == "__main__":
    typer.run(main)
