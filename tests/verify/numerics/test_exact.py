"""Ball arithmetic, compared with double precision and with itself."""

import cmath

import numpy as np
import pytest

from ladder_lite.verify.expressions.functions import ELEMENTARY, SPECIAL
from ladder_lite.verify.expressions.parse import parse
from ladder_lite.verify.numerics import exact

REAL = (0.37, 1.83)
COMPLEX = (0.4 + 0.3j, -1.2 + 0.7j)


@pytest.mark.parametrize("name", sorted((ELEMENTARY.keys() | SPECIAL) - {"positive", "log_abs"}))
def test_functions_match_double_precision(name: str) -> None:
    expression = parse(f"{name}(x)+log(Abs(x))*0")
    points = np.array(REAL, complex) if name == "factorial" else np.array([*REAL, *COMPLEX])
    for x, expected in zip(points, expression.values(points), strict=True):
        with exact.precision(200):
            found = complex(exact.apply(expression, complex(x)))
        if x.imag == 0:  # on a branch cut, either side is fine
            found, expected = (complex(z.real, abs(z.imag)) for z in (found, expected))
        assert cmath.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("text", ["pi+E+EulerGamma+Catalan+GoldenRatio", "Max(2,3)", "Piecewise((1,x<0),(2,True))"])
def test_constants_and_pieces_match_double_precision(text: str) -> None:
    expression = parse(text)
    with exact.precision(200):
        found = complex(exact.apply(expression, 0.25))
    assert found == pytest.approx(expression.values(np.array([0.25]))[0], rel=1e-15)


@pytest.mark.parametrize(
    ("text", "x"),
    [
        ("floor(3*(x/3))", 1.0),  # either side of a step
        ("sign(x/3-(1/3))", 1.0),
        ("log(-x+I*sin(x/3-1/3))", 1.0),  # either side of a cut
        ("exp(exp(exp(10**6*x)))", 1.0),
        ("1/(x/3-1/3)", 1.0),
        ("gamma(-x)", 1.0),
    ],
)
def test_unclear_increments_have_no_error_bound(text: str, x: float) -> None:
    _, errors = exact.increments(parse(text), np.array([x]), np.array([x + 0.5]))
    assert not errors[0] < 0.4


def test_increments_see_through_large_constants_and_slopes_through_small_errors() -> None:
    answer = parse("x**2+10**100+floor(x)/10**20")
    grown, errors = exact.increments(answer, np.array([0.5, 1.5]), np.array([1.5, 1.75]))
    assert (np.abs(grown - np.array([2 + 1e-20, 0.8125])) <= errors + 1e-15).all()
    assert exact.slopes_agree(answer, parse("2*x"), [0.3, 0.7], 1e-25) is True
    assert exact.slopes_agree(parse("x**2+x/10**20"), parse("2*x"), [0.3], 1e-25) is False
    assert exact.slopes_agree(parse("x**2+tan(10**300*x)"), parse("2*x"), [0.3], 1e-25) is not True


def test_a_verdict_stops_at_its_budget() -> None:
    long = parse("+".join(f"gamma(x+{n})" for n in range(60)))
    low = np.arange(100) + 0.5
    with exact.allowance(100_000):
        assert exact.n_affordable_values(long) < 20
        _, errors = exact.increments(long, low, low + 0.5)
    assert np.isfinite(errors).any()
    assert np.isnan(errors).any()


def test_constants_are_computed_with_enough_digits() -> None:
    constant = parse("sqrt(2)*sqrt(3)-sqrt(6)+exp(-200)")
    found, error = exact.value(constant, tolerance=1e-100) or (0, 1)
    assert found == pytest.approx(float(np.exp(-200)), rel=1e-12)
    assert error < 1e-100
    assert exact.value(parse("exp(1000)"), exponent=434) is not None
    assert exact.value(parse("exp(1000)")) is None  # too large for a double
