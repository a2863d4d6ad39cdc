"""Training runs of the embedded model that are stopped, diverge or have a KL term: what they leave, how they resume."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config.load import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.models import Backend
from ladder_lite.problems.attempts import Attempt
from ladder_lite.train import divergence, grpo
from ladder_lite.train.state import Step, Training
from tests.support.fakes import Clock
from tests.support.problems import TASK, problem
from tests.support.ttrl_runs import nan_in_steps, perturbed, without_times

EASY = [problem(text) for text in ("2*x", "3*x**2", "cos(2*x)", "exp(3*x)")]
BATCH = 16


def train(
    backend: Backend,
    folder: Path,
    *trl: str,
    after_step: Callable[[Step, list[Attempt]], bool] = lambda *_: False,
    deadline: Deadline | None = None,
    lines: list[str] | None = None,
    base_rollouts: str = "null",
) -> list[Step]:
    """Train for six steps of 16 short completions, with changes to the settings of TRL."""
    few = (f"per_device_train_batch_size={BATCH}", "max_steps=6", "max_completion_length=24", "learning_rate=0.002")
    overrides = ["grpo.rows=uniform", f"grpo.base_rollouts={base_rollouts}"]
    settings = load_recipe("tiny", [*overrides, *(f"grpo.trl.{text}" for text in (*few, *trl))]).grpo
    say = (lambda _: None) if lines is None else lines.append
    return grpo.train(Training(TASK, backend, settings, folder, 0, deadline or Deadline.never(), say), EASY, after_step)


def rows_without_times(steps: list[Step]) -> list[dict[str, Any]]:
    return without_times([asdict(step) for step in steps])


def adapters(backend: Backend) -> tuple[list[str], str]:
    model, _ = backend.trainable()
    return list(model.peft_config), model.active_adapter


# --- a budget


def test_a_run_that_its_budget_stopped_resumes_to_the_same_numbers(backend: Backend, tmp_path: Path) -> None:
    start = backend.snapshot()
    whole = train(backend, tmp_path / "whole", "save_steps=100")
    trained = backend.snapshot()
    parts: list[int] = []
    steps: list[Step] = []
    while not steps:
        backend.restore(start)  # as in a new process
        clock = Clock()

        def take_30_s(*_: object, clock: Clock = clock) -> bool:
            clock.seconds += 30
            return False

        try:
            deadline = Deadline.after("100s", clock)  # of which 2 are a reserve: a fourth step would end at 120
            steps = train(backend, tmp_path / "cut", "save_steps=100", after_step=take_30_s, deadline=deadline)
        except OutOfTime:
            logged = [row["step"] for row in read_jsonl(tmp_path / "cut/metrics.jsonl")]
            parts.append(logged[-1])
            assert {path.name for path in (tmp_path / "cut/checkpoints").iterdir()} >= {f"checkpoint-{logged[-1]}"}
            assert {row["step"] for row in read_jsonl(tmp_path / "cut/attempts.jsonl")} == set(logged)
            assert not (tmp_path / "cut/pass_rates.jsonl").exists()
    assert parts == [3]  # the second process does the other three, the last of which it need not stop after
    assert rows_without_times(steps) == rows_without_times(whole)
    assert any(step.groups_without_signal < 1 for step in whole)
    assert all(weight.equal(trained[name]) for name, weight in backend.snapshot().items())


# --- divergence


@pytest.fixture(scope="module")
def undisturbed(module_backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    fresh = module_backend.snapshot()
    steps = train(module_backend, tmp_path_factory.mktemp("undisturbed"))
    module_backend.restore(fresh)
    return steps


@pytest.mark.parametrize(("save_steps", "back_to"), [(1, 2), (3, 3), (100, 0)])
def test_a_step_that_diverges_is_rolled_back_once(
    backend: Backend, undisturbed: list[Step], tmp_path: Path, save_steps: int, back_to: int
) -> None:
    lines: list[str] = []
    bad = 4 if save_steps != 3 else 5
    with nan_in_steps(backend, bad):
        steps = train(backend, tmp_path, f"save_steps={save_steps}", lines=lines)
    (rollback,) = divergence.load(tmp_path)
    assert lines == [str(rollback)]
    assert (rollback.step, rollback.back_to, rollback.learning_rate) == (bad, back_to, 0.001)
    assert rollback.reason == "its loss is not finite"
    assert rows_without_times(steps[:back_to]) == rows_without_times(undisturbed[:back_to])
    planned = [step.learning_rate for step in undisturbed]
    halved = [*planned[:back_to], *(rate / 2 for rate in planned[back_to:])]
    assert [step.learning_rate for step in steps] == pytest.approx(halved, abs=1e-7)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(row["loss"]) for row in rows)
    attempts = read_jsonl(tmp_path / "attempts.jsonl")
    assert [row["step"] for row in attempts] == [row["step"] for row in rows for _ in range(row["n_rollouts"])]
    assert all(weight.isfinite().all() for weight in backend.snapshot().values())


def test_a_resumed_run_keeps_the_halved_rate(backend: Backend, tmp_path: Path) -> None:
    start = backend.snapshot()
    with nan_in_steps(backend, 3):
        whole = train(backend, tmp_path / "whole")
    backend.restore(start)
    rolled_back: list[str] = []

    def interrupt(step: Step, _: list[Attempt]) -> bool:
        if rolled_back and step.step == 4:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt), nan_in_steps(backend, 3):
        train(backend, tmp_path / "cut", after_step=interrupt, lines=rolled_back)
    backend.restore(start)
    steps = train(backend, tmp_path / "cut")
    assert rows_without_times(steps) == rows_without_times(whole)
    assert len(divergence.load(tmp_path / "cut")) == 1


def test_a_gradient_of_nan_is_rolled_back(backend: Backend, tmp_path: Path) -> None:
    import torch

    model, _ = backend.trainable()
    weight = next(weight for weight in model.parameters() if weight.requires_grad)
    poison = iter([False, False, True])
    hook = weight.register_hook(lambda grad: grad * torch.nan if next(poison, False) else grad)
    try:
        train(backend, tmp_path)
    finally:
        hook.remove()
    (rollback,) = divergence.load(tmp_path)
    assert (rollback.step, rollback.reason, rollback.back_to) == (3, "its gradient is not finite", 1)
    assert all(weight.isfinite().all() for weight in backend.snapshot().values())


def test_a_second_divergence_is_an_error_and_keeps_the_good_steps(backend: Backend, tmp_path: Path) -> None:
    message = r"metrics\.jsonl: training diverged again at step 2 \(its loss is not finite\)"
    with pytest.raises(UserError, match=message), nan_in_steps(backend, 2, 4):
        train(backend, tmp_path)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1]
    assert adapters(backend) == (["default"], "default")


# --- KL


def test_kl_is_measured_against_the_adapter_at_the_start_of_training(backend: Backend, tmp_path: Path) -> None:
    """Two runs in one process, from a fresh and from a trained adapter, as TTRL follows LADDER."""
    keys = backend.snapshot().keys()
    n_weights = len(list(backend.trainable()[0].parameters()))
    for name in ("fresh", "trained"):
        steps = train(backend, tmp_path / name, "beta=0.05", "max_steps=3")
        assert steps[0].kl == pytest.approx(0, abs=1e-6)
        assert max(step.kl or 0 for step in steps[1:]) > 1e-5
        assert adapters(backend) == (["default"], "default")
        assert backend.snapshot().keys() == keys
        assert len(list(backend.trainable()[0].parameters())) == n_weights
        assert not list((tmp_path / name).rglob("ref"))
    backend.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter/ref").exists()


def test_without_a_kl_term_there_is_no_reference(backend: Backend, tmp_path: Path) -> None:
    seen = []
    steps = train(backend, tmp_path, "max_steps=1", after_step=lambda *_: bool(seen.append(adapters(backend))))
    assert seen == [(["default"], "default")]
    assert steps[0].kl is None


def resumes_to_the_same_numbers(backend: Backend, folder: Path, *trl: str, base_rollouts: str = "null") -> list[Step]:
    """Train as a whole, then again with an interruption in step 4; assert equality, and return the steps."""
    start = backend.snapshot()
    whole = train(backend, folder / "whole", *trl, base_rollouts=base_rollouts)
    trained = backend.snapshot()
    backend.restore(start)

    def interrupt(step: Step, _: list[Attempt]) -> bool:
        if step.step == 4:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(backend, folder / "cut", *trl, base_rollouts=base_rollouts, after_step=interrupt)
    assert adapters(backend) == (["default"], "default")
    backend.restore(start)
    resumed = train(backend, folder / "cut", *trl, base_rollouts=base_rollouts)
    assert rows_without_times(resumed) == rows_without_times(whole)
    assert all(weight.equal(trained[name]) for name, weight in backend.snapshot().items())
    return whole


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_with_a_kl_term_resumes_to_the_same_numbers(backend: Backend, tmp_path: Path, accumulation: int) -> None:
    """The resumed run has the adapter of the start as its reference, and the weights of the checkpoint."""
    settings = (f"gradient_accumulation_steps={accumulation}", f"per_device_train_batch_size={BATCH // accumulation}")
    steps = resumes_to_the_same_numbers(backend, tmp_path, "beta=0.05", *settings)
    assert len({step.kl for step in steps}) > 3


@pytest.mark.parametrize("beta", ["0", "0.05"])
def test_a_run_with_base_rollouts_resumes_to_the_same_numbers(backend: Backend, tmp_path: Path, beta: str) -> None:
    perturbed(backend)  # so that its rollouts and those of the base model differ
    resumes_to_the_same_numbers(backend, tmp_path, f"beta={beta}", base_rollouts="{rows: 2, samples: 4}")
    assert {row.get("from_base") for row in read_jsonl(tmp_path / "whole/attempts.jsonl")} == {None, True}


def test_rows_of_later_steps_are_cut_from_all_logs(tmp_path: Path) -> None:
    for name in ("metrics", "attempts", "curve", "probes"):
        append_jsonl(tmp_path / f"{name}.jsonl", [{"step": step} for step in (1, 2, 2, 3)])
    grpo._cut_logs(tmp_path, 2)
    for name in ("metrics", "attempts", "curve", "probes"):
        assert [row["step"] for row in read_jsonl(tmp_path / f"{name}.jsonl")] == [1, 2, 2]


# --- checkpoints


def test_a_checkpoint_contains_only_what_resuming_needs(backend: Backend, tmp_path: Path) -> None:
    from safetensors import safe_open

    train(backend, tmp_path, "beta=0.05", "max_steps=2", "optim=adamw_torch")
    checkpoint = tmp_path / "checkpoints/checkpoint-2"
    with safe_open(checkpoint / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert names
    assert all(".lora_" in name for name in names)
    adapter_bytes = (checkpoint / "adapter_model.safetensors").stat().st_size
    assert adapter_bytes == pytest.approx(4 * sum(w.numel() for w in backend.snapshot().values()), rel=0.02)
    total = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert total < 3.1 * adapter_bytes + 60_000  # adapter and two moments of the optimizer, and small files
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert {path.name for path in checkpoint.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }
