"""Problems that LADDER leaves unsolved: TTRL on them, from which weights, and resampling for comparison."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ladder_lite import ttrl
from ladder_lite.config.conditions import BUILT_IN, condition_of
from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import Recipe
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt, Completion
from ladder_lite.recipe import test_time
from ladder_lite.recipe.context import RunContext
from ladder_lite.runs.run_dir import RunDir
from ladder_lite.terminal import Live
from ladder_lite.train.state import Step
from ladder_lite.verify import Grade, Reason
from tests.support.fakes import FakeBackend

RIGHT = Grade(1.0, Reason.CORRECT, "x**2")
WRONG = Grade(0.0, Reason.WRONG, "x")
UNVERIFIABLE = Grade(None, Reason.UNVERIFIABLE, "x")
VERDICTS = {"2*x": RIGHT, "3*x": WRONG, "4*x": UNVERIFIABLE, "5*x": WRONG, "6*x": WRONG}
"""The grades of LADDER's answers, by integrand."""

REPLY = "<answer>x</answer>"


class Model(FakeBackend):
    """Gives one right answer in all, number `right_at`; records whose weights it was given."""

    def __init__(self, right_at: int = -1) -> None:
        number = count()

        def reply(prompt: str, _: Random) -> str:
            factor = next(text[0] for text in VERDICTS if f"({text}," in prompt)
            return REPLY.replace("x", f"{factor}*x**2/2") if next(number) == right_at else REPLY

        super().__init__(reply)
        self.weights_of: list[str] = []

    def restore(self, adapter: dict[str, int]) -> None:
        self.weights_of.append("base")
        super().restore(adapter)

    def load(self, folder: Path) -> None:
        self.weights_of.append(folder.parts[-3])


def attempt(problem: Problem, grade: Grade, text: str) -> dict[str, Any]:
    return Attempt(problem.id, 0, Completion(text, 7, truncated=False), grade).to_row()


