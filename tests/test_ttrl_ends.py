"""TTRL that is killed, runs out of time or diverges: what stops it, what it has written, and how it resumes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from math import inf
from pathlib import Path

import pytest

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models import Backend, Sampling
from ladder_lite.problems.attempts import Attempt, Completion
from ladder_lite.tasks import Messages
from ladder_lite.train import divergence, grpo
from tests.support.fakes import Clock
from tests.support.ttrl_runs import (
    EASY,
    AdapterLog,
    Recorder,
    nan_in_steps,
    perturbed,
    result_rows,
    run_ttrl,
    same,
    small_recipe,
    without_times,
)

# --- resuming


@contextmanager
def killed_at(write: int) -> Iterator[None]:
    """Interrupt the n-th write to the disk: after rows are appended, or before a new file gets its final name."""
    number = count(1)

    def fsync(_: int) -> None:
        if next(number) == write:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.parametrize("overrides", [(), ("grpo.trl.beta=0.05", "grpo.trl.save_steps=2")])
def test_a_run_killed_at_every_third_write_gives_the_same_result(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    recipe = small_recipe(*overrides)
    start = perturbed(backend)
    adapter_log = AdapterLog(backend, monkeypatch)
    whole = run_ttrl(backend, tmp_path / "whole", recipe)
    adapter = adapter_log.adapters[-1]
    outcome = None
    for write in count(1, 3):
        backend.restore(start)  # as the caller does in a new process
        try:
            with killed_at(write):
                outcome = run_ttrl(backend, tmp_path / "cut", recipe)
            break
        except KeyboardInterrupt:
            assert same(backend.snapshot(), start)
    assert write > 12  # it was killed several times
    assert without_times([asdict(outcome)]) == without_times([asdict(whole)])
    assert result_rows(tmp_path / "cut") == result_rows(tmp_path / "whole")
    assert same(adapter_log.adapters[-1], adapter)


def test_finished_training_is_not_rerun(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the run was killed while answers were sampled, the same adapter answers, and no step is rerun."""
    recipe = small_recipe("ttrl.stop_when_solved=true", "ttrl.samples_per_step=8", "grpo.trl.save_steps=100")
    adapter_log = AdapterLog(backend, monkeypatch)
    whole = run_ttrl(backend, tmp_path, recipe, EASY)
    assert (whole.stopped, whole.steps < 3) == ("solved", True)
    adapter, rows = adapter_log.adapters[-1], result_rows(tmp_path)
    (tmp_path / "eval/attempts.jsonl").unlink()
    notes = Recorder()
    again = run_ttrl(backend, tmp_path, recipe, EASY, observer=notes)
    assert without_times([asdict(again)]) == without_times([asdict(whole)])
    assert again.seconds > read_jsonl(tmp_path / "train/curve.jsonl")[-1]["seconds"]
    assert result_rows(tmp_path) == rows
    assert same(adapter_log.adapters[-1], adapter)
    assert notes.steps == []


# --- early stopping


