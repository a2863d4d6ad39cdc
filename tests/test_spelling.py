import pytest

from ladder_lite.expressions import ExpressionError, parse
from ladder_lite.spelling import plain


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("x**2*exp(-x)", "x**2*exp(-x)"),
        ("2x^2", "2*x**2"),
        ("3(x+1)", "3*(x+1)"),
        ("x(x-1)", "x*(x-1)"),
        ("(x+1)(x-1)", "(x+1)*(x-1)"),
        ("2 x", "2*x"),
        ("xe^x", "x*e**x"),
        ("xsin(x)", "x*sin(x)"),
        ("sin x cos x", "sin(x)*cos(x)"),
        ("sin 2x", "sin(2*x)"),
        ("ln x^2", "ln(x**2)"),
        ("ln(x)^2", "ln(x)**2"),
        ("sin^2 x", "sin(x)**2"),
        ("sin**2(x)", "sin(x)**2"),
        ("tan^{-1}(x)", "atan(x)"),
        ("2|x|", "2*Abs(x)"),
        ("|x+|x||", "Abs(x+Abs(x))"),
        ("ln|x|", "ln(Abs(x))"),
        ("[x+1]^2", "(x+1)**2"),
        ("x²+x⁻¹", "x**2+x**(-1)"),
        ("√x", "sqrt(x)"),
        ("√(x+1)", "sqrt(x+1)"),
        ("½π·x\u22121", "1/2*pi*x-1"),
        ("1.5e-3x", "0.0015*x"),
        ("F(x) = x^2/2", "x**2/2"),
        ("$x$", "x"),
        (r"\(\frac{x^2}{2}\)", "x**2/2"),
        (r"\frac12 x", "1/2*x"),
        (r"-\frac{1}{4 \left(2 x + 7\right)^{2}}", "-(1/(4*(2*x+7)**2))"),
        (r"\frac{1}{2^{\frac{x}{3}}}", "1/2**(x/3)"),
        (r"\sqrt[3]{x+1}", "(x+1)**(1/3)"),
        (r"\boxed{\frac{e^{\sqrt{x}}}{2}}", "e**sqrt(x)/2"),
        (r"\ln\left|\sec x+\tan x\right|", "ln(Abs(sec(x)+tan(x)))"),
        (r"-\frac{\sin^{2}{x}}{2}", "-(sin(x)**2/2)"),
        (r"x\operatorname{arctan}(x)", "x*arctan(x)"),
        (r"\tan^{-1}(x)", "atan(x)"),
        ("exp(ix)-e^{-ix}", "exp(I*x)-e**(-I*x)"),
        ("exp(1j*x)/2j", "exp(1*I*x)/2*I"),
    ],
)
def test_reads_as_people_do(written: str, meant: str) -> None:
    assert parse(written).text == parse(meant).text


def test_the_variable_comes_before_constants_and_functions() -> None:
    assert parse("2e(e+1)", "e").text == "2 * e * (e + 1)"
    assert parse("2j+j", "j").text == "2 * j + j"
    assert parse("t(t+1)tan(t)", "t").text == "t * (t + 1) * tan(t)"


@pytest.mark.parametrize(
    "text", ["sin sin " * 400, "{" * 1900 + "}" * 1900, "|" * 3000, r"\frac{" * 600, "x" + "^x" * 1900]
)
def test_hostile_nesting_ends_in_a_refusal(text: str) -> None:
    plain(text, "x")
    with pytest.raises(ExpressionError):
        parse(text)
