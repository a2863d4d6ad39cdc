"""The contract of a task, and reading and comparing integrals."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import sympy

from ladder_lite.config.load import list_recipes, load_recipe
from ladder_lite.errors import UserError
from ladder_lite.install import shipped
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt, Completion
from ladder_lite.tasks import Index, Rejected, Task, VariantRequest, load_task
from ladder_lite.verify import Reason
from tests.support.problems import problem

SETTINGS = load_recipe("tiny", ["task.protocol=strict"]).task
THINKING = load_task(SETTINGS.model_copy(update={"thinking": True}))
REQUEST = VariantRequest("easier", "euler", ("halve", "drop-one", "low-powers"), 2)
ROWS = [json.loads(line) for line in (shipped("benchmarks") / "tiny.jsonl").read_text().splitlines()]
HOSTILE_S = 10.0
"""The most processor time that a reply may take; the slowest known one takes two seconds on a slow machine."""


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(SETTINGS)


def read(task: Task, text: str, parent: Problem | None = None) -> list[Problem | Rejected]:
    return task.parse_variants(text, parent or problem("x**3"), REQUEST)


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


# --- what a user types


@pytest.mark.parametrize(
    ("text", "integrand", "variable", "bounds"),
    [
        ("x**2*exp(x)", "x**2*exp(x)", "x", (None, None)),
        ("integrate(t*sin(t), t)", "t*sin(t)", "t", (None, None)),
        ("integrate(sqrt(x), (x, 0, pi/2))", "sqrt(x)", "x", ("0", "pi/2")),
        (r"\int x e^{x} \, dx", "x*e**(x)", "x", (None, None)),
    ],
)
def test_a_typed_integral_is_a_root(
    task: Task, text: str, integrand: str, variable: str, bounds: tuple[str | None, str | None]
) -> None:
    root = task.read(text)
    assert (root.requested, root.depth, root.parent_id) == ("root", 0, None)
    data = root.data
    assert task.fingerprints(root) == task.fingerprints(problem(integrand, variable, *bounds))
    assert (data["variable"], data["lower"], data["upper"]) == (variable, *bounds)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x*(", "unreadable"),
        ("sni(x)", "unknown function sni; did you mean sin?"),
        ("integrate(2*tann(x), x)", "unknown function tann; did you mean tan?"),
        ("integrate(3, x)", "not one variable"),
        ("t*sin(t)", "its variable is not x: write integrate(t*sin(t), t)"),
        ("t*y", "unreadable"),
        ("1/(x-x)", "undefined"),
        ("x**99999", "too large"),
        ("", "un"),
    ],
)
def test_a_typed_text_that_is_not_an_integral_is_refused(task: Task, text: str, why: str) -> None:
    with pytest.raises(UserError) as refused:
        task.read(text)
    assert str(refused.value).startswith(f'"{text}" is not an integral ({why}')


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
    ("<answer>it is easy to see</answer>", Reason.FORBIDDEN),
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


RIGHT, SLIP = "<answer>sin(x)-x*cos(x)</answer>", "<answer>cos(x)</answer>"
THOUGHTS = [  # a reply; its grade if the prompt opened <think>, and if it did not
    (f"by parts.\n</think>\n\nSo: {RIGHT}", Reason.CORRECT, Reason.CORRECT),
    (f"<think>\nby parts.\n</think>\n{RIGHT}", Reason.CORRECT, Reason.CORRECT),
    (f"{RIGHT}? Yes.</think> {SLIP}", Reason.WRONG, Reason.WRONG),
    (f"{SLIP}? No.</think> {RIGHT}", Reason.CORRECT, Reason.CORRECT),
    (f"<think>{RIGHT}</think> It is found.", Reason.NO_ANSWER, Reason.NO_ANSWER),
    (f"{RIGHT} is what I would answer, but", Reason.NO_ANSWER, Reason.CORRECT),  # cut off while thinking
    (f"<think>{RIGHT} is what I would answer, but", Reason.NO_ANSWER, Reason.NO_ANSWER),
    (f"<think></think>{RIGHT}", Reason.CORRECT, Reason.CORRECT),
    (f"a</think>{SLIP}<think>b</think>{RIGHT}", Reason.CORRECT, Reason.CORRECT),
    (f"a</think>{RIGHT}<think>or {SLIP}", Reason.CORRECT, Reason.CORRECT),
    ("<answer>", Reason.NO_ANSWER, Reason.NO_ANSWER),
]


@pytest.mark.parametrize(("reply", "opened", "not_opened"), THOUGHTS)
def test_thoughts_are_not_answers(task: Task, reply: str, opened: Reason, not_opened: Reason) -> None:
    assert THINKING.grade(problem("x*sin(x)"), reply).reason is opened
    assert task.grade(problem("x*sin(x)"), reply).reason is not_opened


def test_variants_are_not_read_from_thoughts(task: Task) -> None:
    root, thoughts = problem("x**3"), "Perhaps integrate(x**7, x)?\n1. integrate(x**6, x)\n"
    for reply in (f"{thoughts}</think>\n1. integrate(x**2, x)", f"<think>{thoughts}</think>\n1. integrate(x**2, x)"):
        for reader in (task, THINKING):
            (variant,) = reader.parse_variants(reply, root, REQUEST)
            assert isinstance(variant, Problem)
            assert variant.data["integrand"] == "x**2"
    assert THINKING.parse_variants(thoughts, root, REQUEST) == [Rejected(thoughts, "unreadable")]


@pytest.mark.parametrize("integrand", ["1/(x-x)", "sqrt(-1-x**2)", "x*(", "y*x"])
def test_an_invalid_problem_is_unverifiable(task: Task, integrand: str) -> None:
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


def test_the_recipe_sets_the_protocol() -> None:
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


def test_unclosed_tags_take_no_time(task: Task) -> None:
    assert cpu_seconds(lambda: task.grade(problem("x"), "<answer>" * 4000)) < 0.3


# --- problems and prompts


def test_a_problem_survives_json(task: Task) -> None:
    root = task.problems("train")[0]
    (variant,) = read(task, "integrate(2*t, t)", root)
    assert isinstance(variant, Problem)
    for one in (root, variant):
        assert Problem.from_row(json.loads(json.dumps(one.to_row()))) == one


def test_problems_keep_the_order_of_their_file(task: Task) -> None:
    for split in ("train", "test"):
        found = task.problems(split)
        assert [p.data["integrand"] for p in found] == [row["integrand"] for row in ROWS if row["split"] == split]
        assert found == task.problems(split)


@pytest.mark.parametrize("integrand", ["x*(", "foo(x)", "x*y", "9**9**9**9"])
def test_an_unreadable_problem_is_named_with_its_line(tmp_path: Path, integrand: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(f'{{"integrand": "x"}}\n{{"integrand": "{integrand}"}}\n')
    task = load_task(SETTINGS.model_copy(update={"train": str(path)}))
    with pytest.raises(UserError, match=re.escape(f"{path}:2: ")):
        task.problems("train")


@pytest.mark.parametrize("system", [None, "You are a careful {mathematician}."])
def test_the_recipe_sets_the_prompts(system: str | None) -> None:
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


def test_prompts_can_have_the_whole_integral() -> None:
    prompts = SETTINGS.prompts.model_copy(update={"solve": "solve {integral}", "easier": "E {integral}"})
    task = load_task(SETTINGS.model_copy(update={"prompts": prompts}))
    definite = problem("t**2", "t", "-oo", "pi/2")
    printed = Problem.root("integration", {**definite.data, "printed": "the area under a {parabola}"})
    assert task.prompt(definite)[-1]["content"] == "solve integrate(t**2,(t,-oo,pi/2))"
    assert task.prompt(printed)[-1]["content"] == "solve the area under a {parabola}"
    for asked in (definite, printed):
        assert task.variant_prompt(asked, REQUEST)[-1]["content"] == "E integrate(t**2,(t,-oo,pi/2))"
    for asked in task.problems("test"):  # in the wording that the embedded model was taught
        assert task.prompt(asked) == load_task(SETTINGS).prompt(asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solve": "∫"}, "task.prompts.solve: must contain {integral} or {integrand} or {variable}"),
        ({"solve": "{integrand} {count}"}, "task.prompts.solve: no placeholder {count}; there are {integral}, "),
        ({"easier": "{integrl}"}, "task.prompts.easier: no placeholder {integrl}; there are {integral}, {integrand}, "),
    ],
)
def test_a_prompt_that_does_not_fit_the_task_is_refused(changes: dict[str, str], message: str) -> None:
    prompts = SETTINGS.prompts.model_copy(update=changes)
    with pytest.raises(UserError) as refused:
        load_task(SETTINGS.model_copy(update={"prompts": prompts}))
    assert str(refused.value).startswith(message)


# --- reading variants

# Expected variants: an integrand, or integrand and bounds; expected rejections: text and reason.
VARIANTS: list[tuple[str, list[str | tuple[str, ...]]]] = [
    ("integrate(x**2, x)", ["x**2"]),
    ("integrate(x*(x+(1))*sin((x)), x)", ["x*(x+(1))*sin((x))"]),
    ("integrate(2*t+x, t) and integrate(t**2, t)", [("integrate(2*t+x, t)", "unreadable"), "x**2"]),
    ("1. $x^2$\n2. $x e^x\\,dx$", ["x**2", "x*e**x"]),
    ("integrate(x+, x) and integrate(x, x)", [("integrate(x+, x)", "unreadable"), "x"]),
    ("", [("", "unreadable")]),
    ("x**2", [("x**2", "unreadable")]),
    ("I need x here. " * 200, [(("I need x here. " * 200)[:2000], "unreadable")]),
    ("reintegrate(x, x)", [("reintegrate(x, x)", "unreadable")]),
    ("integrate(sin(x, x)", [("integrate(sin(x, x)", "unreadable")]),
    ("integrate(, x)", [("integrate(, x)", "unreadable")]),
    ("integrate(x*y, x)", [("integrate(x*y, x)", "unreadable")]),
    ("integrate(f(x), x)", [("integrate(f(x), x)", "unreadable")]),
    ("integrate(x; y, x)", [("integrate(x; y, x)", "unreadable")]),
    (
        "integrate(__import__('os').system('true'), x)",
        [("integrate(__import__('os').system('true'), x)", "unreadable")],
    ),
    ("integrate(\ud800\0, x)", [("integrate(\ud800\0, x)", "unreadable")]),
    ("integrate(1/0*x, x)", [("integrate(1/0*x, x)", "unreadable")]),
    ("integrate(x/0, x)", [("integrate(x/0, x)", "undefined")]),
    ("integrate(3*pi, x)", [("integrate(3*pi, x)", "not_one_variable")]),
    ("integrate(x, t)", [("integrate(x, t)", "unreadable")]),
    ("integrate(2, t)", [("integrate(2, t)", "not_one_variable")]),
    ("- x - x\n- 10**12*x", [("x - x", "zero"), "10**12*x"]),
    ("integrate(sin(x)**2+cos(x)**2-1, (x, 0, 1))", [("integrate(sin(x)**2+cos(x)**2-1, (x, 0, 1))", "zero")]),
    ("- I\n- x", [("I", "not_one_variable"), "x"]),
    ("integrate(1/(x-x), x)", [("integrate(1/(x-x), x)", "undefined")]),
    ("integrate(log(0*x), x)", [("integrate(log(0*x), x)", "undefined")]),
    ("integrate(sqrt(-1-x**2), x)", [("integrate(sqrt(-1-x**2), x)", "undefined")]),
    ("integrate(log(-exp(x)), x)", [("integrate(log(-exp(x)), x)", "undefined")]),
    ("integrate(x**99999, x)", [("integrate(x**99999, x)", "too_large")]),
    ("integrate(9**9**9*x, x)", [("integrate(9**9**9*x, x)", "too_large")]),
    (f"integrate({'x+' * 5000}x, x)", [(f"integrate({'x+' * 5000}"[:2000], "too_large")]),
    ("integrate(sqrt(x-50), x)", ["sqrt(x-50)"]),  # real beyond the points where functions are compared
    ("integrate(asin(x/9)+log(x+8), x)", ["asin(x/9)+log(x+8)"]),
    ("integrate(x**2, (x, 0, 1))", [("x**2", "0", "1")]),
    ("integrate(sqrt(x-50), (x, 51, oo))", [("sqrt(x-50)", "51", "oo")]),
    ("integrate(exp(-x**2), (x, -oo, oo))", [("exp(-x**2)", "-oo", "oo")]),
    ("integrate(x/(1+x**4), (x, -∞, 2π))", [("x/(1+x**4)", "-oo", "2*pi")]),
    ("integrate(t, (t, 1/2, e))", [("x", "1/2", "e")]),
    ("integrate(sqrt(x-50), (x, 0, 1))", [("integrate(sqrt(x-50), (x, 0, 1))", "undefined")]),
    ("integrate(log(x), (x, -oo, -1))", [("integrate(log(x), (x, -oo, -1))", "undefined")]),
    *(
        (f"integrate(x, (x, {bounds}))", [(f"integrate(x, (x, {bounds}))", "bad_bounds")])
        for bounds in ("0, x", "0, a", "1, 1", "1/2, 0.5", "0, I", "0, 1/0", "-oo, -oo", "0, ", "0, sqrt(-1)")
    ),
    ('{"integrand": "x", "lower": "0"}', [('{"integrand": "x", "lower": "0"}', "bad_bounds")]),
]


@pytest.mark.parametrize(("text", "expected"), VARIANTS, ids=[f"{text[:40]!a}" for text, _ in VARIANTS])
def test_variants_are_read_from_replies(task: Task, text: str, expected: list[str | tuple[str, ...]]) -> None:
    parts = read(task, text)
    found: list[object] = []
    for part in parts:
        if isinstance(part, Rejected):
            found.append((part.text, part.reason))
        else:
            assert part.data["variable"] == "x"
            integrand, lower, upper = part.data["integrand"], part.data["lower"], part.data["upper"]
            found.append(integrand if lower is None else (integrand, lower, upper))
    assert found == expected
    assert load_task(SETTINGS).parse_variants(text, problem("x**3"), REQUEST) == parts


def test_a_variant_records_its_origin(task: Task) -> None:
    root = problem("x**3")
    (child,) = read(task, "integrate(t**2, t)", root)
    assert isinstance(child, Problem)
    (grandchild,) = read(task, "integrate(u, u)", child)
    assert child.data == {"integrand": "x**2", "variable": "x", "lower": None, "upper": None}
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
    "signs": "\\int_" * 10_000,
    "bounds": "\\int_{" * 5_000 + "}" * 5_000,
    "differentials": "\\int " + "{dx" * 7_000,
    "nested signs": "∫ (" * 10_000,
    "spans": "- " + "\\(" * 10_000,
    "items": "- x\n" * 100_000,
    "JSON": '"' + "[" * 1_000_000,
    "JSON strings": '["' + '","'.join(["x"] * 5000) + '"]',
    "fences": "```[" * 10_000 + '"',
    "objects": '{"integrand": ' * 1500,
    "escapes": "\\*" * 10_000 + "integrate(x, x)",
    "random": "".join(Random(0).choices(["integrate(", ",x)", "(", ")", "x", "+", "\\frac{", "}", "|", "²"], k=8000)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_read_in_bounded_time(task: Task, text: str) -> None:
    parts: list[Problem | Rejected] = []
    assert cpu_seconds(lambda: parts.extend(read(task, text))) < HOSTILE_S
    assert 1 <= len(parts) <= 7000
    for part in parts:
        if isinstance(part, Problem):
            assert len(set(task.fingerprints(part))) == 2


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
    ("log(x**3)", "3*log(x)"),  # another branch, but real for positive x alone
    ("log(x**2)*sqrt(x)", "2*log(x)*sqrt(x)"),
    ("exp(I*x)", "cos(x)+I*sin(x)"),
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
    ("(x+2)**2016", "(x+2)**2015"),  # finite at a few of the points only
    ("exp(3*I*x)+exp(-4*I*x)", "exp(4*I*x)+exp(-3*I*x)"),  # each other's conjugates
    ("x/10**9", "x/10**9+x**2/10**11"),
    *(
        (form.format(3), form.format(3.000003))
        for form in (
            "{}*x+1",
            "sin({}*x)",
            "exp(-{}*x)",
            "1/(x**2+{})",
            "log(x+{})",
            "x**{}",
            "x*sqrt({}-x)",
            "x+x**2/{}",
        )
    ),
]


# Multiples, and functions too steep to be told from a multiple by a few values.
MULTIPLES = {
    ("x", "-x"),
    ("7*exp(9*x)", "6*exp(9*x)"),
    ("exp(99*x**2)+x", "exp(99*x**2)+2*x"),
    ("(x+2)**2016", "(x+2)**2015"),
}


def equal(task: Task, one: Problem, other: Problem, up_to_factor: bool = False) -> bool:
    keys = [set(task.fingerprints(asked, up_to_factor)) for asked in (one, other)]
    assert [len(pair) for pair in keys] == [2, 2]
    return not keys[0].isdisjoint(keys[1])


@pytest.mark.parametrize(("one", "other"), [*EQUAL, *((ZEROS[0], zero) for zero in ZEROS[1:])])
def test_equal_functions_share_a_key(task: Task, one: str, other: str) -> None:
    assert equal(task, problem(one), problem(other))
    renamed = re.sub(r"\bx\b", "t", other.replace("2x", "2*x"))
    assert equal(task, problem(one), problem(renamed, "t"))
    assert equal(task, problem(one), problem(other), up_to_factor=True)
    for factor in () if one in ZEROS else ("-3", "1/7", "10**9", "pi"):
        assert equal(task, problem(one), problem(f"{factor}*({other})"), up_to_factor=True), factor


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_functions_share_no_key(task: Task, one: str, other: str) -> None:
    assert not equal(task, problem(one), problem(other))
    if (one, other) not in MULTIPLES:
        assert not equal(task, problem(one), problem(other), up_to_factor=True)


REWRITINGS: list[Callable[[sympy.Expr], sympy.Expr]] = [
    sympy.expand,
    sympy.factor,
    sympy.together,
    sympy.expand_trig,
    sympy.powsimp,
    lambda f: f.rewrite(sympy.exp),
    lambda f: f.rewrite(sympy.sqrt),
    lambda f: sympy.expand(f, power_exp=True, mul=False),
]


def test_a_function_rewritten_by_sympy_keeps_a_key(task: Task) -> None:
    rng = Random(0)
    atoms = ["x", "(x+3)", "exp(2*x+1)", "sin(x+2)", "cos(2*x)", "sinh(x)", "1/(x+1)", "1/(x**2+4)", "sqrt(x**2+x)"]
    atoms += ["log(5*x)", "tan(x/2)", "(2*x-5)**3", "exp(-x)*exp(3*x)"]
    n_rewritten = 0
    for _ in range(150):
        n_factors = [rng.randint(1, 3) for _ in range(rng.randint(1, 3))]
        text = "+".join("*".join([str(rng.randint(1, 9)), *rng.sample(atoms, n)]) for n in n_factors)
        f = sympy.sympify(text)
        g = rng.choice(REWRITINGS)(f)
        n_rewritten += str(g) != str(f)
        assert equal(task, problem(text), problem(str(g))), (text, g)
        assert equal(task, problem(text), problem(str(-3 * g)), up_to_factor=True), (text, g)
        assert not equal(task, problem(text), problem(str(g + f / 10**6))), (text, g)
    assert n_rewritten > 75


BOUNDS_EQUAL = [
    (("0", "1/2"), ("0", "0.5")),
    (("0", "pi/2"), ("0*2", "acos(0)")),
    (("-oo", "oo"), ("-inf", "∞")),
    (("1", "E"), ("2-1", "exp(1)")),
]
BOUNDS_DIFFERENT = [(None, None), ("0", "1"), ("0", "2"), ("-1", "1"), ("1", "0"), ("0", "oo"), ("-oo", "oo")]


def test_bounds_are_compared_by_value(task: Task) -> None:
    for one, other in BOUNDS_EQUAL:
        assert equal(task, problem("x", "x", *one), problem("2*t/2", "t", *other)), (one, other)
    asked = [problem("x", "x", lower, upper) for lower, upper in BOUNDS_DIFFERENT]
    assert len({key for one in asked for key in task.fingerprints(one)}) == 2 * len(asked)
    assert equal(task, problem("x", "x", "0", "2"), problem("-5*x", "x", "0", "2"), up_to_factor=True)
    assert not equal(task, problem("x", "x", "0", "2"), problem("-5*x", "x", "0", "1"), up_to_factor=True)


def test_keys_of_the_shipped_problems(task: Task) -> None:
    known = {key for row in ROWS for key in task.fingerprints(problem(row["integrand"]))}
    assert len(known) == 2 * len(ROWS)
    for row in ROWS:
        f = row["integrand"]
        for same in (f"-(0-({f}))", f"x+({f})-x"):
            assert equal(task, problem(f), problem(same)), same
        for changed in (f"{f}+x", f"{f}-sin(x)", f"2*({f})"):
            assert known.isdisjoint(task.fingerprints(problem(changed))), f


def test_an_index_finds_the_first_of_equal_problems(task: Task) -> None:
    index: Index[int] = Index()
    for number, (one, other) in enumerate(EQUAL):
        assert index.find(task.fingerprints(problem(one))) is None, one
        index.add(task.fingerprints(problem(one)), number)
        index.add(task.fingerprints(problem(other)), -1)
    for number, (one, other) in enumerate(EQUAL):
        assert index.find(task.fingerprints(problem(one))) == number
        assert index.find(task.fingerprints(problem(other))) == number


# --- examples


def test_few_shot_examples_come_before_the_question() -> None:
    settings = load_recipe("smollm").task
    chat = load_task(settings)
    asked = chat.prompt(problem("x**2"))
    examples = settings.prompts.solve_examples
    assert len(examples) > 1
    assert [turn["role"] for turn in asked] == ["system", *["user", "assistant"] * len(examples), "user"]
    assert [turn["content"] for turn in asked[1:-1:2]] == [example.user for example in examples]
    assert asked[-1]["content"] == "x**2"
    wanted = chat.variant_prompt(problem("x**2"), REQUEST)
    assert [turn["content"] for turn in wanted[2:5:2]] == [one.assistant for one in settings.prompts.variant_examples]
    assert wanted[-1]["content"] == "integrate(x**2,x), changed by euler: halve, drop-one, low-powers"


def test_the_few_shot_examples_of_recipes_are_right() -> None:
    for name, _ in list_recipes():
        settings = load_recipe(name).task
        known = load_task(settings)
        for example in settings.prompts.solve_examples:
            asked = re.search(r"integrate\(.*\)", example.user)
            integral = asked[0] if asked else example.user  # an integrand alone
            assert known.grade(known.read(integral), example.assistant).reward == 1, example
        for example in settings.prompts.variant_examples:
            read_back = known.parse_variants(example.assistant, problem("x"), REQUEST)
            assert len(read_back) == example.assistant.count("\n") + 1
            assert all(isinstance(part, Problem) for part in read_back), example
