r"""Integrals that are read from replies of models. Hostile replies are in `tests/tasks/test_tasks.py`."""

import json
import time

import pytest

from ladder_lite.verify.expressions.replies import Unread, read_integrals

# A reply, and for each piece in it the integrand, or (integrand, lower, upper), or None if it is not an integral.
Expected = list[str | tuple[str, str, str] | None]
REPLIES: list[tuple[str, Expected]] = [
    # calls
    ("integrate(x**2, x)", ["x**2"]),
    ("First integrate(x,x), which is easy; then Integral(sin(2*x), x).", ["x", "sin(2*x)"]),
    ("1. integrate(x, x)\n2. integrate(x**2, x)\n3) integrate(cos(x), x)", ["x", "x**2", "cos(x)"]),
    ("**integrate (x, x)** = `integrate(2*x,x)`", ["x", "2*x"]),
    ("integrate( log(x, 2) ,\n x )", ["log(x, 2)"]),
    ("sp.integrate(x**2, x).doit()", ["x**2"]),
    ("integrate(x**2, (x, 0, 1))", [("x**2", "0", "1")]),
    ("Integral(exp(-x**2), [x, -oo, oo])", [("exp(-x**2)", "-oo", "oo")]),
    ("integrate(x, (x, log(2, 3), pi/2))", [("x", "log(2, 3)", "pi/2")]),
    ("integrate(x, (x))", ["x"]),
    ("integrate(x^2 e^x, x)", ["x**2*e**x"]),
    (r"integrate(exp(i \* x) \* sin(x), x)", ["exp(i * x) * sin(x)"]),
    (r"\( \text{integrate}\left(\sin(x) (x - 1), x\right) \)", ["sin(x)*(x-1)"]),
    ("```python\nintegrate(x*exp(x), x)\n```", ["x*exp(x)"]),
    ("reintegrate(x, x)", []),
    ("integrated(x, x)", []),
    # cut off at the end of a line, or of the reply
    ("integrate(log(x)/x**2, x", ["log(x)/x**2"]),
    ("integrate(log(x)/x**2, x\nintegrate(x, x)", ["log(x)/x**2", "x"]),
    ("- `integrate(sin(x), x`\n- integrate(x, (x, 0, 1)\n", ["sin(x)", ("x", "0", "1")]),
    ("integrate(x**2, x)\nintegrate(x*sin(", ["x**2", None]),
    ("integrate(sin(x, x)", [None]),
    ("integrate((x, x) integrate(x, x)", [None, "x"]),
    # not calls that SymPy accepts
    ("integrate(x**2, x, 0, 1)", [("x**2", "0", "1")]),
    ("integrate(x**2, x, 0, 1, 2)", [None]),
    ("integrate(x**2)", [None]),
    ("integrate(x, )", [None]),
    ("integrate(x, 2*x)", [None]),
    ("integrate(x, 2)", [None]),
    ("integrate(x, sin)", [None]),
    ("integrate(x, (x, 0))", [None]),
    ("integrate(x*y, (x, 0, 1), (y, 0, 1))", [None]),
    ("integrate(integrate(x, x), x)", ["integrate(x, x)"]),  # refused by `parse`
    # another variable
    ("integrate(t**2*exp(t), t)", ["x**2*exp(x)"]),
    ("integrate(2t+sin t, t)", ["2*x+sin(x)"]),
    ("integrate(exp(e), e)", ["exp(x)"]),
    ("integrate(theta*sin(theta), (theta, 0, pi))", [("x*sin(x)", "0", "pi")]),
    ("integrate(θ*sin(2θ), θ)", ["x*sin(2*x)"]),
    ("integrate(lambda**2, lambda)", ["x**2"]),
    ("integrate(x*u, u)", [None]),
    ("integrate(x**2, u)", [None]),
    # LaTeX
    (r"\int x^2 \, dx", ["x**2"]),
    (r"$\int x^2 \, dx$, $$\int \sin x\;\mathrm{d}x$$", ["x**2", "sin(x)"]),
    (
        r"\[\int_0^1 x e^{x} \, dx\] and \(\int_{0}^{\pi} \sin^2 x \, dx\)",
        [("x*e**x", "0", "1"), ("(sin(x))**2", "0", "pi")],
    ),
    (r"\displaystyle\int\limits_{-\infty}^{\infty} e^{-t^2}\,\text{d}t = \sqrt{\pi}", [("e**(-x**2)", "-oo", "oo")]),
    (r"\int^{2}_{1} \frac{1}{x} dx", [("((1)/(x))", "1", "2")]),
    (r"\int_0^{\frac{\pi}{2}} \cos\theta \, d\theta", [("cos(x)", "0", "((pi)/(2))")]),
    (r"\int_0^\frac{\pi}{2} \cos x \, dx", [("cos(x)", "0", "((pi)/(2))")]),
    (r"\int\frac{dx}{1+x^2}", ["((1)/(1+x**2))"]),
    (r"\int\frac{x\,dx}{1+x^2}", ["((x)/(1+x**2))"]),
    (r"\int x \cdot \ln x \,{\rm d} x", ["x*ln(x)"]),
    (r"\int x\,\mathrm{dx}", ["x"]),
    ("\\begin{align}\n&\\int x dx \\\\\n&\\int x^3 dx\n\\end{align}", ["x", "x**3"]),
    (r"\int is the sign of an integral", [None]),
    (r"\int x\, and \int x\,dx", [None, "x"]),
    # the sign ∫
    ("∫ x² dx", ["x**(2)"]),
    ("∫ (x + 1)·sin(x) dx, ∫ x·eˣ dx", ["(x+1)*sin(x)", "x*e**x"]),
    ("∫₀¹ x dx and ∫_0^π sin(x) dx and ∫_{-1}^{1} x dx", [("x", "0", "1"), ("sin(x)", "0", "pi"), ("x", "-1", "1")]),
    ("∫_0^(pi/2) 2 x dx", [("2*x", "0", "pi/2")]),
    ("∫_-1^1 dx/(1+x²)", [("1/(1+x**(2))", "-1", "1")]),
    ("∫ xe^xdx", ["x*e**x"]),
    ("∫ dx", ["1"]),
    ("integrate(x, x), that is ∫ x dx", ["x", "x"]),
    # bare integrands
    ("1. x**2*exp(x)\n2. sin(x)^2\n", ["x**2*exp(x)", "sin(x)**2"]),
    (
        "Here they are:\n\n- x**2\n* `x*log(x)`: easier\n• $x\\sin x$.\n+ x dx\n(3) **x+1**",
        ["x**2", "x*log(x)", "x*sin(x)", "x", "x+1"],
    ),
    ("1) u*exp(u) du", ["x*exp(x)"]),
    ("```\nx**2\n'x*exp(x)',\n# a comment\n\n1. sin(x)\n```\nx**3", ["x**2", "x*exp(x)", "sin(x)"]),
    ("x**2", []),
    ("I see that a is x, and x**2 - 1 is its square.", []),
    ("- x**2\n- integrate(x, x)", ["x"]),
    ("1. x**2, which is the x of ∫ x dx", ["x"]),
    # bounds in words
    (r"1. \int x^2\,dx, between 0 and 1.", [("x**2", "0", "1")]),
    ("∫ x dx (from 0 to π), ∫ x² dx from 0 to 1", [("x", "0", "pi"), ("x**(2)", "0", "1")]),
    (r"- $\int x\,dx$ over $[0, 1]$", [("x", "0", "1")]),
    ("integrate(x**2, x) from 0 to pi/2", [("x**2", "0", "pi/2")]),
    ("1. integrate x e^x from 0 to 1\n2. x**2 on the interval [0, 2]", [("x*e**x", "0", "1"), ("x**2", "0", "2")]),
    # other programs
    ("int(x^2, x=0..1), int(x*exp(x), x)", [("x**2", "0", "1"), "x*exp(x)"]),
    ("Integrate[x^2 Sin[x], {x, 0, Pi}], Integrate[E^x, x]", [("x**2*sin(x)", "0", "Pi"), "E**x"]),
    ("int(x) is a cast", []),
    ("1. sp.sin(x)**2\n2. $x {\\rm e}^x$\n3. \\sqrt[3]{x}", ["sin(x)**2", "x*e**x", "((x)**(1/((3))))"]),
    # steps of a derivation
    ("1. Let u = x**2+1\n2. du = 2x dx\n3. f(x) = x**3", [None, None, "x**3"]),
    (r"\int x e^{x^2} dx = \frac12 \int e^u du", ["x*e**(x**2)"]),
    ("∫ x dx\n= ∫ u du\nso we get ∫ w dw", ["x"]),
    (r"I_1 = \int x\,dx, I_2 = \int x^2 dx", ["x", "x**2"]),
    # JSON
    ('{"variants": ["x**2", "t dt"]}', ["x**2", "x"]),
    ('{"variants": [["x**2", "easier"], ["x**3", 2]]}', ["x**2", "easier", "x**3"]),
    ('["x**2", "x*exp(x) dx", "integrate(x, x)"]', ["x**2", "x*exp(x)", "x"]),
    ('Sure!\n```json\n["x**2", "t dt"]\n```\n', ["x**2", "x"]),
    (
        '{"a": [{"integrand": "x**2"}, {"integrand": "t", "variable": "t", "lower": 0, "upper": "pi"}]}',
        ["x**2", ("x", "0", "pi")],
    ),
    (
        'Here: [{"question": "integrate(x, x)"}, {"question": "\\\\int_0^1 x^2 \\\\, dx"}] as asked',
        ["x", ("x**2", "0", "1")],
    ),
    ('{"integrand": "x"}\n{"integrand": "x**3"}\n', ["x", "x**3"]),
    ('{"integrand": "integrate(x**2, (x, 0, 1))"}', [("x**2", "0", "1")]),
    ('{"integrand": 3}', [None]),
    ('{"integrand": "x", "lower": true}', [None]),
    ('Of "x" and ["y"] I take integrate(x, x)', ["x"]),
    ('[1, 2, "", null]', []),
    ("", []),
    ("\0\ud800", []),
]


