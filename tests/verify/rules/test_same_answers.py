"""Which answers are the same: equal up to a constant on a component of the domain, or equal values."""

import time
from itertools import permutations

import pytest

from ladder_lite.problems import load_problems
from ladder_lite.tasks import plain_task
from ladder_lite.verify.numerics.definite import References
from ladder_lite.verify.rules.same_answers import same_answers
from ladder_lite.verify.rules.validity import Data

REFERENCES = References()


def data(integrand: str, lower: str | None = None, upper: str | None = None) -> Data:
    return {"integrand": integrand, "variable": "x", "lower": lower, "upper": upper}


TERMS = "9*exp(7*x**2)/14"  # so large that it hides other terms beyond x = 2
SUM = "-4*sin(9*x)-x*exp(6*x**2)-9/(5*x+8)+2*x*exp(5*x)"
WHOLE = "4*cos(9*x)/9-exp(6*x**2)/12-9*log(5*x+8)/5"
ROOT = "sqrt(x**2-16)+9*exp(9*x)"  # the second term hides the first one where x > 4
SAME = [
    ("a constant", "2*x", "x**2", "x**2 - 7"),
    ("C", "2*x", "x**2 + C", "C + x*x"),
    ("other words", "sin(x)", "-cos(x)", "2*sin(x/2)**2"),
    ("a factor within", "1/x", "log(x)", "log(2*x)"),
    ("a branch of the logarithm", "1/x", "log(x)", "log(-x)"),
    ("another domain", "1/x", "log(x)", "log(Abs(x))"),
    ("one component of two", "1/sqrt(x**2-1)", "acosh(x)", "log(x+sqrt(x**2-1))"),
    ("one component of two, by an inverse", "1/(x*sqrt(x**2-1))", "asec(x)", "atan(sqrt(x**2-1))"),
    ("poles without end", "sec(x)", "log(tan(x)+sec(x))", "log(tan(x/2+pi/4))"),
    ("two real roots", "cbrt(x)", "3*x**(4/3)/4", "3*cbrt(x)**4/4 + 1"),
    ("decimals", "x**2", "x**3/3", "0.33333333333*x**3"),
    ("a large term", f"9*x*{TERMS}+7*cos(8*x)", f"{TERMS}+7*sin(8*x)/8", f"(2*{TERMS}+7*sin(8*x)/4)/2"),
    ("a step that both have", "sqrt(x**2)/x", "Abs(x)", "x*sqrt(x**2)/x"),
    ("constants", "0", "5", "sqrt(2)"),
    ("wrong ones", "2*x", "x**3", "x*(x**2)+1"),
    ("a tiny function", "1e-12", "1e-12*x", "x/10**12 + 1"),
]
DIFFERENT = [
    ("another function", "2*x", "x**2", "x**3"),
    ("a small term", "1/x", "log(x)", "log(x)+1e-6*x"),
    ("a step", "2*x", "x**2", "x**2+floor(x)"),
    ("a step that is no named one", "2*x", "x**2 + 1e9", "x**2+sqrt(x**2)/x"),
    ("a step at a pole", "1/(1+x**2)", "atan(x)", "-atan(1/x)"),
    ("pieces of another constant", "1/(5-4*cos(x))", "2*atan(3*tan(x/2))/3", "x/3+2*atan(sin(x)/(2-cos(x)))/3"),
    ("a term that a large one hides on most points", f"9*x*{TERMS}", f"{TERMS}+7*sin(8*x)/8", f"{TERMS}+sin(8*x)"),
    ("a term that is hidden beyond a pole", SUM, f"{WHOLE}+2*(x/5-1/25)*exp(5*x)", f"{WHOLE}+2*(x/5-1/25)*exp(7*x)"),
    ("a term that is hidden beyond a root", ROOT, "exp(9*x)+log(x+sqrt(x**2-16))", "exp(9*x)+x"),
    ("a tiny function", "1e-12", "1e-12*x", "2e-12*x"),
    ("a term that is hidden where all slopes are large", "(10**8+x)**2", "(10**8+x)**3/3", "(10**8+x)**3/3+x/10**3"),
    ("no constant", "0", "5", "x"),
]


