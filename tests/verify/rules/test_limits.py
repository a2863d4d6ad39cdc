"""Answers just outside and just inside the limits of the strict rule, which `ladder_lite.verify` documents."""

import pytest

from ladder_lite.verify import verify

# A sum of nested error functions, which uses up the budget for ball arithmetic: floating point must decide.
COSTLY = "+10**(-30)*(" + "+".join("erf(" * 40 + f"2+x/10**{8 + k}" + ")" * 40 for k in range(6)) + ")"
HIDDEN = "erf(10**9*((x+10**20)-10**20-74/101))"  # a step that floating point does not see
ZERO = "(3*sin(x/3)-4*sin(x/3)**3-sin(x))"  # zero by an identity, with rounding noise


def signs(n: int) -> str:
    """Return a zero that may break at n far places."""
    return "".join(f"+0*sign(x-{place})" for place in range(50, 50 + n))


OUTSIDE = [
    # Steps above one part in 1e8 of the integral between two points, or in 1e11 where rounding hides them.
    ("cos(x)", "sin(x)+1e-7*Heaviside(x-1)"),
    ("cos(x)", "sin(x)+1.0e-7*Heaviside(x-1)"),
    ("cos(x)", "sin(x)+Heaviside(x-1)/10**9"),
    ("cos(x)", "sin(x)+sqrt((x-3)**2)/(x-3)/10**8"),
    ("cos(x)", "sin(x)+tanh(10**9*(x-3))/10**8"),
    ("Abs(x-1)", "(x-1)*Abs(x-1)/2+Heaviside(x-1)/10**9"),
    ("sign(x-1)", "Abs(x-1)+5*Heaviside(x-1)/10**6"),
    ("x*sqrt(x+3)", f"2*(x+3)**(5/2)/5-2*(x+3)**(3/2)+{HIDDEN}/10**9"),
    ("cos(x)", "sin(x)+sign((x+10**20)-10**20-3)/10**11"),
    # Errors of F' above one part in 1e9, or in 1e12 if the text has no decimals.
    ("cos(x)", "1.0000000015*sin(x)"),
    ("cos(x)", "sin(x)+9*x/10**13"),
    ("cos(x)", "sin(x)+x/10**11"),
    ("cos(x)", "sin(x)+x/10**12"),
    ("cos(x)", f"sin(x)+x/10**11{COSTLY}"),
    ("1/x", f"log(x)+log(x)/10**11{COSTLY}"),
    # An error of F' that is visible in ball arithmetic alone, above one part in 1e25.
    ("cos(x)", "sin(x)+10**9*exp(x)-10**9*exp(x/3)**3+x/10**22"),
    # f is large everywhere; with decimals, the error counts relative to how much f varies.
    ("10**9+cos(x)", "10**9*x+1.0000001*sin(x)"),
    ("10**9+cos(x)", "10.0**9*x+sin(x)+x/10**7"),
    # An error that shows only far from 0.
    ("cos(x)", "sin(x)+(x/30)**61"),
    # Too many places at which F may break: near ones, far ones, and infinite arguments of inverse tangents.
    ("cos(x)", "sin(x)+0*floor(2*x)"),
    ("cos(x)", f"sin(x){signs(17)}"),
    ("3/2", "atan(tan(3*x/2))"),
    # The same where f has a component that is far as a whole: the grid does not see all of its ends.
    ("cos(x)*log(sin(x))", "sin(x)*log(sin(x))-sin(x)+200*(-1)**floor(5*((x+10**13)-10**13))"),
    ("tan(x)", "-log(cos(x))+200*(-1)**floor(2*((x+10**15)-10**15))"),
    # Wrong on all components but those where f is so large that it hides the error.
    ("exp(x**2)*(2*x*cos(x)+sin(x))/cos(x)**2", "exp(x**2)/cos(x)-sin(x)/50"),
    ("cosh(x**2/(1-x/4))*(2*x*(1-x/4)+x**2/4)/(1-x/4)**2", "sinh(x**2/(1-x/4))-sin(x)/50"),
    ("exp(80*x/(x-1)+sqrt(x))*(1/(2*sqrt(x))-80/(x-1)**2)", "exp(80*x/(x-1)+sqrt(x))+x"),
    # Only ball arithmetic could tell whether F jumps, and it costs too much.
    ("cos(x)", f"sin(x)+0*sign(x){COSTLY}"),
    # f oscillates so fast that most of its integrals are unknown, and with them the growth of F.
    ("10**6*cos(10**6*x)", "sin(10**6*x)+atan(10**9*(x-3))/100"),
    ("10**9*cos(10**9*x)", "sin(10**9*x)+Heaviside(x-33/10)"),
    ("200*cos(200*x)", "sin(200*x)+0*sign(x-3)"),
    # f oscillates inside a place, between two near points, or towards an end: its integral there is unknown.
    ("cos(1/x)/x**2", "-sin(1/x)+sqrt((x-10**(-4))**2)/(x-10**(-4))"),
    ("cos(1/x)/x**2", "-sin(1/x)+2*(x-10**(-6))/sqrt((x-10**(-6))**2+10**(-40))"),
    ("exp(x)*cos(exp(x))", "sin(exp(x))+(x-9)/sqrt((x-9)**2+10**(-30))"),
    ("cos(x**(-1/3))/(3*x**(4/3))", "-sin(x**(-1/3))+(x-3/10**7)/sqrt((x-3/10**7)**2+10**(-40))"),
    # Steps farther from an end than 1e-7, and than one part in 1e7 of it.
    ("1/sqrt(2-x)", "-2*sqrt(2-x)+Heaviside(x-2+10**(-6))/10"),
    ("1/sqrt(2-x)", "-2*sqrt(2-x)+Heaviside(x-2+3*10**(-7))/10"),
    ("1/(2-x)**(2/3)", "-3*(2-x)**(1/3)+tanh(10**12*(x-2+3*10**(-7)))/10"),
    ("1/sqrt(15-x)", "-2*sqrt(15-x)+sign(x-15+2*10**(-6))/10"),
    ("1/sqrt(3-x**2)", "asin(x/sqrt(3))+sqrt((x-sqrt(3)+3/10**7)**2)/(x-sqrt(3)+3/10**7)/10"),
    ("sqrt(x-1/1000)", "2*(x-1/1000)**(3/2)/3+Heaviside(x-1/1000-2*10**(-7))/10**5"),
    # A step between the last near point and the place at which f overflows.
    ("exp(x**(13/5))/exp(x**(13/5))", "x+sqrt((x-12)**2)/(x-12)"),
    # f is only rounding noise, and the answer is wrong in sixty digits too.
    ("(sin(x)+10**17)-10**17", "x"),
    # F overflows at more than a tenth of the points.
    ("cos(x)", "sin(x)+0*exp(exp(1000*x))"),
]
INSIDE = [
    # Nine or ten decimals, which are wrong by less than one part in 1e9.
    ("1/(2+x**2)", "0.707106781*atan(0.707106781*x)"),
    ("cos(x)", "1.0000000007*sin(x)"),
    ("exp(x/3)", "3.000000001*exp(x/3)"),
    ("sqrt(x)", "0.6666666666*x**1.5"),
    ("floor(x)", "x*floor(x)-0.5000000001*floor(x)*(floor(x)+1)"),
    # Rounding noise that ball arithmetic cannot check.
    ("cos(x)", f"(sin(x)+10**8)-10**8{COSTLY}"),
    ("cos(x)", f"sin(x)+100*{ZERO}{COSTLY}"),
    # F' loses many digits, but not at most points.
    ("cos(x)", "sin(x)+10**7*(exp(x)-exp(x/3)**3)"),
    ("cos(x)", "sin(x)+10**9*exp(x)-10**9*exp(x/3)**3"),
    ("cos(x)", "sin(x)+10**9*exp(x)-10**9*exp(x/3)**3+x/10**28"),
    # A step below one part in 1e11.
    ("cos(x)", "sin(x)+sign((x+10**20)-10**20-3)*3/10**12"),
    # As many breaks as can be examined.
    ("cos(x)", "sin(x)+0*floor(x)"),
    ("Abs(sin(3*x))", "(2*floor(3*x/pi)+1-cos(3*x-pi*floor(3*x/pi)))/3"),
    ("cos(x)", f"sin(x){signs(16)}"),
    ("5/4", "atan(tan(5*x/4))"),
    ("1/(2+cos(x))", "2*acot(sqrt(3)*cot(x/2))/sqrt(3)"),
    # At least half of the integrals of f are known.
    ("100*cos(100*x)", "sin(100*x)+0*sign(x-3)"),
    # F overflows far from 0, or at less than a tenth of the points.
    ("cos(x)", "sin(x)+0*exp(exp(20*x))"),
    ("cos(x)", "sin(x)+0*exp(exp(300*(x-7)))"),
]


@pytest.mark.parametrize(("integrand", "answer"), OUTSIDE)
def test_answers_outside_the_limits_are_refused(integrand: str, answer: str) -> None:
    assert [verify(integrand, answer, seed=seed).reward for seed in range(3)] == [0.0] * 3


@pytest.mark.parametrize(("integrand", "answer"), INSIDE)
def test_right_answers_inside_the_limits_are_accepted(integrand: str, answer: str) -> None:
    assert [verify(integrand, answer, seed=seed).reward for seed in range(3)] == [1.0] * 3


def test_an_answer_may_lack_a_tenth_of_its_values() -> None:
    assert verify("cos(x)", "sin(x)+0*exp(exp(300*(x-5.95)))").reward == 0.0
    assert verify("cos(x)", "sin(x)+0*exp(exp(300*(x-6.5)))").reward == 1.0