@pytest.fixture
def context(tmp_path: Path) -> Iterator[RunContext]:
    """A run in which the base model and LADDER have answered each test problem once."""
    tests = tmp_path / "tests.jsonl"
    tests.write_text("".join(json.dumps({"integrand": text}) + "\n" for text in VERDICTS))
    recipe = load_recipe("tiny", [f"task.test={tests}", "ttrl.problems=2", "eval.batch_size=50"])
    with RunDir.open(tmp_path / "run", recipe) as run:
        context = RunContext(recipe, run, Live())
        context.__dict__["backend"] = Model()  # instead of loading one
        for name in ("base", "ladder"):
            for folder in ("eval", "eval/greedy"):
                rows = [attempt(test, VERDICTS[str(test.data["integrand"])], name) for test in context.tests]
                append_jsonl(run.path / "conditions" / name / folder / "attempts.jsonl", rows)
        yield context


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The tokens that the scripted TTRL takes for each problem, by id; 10 unless a test sets them."""
    tokens: dict[str, int] = {}

    def train_on_problem(
        _writer: Any, problem: Problem, recipe: Recipe, folder: Path, _live: Live, _observer: Any, *, root: Problem
    ) -> ttrl.Outcome:
        assert (root.id == problem.id) == (recipe.ttrl.train_on != "other")
        for place in ("eval", "eval/greedy"):
            append_jsonl(folder / place / "attempts.jsonl", [attempt(problem, RIGHT, "tuned")])
        n_tokens = tokens.get(problem.id, 10)
        return ttrl.Outcome(problem.id, True, 3, 3, 1.5, "x", n_tokens, 4, "solved", "x", 1.0, True, root.id, 5)

    monkeypatch.setattr(ttrl, "train_on_problem", train_on_problem)
    return tokens


def summary(context: RunContext, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((context.run.path / stage / "done.json").read_text())
    return found


@pytest.mark.usefixtures("spent")
def test_ttrl_tries_unsolved_problems_from_the_weights_of_its_start(context: RunContext) -> None:
    left = [test for test in context.tests if VERDICTS[str(test.data["integrand"])] is WRONG]
    for condition, start in (("ladder_ttrl", "ladder"), ("ttrl", "base")):
        context.backend.weights_of.clear()  # type: ignore[attr-defined]
        test_time.run_problems(context, BUILT_IN[condition])
        found = summary(context, f"conditions/{condition}/problems")
        assert found["problems"] == [problem.id for problem in Random(0).sample(left, 2)]
        assert (found["n_left"], found["attempted"], found["solved"], found["voted_right"]) == (3, 2, 2, 2)
        assert (found["steps"], found["n_tokens"], found["steps_to_solve"]) == (6, 20, [3, 3])
        assert context.backend.weights_of == [start] * 2  # type: ignore[attr-defined]


@pytest.mark.usefixtures("spent")
def test_another_problem_is_drawn_among_all_other_tests(context: RunContext) -> None:
    test_time.run_problems(context, BUILT_IN["ladder_ttrl"])
    test_time.run_problems(context, condition_of("ttrl_other", context.recipe.ablations))
    (tried, again) = (summary(context, f"conditions/{name}/problems") for name in ("ladder_ttrl", "ttrl_other"))
    assert again["problems"] == tried["problems"]
    assert again["n_verifier_calls"] == 10
    for id_ in again["problems"]:
        root = summary(context, f"conditions/ttrl_other/problems/{id_}")["root_id"]
        assert root in {test.id for test in context.tests} - {id_}


def test_the_probe_is_sampled_every_few_steps_and_when_the_problem_is_solved(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = tmp_path / "probe.jsonl"
    rows = [{"integrand": f"{n}*x", "technique": ("even", "odd")[n % 2]} for n in (5, 6)]
    probe.write_text("".join(json.dumps(row) + "\n" for row in rows))
    observers: list[ttrl.Observer] = []

    def train_on_problem(*arguments: Any, root: Problem) -> ttrl.Outcome:  # noqa: ARG001
        observers.append(arguments[-1])
        raise KeyboardInterrupt

    monkeypatch.setattr(ttrl, "train_on_problem", train_on_problem)
    settings = {"task": context.recipe.task.model_copy(update={"probe": str(probe)})}
    settings |= {"ttrl": context.recipe.ttrl.model_copy(update={"probe_every": 3})}
    context.recipe = context.recipe.model_copy(update=settings)
    context.__dict__.pop("task")
    held_out = [problem for problems in context.writer(context.recipe).held_out.values() for problem in problems]
    assert {problem.id for problem in context.probe} <= {problem.id for problem in held_out}
    with pytest.raises(KeyboardInterrupt):
        test_time.run_problems(context, BUILT_IN["ladder_ttrl"])
    context.__dict__["backend"] = Model(right_at=0)
    wrong, right = (Attempt("id", 0, Completion("", 1, truncated=False), grade) for grade in (WRONG, RIGHT))
    for number in range(1, 6):
        step = Step(number, *[0.0] * 7, None, None)  # type: ignore[arg-type]
        observers[0].step(step, [], [wrong, right] if number == 5 else [wrong])
    (log,) = context.run.path.rglob("probes.jsonl")
    rows = read_jsonl(log)
    assert [row["step"] for row in rows] == [3, 5]
    assert [row["techniques"]["odd"]["pass@1"]["value"] for row in rows] == [1, 0]
    assert [row["techniques"]["even"]["pass@1"]["value"] for row in rows] == [0, 0]


@pytest.mark.usefixtures("spent")
def test_the_evaluation_after_ttrl_replaces_answers_to_tried_problems(context: RunContext) -> None:
    for condition, start in (("ladder_ttrl", "ladder"), ("ttrl", "base")):
        test_time.run_problems(context, BUILT_IN[condition])
        test_time.evaluate_after_ttrl(context, BUILT_IN[condition])
        tried = summary(context, f"conditions/{condition}/problems")["problems"]
        for folder in ("eval", "eval/greedy"):
            rows = read_jsonl(context.run.path / "conditions" / condition / folder / "attempts.jsonl")
            texts = {row["problem_id"]: row["text"] for row in rows}
            assert len(rows) == len(VERDICTS)
            assert texts == {test.id: "tuned" if test.id in tried else start for test in context.tests}
        found = summary(context, f"conditions/{condition}/eval")
        assert found["n_problems"] == 4
        assert found["pass@1"]["value"] == found["greedy"]["value"] == 3 / 4


def test_resampling_takes_at_least_100_answers_and_the_tokens_of_ttrl(
    context: RunContext, spent: dict[str, int]
) -> None:
    left = [test for test in context.tests if VERDICTS[str(test.data["integrand"])] is WRONG]
    few, many = Random(0).sample(left, 2)
    spent |= {few.id: len(REPLY), many.id: 110 * len(REPLY)}
    test_time.run_problems(context, BUILT_IN["ladder_ttrl"])
    model = context.__dict__["backend"] = Model(right_at=100 + 104)
    test_time.run_problems(context, BUILT_IN["ladder_pass100"])
    assert model.weights_of == ["ladder"] * 2
    wrong, right = (summary(context, f"conditions/ladder_pass100/problems/{problem.id}") for problem in (few, many))
    assert (wrong["n_samples"], wrong["n_tokens"], wrong["ttrl_tokens"]) == (100, 100 * len(REPLY), len(REPLY))
    assert (wrong["solved"], wrong["first_right"], wrong["tokens_to_right"], wrong["pass@100"]) == (
        False,
        None,
        None,
        0,
    )
    assert (right["n_samples"], right["n_right"], right["ttrl_tokens"]) == (110, 1, 110 * len(REPLY))
    assert (right["solved"], right["first_right"]) == (True, 104)
    assert right["tokens_to_right"] == 105 * len(REPLY) + len("5*x**2/2") - len("x")
    assert right["pass@100"] == pytest.approx(100 / 110)
    total = summary(context, "conditions/ladder_pass100/problems")
    assert (total["attempted"], total["solved"]) == (2, 1)
    assert total["pass@100"]["value"] == pytest.approx(50 / 110)
    assert total["n_tokens"] == wrong["n_tokens"] + right["n_tokens"]
