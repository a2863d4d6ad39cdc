"""Real trainings of the embedded model that are stopped, diverge or measure KL: what is left, and how they go on."""

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
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models import Backend
from ladder_lite.problems.attempts import Attempt
from ladder_lite.train import divergence, grpo
from ladder_lite.train.state import Step, Training
from tests.support.fakes import Clock
from tests.support.lessons import poisoned, without_times
from tests.support.problems import TASK, problem

EASY = [problem(text) for text in ("2*x", "3*x**2", "cos(2*x)", "exp(3*x)")]
BATCH = 16


def train(
    backend: Backend,
    folder: Path,
    *trl: str,
    after_step: Callable[[Step, list[Attempt]], bool] = lambda *_: False,
    deadline: Deadline | None = None,
    said: list[str] | None = None,
) -> list[Step]:
    """Six steps of 16 short completions, changed by the settings given."""
    few = (f"per_device_train_batch_size={BATCH}", "max_steps=6", "max_completion_length=24", "learning_rate=0.002")
    settings = load_recipe("tiny", ["grpo.rows=uniform", *(f"grpo.trl.{text}" for text in (*few, *trl))]).grpo
    say = (lambda _: None) if said is None else said.append
    return grpo.train(Training(TASK, backend, settings, folder, 0, deadline or Deadline.never(), say), EASY, after_step)


def what_counts(steps: list[Step]) -> list[dict[str, Any]]:
    return without_times([asdict(step) for step in steps])


def adapters(backend: Backend) -> tuple[list[str], str]:
    model, _ = backend.trainable()
    return list(model.peft_config), model.active_adapter


# --- a budget


def test_a_training_stopped_by_its_budget_goes_on_to_the_same_numbers(backend: Backend, tmp_path: Path) -> None:
    start = backend.snapshot()
    whole = train(backend, tmp_path / "whole", "save_steps=100")
    trained = backend.snapshot()
    parts: list[int] = []
    steps: list[Step] = []
    while not steps:
        backend.restore(start)  # as a new process has it
        clock = Clock()

        def a_step_takes_30_s(*_: object, clock: Clock = clock) -> bool:
            clock.seconds += 30
            return False

        try:
            deadline = Deadline.after("100s", clock)  # 98 are used, and the next step would end at 120
            steps = train(backend, tmp_path / "cut", "save_steps=100", after_step=a_step_takes_30_s, deadline=deadline)
        except OutOfTime:
            logged = [row["step"] for row in read_jsonl(tmp_path / "cut/metrics.jsonl")]
            parts.append(logged[-1])
            assert {path.name for path in (tmp_path / "cut/checkpoints").iterdir()} >= {f"checkpoint-{logged[-1]}"}
            assert {row["step"] for row in read_jsonl(tmp_path / "cut/attempts.jsonl")} == set(logged)
            assert not (tmp_path / "cut/pass_rates.jsonl").exists()
    assert parts == [3]  # the sixth step is the last one: there is nothing left to stop
    assert what_counts(steps) == what_counts(whole)
    assert any(step.groups_without_signal < 1 for step in whole)
    assert all(weight.equal(trained[name]) for name, weight in backend.snapshot().items())


# --- a training that diverges


@pytest.fixture(scope="module")
def undisturbed(loaded: Backend, tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    fresh = loaded.snapshot()
    steps = train(loaded, tmp_path_factory.mktemp("undisturbed"))
    loaded.restore(fresh)
    return steps


@pytest.mark.parametrize(("save_steps", "back_to"), [(1, 2), (3, 3), (100, 0)])
def test_a_step_that_diverges_is_undone_once(
    backend: Backend, undisturbed: list[Step], tmp_path: Path, save_steps: int, back_to: int
) -> None:
    said: list[str] = []
    bad = 4 if save_steps != 3 else 5
    with poisoned(backend, bad):
        steps = train(backend, tmp_path, f"save_steps={save_steps}", said=said)
    (rollback,) = divergence.load(tmp_path)
    assert said == [str(rollback)]
    assert (rollback.step, rollback.back_to, rollback.learning_rate) == (bad, back_to, 0.001)
    assert rollback.reason == "its loss is no number"
    assert what_counts(steps[:back_to]) == what_counts(undisturbed[:back_to])
    planned = [step.learning_rate for step in undisturbed]
    halved = [*planned[:back_to], *(rate / 2 for rate in planned[back_to:])]
    assert [step.learning_rate for step in steps] == pytest.approx(halved, abs=1e-7)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(row["loss"]) for row in rows)
    attempts = read_jsonl(tmp_path / "attempts.jsonl")
    assert [row["step"] for row in attempts] == [step for step in range(1, 7) for _ in range(BATCH)]
    assert all(weight.isfinite().all() for weight in backend.snapshot().values())


def test_a_resumed_training_keeps_the_halved_rate(backend: Backend, tmp_path: Path) -> None:
    start = backend.snapshot()
    with poisoned(backend, 3):
        whole = train(backend, tmp_path / "whole")
    backend.restore(start)
    rolled_back: list[str] = []

    def pull_the_plug(step: Step, _: list[Attempt]) -> bool:
        if rolled_back and step.step == 4:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt), poisoned(backend, 3):
        train(backend, tmp_path / "cut", after_step=pull_the_plug, said=rolled_back)
    backend.restore(start)
    steps = train(backend, tmp_path / "cut")
    assert what_counts(steps) == what_counts(whole)
    assert len(divergence.load(tmp_path / "cut")) == 1


def test_a_gradient_that_is_no_number_leaves_no_trace_in_the_weights(backend: Backend, tmp_path: Path) -> None:
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
    assert (rollback.step, rollback.reason, rollback.back_to) == (3, "its gradient is no number", 1)
    assert all(weight.isfinite().all() for weight in backend.snapshot().values())


def test_a_second_divergence_is_an_error_and_keeps_what_was_good(backend: Backend, tmp_path: Path) -> None:
    words = r"metrics\.jsonl: training diverged again at step 2 \(its loss is no number\)"
    with pytest.raises(UserError, match=words), poisoned(backend, 2, 4):
        train(backend, tmp_path)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1]
    assert adapters(backend) == (["default"], "default")


# --- KL


def test_kl_is_measured_against_the_adapter_that_training_began_with(backend: Backend, tmp_path: Path) -> None:
    """Twice in one process, as a control is followed by LADDER, and LADDER by TTRL."""
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


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_with_kl_resumes_to_the_same_numbers(backend: Backend, tmp_path: Path, accumulation: int) -> None:
    """The reference of the resumed one is the adapter at the start too, and its own weights are the checkpoint's."""
    settings = (
        "beta=0.05",
        f"gradient_accumulation_steps={accumulation}",
        f"per_device_train_batch_size={BATCH // accumulation}",
    )
    start = backend.snapshot()
    whole = train(backend, tmp_path / "whole", *settings)
    trained = backend.snapshot()
    backend.restore(start)

    def pull_the_plug(step: Step, _: list[Attempt]) -> bool:
        if step.step == 4:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(backend, tmp_path / "cut", *settings, after_step=pull_the_plug)
    assert adapters(backend) == (["default"], "default")
    backend.restore(start)
    assert what_counts(train(backend, tmp_path / "cut", *settings)) == what_counts(whole)
    assert all(weight.equal(trained[name]) for name, weight in backend.snapshot().items())
    assert len({step.kl for step in whole}) > 3


# --- checkpoints


def test_a_checkpoint_holds_what_resuming_needs_and_no_more(backend: Backend, tmp_path: Path) -> None:
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
    assert total < 3.1 * adapter_bytes + 60_000  # with the optimizer's two moments, states and texts
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
