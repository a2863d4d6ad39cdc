"""`task.select`: the problems of an experiment are drawn from those that the base model fails."""

import json
from pathlib import Path

import pytest

from ladder_lite.config.load import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.jsonl import read_jsonl
from ladder_lite.problems import load_problems
from ladder_lite.recipe.context import RunContext
from ladder_lite.runs.run_dir import RunDir
from ladder_lite.tasks import plain_task
from ladder_lite.terminal import Live
from tests.support.fakes import FakeBackend

POOL = [f"{n}*x" for n in range(2, 8)]


class Model(FakeBackend):
    """Solves the given problems and no others."""

    def __init__(self, solved: set[str]) -> None:
        answers = {f"{n}*x": f"<answer>{n}*x**2/2</answer>" for n in range(2, 8)}
        super().__init__(lambda prompt, rng: next((answers[text] for text in solved if f"({text}," in prompt), "no"))


def selecting(folder: Path, model: FakeBackend, train: int = 1, test: int = 2, splits: bool = False) -> RunContext:
    pool = folder / "pool.jsonl"
    rows = [{"integrand": text} for text in POOL]
    if splits:
        rows = [row | {"split": split} for row, split in zip(rows, ["train", "test"] * 3, strict=True)]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    select = f"task.select={{samples: 3, train: {train}, test: {test}}}"
    recipe = load_recipe("tiny", [f"task.train={pool}", f"task.test={pool}", select])
    run = RunDir.open(folder / "run", recipe)
    context = RunContext(recipe, run, Live())
    context.__dict__["backend"] = model  # instead of loading one
    return context


def test_problems_that_the_base_model_fails_are_split(tmp_path: Path) -> None:
    context = selecting(tmp_path, Model({"2*x", "5*x"}), train=1, test=2)
    roots, tests = context.roots, context.tests
    assert (len(roots), len(tests)) == (1, 2)
    chosen = [str(problem.data["integrand"]) for problem in (*roots, *tests)]
    assert len(set(chosen)) == 3
    assert set(chosen) <= {"3*x", "4*x", "6*x", "7*x"}
    done = json.loads((tmp_path / "run/select/done.json").read_text())
    assert (done["pool"], done["failed"]) == (6, 4)
    assert done["pass@1"]["value"] == pytest.approx(1 / 3)
    assert len(read_jsonl(tmp_path / "run/select/attempts.jsonl")) == 18
    split = load_problems(str(tmp_path / "run/select/problems.jsonl"), "test")  # it can be loaded like any other set
    assert split == tests


def test_a_selection_is_kept_when_the_run_resumes(tmp_path: Path) -> None:
    context = selecting(tmp_path, Model({"2*x"}))
    tests = context.tests
    context.run.close()
    again = selecting(tmp_path, Model(set()))
    assert again.tests == tests


def test_the_pool_has_both_splits_of_the_set(tmp_path: Path) -> None:
    context = selecting(tmp_path, Model(set()), train=2, test=4, splits=True)
    assert len({problem.id for problem in (*context.roots, *context.tests)}) == 6


def test_a_changed_pool_makes_the_selection_stale(tmp_path: Path) -> None:
    context = selecting(tmp_path, Model(set()))
    assert len(context.tests) == 2
    context.run.close()
    POOL_FILE = tmp_path / "pool.jsonl"
    again = selecting(tmp_path, Model(set()))
    POOL_FILE.write_text(POOL_FILE.read_text() + json.dumps({"integrand": "9*x"}) + "\n")
    with pytest.raises(UserError, match="select"):
        _ = again.tests


def test_a_test_set_of_training_problems_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"integrand": "2*x"}\n')
    (tmp_path / "other.jsonl").write_text('{"integrand": "x+x"}\n')
    sets = [f"task.train={tmp_path / 'one.jsonl'}", f"task.test={tmp_path / 'other.jsonl'}"]
    recipe = load_recipe("tiny", sets)
    context = RunContext(recipe, RunDir.open(tmp_path / "run", recipe), Live())
    with pytest.raises(UserError, match="every test problem is a training problem too"):
        _ = context.roots


def test_a_pool_that_is_too_easy_is_refused(tmp_path: Path) -> None:
    context = selecting(tmp_path, Model(set(POOL[:4])))
    with pytest.raises(UserError, match=r"fails 2 of the 6 problems in all 3 tries, but 3 are needed"):
        _ = context.roots


def test_variants_must_not_equal_the_tests_of_this_run_or_of_any_shipped_set(tmp_path: Path) -> None:
    context = selecting(tmp_path, Model(set()))
    held_out = context.writer(context.recipe).held_out
    assert held_out[context.recipe.task.test] == context.tests
    assert held_out.keys() > plain_task("integration").held_out().keys() > {"tiny", "mit_bee"}