@pytest.mark.parametrize(("reply", "expected"), REPLIES, ids=[f"{text[:40]!a}" for text, _ in REPLIES])
def test_integrals_in_replies(reply: str, expected: Expected) -> None:
    found: Expected = []
    for piece in read_integrals(reply, "x"):
        if isinstance(piece, Unread):
            found.append(None)
            continue
        assert piece.variable == "x"
        found.append(piece.integrand if piece.lower is None else (piece.integrand, piece.lower, str(piece.upper)))
    assert found == expected


def test_without_a_given_variable_integrals_keep_theirs() -> None:
    read = [read_integrals(text)[0] for text in ("integrate(t**2, t)", "- x**2", "∫ u dx", "1. t dt")]
    assert [not isinstance(piece, Unread) and piece.variable for piece in read] == ["t", "x", "x", "t"]


def test_long_and_nested_replies_are_read_in_bounded_time() -> None:
    nested = '{"integrand": "x", "a": ' + "[" * 990 + "]" * 990 + "}"
    worded = ("- from" + " " * 19_000, "∫ x dx = " * 2_000, "- x from 0 to 1\n" * 1_200, "int(x, x=" * 2_000)
    for text in (*worded, "\\int" + " " * 15_000 + "x", "\\int\\limits" + " " * 15_000 + "x", nested):
        started = time.process_time()
        read_integrals(text)
        assert time.process_time() - started < 2


@pytest.mark.parametrize("text", ["integrate(x*exp( x ), x)", "∫_0^1 x dx", "integrate(x, x, 0, 1)", "integrate(x, x"])
def test_a_piece_contains_its_source_text(text: str) -> None:
    for around in ("{}", "so {} it is", "1. {};\n", "$ {} $"):
        if text.endswith("x, x") and not around.endswith(("}", "\n")):
            continue
        assert [piece.text for piece in read_integrals(around.format(text), "x")] == [text]


def test_python_notation_stays_as_written() -> None:
    for text in ("x**2*exp( x )", "(sin(x)+ 1)/x", "2 *x"):
        for reply in (f"integrate( {text} , x)", f"- {text}", json.dumps([text]), f"∫ {text} dx"):
            (piece,) = read_integrals(reply, "x")
            assert not isinstance(piece, Unread)
            assert piece.integrand == text