def clocked(backend: Backend, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> Clock:
    """Return a clock on which only sampling takes time: `seconds` for `variants`, `tries` and `answers`."""
    clock, original_sample = Clock(), backend.sample
    purpose = {1: "variants", 2: "tries", 4: "answers"}  # by the number of replies to each prompt

    def sample(prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        clock.seconds += seconds.get(purpose[n], 0) if prompts and sampling.temperature != 0 else 0
        return original_sample(prompts, n, sampling)

    monkeypatch.setattr(backend, "sample", sample)
    return clock


def test_a_budget_ends_training_before_the_step_that_would_exceed_it(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clocked(backend, monkeypatch, tries=10, answers=500)
    recipe = small_recipe("ttrl.budget=35s", "ttrl.max_steps=9")
    outcome = run_ttrl(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps, outcome.seconds) == ("budget", 3, 530)
    assert [row["seconds"] for row in read_jsonl(tmp_path / "train/curve.jsonl")] == [10, 20, 30]
    assert len(read_jsonl(tmp_path / "eval/attempts.jsonl")) == 4


def test_a_budget_exceeded_by_the_last_step_is_not_the_reason_for_stopping(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clocked(backend, monkeypatch, tries=10)
    recipe = small_recipe("ttrl.budget=22s", "ttrl.max_steps=2")
    outcome = run_ttrl(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps) == ("max_steps", 2)


def test_a_budget_counts_what_earlier_processes_used(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe("ttrl.budget=35s", "ttrl.max_steps=9")
    clock = clocked(backend, monkeypatch, tries=10)

    class PulledPlug(Recorder):
        def step(self, step: grpo.Step, *_: list[Attempt]) -> None:
            if step.step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_ttrl(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock), observer=PulledPlug())
    clock.seconds = 7_000  # time between the two processes does not count
    outcome = run_ttrl(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps, outcome.seconds) == ("budget", 2, 30)  # the second step was done twice
    assert [row["seconds"] for row in read_jsonl(tmp_path / "train/curve.jsonl")] == [10, 30]


def test_a_resumed_problem_without_budget_is_answered_by_the_trained_model(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step exceeded the budget, and a kill came before the answers."""
    recipe = small_recipe("ttrl.budget=35s", "ttrl.max_steps=9")
    start, adapter_log = perturbed(backend), AdapterLog(backend, monkeypatch)
    clock = clocked(backend, monkeypatch, tries=10)

    class Slow(Recorder):
        def step(self, *_: object) -> None:
            clock.seconds += 40

    whole = run_ttrl(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock), observer=Slow())
    assert (whole.stopped, whole.steps) == ("budget", 2)
    adapter, rows = adapter_log.adapters[-1], result_rows(tmp_path)
    assert not same(adapter, start)
    for name in ("attempts.jsonl", "greedy/attempts.jsonl"):
        (tmp_path / "eval" / name).unlink()
    again = run_ttrl(backend, tmp_path, recipe, deadline=Deadline(inf, "", clock))
    assert without_times([asdict(again)]) == without_times([asdict(whole)])
    assert result_rows(tmp_path) == rows
    assert same(adapter_log.adapters[-1], adapter)


def test_a_budget_cuts_the_tree_and_resuming_does_not_grow_it(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_ttrl(backend, tmp_path / "whole", small_recipe("ttrl.per_root=30", "ttrl.max_steps=1"))
    n_rounds = sum(row["requests"] > 0 for row in read_jsonl(tmp_path / "whole/variants/rounds.jsonl"))
    assert n_rounds > 1
    clock = clocked(backend, monkeypatch, variants=10)
    cut = ("ttrl.per_root=30", "ttrl.max_steps=1", "ttrl.budget=11s")
    outcome = run_ttrl(backend, tmp_path / "cut", small_recipe(*cut), deadline=Deadline(inf, "", clock))
    assert 0 < outcome.n_variants < whole.n_variants
    assert len(read_jsonl(tmp_path / "cut/variants/rounds.jsonl")) == 1
    assert (outcome.steps, outcome.stopped) == (1, "max_steps")
    (tmp_path / "cut/eval/attempts.jsonl").unlink()
    again = run_ttrl(backend, tmp_path / "cut", small_recipe(*cut, "ttrl.budget=1h"), deadline=Deadline(inf, "", clock))
    assert without_times([asdict(again)]) == without_times([asdict(outcome)])


def test_a_budget_used_up_by_the_tree_still_gives_answers(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clocked(backend, monkeypatch, variants=10)
    outcome = run_ttrl(backend, tmp_path, small_recipe("ttrl.budget=9s"), deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps) == ("budget", 0)
    assert outcome.n_variants > 0
    assert len(read_jsonl(tmp_path / "eval/attempts.jsonl")) == 4


def test_the_deadline_of_the_run_interrupts_ttrl_and_it_can_resume(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe("ttrl.budget=1h")
    start = backend.snapshot()
    clock = clocked(backend, monkeypatch, tries=30)
    with pytest.raises(OutOfTime, match="75s"):
        run_ttrl(backend, tmp_path / "cut", recipe, deadline=Deadline.after("75s", clock))
    assert same(backend.snapshot(), start)
    assert [row["step"] for row in read_jsonl(tmp_path / "cut/train/metrics.jsonl")] == [1, 2]
    outcome = run_ttrl(backend, tmp_path / "cut", recipe, deadline=Deadline(inf, "", clock))
    assert (outcome.stopped, outcome.steps, outcome.seconds) == ("max_steps", 3, 90)
    run_ttrl(backend, tmp_path / "whole", recipe)
    assert result_rows(tmp_path / "cut") == result_rows(tmp_path / "whole")


def test_the_plateau_rule_stops_training(backend: Backend, tmp_path: Path) -> None:
    outcome = run_ttrl(
        backend, tmp_path, small_recipe("grpo.plateau={patience: 2, min_signal: 1.0}", "grpo.trl.temperature=9.0")
    )
    assert (outcome.stopped, outcome.steps) == ("plateau", 2)
    assert [row["stop"] for row in read_jsonl(tmp_path / "train/metrics.jsonl")] == [None, "plateau"]


def test_a_step_that_diverges_is_rolled_back(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = perturbed(backend)
    adapter_log = AdapterLog(backend, monkeypatch)
    with nan_in_steps(backend, 3):
        outcome = run_ttrl(backend, tmp_path, small_recipe("ttrl.max_steps=4"))
    (rollback,) = divergence.load(tmp_path / "train")
    assert (rollback.step, rollback.back_to) == (3, 1)
    assert (outcome.stopped, outcome.steps) == ("max_steps", 4)
    assert [row["step"] for row in read_jsonl(tmp_path / "train/curve.jsonl")] == [1, 2, 3, 4]
    assert all(weight.isfinite().all() for weight in adapter_log.adapters[-1].values())
    assert same(backend.snapshot(), start)


def test_kl_is_measured_against_the_initial_adapter(backend: Backend, tmp_path: Path) -> None:
    perturbed(backend)
    run_ttrl(backend, tmp_path, small_recipe("grpo.trl.beta=0.05"))
    steps = read_jsonl(tmp_path / "train/metrics.jsonl")
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["kl"] > 1e-6
