import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings

from ladder_lite.install import shipped
from ladder_lite.verify import Reason, reward, verify
from ladder_lite.verify.lines import MALFORMED
from ladder_lite.verify.numerics.integrand import prepare
from tests.support.commands import run_command
from tests.support.properties import BUDGET_MS, PAIRS, SLIPS, TEXTS, grades_in_time, judges_rightly

DATA = Path(__file__).parents[1] / "data"
CASES = [json.loads(line) for line in (DATA / "verifier_cases.jsonl").open()]
# Answers that graders get wrong or once did: other forms of right answers, spellings, exploits, all kinds of integrals.
FAULTS = [json.loads(line) for line in (DATA / "verifier_faults.jsonl").open(encoding="utf-8")]
# The MIT Integration Bee's qualifying exams of 2023 to 2025 with their official answers, transcribed.
QUALIFIERS = [json.loads(line) for line in (shipped("benchmarks") / "mit_bee.jsonl").open()]


@pytest.fixture(scope="module", autouse=True)
def _import_scipy() -> None:
    verify("sin(x)/x", "Si(x)")  # so that no test measures the time of this import


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_labelled_cases(case: dict[str, Any]) -> None:
    started = time.process_time()  # not wall-clock time, because the machine may be busy
    grade = verify(case["integrand"], case["answer"], lower=case.get("lower"), upper=case.get("upper"))
    assert (grade.reward == 1.0) is case["accept"], grade
    if "budget_ms" in case:
        assert (time.process_time() - started) * 1e3 < case["budget_ms"]


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: f"{case['id']}-{case['kind']}".replace(" ", "_"))
def test_labelled_past_errors_of_graders(case: dict[str, Any]) -> None:
    options = {name: case[name] for name in ("variable", "lower", "upper") if name in case}
    grade = verify(case["integrand"], case["answer"], **options)
    assert grade.reward == {True: 1.0, False: 0.0, "unverifiable": None}[case["accept"]], grade


@pytest.mark.parametrize("problem", QUALIFIERS, ids=lambda problem: problem["id"])
def test_official_answers(problem: dict[str, Any]) -> None:
    grade = verify(problem["integrand"], problem["answer"], lower=problem["lower"], upper=problem["upper"])
    assert grade.reason == Reason.CORRECT, grade


