import numpy as np
import pytest

from ladder_lite.verify.expressions.parse import parse
from ladder_lite.verify.numerics.integrand import base_points, gaps

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
def test_features_narrower_than_the_gaps_are_detected(text: str, resolved: bool) -> None:
    expression = parse(text)
    assert expression.evaluate(POINTS).is_resolved(expression.curves, gaps(0)) is resolved


def test_an_overflowing_part_is_detected() -> None:
    evaluation = parse("1+1/cosh(x)**2").evaluate(np.array([1.0, 900.0]))
    assert evaluation.values.tolist() == pytest.approx([1.419974, 1.0])
    assert evaluation.is_finite.tolist() == [True, False]
