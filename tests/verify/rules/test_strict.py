"""Most answers are decided by one evaluation. The check by component takes ten times as long."""

import pytest

from ladder_lite.verify.numerics.integrand import prepare
from ladder_lite.verify.rules import strict

RIGHT = [
    ("sin(x)*cos(x)", "sin(x)**2/2"),
    # F breaks only where f does.
    ("1/x", "log(Abs(x))"),
    ("1/sqrt(1-x**2)", "-acos(x)"),
    ("tan(x)", "-log(cos(x))"),
    # F has turns, roots or logarithms of its own.
    ("1/(1+x**2)", "atan(x)"),
    ("1/sqrt(1+x**2)", "log(x+sqrt(x**2+1))"),
    ("1/sqrt(x**2-9)", "acosh(x/3)"),
    ("csc(x)", "log(tan(x/2))"),
    ("sqrt((1-x)/(1+x))", "asin(x)+sqrt(1-x**2)"),
    ("1/log(x)", "li(x)"),
    # They are so close to each other, or to an end, that the increments of F are needed.
    ("1/(x*sqrt(1+x**6))", "-asinh(x**(-3))/3"),
    ("1/sqrt(x**2+1)", "atanh(x/sqrt(x**2+1))"),
    ("tan(x)", "log(1+tan(x)**2)/2"),
    ("1/sqrt(x*(1-x))", "2*asin(sqrt(x))"),
    ("exp(tan(x))*sec(x)**2", "exp(tan(x))"),
    ("x**x*(1+log(x))", "x**x"),
    ("1/(2*x+7)**3", "-1/(4*(2*x+7)**2)"),
    ("x**5/(1+x**3)**2", "log(x**3+1)/3+1/(3*(x**3+1))"),
    ("sin(x)**3/sqrt(cos(x))", "2*cos(x)**(5/2)/5-2*sqrt(cos(x))"),
    # Complex values.
    ("1/(1+x**2)", "I/2*log((1-I*x)/(1+I*x))"),
    ("cos(x)", "(exp(I*x)-exp(-I*x))/(2*I)"),
    # Lost digits at a few points.
    ("(x+1)**5", "x**6/6+x**5+5*x**4/2+10*x**3/3+5*x**2/2+x"),
    ("tanh(x)", "x+log(1+exp(-2*x))"),
    ("tan(x)**5", "tan(x)**4/4-tan(x)**2/2-log(cos(x))"),
    ("x**4*(1-x)**4/(1+x**2)", "x**7/7-2*x**6/3+x**5-4*x**3/3+4*x-4*atan(x)"),
]
WRONG = [
    ("cos(x)", "-sin(x)"),
    ("cos(x)", "1.0001*sin(x)"),
    ("x**9", "x**10/10+x"),
    ("1/(1000+x**2)", "x/7"),
    ("1/x", "log(x)+x/7"),
    ("sqrt(x)", "x**(3/2)"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("integrand", "answer"), [*RIGHT, *WRONG])
def test_one_evaluation_is_enough(integrand: str, answer: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "examine", lambda *_: pytest.fail("examined by component"))
    problem = prepare(integrand, "x", seed)
    fault = strict.is_antiderivative(problem.read(answer, constant_of_integration=True), problem)
    assert (fault is None) is ((integrand, answer) in RIGHT)