RIGHT = [
    # Other forms of the same function.
    ("1/(1+x**2)", "-atan(1/x)"),
    ("1/(x**2-1)", "log(x-1)/2-log(x+1)/2"),
    ("1/(x**2-1)", "log(Abs((x-1)/(x+1)))/2"),
    ("1/(x**2-1)", "-acoth(x)"),
    ("1/x", "log(-x)"),
    ("sec(x)", "2*atanh(tan(x/2))"),
    ("sec(x)", "log(Abs(sec(x)+tan(x)))"),
    ("1/(1+exp(-x))", "x+log(1+exp(-x))"),
    ("3*x**2*tanh(x**3)", "log(cosh(x**3))"),
    # Right on one component of the domain, or only there.
    ("1/(x*sqrt(x**2-1))", "asec(x)"),
    ("sqrt(x**2-4)", "x*sqrt(x**2-4)/2-2*log(x+sqrt(x**2-4))"),
    ("x**(1/3)", "3*x**(4/3)/4"),
    ("log(x**2)", "2*x*log(x)-2*x"),
    # Kinks and steps of the integrand.
    ("Abs(x-1)", "(x-1)*Abs(x-1)/2"),
    ("Abs(x)", "x**2*sign(x)/2"),
    ("sign(x)", "Abs(x)"),
    ("floor(x)", "x*floor(x)-floor(x)*(floor(x)+1)/2"),
    # Jumps at poles inside F (Weierstrass substitution), and SymPy's steps that undo them.
    ("1/(2+cos(x))", "2*atan(tan(x/2)/sqrt(3))/sqrt(3)"),
    ("1/(2+cos(x))", "2*sqrt(3)*(atan(tan(x/2)/sqrt(3))+pi*floor((x/2-pi/2)/pi))/3"),
    # Complex values with the right derivative.
    ("exp(I*x)", "-I*exp(I*x)"),
    ("1/(x**2+1)", "-I*log((1+I*x)/(1-I*x))/2"),
    # Jumps at poles of tan where the integrand has kinks.
    ("sqrt((1+cos(6*x))/2)", "sqrt(2)*sqrt(1-tan(3*x)**2/(tan(3*x)**2+1)+1/(tan(3*x)**2+1))*tan(3*x)/6"),
    # Real cube roots, if the integrand has them.
    ("cbrt(x)", "3*x**(4/3)/4"),
    # Overflow; narrow domains and domains far from 0.
    ("csc(x)**2*tan(x)**2024", "tan(x)**2023/2023"),
    ("exp(-(x-2024)**2/4)", "sqrt(pi)*erf((x-2024)/2)"),
    ("sqrt((x-5)*(5.001-x))", "(x-5.0005)*sqrt((x-5)*(5.001-x))/2+0.0005**2*asin((x-5.0005)/0.0005)/2"),
    ("log(x+10**6)", "(x+10**6)*log(x+10**6)-x"),
    ("(x**2021+2*x**4043)/(x**2022+x**4044)", "log(x**2022+x**4044)/2022"),
    # Some digits are lost, but not all.
    ("tanh(x)", "x-log(tanh(x)+1)"),
    ("(1-x/2)**(-5)", "32/(4*x**4-32*x**3+96*x**2-128*x+64)"),
    ("1/(1+exp(x))**2", "x-log(exp(x)+1)+1/(exp(x)+1)"),
    # The integrand is zero up to rounding: any constant is right.
    ("(cos(x)+cos(x+2*pi/3)+cos(x-2*pi/3))**2", "0"),
    ("(1-x)**3+(x-x**2)**3+(x**2-1)**3-3*(1-x)*(x-x**2)*(x**2-1)", "C"),
    ("0", "7"),
    # Special functions.
    ("1/log(x)", "li(x)"),
    ("sin(x**2)", "sqrt(pi/2)*fresnels(x*sqrt(2/pi))"),
    ("log(1-x)/x", "-polylog(2,x)"),
    ("exp(x**2)", "sqrt(pi)*erfi(x)/2"),
    # Notation.
    ("x**2*log(x)", "x³/3·ln x \u2212 x³/9 + C"),
    ("x*exp(x)", r"\(\boxed{e^{x}\left(x-1\right)+C}\)"),
    ("1/(x*log(10))", r"\log_{10}(x)"),
    ("x**2", r"\frac13 x^3 + C, where C is a constant"),
    ("x**2", "Rational(1, 3)*x**3"),
    ("sqrt(x)", "**2/3 root(x, 2)^3**"),
    ("exp(2*x)", "½e²ˣ + C, C \N{ELEMENT OF} \N{DOUBLE-STRUCK CAPITAL R}"),
    ("sin(x)+3*cos(3*x)", "-cosx + sin3x + C."),
    # A pole of tan in F, where the integrand vanishes.
    ("1/(3/2+2/3*tan(x)**2)", "6*x/5-4*atan(2*tan(x)/3)/5"),
    # F is steep, and so is the integrand.
    ("300*tanh(100*(x-3))**2/cosh(100*(x-3))**2", "tanh(100*(x-3))**3"),
    # The answer is constant wherever it is defined, and the integrand is zero.
    ("10**6*(log(x**2)-2*log(x))", "exp(x)*exp(-x)/10**6"),
    ("(sqrt(x**2)-x**2/sqrt(x**2))/x", "sqrt(x**2)/x"),
    # f or F overflows, underflows or loses its digits where it matters, or F needs hundreds of digits.
    ("1/(3/2*exp(7/3*x)+2/3*exp(-7/3*x))", "atan(sqrt(3/2)*exp(7/3*x)/sqrt(2/3))/(sqrt(3/2)*sqrt(2/3)*7/3)"),
    ("-32*log(3)/x**2/exp(2*log(3)/x)", "-6-16/exp(2*log(3)/x)"),
    ("exp(x)/sqrt(exp(2*x)-3)", "atanh(exp(x)/sqrt(exp(2*x)-3))"),
    ("(2*x**2+96)/x**2/exp(24/x**2)", "3*exp(9)+2*x/exp(24/x**2)-exp(5)"),
    ("exp(1/(5+x)-exp(1/(5+x)))*(x-3)/(5+x)**2+exp(-exp(1/(5+x)))", "(x-3)/exp(exp(1/(5+x)))"),
    ("cos(x)", "sin(x)+0*exp(exp(48*x))"),
    ("exp(x**3)/exp(x**3)", "x"),
    ("exp(-(x-5000)**2)", "sqrt(pi)*erf(x-5000)/2"),
    # f is 0 on an interval.
    ("Heaviside(x)", "x*Heaviside(x)"),
    ("Max(0,x-3)", "Max(0,x-3)**2/2"),
    ("Piecewise((0,x<1),(x,True))", "Piecewise((0,x<1),(x**2/2-1/2,True))"),
    ("Heaviside(x-3)*Heaviside(16/5-x)", "Heaviside(x-3)*Heaviside(16/5-x)*(x-3)+Heaviside(x-16/5)/5"),
]

