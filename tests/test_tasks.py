"""What every task promises, and the reading and comparing of integrals."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from ladder_lite.attempts import Attempt, Completion
from ladder_lite.config import load_recipe, shipped
from ladder_lite.errors import UserError
from ladder_lite.problems import Problem
from ladder_lite.tasks import Rejected, Task, VariantRequest, load_task
from ladder_lite.verify import Reason

SETTINGS = load_recipe("tiny", ["task.protocol=strict"]).task
REQUEST = VariantRequest("easier", "euler", ("halve", "drop-one", "low-powers"), 2)
ROWS = [json.loads(line) for line in (shipped("benchmarks") / "tiny.jsonl").read_text().splitlines()]
HOSTILE_S = 10.0
"""Processor time that no reply may need: the slowest known one takes two seconds on a slow machine."""


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(SETTINGS)


def problem(integrand: str, variable: str = "x", lower: str | None = None, upper: str | None = None) -> Problem:
    data = {"integrand": integrand, "variable": variable, "lower": lower, "upper": upper}
    return Problem.root("integration", data)


def read(task: Task, text: str, parent: Problem | None = None) -> list[Problem | Rejected]:
    return task.parse_variants(text, parent or problem("x**3"), REQUEST)


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


# --- grading


def test_gold_answers_are_right(task: Task) -> None:
    problems = {p.data["integrand"]: p for p in [*task.problems("train"), *task.problems("test")]}
    assert len(problems) == len(ROWS)
    for row in ROWS:
        grade = task.grade(problems[row["integrand"]], f"<answer>{row['answer']}</answer>")
        assert (grade.reward, grade.reason) == (1.0, Reason.CORRECT), (row, grade)


def test_the_gold_answer_of_another_problem_is_wrong(task: Task) -> None:
    for row, other in zip(ROWS, [*ROWS[1:], ROWS[0]], strict=True):
        grade = task.grade(problem(row["integrand"]), f"<answer>{other['answer']}</answer>")
        assert (grade.reward, grade.reason) == (0.0, Reason.WRONG), row


REPLIES = [
    ("<answer>sin(x)-x*cos(x)</answer>", Reason.CORRECT),
    ("By parts:\n<answer>\n  sin(x) - x*cos(x)\n</answer>.", Reason.CORRECT),
    ("<answer>cos(x)</answer> no, <answer>sin(x)-x*cos(x)</answer>", Reason.CORRECT),
    ("I write the result in <answer> tags: <answer>sin(x)-x*cos(x)</answer>", Reason.CORRECT),
    ("<answer>sin(x)-x*cos(x)</answer> no, <answer>cos(x)</answer>", Reason.WRONG),
    ("<answer>sin(x)-x*cos(x)</answer></answer>", Reason.CORRECT),
    ("<answer>x*sin(x)</answer>", Reason.WRONG),
    ("<answer>sin(x)-1.001*x*cos(x)</answer>", Reason.WRONG),
    ("<answer>0</answer>", Reason.WRONG),
    ("", Reason.NO_ANSWER),
    ("sin(x)-x*cos(x)", Reason.NO_ANSWER),
    ("<answer>sin(x)-x*cos(x)", Reason.NO_ANSWER),
    ("sin(x)-x*cos(x)</answer>", Reason.NO_ANSWER),
    ("<answer></answer>", Reason.NO_ANSWER),
    ("<answer> \n </answer>", Reason.NO_ANSWER),
    ("<answer>sin(x)-</answer>", Reason.UNPARSEABLE),
    ("<answer>sin(x)-x*cos(x</answer>", Reason.UNPARSEABLE),
    ("<answer>it is easy to see</answer>", Reason.UNPARSEABLE),
    ("<answer>\ud800</answer>", Reason.UNPARSEABLE),
    ("<answer>sin(t)-t*cos(t)</answer>", Reason.FORBIDDEN),
    ("<answer>integrate(x*sin(x), x)</answer>", Reason.FORBIDDEN),
    ("<answer>__import__('os').getcwd()</answer>", Reason.FORBIDDEN),
    ("<answer>9**9**9**9</answer>", Reason.TOO_LARGE),
    (f"<answer>{'x+' * 5000}x</answer>", Reason.TOO_LARGE),
    (f"<answer>{'(' * 500}x{')' * 500}</answer>", Reason.TOO_LARGE),
]


@pytest.mark.parametrize(("reply", "reason"), REPLIES, ids=[f"{text[:30]!a}" for text, _ in REPLIES])
def test_a_reply_is_graded_by_its_last_answer(task: Task, reply: str, reason: Reason) -> None:
    grade = task.grade(problem("x*sin(x)"), reply)
    assert grade.reason is reason
    assert grade.reward == (1.0 if reason is Reason.CORRECT else 0.0)
    assert load_task(SETTINGS).grade(problem("x*sin(x)"), reply) == grade
    attempt = Attempt("id", 2, Completion(reply, 7, truncated=True), grade)
    assert Attempt.from_row(json.loads(json.dumps({"step": 3, **attempt.to_row()}))) == attempt


@pytest.mark.parametrize("integrand", ["1/(x-x)", "sqrt(-1-x**2)", "x*(", "y*x"])
def test_a_problem_that_is_no_integral_is_nobodys_mistake(task: Task, integrand: str) -> None:
    grade = task.grade(problem(integrand), "<answer>x</answer>")
    assert (grade.reward, grade.reason) == (None, Reason.UNVERIFIABLE)
    attempt = Attempt("id", 0, Completion("x", 1, truncated=False), grade)
    assert Attempt.from_row(json.loads(json.dumps(attempt.to_row()))) == attempt


def test_the_variable_and_the_bounds_reach_the_verifier(task: Task) -> None:
    cases = [
        (problem("t**2", "t"), "t**3/3", Reason.CORRECT),
        (problem("t**2", "t"), "x**3/3", Reason.FORBIDDEN),
        (problem("x**2", "x", "0", "3"), "9", Reason.CORRECT),
        (problem("x**2", "x", "0", "3"), "x**3/3", Reason.WRONG),
        (problem("x**2", "x", "0", "3"), "8", Reason.WRONG),
    ]
    for asked, answer, reason in cases:
        assert task.grade(asked, f"<answer>{answer}</answer>").reason is reason, (asked, answer)


def test_the_protocol_is_the_recipes() -> None:
    reply = "<answer>x**2/2+x/10000</answer>"
    reasons = [
        load_task(SETTINGS.model_copy(update={"protocol": protocol})).grade(problem("x+200"), reply).reason
        for protocol in ("strict", "paper")
    ]
    assert reasons == [Reason.WRONG, Reason.WRONG]
    near = "<answer>x**2/2+200.1*x</answer>"
    reasons = [
        load_task(SETTINGS.model_copy(update={"protocol": protocol})).grade(problem("x+200"), near).reason
        for protocol in ("strict", "paper")
    ]
    assert reasons == [Reason.WRONG, Reason.CORRECT]


def test_tags_without_end_take_no_time(task: Task) -> None:
    assert cpu_seconds(lambda: task.grade(problem("x"), "<answer>" * 4000)) < 0.3


# --- problems and prompts


def test_a_problem_survives_json(task: Task) -> None:
    root = task.problems("train")[0]
    (variant,) = read(task, "integrate(2*t, t)", root)
    assert isinstance(variant, Problem)
    for one in (root, variant):
        assert Problem.from_row(json.loads(json.dumps(one.to_row()))) == one


def test_problems_come_in_the_order_of_their_file(task: Task) -> None:
    for split in ("train", "test"):
        found = task.problems(split)
        assert [p.data["integrand"] for p in found] == [row["integrand"] for row in ROWS if row["split"] == split]
        assert found == task.problems(split)


@pytest.mark.parametrize("integrand", ["x*(", "foo(x)", "x*y", "9**9**9**9"])
def test_a_problem_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, integrand: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(f'{{"integrand": "x"}}\n{{"integrand": "{integrand}"}}\n')
    task = load_task(SETTINGS.model_copy(update={"train": str(path)}))
    with pytest.raises(UserError, match=re.escape(f"{path}:2: ")):
        task.problems("train")


@pytest.mark.parametrize("system", [None, "You are a careful {mathematician}."])
def test_prompts_are_the_recipes(system: str | None) -> None:
    prompts = SETTINGS.prompts.model_copy(
        update={
            "system": system,
            "solve": "S {integrand} d{variable}",
            "easier": "E {count} {persona} {suggestions} {integrand} {variable}",
            "equivalent": "Q {integrand}",
        }
    )
    task = load_task(SETTINGS.model_copy(update={"prompts": prompts}))
    before = [] if system is None else [{"role": "system", "content": system}]
    asked = problem("{t}*t", "t")
    equivalent = VariantRequest("equivalent", "euler", ("reorder",), 1)
    assert task.prompt(asked) == [*before, {"role": "user", "content": "S {t}*t dt"}]
    assert task.variant_prompt(asked, REQUEST) == [
        *before,
        {"role": "user", "content": "E 2 euler halve, drop-one, low-powers {t}*t t"},
    ]
    assert task.variant_prompt(asked, equivalent) == [*before, {"role": "user", "content": "Q {t}*t"}]


# --- reading variants

VARIANTS: list[tuple[str, list[str | tuple[str, str]]]] = [
    ("integrate(x**2, x)", ["x**2"]),
    ("integrate(x*(x+(1))*sin((x)), x)", ["x*(x+(1))*sin((x))"]),
    ("integrate( log(x, 2) ,\n x )", ["log(x, 2)"]),
    ("First integrate(x,x), which is easy; then Integral(sin(2*x), x).", ["x", "sin(2*x)"]),
    ("1. integrate(x, x)\n2. integrate(x**2, x)\n3) integrate(cos(x), x)", ["x", "x**2", "cos(x)"]),
    ("**integrate (x, x)** = `integrate(2*x,x)`", ["x", "2*x"]),
    ("integrate(x+, x) and integrate(x, x)", [("x+, x", "unreadable"), "x"]),
    ("", [("", "unreadable")]),
    ("x**2", [("x**2", "unreadable")]),
    ("reintegrate(x, x)", [("reintegrate(x, x)", "unreadable")]),
    ("integrate(sin(x, x)", [("integrate(sin(x, x)", "unreadable")]),
    ("integrate((x, x) integrate(x", [("integrate((x, x) integrate(x", "unreadable")]),
    ("integrate(x**2, (x, 0, 1))", [("x**2, (x, 0, 1)", "unreadable")]),
    ("integrate(x**2, x, 0, 1)", [("x**2, x, 0, 1", "unreadable")]),
    ("integrate(x**2)", [("x**2", "unreadable")]),
    ("integrate(, x)", [(", x", "unreadable")]),
    ("integrate(x, )", [("x, ", "unreadable")]),
    ("integrate(x, 2*x)", [("x, 2*x", "unreadable")]),
    ("integrate(x, 2)", [("x, 2", "unreadable")]),
    ("integrate(x*y, x)", [("x*y, x", "unreadable")]),
    ("integrate(f(x), x)", [("f(x), x", "unreadable")]),
    ("integrate(x; y, x)", [("x; y, x", "unreadable")]),
    ("integrate(__import__('os').system('true'), x)", [("__import__('os').system('true'), x", "unreadable")]),
    ("integrate(lambda, lambda)", [("lambda, lambda", "unreadable")]),
    ("integrate(\ud800\0, x)", [("\ud800\0, x", "unreadable")]),
    ("integrate(1/0*x, x)", [("1/0*x, x", "unreadable")]),
    ("integrate(x/0, x)", [("x/0, x", "undefined")]),
    ("integrate(3*pi, x)", [("3*pi, x", "not_one_variable")]),
    ("integrate(x, t)", [("x, t", "unreadable")]),
    ("integrate(2, t)", [("2, t", "not_one_variable")]),
    ("integrate(1/(x-x), x)", [("1/(x-x), x", "undefined")]),
    ("integrate(log(0*x), x)", [("log(0*x), x", "undefined")]),
    ("integrate(sqrt(-1-x**2), x)", [("sqrt(-1-x**2), x", "undefined")]),
    ("integrate(log(-exp(x)), x)", [("log(-exp(x)), x", "undefined")]),
    ("integrate(x**99999, x)", [("x**99999, x", "too_large")]),
    ("integrate(9**9**9*x, x)", [("9**9**9*x, x", "too_large")]),
    ("integrate(sqrt(x-50), x)", ["sqrt(x-50)"]),  # real beyond the points where functions are compared
    ("integrate(asin(x/9)+log(x+8), x)", ["asin(x/9)+log(x+8)"]),
]


@pytest.mark.parametrize(("text", "expected"), VARIANTS, ids=[f"{text[:40]!a}" for text, _ in VARIANTS])
def test_variants_are_read_from_replies(task: Task, text: str, expected: list[str | tuple[str, str]]) -> None:
    parts = read(task, text)
    found = [(p.text, p.reason) if isinstance(p, Rejected) else p.data["integrand"] for p in parts]
    assert found == expected
    assert load_task(SETTINGS).parse_variants(text, problem("x**3"), REQUEST) == parts


def test_a_variant_knows_where_it_comes_from(task: Task) -> None:
    root = problem("x**3")
    (child,) = read(task, "integrate(t**2, t)", root)
    assert isinstance(child, Problem)
    (grandchild,) = read(task, "integrate(u, u)", child)
    assert child.data == {"integrand": "t**2", "variable": "t", "lower": None, "upper": None}
    assert (child.root_id, child.parent_id, child.depth) == (root.id, root.id, 1)
    assert (child.transforms, child.requested) == (REQUEST.suggestions, REQUEST.effect)
    assert isinstance(grandchild, Problem)
    assert (grandchild.root_id, grandchild.parent_id, grandchild.depth) == (root.id, child.id, 2)


HOSTILE = {
    "openings": "integrate(" * 200_000,
    "nested": "integrate(" * 200 + "x" + ",x)" * 200,
    "parentheses": "integrate(" + "(" * 1_000_000,
    "braces": "integrate(" * 100 + "{" * 1200 + "x" + "}" * 1200 + ",x)" * 100,
    "roots": ("integrate(" + "\\sqrt{" * 500 + "x" + "}" * 500 + ",x)") * 5,
    "powers": "integrate(" * 30 + "x^" * 1700 + "x" + ",x)" * 30,
    "spaces": "integrate(" * 10 + "\n" * 1_000_000,
    "many": "integrate(tan(tan(x)),x)\n" * 100_000,
    "terms": "integrate(" + "+".join(f"sin({i}*x)" for i in range(1000)) + ",x)",
    "digits": f"integrate({'9' * 3900}*x,x)",
    "a long variable": f"integrate(x,{'x' * 3900})",
    "control characters": "integrate(\x1b[2J\0x,x)" * 1000,
    "random": "".join(Random(0).choices(["integrate(", ",x)", "(", ")", "x", "+", "\\frac{", "}", "|", "²"], k=8000)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_read_in_bounded_time(task: Task, text: str) -> None:
    parts: list[Problem | Rejected] = []
    assert cpu_seconds(lambda: parts.extend(read(task, text))) < HOSTILE_S
    assert 1 <= len(parts) <= 2000
    for part in parts:
        if isinstance(part, Problem):
            assert task.fingerprint(part)


# --- equal problems

EQUAL = [
    ("x**2+2*x+1", "(x+1)**2"),
    ("(x+1)*(x+2)*(x+3)", "x**3+6*x**2+11*x+6"),
    ("3*sin(2*x)-x", "-x+sin(2*x)*3"),
    ("sin(x)**2", "(1-cos(2*x))/2"),
    ("sin(2*x)", "2*sin(x)*cos(x)"),
    ("tan(x)", "sin(x)/cos(x)"),
    ("cosh(3*x)", "(exp(3*x)+exp(-3*x))/2"),
    ("exp(2*x)", "exp(x)**2"),
    ("exp(x+1)", "E*exp(x)"),
    ("2**x", "exp(x*log(2))"),
    ("log(3*x)", "log(x)+log(3)"),
    ("log(x**2)", "2*log(Abs(x))"),
    ("sqrt(x**2)", "Abs(x)"),
    ("x*sqrt(x)", "x**1.5"),
    ("1/sqrt(9-x**2)", "1/sqrt((3-x)*(3+x))"),
    ("1/(x+1)-1/(x+2)", "1/((x+1)*(x+2))"),
    ("(x**2-1)/(x-1)", "x+1"),
    ("sqrt(1/x)", "1/sqrt(x)"),  # both real for positive x alone
    ("asin(x/9)", "atan(x/sqrt(81-x**2))"),
    ("exp(9*x)+sin(x)", "sin(x)+exp(8*x)*exp(x)"),
    ("2x^2", "2*x**2"),
    ("1e8+x", "x+10**8"),
]
ZEROS = ["x-x", "0*x", "sin(x)**2+cos(x)**2-1", "(x+1)**2-x**2-2*x-1", "exp(x)*exp(-x)-1", "log(exp(x))-x"]
DIFFERENT = [
    ("x", "x+1"),
    ("x", "-x"),
    ("x", "Abs(x)"),
    ("x", "x+x**2/10000"),
    ("sin(x)", "sin(x+0.0001)"),
    ("exp(9*x)+sin(x)", "exp(9*x)+cos(x)"),
    ("exp(-9*x)+sin(x)", "exp(-9*x)+cos(x)"),
    ("cosh(9*x)+sin(x)", "cosh(9*x)+cos(x)"),
    ("exp(9*x**2)+x", "exp(9*x**2)-x"),
    ("exp(99*x**2)+x", "exp(99*x**2)+2*x"),
    ("9*(9*x+8)**9+sin(x)", "9*(9*x+8)**9+cos(x)"),
    ("x**20+x", "x**20-x"),
    ("1/(x-2)**9+x", "1/(x-2)**9-x"),
    ("7*exp(9*x)", "6*exp(9*x)"),
    ("log(x)", "log(Abs(x))"),
    ("sqrt(x)", "sqrt(Abs(x))"),
    ("sqrt(x-9)", "log(x-9)"),  # real beyond the points of comparison alone
    ("log(x-20)", "x*log(x-20)"),
    ("9*(5*x+8)**8+log(4*x)", "9*(5*x+8)**8+log(4*x)+1/(x**2+81)"),
    ("0*x", "x/1000000"),
    ("x/10**9", "x/10**9+x**2/10**11"),
]


@pytest.mark.parametrize(("one", "other"), [*EQUAL, *((ZEROS[0], zero) for zero in ZEROS[1:])])
def test_equal_functions_share_a_fingerprint(task: Task, one: str, other: str) -> None:
    assert task.fingerprint(problem(one)) == task.fingerprint(problem(other))
    renamed = re.sub(r"\bx\b", "t", other.replace("2x", "2*x"))
    assert task.fingerprint(problem(one)) == task.fingerprint(problem(renamed, "t"))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_functions_have_different_fingerprints(task: Task, one: str, other: str) -> None:
    assert task.fingerprint(problem(one)) != task.fingerprint(problem(other))


def test_bounds_are_part_of_a_problem(task: Task) -> None:
    asked = [problem("x"), problem("x", "x", "0", "1"), problem("x", "x", "0", "2"), problem("x", "x", "-1", "1")]
    assert len({task.fingerprint(one) for one in asked}) == 4
    assert task.fingerprint(asked[1]) == task.fingerprint(problem("2*x/2", "x", "0", "1"))


def test_fingerprints_of_the_shipped_problems(task: Task) -> None:
    known = {task.fingerprint(problem(row["integrand"])) for row in ROWS}
    assert len(known) == len(ROWS)
    for row in ROWS:
        f = row["integrand"]
        assert {task.fingerprint(problem(same)) for same in (f"-(0-({f}))", f"x+({f})-x")} <= known, f
        for changed in (f"{f}+x", f"{f}-sin(x)", f"2*({f})"):
            assert task.fingerprint(problem(changed)) not in known, f
