from pathlib import Path

import pytest

from ladder_lite import definite
from ladder_lite.definite import TOOK_TOO_LONG, References, reference
from ladder_lite.integrands import IntegrandError
from ladder_lite.verify import verify


@pytest.mark.parametrize(
    ("integrand", "lower", "upper", "answer"),
    [
        ("x**2", "1", "0", "-1/3"),
        ("x", "2", "2", "0"),
        ("cos(20*x)*sin(25*x)", "-pi/2", "pi/2", "0"),
        ("sin(x)*cos(x)*tan(x)*cot(x)*sec(x)*csc(x)", "0", "2*pi", "2*pi"),  # holes
        # Improper.
        ("exp(-(x-2024)**2/4)", "-oo", "oo", "2*sqrt(pi)"),
        ("x*exp(-(x-5000)**2)", "-oo", "oo", "5000*sqrt(pi)"),
        ("x**3/(exp(x)-1)", "0", "oo", "pi**4/15"),
        ("x**(-11/10)", "1", "oo", "10"),
        ("log(x)**2/(1+x**2)", "0", "oo", "pi**3/8"),
        ("cos(x)/(1+x**2)", "-oo", "oo", "pi/E"),
        # Oscillating tails.
        ("sin(x)/x", "0", "oo", "pi/2"),
        ("sin(x**2)", "0", "oo", "sqrt(pi/8)"),
        ("sin(x)**2/x**2", "-oo", "oo", "pi"),
        ("(1-cos(x))/x**2", "0", "oo", "pi/2"),
        # Singular ends and insides.
        ("1/sqrt(x)", "0", "1", "2"),
        ("x**(-9/10)", "0", "1", "10"),
        ("1/sqrt(1-x**2)", "-1", "1", "pi"),
        ("(1-x)**(-9/10)", "0", "1", "10"),
        ("log(sin(x))", "0", "pi", "-pi*log(2)"),
        ("1/sqrt(Abs(x-1))", "0", "2", "4"),
        # Steps and kinks.
        ("floor(2023*sin(x))", "0", "2*pi", "-pi"),
        ("x-floor(x)", "0", "1000", "500"),
        ("floor(x)*exp(-x)", "0", "oo", "1/(E-1)"),
        ("exp(-x)*Abs(sin(x))", "0", "oo", "(1+exp(-pi))/(2*(1-exp(-pi)))"),
        ("1/ceiling(1/x)", "0", "1", "2-pi**2/6"),
    ],
)
def test_values(integrand: str, lower: str, upper: str, answer: str) -> None:
    assert verify(integrand, answer, lower=lower, upper=upper).reward == 1.0
    assert verify(integrand, f"({answer})+1/1000", lower=lower, upper=upper).reward == 0.0


def test_a_singular_end_that_needs_mpmath() -> None:
    assert verify("1/sqrt(1-x)", "2", lower="0", upper="1", seed=0).reward == 1.0
    assert verify("1/sqrt(1-x)", "2", lower="0", upper="1", seed=1).reward == 1.0


@pytest.mark.parametrize(
    ("integrand", "lower", "upper"),
    [
        ("1/x", "-1", "1"),  # cancels by symmetry only
        ("1/x", "0", "1"),
        ("1/x", "1", "oo"),
        ("1/x**2", "-1", "1"),
        ("tan(x)", "0", "pi"),
        ("cos(x)", "0", "oo"),
        ("1/(x*log(x))", "2", "oo"),
        ("x/(1+x**2)", "0", "oo"),  # overflows before its tail does anything
        ("x/(1+x**2)", "-oo", "oo"),
        ("x/sqrt(1+x**2)", "0", "oo"),
        ("floor(10**6*x)+floor(10**6*sin(x))", "0", "10"),
        ("sin(x)**2/x", "1", "oo"),
        ("sqrt(x)", "-1", "1"),  # not real
        ("x", "0", "y"),
        ("x", "0", "I"),
        ("x", "0", "1/0"),
    ],
)
def test_divergent_and_unreadable_ones_are_the_problems_fault(integrand: str, lower: str, upper: str) -> None:
    with pytest.raises(IntegrandError):
        reference(integrand, "x", lower, upper)
    assert verify(integrand, "0", lower=lower, upper=upper).reward is None


def test_one_bound_is_not_enough() -> None:
    assert verify("x", "1/2", lower="0").reward is None


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("pi", True),
        ("3.14159265", True),
        ("3.1416", False),
        ("355/113", False),
        ("4*atan(1)", True),
        ("pi+x", False),
        ("pi+C", False),
        ("pi*I", False),
        ("pi+I/1000", False),
        ("1/0", False),
    ],
)
def test_answers_to_one_over_one_plus_square(answer: str, right: bool) -> None:
    assert (verify("1/(1+x**2)", answer, lower="-oo", upper="oo").reward == 1.0) is right


def test_scale_is_the_integral_of_the_size() -> None:
    found = reference("sin(x)", "x", "0", "2*pi")
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.scale == pytest.approx(4)


def test_references_are_computed_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "references.jsonl"
    first = References(file)
    found = first.get("x**2", "x", "0", "1")
    with pytest.raises(IntegrandError, match="diverges"):
        first.get("1/x", "x", "-1", "1")

    monkeypatch.setattr(definite, "reference", lambda *_: pytest.fail("computed again"))
    for references in (first, References(file)):
        assert references.get("x**2", "x", "0", "1") == found
        with pytest.raises(IntegrandError, match="diverges"):
            references.get("1/x", "x", "-1", "1")
        assert verify("x**2", "1/3", lower="0", upper="1", references=references).reward == 1.0


def test_an_integral_that_took_too_long_is_tried_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(*_: object) -> None:
        raise IntegrandError(TOOK_TOO_LONG)

    monkeypatch.setattr(definite, "reference", too_long)
    file = tmp_path / "references.jsonl"
    with pytest.raises(IntegrandError):
        References(file).get("x**2", "x", "0", "1")
    monkeypatch.undo()
    assert References(file).get("x**2", "x", "0", "1").value == pytest.approx(1 / 3)


def test_a_hanging_worker_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definite, "WORKER_TIMEOUT_S", 0.01)
    with pytest.raises(IntegrandError, match="could not be computed in"):
        reference("(1-x)**(-9/10)", "x", "0", "1")