# The Taylor polynomial of the sine to degree 45, as nested products.
TAYLOR = "x*" + "".join(f"(1-x**2/({2 * k}*{2 * k + 1})*" for k in range(1, 23)) + "1" + ")" * 22
IN_PIECES = "cos(x-{d})*sin({d})+sin(x-{d})*(cos({d})-1)".format(d="(atan(tan(8*x))/8)")

# A sum of 240 nested error functions, which uses up the budget of a verdict.
COSTLY = "+".join("erf(" * 40 + f"2+x/10**{8 + k}" + ")" * 40 for k in range(6))
WRONG = [
    # Steps, open or in disguise.
    ("cos(x)", "sin(x)+sign(x-50)"),
    ("cos(x)", "sin(x)+ceiling(x/7)"),
    ("cos(x)", "sin(x)+Heaviside(x-3)"),
    ("cos(x)", "sin(x)+floor(x)/1000000"),
    ("cos(x)", "sin(x)+sqrt(x**2)/x"),
    ("cos(x)", "sin(x)+sqrt((x-50)**2)/(x-50)"),
    ("cos(x)", "sin(x)+Abs(x)*x**(-1)"),
    ("cos(x)", "sin(x)+log(-x)-log(x)"),
    ("cos(x)", "sin(x)+log(Abs(x))-log(x)"),
    ("cos(x)", "sin(x)+tanh(10**6*(x-3.3))"),
    ("cos(x)", "sin(x)+erf(10**6*(x-3))"),
    ("x", "x**2/2+(x**2)**(1/2)/x"),
    ("Abs(x)", "x*Abs(x)/2+sign(x)"),
    ("Abs(x)", "x*Abs(x)/2+Abs(x)/x"),
    ("floor(x)", "x*floor(x)"),
    # Right on only a part of a component.
    ("Abs(x)", "x**2/2+0*exp(exp(-1000*x))"),
    ("Abs(x-50)", "-(x-50)**2/2"),
    ("sqrt((x-50)**2)", "-(x-50)**2/2"),
    ("sqrt(1+sin(x))", "-2*sqrt(1-sin(x))"),
    ("cos(x)", "sin(x)+(x-50+Abs(x-50))**2"),
    ("cos(x)", "sin(x)+(x-50+sqrt((x-50)**2))**2"),
    # Seemingly right where a huge term hides the rest.
    ("1/(x+8)-exp(4*x**2)*x+sin(6*x)", "log(x+8)-exp(4*x**2)/8+cos(6*x)/6"),
    ("log(2*x)-exp(4*x**2)*x", "x*log(2*x)-exp(4*x**2)/8"),
    ("8*x*exp(4*x**2)+6/sqrt(9**2-x**2)+1/(x+5)", "exp(4*x**2)+6*asin(x)+log(x+5)"),
    # Small errors, errors far from 0, noise.
    ("cos(x)", "sin(x)*1.0000001"),
    ("cos(x)", "sin(x)+x*10**(-8)"),
    ("cos(x)", "sin(x)+exp(x-100)"),
    ("cos(x)", "sin(x)+10**(-20)*sin(10**20*x)"),
    ("exp(10*x)", "exp(10*x)/10+x/1000"),
    # Zero is not an antiderivative of an integrand that underflows.
    ("exp(-(x-2024)**2/4)", "0"),
    ("x**2024", "0"),
    ("csc(x)**2*tan(x)**2024", "0"),
    # The integrand is zero, but the answer is not constant.
    ("10**6*(log(x**2)-2*log(x))", "x/10**3"),
    ("(cos(x)+cos(x+2*pi/3)+cos(x-2*pi/3))**2", "x/10**9"),
    ("sin(x)**2+cos(x)**2-1", "10**(-20)*sin(10**20*x)"),
    ("sin(x)**2+cos(x)**2-1", "sign(x-7)"),
    ("0", "sign(x-50)"),
    ("0", "10**16+sign(x-3)"),
    # F loses values or digits where f has them.
    ("cos(x)", "sin(x)+exp(5*(x-5))+0*exp(exp(1000*x))"),
    ("cos(x)", "sin(x)+exp(5*(x-5))+10**15*exp(5*(x-5))-10**15*exp(5*(x-5))"),
    ("cos(x)", "sin(x)+1/(1+exp(10**12*(x-3)))"),
    ("1", "Abs(x)+0/(x+Abs(x))"),
    # A step far away, alone or among decoys.
    ("cos(x)", "sin(x)+sqrt(50-x)/sqrt(x-50)"),
    ("cos(x)", "sin(x)+I*log(50-x)-I*log(x-50)"),
    ("cos(x)", "sin(x)+sign(x-60)+0*atan(sin(30*x))"),
    ("cos(x)", "sin(x)+sqrt((x-60)**2)/(x-60)+0*atan(sin(30*x))"),
    ("cos(x)", "sin(x)+atan(10**15*(x-9.3))+0*atan(sin(30*x))"),
    # Right only where it is finite, only to one part in 1e9, or only between two leaps.
    ("cos(x)", f"{TAYLOR}+0*exp(4*x**2)"),
    ("cos(x)", "sin(x)+x/10**11"),
    ("cos(x)", IN_PIECES),
    # Jumps of logarithms and roots of complex arguments; at a root of f without a branch point; among many decoys.
    ("cos(x)", "sin(x)+I*log(-1+I*(x-3))-I*log(1-I*(x-3))"),
    ("cos(x)", "sin(x)+sqrt(-1+I*(x-3))/sqrt(1-I*(x-3))"),
    ("sqrt((x-3)**2+10**(-10))", "(x-3)*sqrt((x-3)**2+10**(-10))/2+asinh((x-3)*10**5)/(2*10**10)+100*sign(x-3)"),
    ("40*x*cos(20*x**2)", "sin(20*x**2)+sqrt((x-9)**2)/(x-9)"),
    ("cos(x)", "sin(x)+sign(x-60)" + "".join(f"+0*sign(x-{k})" for k in range(20, 40))),
    # Steps hidden by rounding.
    ("x*sqrt(x+3)", "2*(x+3)**(5/2)/5-2*(x+3)**(3/2)+40*erf(10**9*((x+10**20)-10**20-74/101))"),
    ("x**x*(1+log(x))", "x**x+(-1)**floor(6*((x+10**16)-10**16))/1000"),
    # A step close to an end of the domain, or where f overflows; steps within rounding noise, where f is steep.
    ("x**2*acos(x)", "x**3*acos(x)/3-sqrt(1-x**2)/3+(1-x**2)**(3/2)/9+Abs(x-98/101)/(x-98/101)/100"),
    ("1/sqrt(4*x-x**2)", "asin(x/2-1)-tanh(10**20*(x-384/97))/1000"),
    ("1/sqrt(x**2-9)", "acosh(x/3)+sqrt(x-292/97)*sqrt(1/(x-292/97))"),
    ("sqrt((1-x)/(1+x))", "asin(x)+sqrt(1-x**2)+(x-95/100)/sqrt((x-95/100)**2+10**(-37))/100"),
    ("(1+2*x**2022)/(x+x**2023)", "log(x**2022+x**4044)/2022+Heaviside(x-355/101)"),
    ("(1+2*x**2022)/(x+x**2023)", "log(x**2022+x**4044)/2022+(x-383/97)/sqrt((x-383/97)**2+10**(-57))"),
    ("x*exp(3*x**2)", "exp(3*x**2)/6+sqrt(cos(9*((x+10**17)-10**17))**2)/cos(9*((x+10**17)-10**17))/100"),
    # The domain of f does not end where f is 0, overflows or underflows.
    ("Heaviside(x)", "x"),
    ("Max(0,x-3)", "(x-3)**2/2"),
    ("Piecewise((0,x<1),(x,True))", "x**2/2"),
    ("Max(0,x)", "x**2/2+Heaviside(-x)*x**3"),
    ("Heaviside(x-3)*Heaviside(16/5-x)", "7"),
    ("10**91*Heaviside(3-x)+1", "x"),
    ("exp(x**3)/exp(x**3)", "x+1000*sqrt((x-9)**2)/(x-9)"),
    ("exp(-(x-5000)**2)", "7"),
    # A step where f is steep, and one close to an end.
    ("x**(-2)", "-1/x+1000*Heaviside(x-10**(-5))"),
    ("1/((x-1)**2+10**(-10))", "10**5*atan((x-1)*10**5)+100*Heaviside(x-1)"),
    ("1/x", "log(x)+Heaviside(x-10**(-6))/10"),
    ("log(x-2)", "(x-2)*log(x-2)-x+10**3*sqrt((x-2-10**(-5))**2)/(x-2-10**(-5))"),
    # A fold or step between the outermost base points and an end: far away, on the left, at a double pole.
    ("sec(x)**3", "sqrt((sec(x)*tan(x)/2+log(Abs(sec(x)+tan(x)))/2+10**4)**2)"),
    # asin(+-1) has no slope in floating point, and near the ends the integral of f is unknown: only balls can tell.
    ("sec(x)**3", "sqrt(((sec(x)*tan(x)+log(sec(x)+tan(x)))/2+10**-4*asin((x-1)/Abs(x-1))+10**8)**2)"),
    ("sec(x)**3", "sin(x)/(2*cos(x)**2)+atanh(sin(x))/2+sqrt((sec(x)*tan(x)+10**3)**2)/(sec(x)*tan(x)+10**3)"),
    ("1/(1+cos(x))", "sqrt((tan(x/2)+10**4)**2)"),
    ("sec(x)**2+1/(x-12)**2", "-sqrt((tan(x)-1/(x-12)-10**5)**2)"),
    ("x**(-2)", "-sqrt((sqrt((-1/x+10**4)**2)-2*10**4)**2)"),
    ("1/(x**2-10*x+25)", "-sqrt((sqrt((1/(5-x)+10**3)**2)-2*10**3)**2)"),
    ("1/(x**2-60*x+900)", "1/(30-x)+log((1/(30-x)+50)**2)/2-log(1/(30-x)+50)+I*log(50-1/(30-x))-I*log(1/(30-x)-50)"),
    ("1/(x+30)**2", "sqrt((50-1/(x+30))**2)"),
    ("1/(x+30)**2", "tanh(10**9*(50-1/(x+30)))-1/(x+30)"),
    ("1/sqrt(x-3)**3", "tanh(10**9*(3/10-2/sqrt(x-3)))-2/sqrt(x-3)"),
    ("1+tan(x/7)**2", "sqrt((7*tan(x/7)+10**3)**2)"),
    ("1/(x-31)-1/(x-29)", "-sqrt((sqrt((log((x-31)/(x-29))+7)**2)-14)**2)"),
    ("1/(2+cos(x))+1/(x-30)**2", "-sqrt((sqrt((2*atan(tan(x/2)/sqrt(3))/sqrt(3)-1/(x-30)+50)**2)-100)**2)"),
    # Answers that use up the whole budget of a verdict.
    ("1/x", f"log(x)+log(x)/10**11+1000*sqrt((x-1)**2)/(x-1)+10**(-30)*({COSTLY})"),
    ("1/x", f"log(x)+log(x)/10**10+10**(-30)*({COSTLY})"),
    # f oscillates too fast for its integral to be known.
    ("10**6*cos(10**6*x)", "sin(10**6*x)+sign(x-3)/10"),
    # The integrand is huge at all base points.
    ("cosh(sqrt(2012-x))", "2*cosh(sqrt(2012-x))-2*sqrt(2012-x)*sinh(sqrt(2012-x))+x/7"),
    # Not functions at all.
    ("cos(x)", "sin(x)+10**400"),
    ("cos(x)", "oo"),
    ("cos(x)", "sin(x)/0"),
]


