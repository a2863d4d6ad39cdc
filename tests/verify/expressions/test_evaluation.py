import numpy as np
import pytest

from ladder_lite.verify.expressions.parse import parse
from ladder_lite.verify.numerics.integrand import base_points, gaps
from ladder_lite.verify.numerics.quadrature import NODES, between_nodes
from ladder_lite.verify.numerics.singularities import locate

POINTS = base_points(0)


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        ("x*exp(3*x)-sin(1000*x)", True),
        ("log(x**2+1)+atan(x/2)", True),
        ("1/(x-1)+log(x)/cos(x)", True),  # simple zeros
        ("exp(-x**4)", True),
        ("tanh(1000*x)", False),
        ("exp(-exp(100*x))", False),
        ("1/((x-3)**2+10**(-6))", False),
        ("sqrt(x**2-6*x+9)", False),  # a double zero
        ("tan(x**2)", False),
        ("floor(x)", False),
        ("x**x", False),
    ],
)
def test_features_narrower_than_the_gaps_are_told(text: str, resolved: bool) -> None:
    expression = parse(text)
    assert expression.evaluate(POINTS).is_resolved(expression.curves, gaps(0)) is resolved


def test_a_part_that_overflows_is_told() -> None:
    evaluation = parse("1+1/cosh(x)**2").evaluate(np.array([1.0, 900.0]))
    assert evaluation.values.tolist() == pytest.approx([1.419974, 1.0])
    assert evaluation.is_finite.tolist() == [True, False]


def test_zeros_are_located_to_the_last_digits() -> None:
    grid = np.linspace(-9.9, 10, 400)
    expression = parse("1/((x-2)*(x-5)**2)+log(x+3)+floor(x/4)+sqrt(x-7.7)")
    breakables = expression.evaluate(grid).breakables
    kinds = {round(at, 9): kind for at, kind in locate(expression, grid, breakables)}
    expected = {2.0: "pole", 5.0: "pole", -3.0: "log", 4.0: "step", 7.7: "root"}
    assert {at: kinds[at] for at in expected} == expected
    assert [kind for _, kind in locate(expression, grid, breakables, kinds=["log"])] == ["log"]


def test_integrals_between_nodes() -> None:
    half, middle = np.array([1.0, 0.5]), np.array([0.3, 2.0])
    x = middle[:, None] + half[:, None] * NODES
    integrals, size = between_nodes(np.exp(x), half)
    assert np.allclose(integrals, np.diff(np.exp(x), axis=1), rtol=1e-12, atol=1e-15)
    assert size == pytest.approx(np.exp([1.3, 2.5]))
    with np.errstate(divide="ignore"):
        integrals, _ = between_nodes(1 / x, half)
    assert np.isnan(integrals).all(axis=1).tolist() == [True, False]  # there is a pole in the first panel
