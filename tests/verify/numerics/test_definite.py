import time
from pathlib import Path

import mpmath
import pytest

from ladder_lite.tasks.integration.references import KeptReferences
from ladder_lite.verify import verify
from ladder_lite.verify.numerics import definite, exact_integral
from ladder_lite.verify.numerics.definite import reference
from ladder_lite.verify.numerics.integrand import IntegrandError


@pytest.mark.parametrize(
    ("integrand", "lower", "upper", "answer"),
    [
        ("x**2", "1", "0", "-1/3"),
        ("x", "2", "2", "0"),
        ("cos(20*x)*sin(25*x)", "-pi/2", "pi/2", "0"),
        ("sin(x)*cos(x)*tan(x)*cot(x)*sec(x)*csc(x)", "0", "2*pi", "2*pi"),  # isolated holes, 0/0
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
        ("sin(x)*sin(2*x)*sin(3*x)/x**3", "0", "oo", "pi"),
        ("sin(x)*sin(sqrt(2)*x)/x**2", "0", "oo", "pi/2"),
        ("sin(x**3)", "0", "oo", "gamma(1/3)/6"),
        ("sin(exp(x))", "0", "oo", "pi/2-Si(1)"),
        ("log(x)*sin(x)/x", "0", "oo", "-EulerGamma*pi/2"),
        ("(x-floor(x))/x**2", "1", "oo", "1-EulerGamma"),
        # Infinitely many oscillations and steps at a finite end.
        ("sin(1/x)", "0", "1", "sin(1)-Ci(1)"),
        ("sin(1/x)/x", "0", "1", "pi/2-Si(1)"),
        ("1/x-floor(1/x)", "0", "1", "1-EulerGamma"),
        # Tails that decay slowly.
        ("1/(x*log(x)**2)", "2", "oo", "1/log(2)"),
        ("1/(x*log(x)**2)", "0", "1/10", "1/log(10)"),
        ("1/((x+1)*(log(x)**2+pi**2))", "0", "oo", "1/2"),
        # Many oscillations.
        ("(cos(3*x)+sin(2*x))*(-sin(2019*x)+cos(3*x))", "-2*pi", "2*pi", "2*pi"),
        # Complex values, and real cube roots.
        ("exp(I*x)", "0", "pi", "2*I"),
        ("exp(I*x)/(1+x**2)", "-oo", "oo", "pi/E"),
        ("1/(1+I*x)", "0", "1", "pi/4-I*log(2)/2"),
        ("1/(x-1)**(2/3)", "0", "3", "3+3*2**(1/3)"),
        ("x**(1/3)", "-8", "0", "-12"),
        # Small beside the integral of |f|: double precision loses them.
        ("10**9*x+cos(x)", "-1", "1", "2*sin(1)"),
        ("x**7+x**2", "-10", "10", "2000/3"),
        ("sinh(10*x)+x**2", "-3", "3", "18"),
        ("x**3*exp(x**2)+cos(x)", "-5", "5", "2*sin(5)"),
        ("(sin(x)+10**17)-10**17", "0", "pi", "2"),
        ("x-1/3", "0", "2/3", "0"),
        ("sign(sin(20*x))", "0", "2*pi", "0"),
        # Singularities at the ends and inside.
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
def test_values_of_definite_integrals(integrand: str, lower: str, upper: str, answer: str) -> None:
    assert verify(integrand, answer, lower=lower, upper=upper).reward == 1.0
    assert verify(integrand, f"({answer})+1/1000", lower=lower, upper=upper).reward == 0.0


@pytest.mark.parametrize(
    ("integrand", "lower", "upper", "answer", "wrong"),
    [
        ("exp(x)", "0", "1000", "exp(1000)-1", "0"),
        ("exp(x)", "-1000", "-900", "exp(-900)", "0"),
        ("cosh(800*x)", "0", "1", "sinh(800)/800", "17"),
        ("x**9999", "0", "2", "2**10000/10000", "2**10000/10001"),
        ("exp(x)*sin(x)", "0", "1000", "(1+exp(1000)*(sin(1000)-cos(1000)))/2", "17"),
        ("x**1010/(1+x)**2022", "0", "oo", "factorial(1010)**2/factorial(2021)", "0"),
        ("x**1000*(1-x)**1000", "0", "1", "factorial(1000)**2/factorial(2001)*(1+10**(-10))", "factorial(1000)"),
        ("x**3", "0", "1/10**8", "1/(4*10**32)", "1/(4*10**32)+1/10**39"),
    ],
)
def test_values_that_floating_point_cannot_hold(
    integrand: str, lower: str, upper: str, answer: str, wrong: str
) -> None:
    assert verify(integrand, answer, lower=lower, upper=upper).reward == 1.0
    assert verify(integrand, wrong, lower=lower, upper=upper).reward == 0.0


@pytest.mark.parametrize(
    ("integrand", "lower", "upper"),
    [("exp(exp(x))", "0", "10"), ("gamma(x)", "1", "200"), ("exp(x**2)", "0", "30")],
)
def test_a_finite_answer_to_a_huge_integral_is_wrong(integrand: str, lower: str, upper: str) -> None:
    assert verify(integrand, "3", lower=lower, upper=upper).reward == 0.0


@pytest.mark.parametrize(
    ("integrand", "lower", "upper"),
    [("sin(x)/x", 0, "oo"), ("sin(x)**3/x", 0, "oo"), ("exp(-x)*x**(1/3)", 0, "oo"), ("log(x)/sqrt(1-x)", 0, 1)],
)
def test_values_match_mpmath(integrand: str, lower: int, upper: str | int) -> None:
    by_mpmath = {
        "sin(x)/x": lambda: mpmath.quadosc(lambda x: mpmath.sin(x) / x, [0, mpmath.inf], omega=1),
        "sin(x)**3/x": lambda: mpmath.quadosc(lambda x: mpmath.sin(x) ** 3 / x, [0, mpmath.inf], omega=1),
        "exp(-x)*x**(1/3)": lambda: mpmath.gamma(mpmath.mpf(4) / 3),
        "log(x)/sqrt(1-x)": lambda: mpmath.quad(lambda x: mpmath.log(1 - x) / mpmath.sqrt(x), [0, 1]),
    }
    found = reference(integrand, "x", str(lower), str(upper))
    assert abs(found.value - by_mpmath[integrand]()) <= found.error + 1e-12


def test_a_singular_end_is_integrated_with_any_seed() -> None:
    assert verify("1/sqrt(1-x)", "2", lower="0", upper="1", seed=0).reward == 1.0
    assert verify("1/sqrt(1-x)", "2", lower="0", upper="1", seed=1).reward == 1.0


@pytest.mark.parametrize(
    ("integrand", "lower", "upper"),
    [
        ("1/x", "-1", "1"),  # cancels only by symmetry
        ("1/x", "0", "1"),
        ("1/x", "1", "oo"),
        ("1/x**2", "-1", "1"),
        ("tan(x)", "0", "pi"),
        ("cos(x)", "0", "oo"),
        ("1/(x*log(x))", "2", "oo"),
        ("x/(1+x**2)", "0", "oo"),  # overflows before its tail has decayed
        ("x/(1+x**2)", "-oo", "oo"),
        ("x/sqrt(1+x**2)", "0", "oo"),
        ("floor(10**6*x)+floor(10**6*sin(x))", "0", "10"),
        ("sin(x)**2/x", "1", "oo"),
        ("1/cos(x)**4", "0", "pi"),  # finite at the float beside its pole
        ("1/(x-sqrt(2))**2", "0", "2"),
        ("1/(x-1)**2", "0", "oo"),
        ("x*cos(x)", "0", "oo"),  # its lobes grow, but smooth cuts converge
        ("x*sin(x**2)", "0", "oo"),
        ("sin(1/x)**2/x", "0", "1"),
        ("sin(x)**2/(x*log(x))", "2", "oo"),
        ("1/(x*log(x)*log(log(x)))", "3", "oo"),
        ("exp(-x)+10**(-12)/x", "1", "oo"),
        ("1+10**(-9)/x", "0", "1"),
        ("I/x", "-1", "1"),
        ("exp(I*x)", "0", "oo"),
        ("sqrt(x)", "-1", "1"),  # not real
        ("x", "0", "y"),
        ("x", "0", "I"),
        ("x", "0", "1/0"),
    ],
)
def test_divergent_and_unreadable_integrals_are_unverifiable(integrand: str, lower: str, upper: str) -> None:
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
        ("pi+I/10**7", False),
        ("3.14159265+0.0000001*I", False),
        ("pi+1/10**7", False),
        ("exp(10**7)", False),
        ("gamma(1/2)**2", True),
        ("(10**20+pi)-10**20", True),  # lost in double precision
        ("1/0", False),
    ],
)
def test_answers_to_one_over_one_plus_square(answer: str, right: bool) -> None:
    assert (verify("1/(1+x**2)", answer, lower="-oo", upper="oo").reward == 1.0) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("0", True),
        ("0.0", True),
        ("-1.2e-16", True),
        ("sqrt(2)*sqrt(3)-sqrt(6)", True),
        ("10**(-9)", False),
        ("0.000001", False),
        ("(10**20+1)-10**20", False),
        ("100000000000000000001-100000000000000000000", False),
        ("(10**70+1)-10**70", False),
        ("(10**400+1)-10**400", False),
        ("((10**70+1)-10**70)-((10**70+2)-10**70)", False),
    ],
)
def test_answers_to_an_integral_that_is_zero(answer: str, right: bool) -> None:
    assert (verify("x**3", answer, lower="-1", upper="1").reward == 1.0) is right


