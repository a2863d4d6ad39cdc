"""Properties of the verifier that hold for any input, and strategies that generate random functions and texts.

The functions come with their derivatives. These are composed here as strings by the rules of calculus, so that neither
the verifier nor SymPy checks itself.
"""

import time

import numpy as np
from hypothesis import strategies as st

from ladder_lite.verify import Reason, verify
from ladder_lite.verify.expressions.parse import parse

BUDGET_MS = 100  # processor time for grading any answer
LARGE = 1e4  # if an integrand is larger everywhere, a slip may be below the verifier's relative tolerance

Pair = tuple[str, str]  # F, F'

ATOMS: list[Pair] = [("x", "1"), ("x**2", "2*x"), ("(x+1)", "1"), ("(2*x+3)", "2"), ("3", "0"), ("(1-x/4)", "(-1/4)")]
# Function -> its derivative at u, without the factor u'.
FUNCTIONS = {
    "sin": "cos({u})",
    "cos": "(-sin({u}))",
    "tan": "(1+tan({u})**2)",
    "exp": "exp({u})",
    "log": "1/({u})",
    "sqrt": "1/(2*sqrt({u}))",
    "atan": "1/(1+({u})**2)",
    "asin": "1/sqrt(1-({u})**2)",
    "sinh": "cosh({u})",
    "cosh": "sinh({u})",
    "tanh": "1/cosh({u})**2",
    "asinh": "1/sqrt(1+({u})**2)",
    "erf": "2/sqrt(pi)*exp(-({u})**2)",
    "Si": "sin({u})/({u})",
}


def _combine(parts: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.one_of(
        st.tuples(parts, parts).map(_add),
        st.tuples(parts, parts).map(_multiply),
        st.tuples(parts, parts).map(_divide),
        st.tuples(st.sampled_from(sorted(FUNCTIONS)), parts).map(_call),
        st.tuples(parts, st.sampled_from([2, 3, -1, -2])).map(_power),
    )


def _add(pair: tuple[Pair, Pair]) -> Pair:
    (u, du), (v, dv) = pair
    return f"({u}-{v})", f"({du}-({dv}))"


def _multiply(pair: tuple[Pair, Pair]) -> Pair:
    (u, du), (v, dv) = pair
    return f"({u}*{v})", f"(({du})*({v})+({u})*({dv}))"


def _divide(pair: tuple[Pair, Pair]) -> Pair:
    (u, du), (v, dv) = pair
    return f"({u})/({v})", f"((({du})*({v})-({u})*({dv}))/({v})**2)"


def _call(pair: tuple[str, Pair]) -> Pair:
    name, (u, du) = pair
    return f"{name}({u})", f"({FUNCTIONS[name].format(u=u)}*({du}))"


def _power(pair: tuple[Pair, int]) -> Pair:
    (u, du), n = pair
    return f"({u})**({n})", f"({n}*({u})**({n - 1})*({du}))"


PAIRS = st.recursive(st.sampled_from(ATOMS), _combine, max_leaves=5)
SLIPS = st.sampled_from(["{F}+x/7", "{F}-sin(x)/50", "1.001*({F})+x/700", "({F})*(1+x/100)+x/9", "-({F})+x/7"])
TEXTS = st.one_of(
    st.binary(max_size=200).map(lambda data: data.decode("latin-1")),
    st.text(max_size=200),
    st.text("x0123456789+-*/^()[]{}|., sincoelgtaqrphfy\\$'\"", max_size=120),
    st.lists(st.sampled_from(["x", "2", "9", "**", "sin", "exp(", "log(", "gamma(", "C", "pi", *"()+-*/| "])).map(
        "".join
    ),
    PAIRS.map(lambda pair: pair[0]),
)


def judges_rightly(pair: Pair, slip: str) -> str:
    """Check that F is accepted as an antiderivative of F', and F with a slip is rejected. Return the outcome."""
    antiderivative, derivative = pair
    grade = verify(derivative, antiderivative)
    if grade.reason in (Reason.UNVERIFIABLE, Reason.TOO_LARGE):
        return grade.reason.value
    # The documented reasons to refuse a right answer.
    if any(rule in grade.detail for rule in ("division by zero", "cannot tell", "more places than")):
        return grade.detail.partition(":")[0]
    assert grade.reason == Reason.CORRECT, (derivative, antiderivative, grade)
    sizes = np.abs(parse(derivative).values(np.linspace(-9, 9, 64)))
    if np.nanmin(sizes, initial=np.inf) > LARGE:
        return "right accepted, too large for the slip to show"
    wrong = slip.format(F=antiderivative)
    assert verify(derivative, wrong).reward == 0.0, (derivative, wrong)
    return "right accepted, wrong rejected"


def grades_in_time(text: str) -> str:
    """Check that a text is rejected as an antiderivative of x**6*cos(x), in time and twice with the same grade."""
    times_ms, grades = [], []
    for _ in range(2):  # the faster grading counts, because a busy machine may pause the process
        started = time.process_time()
        grades.append(verify("x**6*cos(x)", text))
        times_ms.append((time.process_time() - started) * 1e3)
    assert min(times_ms) < BUDGET_MS, (times_ms, text)
    assert grades[0].reward == 0.0, (grades[0], text)
    assert grades[0] == grades[1], text
    return grades[0].reason.value
