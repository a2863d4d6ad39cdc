"""The recipe command: its errors, its smoke run, and resuming after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config import Recipe
from ladder_lite.config.load import load_recipe
from ladder_lite.errors import run
from ladder_lite.recipe import run_recipe
from ladder_lite.recipe.__main__ import app
from ladder_lite.recipe.stages import stages_of
from ladder_lite.report import write_report
from ladder_lite.runs import RunDir
from ladder_lite.terminal import Live
from tests.support.commands import run_command
from tests.support.finished_run import build_run

FEW_STEPS = (
    "variants.per_root=12",
    "variants.adaptive={start: 4, every: 1, requests: 8}",
    "grpo.trl.max_steps=4",
    "grpo.trl.per_device_train_batch_size=16",
    "grpo.eval_every=2",
    "eval.samples=2",
    "eval.k=2",
)


def _rows(path: Path, *without: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in without} for row in rows]


@pytest.mark.parametrize("arguments", [["--help"], ["--list"], ["unknown"]])
def test_torch_is_not_imported_before_it_is_needed(arguments: list[str]) -> None:
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules or 'matplotlib' in sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['recipe', *{arguments!r}]\n"
        "runpy.run_module('ladder_lite.recipe', run_name='__main__', alter_sys=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tinny"], ["unknown recipe", "did you mean tiny", "known ones are"]),
        ([], ["name a recipe", "tiny"]),
        (["tiny", "grpo.trl.learning_rat=1"], ["learning_rat", "did you mean learning_rate"]),
        (["tiny", "variants.per_root=-1"], ["variants.per_root", "-1", "greater than 0"]),
        (["tiny", "eval.samples=many"], ["eval.samples", "many"]),
        (["tiny", "--only", "laddder"], ["laddder", "did you mean ladder", "rl_without_variants", "ladder_10"]),
        (["tiny", "--redo", "conditions/ladder/trian"], ["no such stage", "did you mean conditions/ladder/train"]),
        (["tiny", "model.id=/no/such/folder", "--only", "base"], ["/no/such/folder", "cannot load", "embedded"]),
        (["tiny", "task.test=missing.jsonl", "--only", "base"], ["missing.jsonl", "cannot read this problem set"]),
        (["tiny", "--frob"], ["--frob"]),
        (["tiny", "--list"], ["--list: lists all recipes", "--print"]),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    result = run_command("recipe", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last


def test_a_mistake_in_a_problem_file_leaves_no_run_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "own.jsonl").write_text('{"integrand": "x**2"}\n{"integrand": "sin("}\n', encoding="utf-8")
        result = run_command("recipe", "tiny", f"task.{split}=own.jsonl", cwd=tmp_path, timeout_s=60)
        assert (result.returncode, result.stdout) == (2, "")  # no model was loaded
        assert "own.jsonl:2" in result.stderr
        assert not (tmp_path / "runs").exists()


def test_a_file_in_place_of_the_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = run_command("recipe", "tiny", "--run-dir", tmp_path / "file" / "run")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "choose another --run-dir" in result.stderr


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    result = run_command("recipe", "tiny", "--smoke", cwd=folder)
    assert result.returncode == 0, result.stderr[-2000:]
    # A model that is loaded, and sampled answers beside their integrals.
    assert re.search(r"(?m)^load embedded: done after 0:\d\d$", result.stdout)
    assert re.search(r"(?m)^  (wrong|right|unreadable) .*x.* -> .*$", result.stdout)
    table = result.stdout.rpartition("condition ")[2]
    assert all(f"\n{name} " in table for name in ("base", "rl_without_variants", "ladder", "ladder_ttrl"))
    return folder


def test_the_smoke_run_runs_all_its_conditions(smoke_run: Path) -> None:
    run = smoke_run / "runs" / "tiny-s0-smoke"
    report = json.loads((run / "report.json").read_text())
    recipe = load_recipe("tiny")
    assert list(report["conditions"]) == [name for name in recipe.conditions if name != "ladder_pass100"]
    assert report["variants"]["kept"] > 0
    assert report["conditions"]["ladder"]["steps"] > 0
    assert report["conditions"]["base"]["n_problems"] == 100
    assert report["ttrl"]["attempted"] >= 1
    assert report["peak_memory_bytes"] > 1e8
    assert (run / "report.md").exists()
    assert (run / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_full_adds_the_other_conditions_to_the_folder(tmp_path: Path) -> None:
    tests = tmp_path / "few.jsonl"
    tests.write_text("".join(f'{{"integrand": "{n}*sin({n}*x)-exp({n}*x)+log({n}*x)"}}\n' for n in (2, 3, 4)))
    arguments = ["tiny", "--smoke", f"task.test={tests}", "--run-dir", tmp_path / "run"]
    assert run_command("recipe", *arguments, "--only", "base").returncode == 0
    kept = (tmp_path / "run/conditions/base/eval/attempts.jsonl").stat()
    result = run_command("recipe", *arguments, "--full")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "run/conditions/base/eval/attempts.jsonl").stat().st_mtime_ns == kept.st_mtime_ns
    recipe = load_recipe("tiny")
    assert load_recipe(str(tmp_path / "run/recipe.resolved.yaml")).conditions == (*recipe.conditions, *recipe.full)
    listed = run_command("recipe", "--list", "--run-dir", tmp_path / "run").stdout
    assert [line.split()[1] for line in listed.splitlines()] == ["done"] * len(listed.splitlines())
    run_command("recipe", *arguments, "--only", "base")  # asks for fewer conditions and removes none
    assert run_command("recipe", "--list", "--run-dir", tmp_path / "run").stdout == listed
    train = tmp_path / "run/conditions/ladder_10/train"
    assert json.loads((train / "done.json").read_text())["variants"] <= 10  # one variant of each of the ten roots
    learned = json.loads((tmp_path / "run/conditions/ladder_ttrl/problems/done.json").read_text())
    for name in ("ttrl", "ladder_pass100"):
        folders = (tmp_path / f"run/conditions/{name}/problems").glob("*/done.json")
        assert {path.parent.name for path in folders} == set(learned["problems"])


def test_redo_reruns_stale_conditions_that_the_recipe_does_not_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class RecordingExperiment:
        def __init__(self, recipe: Recipe, run: RunDir, *_: Any) -> None:
            self.run_stage, self.context = done.append, SimpleNamespace(ran_a_stage=True, run=run)
            self.stages = lambda _: recipe.conditions

    monkeypatch.setattr("ladder_lite.recipe.Experiment", RecordingExperiment)
    monkeypatch.setattr("ladder_lite.report.write_report", lambda path: {})
    recipe = load_recipe("tiny", ["conditions=[base, ladder]"])
    left = [tmp_path / "conditions" / name for name in ("ladder_10/train", "ladder_ttrl/problems", "ttrl/eval")]
    run_recipe(recipe, tmp_path, Live())
    assert done == ["base", "ladder"]
    for folder in left:
        folder.mkdir(parents=True)
    done.clear()
    run_recipe(recipe, tmp_path, Live(), redo=["conditions/ladder/train", "conditions/ladder_25/eval"])
    assert done == ["base", "ladder", "ttrl", "ladder_25", "ladder_ttrl"]
    assert [folder.exists() for folder in left] == [True, False, False]
    assert load_recipe(str(tmp_path / "recipe.resolved.yaml")).conditions == tuple(done)


def test_a_second_run_does_nothing_and_loads_no_model(smoke_run: Path) -> None:
    run = smoke_run / "runs" / "tiny-s0-smoke"
    before = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    result = run_command("recipe", "tiny", "--smoke", cwd=smoke_run)
    assert result.returncode == 0
    assert "done already" in result.stdout
    assert "load embedded" not in result.stdout
    assert before == {path: path.read_bytes() for path in run.rglob("*.jsonl")}


def test_list_shows_the_stages_of_a_run(smoke_run: Path) -> None:
    result = run_command("recipe", "--list", "--run-dir", smoke_run / "runs" / "tiny-s0-smoke")
    recipe = load_recipe("tiny")
    stages = stages_of(recipe, recipe.conditions)
    assert [line.split() for line in result.stdout.splitlines()] == [[stage, "done"] for stage in stages]


@pytest.mark.parametrize(
    "more",
    [(), ("grpo.trl.per_device_train_batch_size=8", "grpo.trl.gradient_accumulation_steps=2", "grpo.trl.beta=0.05")],
    ids=["default", "two micro-batches and KL"],
)
def test_a_killed_run_resumes_to_the_same_numbers(tmp_path: Path, more: tuple[str, ...]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ["tiny", *FEW_STEPS, *more, "--only", "ladder", "--run-dir"]
    assert run_command("recipe", *arguments, whole).returncode == 0

    metrics = cut / "conditions/ladder/train/metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "ladder_lite.recipe", *arguments, str(cut)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cut / "conditions/ladder/train/done.json").exists()

    assert run_command("recipe", *arguments, cut).returncode == 0
    grown = "conditions/ladder/train/variants/problems.jsonl"
    for file in ("variants/problems.jsonl", grown, "conditions/ladder/eval/attempts.jsonl"):
        assert _rows(cut / file) == _rows(whole / file)
    assert {row["round"] for row in _rows(whole / grown)} >= {1, 2}  # the tree grew at the steps around the kill
    for file in ("metrics.jsonl", "attempts.jsonl", "curve.jsonl"):
        train = Path("conditions/ladder/train") / file
        noise = ("seconds", "verify_seconds")
        assert _rows(cut / train, *noise) == _rows(whole / train, *noise)


# --- a budget


@pytest.mark.parametrize("budget", ["9 hours", "tomorrow", "0h"])
def test_an_invalid_budget_is_refused(budget: str, tmp_path: Path) -> None:
    result = run_command("recipe", "tiny", "--budget", budget, cwd=tmp_path)
    assert result.returncode == 2
    assert f"--budget {budget}: " in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_exhausted_budget_is_not_an_error(tmp_path: Path) -> None:
    result = run_command("recipe", "tiny", "--smoke", "--budget", "0.001s", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    last = result.stdout.strip().splitlines()[-1]
    assert last == "budget of 0.001s used: everything is saved; run the same command again to go on"
    run = tmp_path / "runs" / "tiny-s0-smoke"
    assert "not finished" in (run / "report.md").read_text()
    assert not list(run.rglob("done.json"))


def test_a_run_in_many_budgets_ends_with_the_same_numbers(smoke_run: Path, tmp_path: Path) -> None:
    recipe = load_recipe("tiny", smoke=True)
    stages: list[str] = []
    report: dict[str, Any] = {}
    while not report:
        ticks = count()
        deadline = Deadline.after(
            "60s", lambda ticks=ticks: float(next(ticks))
        )  # each reading of this clock takes a second
        try:
            report = run_recipe(recipe, tmp_path / "cut", Live(), deadline=deadline)
        except OutOfTime:
            begun = {path.parent for path in (tmp_path / "cut").rglob("begun.json")}
            stages += [str(path.relative_to(tmp_path / "cut")) for path in begun if not (path / "done.json").exists()]
            assert (tmp_path / "cut/report.md").exists()
    assert len(set(stages)) >= 3  # it was stopped within different stages
    whole = smoke_run / "runs" / "tiny-s0-smoke"
    files = {path.relative_to(whole) for path in whole.rglob("*.jsonl")}
    assert files == {path.relative_to(tmp_path / "cut") for path in (tmp_path / "cut").rglob("*.jsonl")}
    for file in files:
        noise = ("seconds", "verify_seconds")
        assert _rows(tmp_path / "cut" / file, *noise) == _rows(whole / file, *noise), file


@pytest.mark.parametrize(
    ("arguments", "next_command"),
    [
        ([], "next: python -m ladder_lite.solve PROBLEM --model FOLDER"),
        (["seed=4", "eval.k=5"], "      python -m ladder_lite.recipe tiny eval.k=5 seed=5"),
        (["--smoke", "seed=4"], "next: python -m ladder_lite.recipe tiny seed=4"),
    ],
)
def test_the_end_of_a_run_says_what_was_achieved_and_what_to_do_next(
    arguments: list[str],
    next_command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build_run(tmp_path / "run", full=True)
    report = write_report(tmp_path / "run")
    monkeypatch.setattr("ladder_lite.recipe.__main__.run_recipes", lambda *_: [report])
    monkeypatch.setattr("sys.argv", ["recipe", "tiny", *arguments, "--run-dir", "FOLDER"])
    with pytest.raises(SystemExit, match="0"):
        run(app)
    lines = capsys.readouterr().out.splitlines()
    assert "The embedded model solves 64 % of the test problems after LADDER, compared with" in " ".join(lines)
    assert "report: FOLDER/report.html" in lines
    assert next_command in lines
    assert max(map(len, lines)) <= 80