def test_an_answer_takes_little_time() -> None:
    answers = ["1/3", "+".join(["gamma(1/3)"] * 500), "+".join(f"li({n})" for n in range(2, 900)), "exp(exp(13))"]
    answers += ["*".join(f"exp(1/{n})" for n in range(2, 700)), "(10**70+1)-10**70", "factorial(10**5)"]
    verify("x**2", "1/3", lower="0", upper="1")
    for answer in answers:
        taken = []
        for _ in range(3):  # the quickest run counts, because a busy machine stops now and then
            started = time.process_time()
            assert (verify("x**2", answer, lower="0", upper="1").reward == 1.0) is (answer == "1/3")
            taken.append(time.process_time() - started)
        assert min(taken) < 0.1


def test_scale_is_the_integral_of_the_size() -> None:
    found = reference("sin(x)", "x", "0", "2*pi")
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.scale == pytest.approx(4)


def test_references_are_computed_once_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "references.jsonl"
    first = KeptReferences(file)
    found = first.get("x**2", "x", "0", "1")
    with pytest.raises(IntegrandError, match="diverges"):
        first.get("1/x", "x", "-1", "1")

    monkeypatch.setattr(definite, "reference", lambda *_: pytest.fail("computed again"))
    for references in (first, KeptReferences(file)):
        assert references.get("x**2", "x", "0", "1") == found
        with pytest.raises(IntegrandError, match="diverges"):
            references.get("1/x", "x", "-1", "1")
        assert verify("x**2", "1/3", lower="0", upper="1", references=references).reward == 1.0


def test_ball_arithmetic_stops_at_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_integral, "MAX_COST", 1000)
    with pytest.raises(IntegrandError, match="could not be computed"):
        reference("exp(x)", "x", "0", "1000")
    monkeypatch.undo()
    assert reference("exp(x)", "x", "0", "1000").exponent == 434