@pytest.mark.parametrize(("integrand", "one", "other"), [case[1:] for case in SAME], ids=[case[0] for case in SAME])
def test_the_same_antiderivative(integrand: str, one: str, other: str) -> None:
    for answers in permutations([one, other, "exp(x**2/99)"]):
        places = same_answers(data(integrand), answers, REFERENCES)
        assert places[answers.index(one)] == places[answers.index(other)] == min(map(answers.index, (one, other)))
        assert places[answers.index("exp(x**2/99)")] == answers.index("exp(x**2/99)")


@pytest.mark.parametrize(
    ("integrand", "one", "other"), [case[1:] for case in DIFFERENT], ids=[case[0] for case in DIFFERENT]
)
def test_different_antiderivatives(integrand: str, one: str, other: str) -> None:
    assert same_answers(data(integrand), [one, other, one], REFERENCES) == [0, 1, 0]
    assert same_answers(data(integrand), [other, one, other], REFERENCES) == [0, 1, 0]


def test_values_are_the_same_within_what_the_verifier_allows() -> None:
    answers = ["1/3", "0.333333", "0.33333", "2/6", "x", "1/0", "0.3333331 + 0*I", "(((", "1/3+1/10**7"]
    assert same_answers(data("x**2", "0", "1"), answers, REFERENCES) == [0, 0, 2, 0, None, None, 0, None, 8]
    assert same_answers(data("x", "-1", "1"), ["0", "1/10**11", "1/10**8", "1/10**4"], REFERENCES) == [0, 0, 2, 3]
    # The tolerance is relative to the value, not to the integral of |f|.
    assert same_answers(data("10**9*x+cos(x)", "-1", "1"), ["0", "2*sin(1)", "2", "sin(1)*2"], REFERENCES) == [
        0,
        1,
        2,
        1,
    ]
    assert same_answers(data("exp(x)", "0", "1000"), ["exp(1000)", "exp(1000)-1", "exp(999)"], REFERENCES) == [0, 0, 2]


@pytest.mark.parametrize("problem", [data("1/x", "0", "1"), data("1/x", "1", None), data("sqrt(-1-x**2)"), data("x**")])
def test_answers_to_an_invalid_integral_are_not_compared(problem: Data) -> None:
    assert same_answers(problem, ["x", "x", "1"], REFERENCES) == [None, None, None]


HOSTILE = [
    "",
    "\0",
    "<script>alert(1)</script>",
    "__import__('os').system('true')",
    "x" * 1_000_000,
    "(" * 5_000,
    "9**9**9**9",
    "x**9999999",
    "\u202e\x1b[2Jx",
    "exp(" * 70 + "x" + ")" * 70,
    "+".join(f"sin({n}*x)**{n}" for n in range(1, 90)),
    "*".join(["tan(x)"] * 400),
    "1/(x-x)",
    "log(x*0)",
    "floor(1e9*x)",
]


def test_hostile_answers_are_compared_in_bounded_time() -> None:
    problem = data("2*x")
    answers = [*HOSTILE, "x**2", *HOSTILE, "x**2+1"]
    started = time.process_time()
    places = same_answers(problem, answers, REFERENCES)
    assert time.process_time() - started < 10
    assert places[-1] == answers.index("x**2")
    assert places[: len(HOSTILE)] == places[len(HOSTILE) + 1 : -1]
    assert set(places[:9]) == {None}
    assert same_answers(problem, [], REFERENCES) == []


def test_official_answers_equal_their_rewordings() -> None:
    official = plain_task("integration").notes("undergrad")
    for problem in load_problems("undergrad", "test")[:60]:
        answer = str(official[problem.id].answer)
        reworded = f"1 + ({answer})" if problem.data["lower"] is None else f"2*({answer})/2"
        wrong = f"({answer}) + x/100" if problem.data["lower"] is None else f"({answer}) + 1/100"
        assert same_answers(problem.data, [answer, wrong, reworded], REFERENCES) == [0, 1, 0], problem.data["integrand"]