@pytest.mark.parametrize(("integrand", "answer"), RIGHT)
def test_right_answers(integrand: str, answer: str) -> None:
    assert verify(integrand, answer).reason == Reason.CORRECT


@pytest.mark.parametrize(("integrand", "answer"), WRONG)
def test_wrong_answers(integrand: str, answer: str) -> None:
    assert verify(integrand, answer).reward == 0.0


@pytest.mark.parametrize("seed", range(1, 6))
def test_other_seeds_agree(seed: int) -> None:
    assert [pair for pair in RIGHT if verify(*pair, seed=seed).reward != 1.0] == []
    assert [pair for pair in WRONG if verify(*pair, seed=seed).reward != 0.0] == []


@pytest.mark.parametrize(
    ("integrand", "answer", "reason"),
    [
        ("cos(x)", " ", Reason.NO_ANSWER),
        ("cos(x)", "sin(", Reason.UNPARSEABLE),
        ("cos(x)", "sin(y)", Reason.FORBIDDEN),
        ("cos(x)", "9**9**9**9", Reason.TOO_LARGE),
        ("cos(y)", "sin(x)", Reason.UNVERIFIABLE),
        ("sqrt(-1-x**2)", "x", Reason.UNVERIFIABLE),
    ],
)
def test_reasons_for_a_reward(integrand: str, answer: str, reason: Reason) -> None:
    grade = verify(integrand, answer)
    assert grade.reason == reason
    assert grade.reward == (None if reason == Reason.UNVERIFIABLE else 0.0)


