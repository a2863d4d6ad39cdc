import warnings

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder_lite.verify.expressions import parse as expressions
from ladder_lite.verify.expressions.functions import ELEMENTARY, SPECIAL
from ladder_lite.verify.expressions.parse import ExpressionError, parse

# Functions whose real domain needs other arguments than the rest.
ABOVE_ONE = {"acosh", "acoth", "asec", "acsc", "li", "Li"}
BELOW_ONE = {"asin", "acos", "atanh", "asech", "dilog"}
MPMATH = {
    "log_abs": lambda u: mpmath.log(abs(u)),
    "log2": lambda u: mpmath.log(u, 2),
    "cbrt": mpmath.cbrt,
    "Abs": abs,
    "Heaviside": lambda u: (1 + mpmath.sign(u)) / 2,
    "ceiling": mpmath.ceil,
    "dilog": lambda u: mpmath.polylog(2, u),
    "Si": mpmath.si,
    "Ci": mpmath.ci,
    "Shi": mpmath.shi,
    "Chi": mpmath.chi,
    "Ei": mpmath.ei,
    "E1": mpmath.e1,
    "Li": lambda u: mpmath.li(u, offset=True),
}


@pytest.mark.parametrize("name", sorted((ELEMENTARY.keys() | SPECIAL) - {"log_abs", "positive", "dilog"}))
def test_values_and_derivatives_match_mpmath(name: str) -> None:
    points = np.array([1.3, 1.7, 2.6] if name in ABOVE_ONE else [0.2, 0.45, 0.8]) + 0j
    values, slopes = parse(f"{name}(x)").values_and_derivatives(points)
    function = MPMATH.get(name) or getattr(mpmath, name)
    for point, value, slope in zip(points, values, slopes, strict=True):
        assert value == pytest.approx(complex(function(point.real)), rel=1e-11)
        assert slope == pytest.approx(complex(mpmath.diff(function, point.real)), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "value", "slope"),
    [
        ("3", 3, 0),
        ("x", 0.5, 1),
        ("-x+1", 0.5, -1),
        ("x*x*x/x", 0.25, 1),
        ("2/x", 4, -8),
        ("x**-3", 8, -48),
        ("x**2.5", 0.5**2.5, 2.5 * 0.5**1.5),
        ("2**x", 2**0.5, 2**0.5 * np.log(2)),
        ("x**x", 0.5**0.5, 0.5**0.5 * (1 + np.log(0.5))),
        ("log(x, 2)", -1, 2 / np.log(2)),
        ("ln(Abs(x-1))", np.log(0.5), -2),
        ("polylog(2, x)", 0.5822405264650125, 2 * np.log(2)),
        ("E**x*I", np.exp(0.5) * 1j, np.exp(0.5) * 1j),
        ("factorial(4)+x", 24.5, 1),
        ("Max(x, x**2, 0)+Min(x, 1)", 1, 2),
        ("Piecewise((x, x < 0), (x**2, x < 1), (5, True))", 0.25, 1),
        ("Piecewise((log(-x), x < 0), (x**2, (x >= 0) & (x != 3)), (5, True))", 0.25, 1),
        ("Piecewise((1, Or(x < 0, Not(x < 1))), (x, Ne(x, 2)))", 0.5, 1),
        ("Piecewise((1, (x < 0) | ~(x < 1) | Eq(x, 2)), (x, 0 < x <= 1))", 0.5, 1),
    ],
)
def test_values_and_derivatives_of_operations(text: str, value: complex, slope: complex) -> None:
    found, found_slope = parse(text).values_and_derivatives(np.array([0.5 + 0j]))
    assert found[0] == pytest.approx(value, rel=1e-13)
    assert found_slope[0] == pytest.approx(slope, rel=1e-13)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "UNPARSEABLE"),
        ("x+", "UNPARSEABLE"),
        ("sin(x,x)", "UNPARSEABLE"),
        ("x if x else 1", "UNPARSEABLE"),
        ("1/0", "UNPARSEABLE"),
        ("y", "FORBIDDEN"),
        ("sin", "FORBIDDEN"),
        ("Integral(cos(x), x)", "FORBIDDEN"),
        ("__import__('os').system('true')", "FORBIDDEN"),
        ("().__class__.__bases__", "UNPARSEABLE"),
        ("lambda: 1", "FORBIDDEN"),
        ("x.real", "UNPARSEABLE"),
        ("x<1", "FORBIDDEN"),
        ("True", "FORBIDDEN"),
        ("x//2", "FORBIDDEN"),
        ("sin(x=1)", "FORBIDDEN"),
        ("polylog(3, x)", "FORBIDDEN"),
        ("positive(x)", "FORBIDDEN"),
        ("Max(x)", "UNPARSEABLE"),
        ("Piecewise((x, x))", "FORBIDDEN"),
        ("Piecewise((x, x<1, 2))", "UNPARSEABLE"),
        ("Piecewise((oo, x<1))", "FORBIDDEN"),
        ("And(x<1, x>0)", "FORBIDDEN"),
        ("x & x", "FORBIDDEN"),
        ("x\0", "FORBIDDEN"),
        ("9**9**9**9", "TOO_LARGE"),
        ("x**(10**10**10)", "TOO_LARGE"),
        ("x*factorial(10**9)", "TOO_LARGE"),
        ("x+exp(10**6)", "TOO_LARGE"),
        ("9" * 41, "TOO_LARGE"),
        ("1_" * 60 + "1", "UNPARSEABLE"),
        ("x" * 8001, "TOO_LARGE"),
        ("(" * 1900 + "x" + ")" * 1900, "TOO_LARGE"),
        ("-" * 1900 + "x", "TOO_LARGE"),
        ("sin(" * 90 + "x" + ")" * 90, "TOO_LARGE"),
        ("+".join(f"x**{n}" for n in range(601)), "TOO_LARGE"),
    ],
)
def test_refused_texts(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert caught.value.reason == reason
    assert str(caught.value)


def test_a_long_sum_is_not_deep() -> None:
    text = "+".join(f"x**{n}" for n in range(1, 200))
    assert parse(text).values(np.array([1.0 + 0j]))[0] == 199


def test_equal_subexpressions_are_computed_once() -> None:
    assert parse("sin(x**2+1)+cos(x**2+1)").n_nodes == 5
    assert parse("2*3*pi/4").n_nodes == 0


def test_the_constant_of_integration_is_dropped_where_it_is_added() -> None:
    for text in ("x**2/2+C", "C+x**2/2", "x**2/2-C_1", "x**2/2 + C + 1 - 1"):
        value = parse(text, constant_of_integration=True).values(np.array([2.0 + 0j]))[0]
        assert value == 2, text
    for text in ("C*x", "sin(x+C)", "(x+C)*x"):
        with pytest.raises(ExpressionError):
            parse(text, constant_of_integration=True)
    with pytest.raises(ExpressionError):
        parse("x+C")


def test_piecewise_breaks_where_its_conditions_change_and_is_undefined_where_none_holds() -> None:
    expression = parse("Piecewise((log(x), x > 0), (1, x < -1))")
    assert "step" in expression.kinds
    evaluation = expression.evaluate(np.array([-2.0, -0.5, 2.0]))
    assert evaluation.values == pytest.approx([1, np.nan, np.log(2)], nan_ok=True)
    assert evaluation.is_finite.tolist() == [True, False, True]  # log(-2) is evaluated for no piece that counts
    steps = [quantity for kind, quantity in evaluation.breakables if kind == "step"]
    assert any(np.array_equal(np.abs(quantity), [1, 0.5, 3]) for quantity in steps)


def test_the_normalized_text_is_read_back() -> None:
    expression = parse("-(x+1)^2/3 + 2|x|ln x")
    again = parse(expression.text)
    points = np.array([0.5, 2.0]) + 0j
    assert np.array_equal(expression.values(points), again.values(points))
    assert expression.free == {"x"}
    assert parse("pi+e").free == frozenset()
    assert "ln" not in expression.functions
    assert "log" in expression.functions


def test_real_points_give_nan_where_the_value_is_not_real() -> None:
    values = parse("sqrt(x)").values(np.array([-1.0, 4.0]))
    assert np.isnan(values[0])
    assert values[1] == 2


def test_jitter_shows_cancellation() -> None:
    points = np.array([0.5 + 0j])
    factors = 1 + 4e-16 * np.random.default_rng(0).uniform(-1, 1, (8, 5, 1))
    spreads = []
    for text in ("x+1", "(x+10**8)-10**8"):
        runs = [parse(text).evaluate(points, jitter=jitter).values[0].real for jitter in factors]
        spreads.append(np.ptp(runs))
    assert spreads[0] < 1e-14 < 1e-10 < spreads[1]


ALPHABET = st.sampled_from([*"xxx0123456789+-*/^()|.,!_ eEpiCI√π²·\\{}$=[]'\"\n", "sin", "log", "**", "\\frac", "exp("])


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(max_size=300), st.lists(ALPHABET, max_size=200).map("".join)))
def test_any_text_is_read_or_refused(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            expression = parse(text, constant_of_integration=True)
        except ExpressionError:
            return
    assert expression.n_nodes <= expressions.MAX_NODES + 1
    assert expression.values(np.array([0.3 + 0j, -2.0])).shape == (2,)
