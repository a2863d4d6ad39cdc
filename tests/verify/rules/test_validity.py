"""Which integrals are valid problems, and which integrands are zero."""

import pytest

from ladder_lite.verify.rules.validity import Fault, fault, is_zero


@pytest.mark.parametrize(
    ("integrand", "lower", "upper", "expected"),
    [
        ("x**2", None, None, None),
        ("exp(I*x)", None, None, None),
        ("x**", None, None, "unreadable"),
        ("x+y", None, None, "unreadable"),
        ("+".join(f"x**{n}" for n in range(601)), None, None, "too_large"),
        ("5", None, None, "not_one_variable"),
        ("5", "0", "1", None),
        ("x", "0", None, "bad_bounds"),
        ("x", None, "0", "bad_bounds"),
        ("x", "0", "I", "bad_bounds"),
        ("x", "1", "2/2", "bad_bounds"),
        # Real nowhere, or only far from 0, or only rounding noise.
        ("sqrt(-1-x**2)", None, None, "undefined"),
        ("sqrt(x-100)", None, None, None),
        ("sqrt((x-5)*(5.001-x))", None, None, None),
        ("(sin(x)+10**17)-10**17", None, None, "undefined"),
        ("sin(x)*10**(-20)", None, None, None),
        # Real nowhere between the bounds, or only close to one of them.
        ("sqrt(x-100)", "0", "1", "undefined"),
        ("sqrt(1/100-x)", "0", "1", None),
        ("sqrt(x-95/100)", "1", "0", None),
        ("sqrt(-1-x)", "-oo", "-2", None),
        ("sqrt(x)", "-oo", "-2", "undefined"),
        ("sqrt(x-3)", "3", "oo", None),
        ("sqrt(31/10-x)", "3", "oo", None),
        ("sqrt(2-x)", "3", "oo", "undefined"),
        ("sqrt(x-100)", "-oo", "oo", None),
        ("sqrt(-100-x)", "oo", "-oo", None),
    ],
)
def test_faults(integrand: str, lower: str | None, upper: str | None, expected: Fault | None) -> None:
    assert fault({"integrand": integrand, "variable": "x", "lower": lower, "upper": upper}) == expected


@pytest.mark.parametrize(
    ("integrand", "lower", "upper", "expected"),
    [
        ("x-x", None, None, True),
        ("sin(x)**2+cos(x)**2-1", None, None, True),
        ("sin(x)**2+cos(x)**2-1", "0", "1", True),
        ("x", "-1", "1", False),
        ("x*10**(-20)", None, None, False),
        ("(x+10**8)-10**8-x", None, None, True),
        ("(x+10**12)-10**12", None, None, False),
        ("Heaviside(x-100)", None, None, False),
    ],
)
def test_integrands_that_are_zero(integrand: str, lower: str | None, upper: str | None, expected: bool) -> None:
    assert is_zero({"integrand": integrand, "variable": "x", "lower": lower, "upper": upper}) is expected