@pytest.mark.parametrize(
    ("integrand", "answer", "reason"),
    [
        ("x*exp(x)", "(x-1)*exp(x)", Reason.CORRECT),
        ("cos(x)", "1.001*sin(x)", Reason.CORRECT),  # the published tolerance
        ("cos(x)", "1.02*sin(x)", Reason.WRONG),
        ("1/x", "log(x)", Reason.CORRECT),
        ("sqrt(x-100)", "x", Reason.UNVERIFIABLE),
        ("cos(x)", "__import__('os')", Reason.FORBIDDEN),
    ],
)
def test_paper_protocol(integrand: str, answer: str, reason: Reason) -> None:
    assert verify(integrand, answer, protocol="paper").reason == reason


def test_paper_protocol_is_for_antiderivatives_only() -> None:
    assert verify("x", "1/2", lower="0", upper="1", protocol="paper").reward is None


# Steps, open or in disguise. Most are constant between their jumps, so only the jumps make sin(x) + step wrong.
STEPS = """
sign(x-50) ; floor(x)/10**6 ; Heaviside(x-3) ; x/Abs(x) ; x**2/x/Abs(x) ; exp(log(Abs(x-3)))/(x-3)
sqrt((x-3)**2)/(x-3) ; sqrt(x**2-6*x+9)/(x-3) ; (x**2-6*x+9)**(1/2)/(x-3) ; sqrt((x-3)*(x-3))/(x-3)
(x-3)/sqrt((x-3)**2+10**(-20)) ; (x-3)/((x-3)**2+10**(-20))**(1/2) ; exp(log((x-3)**2)/2)/(x-3)
cbrt((x-3)**3)/Abs(x-3) ; sqrt(cos(x)**2)/cos(x) ; asin(sin(x))-x ; acos(cos(x))-x ; atan(tan(x))-x+floor(x)
(x-20)/sqrt((x-20)**2) ; (x-20)/sqrt((x-20)**2+10**(-20)) ; sqrt((x-31)**2)+sqrt((x-39)**2)-2*sqrt((x-35)**2)
tanh(10**6*(x-3.3)) ; tanh(1000*(x-7.77))/1000 ; tanh(10**6*(x-60)) ; tanh(sinh(50*(x-1))) ; tanh(x**3*1000-5000)
atan(10**9*(x-3.3))/10**6 ; atan((x**2-4)*10**8) ; atan(10**9*(sin(x)-1/2)) ; atan(exp(x)*10**9-5*10**9)
erf(10**6*(x-3)) ; erfc(10**7*(x-5)) ; erf((x-3)**3*10**15) ; Si(10**7*(x-3))/100 ; fresnels(10**6*(x-2))
1/(1+exp(-10**5*(x-2))) ; 1/(1+exp(-10**5*(x-57))) ; exp(-exp(-1000*(x-2))) ; 2**(-exp(-1000*(x-2)))
1/(1+(x/4)**1000) ; exp(-(x/4)**1000) ; log(-x)-log(x) ; I*log(-x)-I*log(x) ; sqrt(-x)/sqrt(x)
log(exp(I*x))/I-x ; loggamma(x+3)-loggamma(x+2)-log(x+2)+sign(x)
"""


