"""Stages in several processes at once: the order of the plan, equal results, killed workers, usage errors."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console
from scale_out import differing_files

from ladder_lite.budget import Deadline
from ladder_lite.config import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.jsonl import read_jsonl
from ladder_lite.recipe.stages import stages_of
from ladder_lite.recipe.workers import Job, Plan, Pool, Workers
from ladder_lite.terminal import Live
from tests.support.commands import run_command

FEW = ("--smoke", "conditions=[base,rl_without_variants,ladder,ladder_ttrl]", "ttrl.problems=2")


class FakeExperiment:
    """Stages without work, and two test problems for TTRL."""

    def __init__(self, path: Path, *conditions: str) -> None:
        self.recipe = load_recipe("tiny", [f"conditions=[{','.join(conditions)}]"])
        run = SimpleNamespace(path=path)
        self.context: Any = SimpleNamespace(run=run, deadline=Deadline.never(), ran_a_stage=False)
        self.checked: list[str] = []

    def stages(self, only: str | None) -> list[str]:
        return stages_of(self.recipe, [only] if only else self.recipe.conditions)

    def parts(self, stage: str) -> list[str]:
        return [f"{stage}/{number}" for number in "ab"] if stage.endswith("/problems") else []

    def run_stage(self, stage: str) -> None:
        self.checked.append(stage)

    def finish(self, *names: str) -> None:
        for name in names:
            (self.context.run.path / name).mkdir(parents=True)
            (self.context.run.path / name / "done.json").touch()


class FakeRay:
    """Ray. `work` does the jobs; a RayError that it raises is the death of the worker. No lost machine comes back."""

    class exceptions:  # noqa: N801 - Ray's name
        RayError = type("RayError", (Exception,), {})
        RayTaskError = type("RayTaskError", (RayError,), {})

    def __init__(self, work: Callable[..., None], n_cores: int = 1, n_starts: int = 9) -> None:
        self.work, self.n_cores, self.n_starts = work, n_cores, n_starts
        self.starting: list[object] = []

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.n_cores}

    def remote(self, **_: int) -> Callable[[type], Any]:
        return lambda _: SimpleNamespace(remote=self.start)

    def start(self, *_: Any) -> Any:
        self.starting.append(ready := object())
        run = SimpleNamespace(remote=lambda *job: job)
        return SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: ready), run=run)

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        pending = self.starting[self.n_starts :]
        done = [each for each in references if each not in pending]
        return done, [each for each in references if each not in done]

    def get(self, job: tuple[Any, ...]) -> None:
        self.work(*job)

    def kill(self, actor: Any) -> None:
        """Do nothing."""


def plan_of(*experiments: Any) -> Plan:
    return Plan(experiments, None)


def taken_at_once(plan: Plan, n_workers: int, runs: Sequence[int | None] = (None,) * 9) -> list[Job]:
    taken: list[Job] = []
    for run in runs[:n_workers]:
        if (job := plan.next(taken, run)) is not None:
            taken.append(job)
    return taken


def test_a_stage_starts_when_those_it_starts_from_are_done(tmp_path: Path) -> None:
    plan = plan_of(FakeExperiment(tmp_path, "base", "rl_without_variants", "ladder", "ladder_ttrl"))
    waves = []
    while wave := taken_at_once(plan, 9):
        waves.append({job.stage.removeprefix("conditions/") for job in wave})
        for job in wave:
            plan.finish(job)
    assert waves == [
        {"variants", "base/eval", "rl_without_variants/train"},
        {"ladder/train", "rl_without_variants/eval"},
        {"ladder/eval"},
        {"ladder_ttrl/problems/a", "ladder_ttrl/problems/b"},
        {"ladder_ttrl/problems"},
        {"ladder_ttrl/eval"},
    ]
    assert len(plan) == 0


def test_the_stage_that_most_others_wait_for_comes_first(tmp_path: Path) -> None:
    plan = plan_of(FakeExperiment(tmp_path, "base", "ladder"))
    assert taken_at_once(plan, 1) == [Job(0, "variants")]


def test_a_worker_stays_with_the_run_whose_model_it_has(tmp_path: Path) -> None:
    plan = plan_of(FakeExperiment(tmp_path / "0", "base", "ladder"), FakeExperiment(tmp_path / "1", "base", "ladder"))
    assert taken_at_once(plan, 3, [1, 1, 0]) == [Job(1, "variants"), Job(1, "conditions/base/eval"), Job(0, "variants")]


def test_what_is_done_is_checked_and_not_run_again(tmp_path: Path) -> None:
    experiment = FakeExperiment(tmp_path, "ladder_ttrl")
    done = ["variants", "conditions/ladder/train", "conditions/ladder/eval"]
    experiment.finish(*done, "conditions/ladder_ttrl/problems/a")
    plan = plan_of(experiment)
    assert experiment.checked == done
    assert [job.stage for job in taken_at_once(plan, 9)] == ["conditions/ladder_ttrl/problems/b"]
    assert (len(plan), plan.n_parts) == (2, 1)  # the stage itself, its evaluation; b


def test_a_run_that_failed_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    plan = plan_of(FakeExperiment(tmp_path / "0", "base", "ladder"), FakeExperiment(tmp_path / "1", "base"))
    (job,) = taken_at_once(plan, 1, [0])
    plan.drop(0)
    plan.finish(job)  # another worker's job of the same run may end later
    assert taken_at_once(plan, 9) == [Job(1, "conditions/base/eval")]


@pytest.mark.parametrize("new_checkpoints", [True, False])
def test_a_stage_may_lose_one_worker_per_checkpoint(tmp_path: Path, new_checkpoints: bool) -> None:
    deaths = 0

    def work(path: Path, stage: str, *_: Any) -> None:
        nonlocal deaths
        if deaths < 3:
            deaths += 1
            if new_checkpoints:
                (path / stage / f"checkpoints/checkpoint-{deaths}").mkdir(parents=True)
            raise FakeRay.exceptions.RayError("killed")

    plan = plan_of(FakeExperiment(tmp_path, "base"))
    pool = Pool(FakeRay(work), 1, plan, Live(Console(file=StringIO())))
    if new_checkpoints:
        pool.run()
        assert (deaths, len(plan)) == (3, 0)
    else:
        with pytest.raises(UserError, match=r"base/eval: its worker died 2 times \(killed\).*workers/1\.log"):
            pool.run()
        assert deaths == 2


@pytest.mark.parametrize("n_workers", [1, 2])
def test_the_others_go_on_if_a_lost_worker_cannot_be_replaced(tmp_path: Path, n_workers: int) -> None:
    jobs = []

    def work(path: Path, stage: str, *_: Any) -> None:  # noqa: ARG001
        jobs.append(stage)
        if len(jobs) == 1:
            raise FakeRay.exceptions.RayError("lost")

    plan = plan_of(FakeExperiment(tmp_path, "base", "rl_without_variants"))
    pool = Pool(FakeRay(work, n_workers, n_starts=n_workers), n_workers, plan, Live(Console(file=StringIO())))
    if n_workers == 2:
        pool.run()
        assert len(plan) == 0
        assert len(jobs) == len(set(jobs)) + 1  # the lost one was done again
    else:
        with pytest.raises(UserError, match="none could be replaced"):
            pool.run()


def test_the_number_of_workers() -> None:
    assert Workers.parse(None, None) is None
    assert Workers.parse("2", "here") == Workers(2, "here")
    assert Workers.parse("auto", None) == Workers("auto")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "0"], ["--workers 0", "positive"]),
        (["--workers", "two"], ["--workers two", "auto"]),
        (["--ray", "auto"], ["--ray", "--workers"]),
        (["--seeds", "0,x"], ["seed", "x"]),
        (["--seeds", "0,1", "seed=3"], ["--seeds", "seed="]),
        (["--seeds", "0,1", "--dry-run"], ["--seeds", "--dry-run"]),
        (["--smoke", "--workers", "10000"], ["--workers 10000", "core"]),
        (["--smoke", "--workers", "2", "--ray", "127.0.0.1:1"], ["--ray 127.0.0.1:1", "cluster"]),
    ],
)
def test_a_usage_error_is_one_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    result = run_command("recipe", "tiny", *arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert all(word in last for word in words)


def test_without_ray_the_error_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('no module named ray')")
    result = run_command("recipe", "tiny", "--smoke", "--workers", "2", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "ladder_lite[ray]" in result.stderr


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ladder_lite.recipe", "tiny", *FEW, *map(str, arguments)]


def wait_for(file: Path, process: subprocess.Popen[str], timeout_s: float = 300) -> None:
    ends_at = time.monotonic() + timeout_s
    while not file.exists():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def test_a_worker_that_is_killed_is_replaced_and_the_results_are_those_of_one_process(tmp_path: Path) -> None:
    alone = run_command("recipe", "tiny", *FEW, "--run-dir", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr[-2000:]

    together = tmp_path / "together"
    with subprocess.Popen(
        command("--workers", 2, "--run-dir", together), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_for(together / "conditions/ladder/train/begun.json", process)
        # A stage's lock has the process that works on it.
        os.kill(int((together / "workers/conditions.ladder.train.lock").read_text()), signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode == 0, output[-2000:]
    assert "died: ladder/train" in output
    jobs = read_jsonl(together / "workers/jobs.jsonl")
    assert [job["stage"] for job in jobs if job["ended"] == "died"] == ["conditions/ladder/train"]
    assert {job["worker"] for job in jobs} == {1, 2}
    assert len([job for job in jobs if "ladder_ttrl/problems/" in job["stage"]]) == 2
    assert differing_files(tmp_path / "alone", together) == []
    report = json.loads((together / "report.json").read_text())
    assert len(report["jobs"]) == len(jobs)
    assert "What the workers did" in (together / "report.html").read_text()


def test_ctrl_c_ends_all_workers_and_the_run_goes_on_without_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        command("--workers", 2, "--run-dir", run), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_for(run / "variants/begun.json", process)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output[-2000:]
    assert "the same command resumes" in output
    assert len(started) > 2
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []
    resumed = run_command("recipe", "tiny", *FEW, "--only", "base", "--run-dir", run)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert (run / "conditions/base/eval/done.json").exists()


def test_an_error_and_the_end_of_a_budget_reach_the_user(tmp_path: Path) -> None:
    """Without a GPU, the first stage that loads this model fails."""
    missing = run_command("recipe", "tiny", *FEW, "model.id=/no/such", "--workers", 2, "--run-dir", tmp_path / "a")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr
    assert missing.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "/no/such" in missing.stderr
    late = run_command("recipe", "tiny", *FEW, "--workers", 2, "--budget", "0.001s", "--run-dir", tmp_path / "b")
    assert (late.returncode, late.stdout.splitlines()[-1].partition(":")[0]) == (0, "budget of 0.001s used")
    assert "not finished" in (tmp_path / "b/report.md").read_text()


def test_seeds_without_workers_run_one_after_the_other_and_are_compared(tmp_path: Path) -> None:
    result = run_command("recipe", "tiny", "--smoke", "--seeds", "0,1", "--only", "base", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    runs = tmp_path / "runs"
    assert [json.loads((runs / f"tiny-s{seed}-smoke/report.json").read_text())["seed"] for seed in (0, 1)] == [0, 1]
    assert (runs / "tiny-comparison-smoke/comparison.html").exists()
    assert "mean of 2" in result.stdout