@pytest.mark.parametrize("step", [step.strip() for line in STEPS.strip().splitlines() for step in line.split(";")])
def test_steps_are_detected(step: str) -> None:
    assert [seed for seed in range(3) if verify("cos(x)", f"sin(x)+{step}", seed=seed).reward != 0.0] == []


# --- properties -----------------------------------------------------------------------------------------------------

TRIED = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def test_antiderivatives_are_accepted_and_those_with_a_slip_are_not() -> None:
    outcomes: Counter[str] = Counter()

    @TRIED
    @given(PAIRS, SLIPS)
    @example(("exp(sin(x))*x**2", "(cos(x)*exp(sin(x))*x**2+exp(sin(x))*2*x)"), "{F}+x/7")
    def judged(pair: tuple[str, str], slip: str) -> None:
        outcomes[judges_rightly(pair, slip)] += 1

    judged()
    assert outcomes["right accepted, wrong rejected"] > 0.9 * outcomes.total(), outcomes


@TRIED
@given(TEXTS)
def test_any_text_gets_a_grade_in_time(text: str) -> None:
    grades_in_time(text)


@pytest.mark.parametrize(
    "answer",
    [
        "+".join(f"sqrt(x**2+{n})/x" for n in range(100)),
        "sin(x)+digamma(-10**7*x)",
        "sin(x)+10**13+x+0*(3/5)**exp(x**4)",
        "sin(x)+10**12+Max(I*x,0)-Max(I*x,0)+x",
        "sin(x)+10**12+Si(I*x+300)-Si(300+I*x)+x",
        "sin(x)+10**14+x+I*0*(" + "+".join(f"Si(x+{n})" for n in range(1, 150)) + ")",
        "+".join(f"floor(x*{n})" for n in range(1, 200)),
        "*".join(f"gamma(x+{n})" for n in range(100)),
        "polylog(2, " * 20 + "x" + ")" * 20,
        "exp(" * 70 + "x" + ")" * 70,
        "x^x" * 70,
        "|" * 3000,
        "{" * 1900 + "}" * 1900,
        ")" * 3000 + "(" * 2000 + "2x" + ")" * 2000,
        ")" * 4000 + "(" * 3990 + "2x",
    ],
    ids=[
        "roots",
        "digamma",
        "tower",
        "complex maximum",
        "complex Si",
        "far Si",
        "steps",
        "gammas",
        "polylogs",
        "towers",
        "powers",
        "bars",
        "braces",
        "unbalanced",
        "unclosed",
    ],
)
def test_costly_answers_stay_in_budget(answer: str) -> None:
    verify("cos(x)", "sin(x)")
    started = time.process_time()
    assert verify("cos(x)", answer).reward == 0.0
    assert (time.process_time() - started) * 1e3 < BUDGET_MS


@pytest.mark.parametrize(
    ("integrand", "answer", "bounds"),
    [
        ("x", "+".join(["x"] * 1000), {}),
        ("x", "x**(1e308+1.7e308*I)", {}),
        ("x", "1.5e308+1.5e308*I", {"lower": "0", "upper": "1"}),
        ("x", "1/2", {"lower": "0", "upper": "1.5e308+1.5e308*I"}),
        ("1/sqrt(1-x**2)", "1", {"lower": "1", "upper": "oo"}),
        ("Piecewise((dilog(x)*(x-x),digamma(x)<=cbrt(x)),(erf(x)-x,True))", "x", {}),
    ],
)
def test_extreme_answers_do_not_raise(integrand: str, answer: str, bounds: dict[str, str]) -> None:
    assert verify(integrand, answer, **bounds).reward != 1.0


@pytest.mark.parametrize("integrand", ["exp(-1000)*x", "x*10**(-400)", "exp(-1000-x**2)"])
def test_an_integrand_that_underflows_is_not_zero(integrand: str) -> None:
    assert verify(integrand, "7").reward != 1.0


@pytest.mark.parametrize("integrand", ["exp(1000-(x-50.3)**2*10**4)", "exp(-1000-(x-50.3)**2*100)"])
def test_an_integral_that_underflows_is_not_zero(integrand: str) -> None:
    assert verify(integrand, "0", lower="0", upper="100").reason is Reason.UNVERIFIABLE


def test_threads_get_the_same_grades() -> None:
    expected = [verify(*pair).reason for pair in RIGHT]
    prepare.cache_clear()  # so that the threads race for the cached properties of an integrand
    found: list[list[Reason]] = []
    threads = [
        threading.Thread(target=lambda: found.append([verify(*p, seed=0).reason for p in RIGHT])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# --- reward function and command line -------------------------------------------------------------------------------


def test_reward_function_reads_texts_and_messages() -> None:
    completions = [
        "<answer>x**2</answer> no: <answer>x**2/2</answer>",
        [{"role": "assistant", "content": "x**3"}],
        "1/3",
        "x",
        "<think><answer>x**2</answer>?</think> <answer>x**2/2</answer>",
    ]
    rewards = reward(
        completions,
        ["x", "x", "t**2", "y", "x"],
        variable=["x", "x", "t", "x", "x"],
        lower=[None, None, 0, None, None],
        upper=[None, None, 1.0, None, None],
        prompts=["?"] * 5,
    )
    assert rewards == [1.0, 0.0, 1.0, None, 1.0]


def test_lines_are_graded_in_order_and_malformed_ones_reported(tmp_path: Path) -> None:
    lines = [
        '{"id": "a", "integrand": "x", "answer": "x**2/2"}',
        "{broken",
        "",
        '{"integrand": "x**2", "lower": 0, "upper": 1, "answer": "1/3"}',
        '{"id": "b", "integrand": "x"}',
        '{"id": "c", "integrand": "y", "answer": "x"}',
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(lines))
    for options in ([], ["--workers", "2"]):
        run = run_command("verify", str(file), *options)
        assert run.returncode == 0, run.stderr
        assert run.stderr == "graded 5: 2 CORRECT, 2 MALFORMED_LINE, 1 UNVERIFIABLE\n"
        rows = [json.loads(line) for line in run.stdout.splitlines()]
        assert [row["id"] for row in rows] == ["a", None, 4, None, "c"]
        assert [row["correct"] for row in rows] == [True, None, True, None, None]
        assert [row["reason"] for row in rows][1::2] == [MALFORMED] * 2
        assert "line 2" in rows[1]["error"]
        assert "answer" in rows[3]["error"]


def test_the_command_line_grades_one_answer_and_reports_a_missing_file(tmp_path: Path) -> None:
    for integrand, answer, verdict in (("x", "x**2/2", "CORRECT"), ("x", "x**2", "WRONG"), ("y", "x", "UNVERIFIABLE")):
        run = run_command("verify", integrand, answer)
        assert run.stdout.startswith(verdict)
        assert run.returncode == (verdict != "CORRECT")
    for option in (["--lower", "0"], ["--variable", "x"]):
        unused = run_command("verify", "no_such_file.jsonl", *option)
        assert (unused.returncode, unused.stderr.count("\n")) == (2, 1)
        assert "INTEGRAND" in unused.stderr
    assert run_command("verify", "-x", "-x**2/2").stdout == "CORRECT\n"
    assert run_command("verify", "x**2", "1/3", "--lower", "0", "--upper", "1").stdout == "CORRECT\n"
    (tmp_path / "answers.jsonl").write_text("{}\n")
    nothing = run_command("verify", tmp_path / "answers.jsonl")
    assert (nothing.returncode, nothing.stdout.count("MALFORMED")) == (2, 1)
    assert nothing.stderr.splitlines()[1:] == ["error: no line has an integrand and an answer"]
    missing = run_command("verify", "no_such_file.jsonl")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: no_such_file.jsonl")
    assert missing.stderr.count("\n") == 1


def test_importing_the_verifier_is_light() -> None:
    heavy = ("torch", "scipy", "mpmath", "sympy", "typer")
    code = f"import sys, ladder_lite.verify; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
