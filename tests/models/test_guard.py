"""The rollout guard stops a run if its engine samples from other weights than those that are trained."""

import math
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import BaseRollouts
from ladder_lite.errors import UserError
from ladder_lite.models import Adapter, Backend, Rollout, Sampling, load_backend
from ladder_lite.models.adapter import is_same
from ladder_lite.models.guard import MARGIN, TOLERANCE
from ladder_lite.models.loading import choose_dtype
from ladder_lite.tasks import load_task
from ladder_lite.train import grpo
from ladder_lite.train.state import Training
from tests.support.problems import problem
from tests.support.ttrl_runs import perturbed

RECIPE = load_recipe(
    "tiny",
    [
        "grpo.rows=uniform",
        "grpo.trl.save_steps=1",
        "grpo.trl.max_steps=2",
        "grpo.trl.per_device_train_batch_size=4",
        "grpo.trl.num_generations=4",
        "grpo.trl.max_completion_length=10",
    ],
)
PROBLEM = problem("cos(2*x)")
TRAINED = pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
Engine = Callable[[list[Any], Sampling], list[Rollout]]


def train(backend: Backend, folder: Path, max_steps: int = 2, base_rollouts: BaseRollouts | None = None) -> None:
    changes = {"trl": RECIPE.grpo.trl | {"max_steps": max_steps}, "base_rollouts": base_rollouts}
    settings = RECIPE.grpo.model_copy(update=changes)
    grpo.train(Training(load_task(RECIPE.task), backend, settings, folder, 0), [PROBLEM], lambda *_: False)


@pytest.fixture
def with_engine(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Engine], Engine]], None]:
    """Replace the backend's engine; the replacement is made from the real one."""

    def replace(make: Callable[[Engine], Engine]) -> None:
        monkeypatch.setattr(backend, "roll_out", make(backend.roll_out))

    return replace


def stuck_at(backend: Backend, adapter: Adapter) -> Callable[[Engine], Engine]:
    """Make an engine that always samples with this adapter, whatever the model has."""

    def make(real: Engine) -> Engine:
        def roll_out(prompts: list[Any], sampling: Sampling) -> list[Rollout]:
            current = backend.snapshot()
            backend.restore(adapter)
            try:
                return real(prompts, sampling)
            finally:
                backend.restore(current)

        return roll_out

    return make


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(UserError, match=r"rollouts: lean .* other weights") as caught:
        yield
    assert "1e-05" in str(caught.value)  # the tolerance in float32
    assert "model.engine=generate" in str(caught.value)


# --- correct engines


@TRAINED
def test_a_correct_engine_passes_and_nothing_is_changed(backend: Backend, trained: bool) -> None:
    start = perturbed(backend) if trained else backend.snapshot()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    for _ in range(5):
        backend.check_rollouts()
    assert torch.equal(torch.rand(1), expected)  # the global random state has not moved
    assert is_same(start, backend.snapshot())


@pytest.mark.parametrize("settings", [["model.dtype=bfloat16"], ["model.dtype=float16"], ["model.load_in_4bit=true"]])
def test_rounding_errors_pass(settings: list[str]) -> None:
    backend = load_backend(load_recipe("tiny", settings))
    for _ in range(3):
        backend.check_rollouts()


def test_every_dtype_has_a_tolerance() -> None:
    settings = [load_recipe("tiny", [f"model.dtype={name}"]).model for name in ("float32", "bfloat16", "float16")]
    assert TOLERANCE.keys() == {choose_dtype(each, torch.device("cpu")) for each in settings}


def effects_and_gaps(backend: Backend, monkeypatch: pytest.MonkeyPatch, n: int) -> tuple[list[float], list[float]]:
    """For n checks after the first: the divergence that the random adapter causes, and the gap that was measured."""
    effects, gaps = [], []
    backend.check_rollouts()  # finds the scale
    check = backend._guard.check

    def check_effect(score: Any, temperature: float, from_base: bool) -> None:
        def score_without(ids: torch.Tensor, mask: torch.Tensor, n: int) -> torch.Tensor:
            logprobs = score(ids, mask, n)
            with backend.trainable()[0].disable_adapter():
                ratio = (score(ids, mask, n) - logprobs)[mask[:, -n:].bool()]
            effects.append(float((ratio.exp() - 1 - ratio).mean()))
            return logprobs

        check(score_without, temperature, from_base)
        gaps.append(backend._guard.gap)

    monkeypatch.setattr(backend._guard, "check", check_effect)
    for _ in range(n):
        backend.check_rollouts()
    return effects, gaps


def test_the_random_values_move_log_probabilities_by_the_margin(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects, gaps = effects_and_gaps(backend, monkeypatch, 20)
    assert min(effects) >= MARGIN * TOLERANCE[torch.float32]
    assert max(gaps) < TOLERANCE[torch.float32] / 100


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_deep_model_passes_although_it_amplifies_rounding_errors(
    dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """16 layers amplify rounding errors, and a large final norm amplifies their effect on log-probabilities."""
    import ladder_lite.tiny

    tiny = Path(ladder_lite.tiny.__file__).parent
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / name, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tiny, num_hidden_layers=16)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, weight.shape[1] ** -0.5) if weight.ndim == 2 else weight.fill_(1)
        model.model.norm.weight.fill_(3)
    model.save_pretrained(tmp_path)
    backend = load_backend(load_recipe("tiny", [f"model.id={tmp_path}", f"model.dtype={dtype}"]))
    effects, gaps = effects_and_gaps(backend, monkeypatch, 8)
    tolerance = TOLERANCE[backend.dtype]
    assert MARGIN * tolerance <= statistics.median(effects) <= 20 * MARGIN * tolerance
    assert max(gaps) < tolerance / 2


# --- faulty engines


@TRAINED
def test_an_engine_without_the_adapter(
    backend: Backend, with_engine: Callable[..., None], tmp_path: Path, trained: bool
) -> None:
    start = perturbed(backend) if trained else backend.snapshot()

    def without_adapter(real: Engine) -> Engine:
        def roll_out(prompts: list[Any], sampling: Sampling) -> list[Rollout]:
            with backend.trainable()[0].disable_adapter():
                return real(prompts, sampling)

        return roll_out

    with_engine(without_adapter)
    with refused():
        train(backend, tmp_path)
    assert is_same(start, backend.snapshot())
    assert not (tmp_path / "attempts.jsonl").exists()


def test_an_engine_that_cannot_switch_the_adapter_off(
    backend: Backend, with_engine: Callable[..., None], tmp_path: Path
) -> None:
    def always_on(real: Engine) -> Engine:
        return lambda prompts, sampling: real(prompts, replace(sampling, from_base=False))

    with_engine(always_on)
    backend.check_rollouts()  # this engine is right as long as the base model is not sampled
    with pytest.raises(UserError, match=r"rollouts: lean .* than the base model"):
        train(backend, tmp_path, base_rollouts=BaseRollouts(rows=1, samples=4))
    assert not (tmp_path / "attempts.jsonl").exists()


@TRAINED
def test_an_engine_with_an_old_copy_of_the_adapter(
    backend: Backend, with_engine: Callable[..., None], tmp_path: Path, trained: bool
) -> None:
    if trained:
        perturbed(backend)
    with_engine(stuck_at(backend, backend.snapshot()))
    with refused():
        train(backend, tmp_path)


def test_an_engine_that_keeps_the_adapter_of_an_earlier_check(
    backend: Backend, with_engine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Adapter] = []

    def record(real: Engine) -> Engine:
        def roll_out(prompts: list[Any], sampling: Sampling) -> list[Rollout]:
            seen.append(backend.snapshot())
            return real(prompts, sampling)

        return roll_out

    with_engine(record)
    backend.check_rollouts()
    monkeypatch.undo()
    with_engine(stuck_at(backend, seen[-1]))
    with refused():
        backend.check_rollouts()


def test_a_gap_just_above_the_tolerance_is_measured_again(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    tolerance = TOLERANCE[torch.float32]
    for gaps, passes in (([2.0, 0.5], True), ([2.0, 2.0], False), ([MARGIN + 1.0, 0.5], False)):
        left = [gap * tolerance for gap in gaps]
        monkeypatch.setattr(backend._guard, "_compare", lambda *_, left=left: left.pop(0))
        if passes:
            backend.check_rollouts()
        else:
            with refused():
                backend.check_rollouts()


def test_an_engine_whose_log_probabilities_are_nan(backend: Backend, with_engine: Callable[..., None]) -> None:
    def broken(real: Engine) -> Engine:
        return lambda prompts, sampling: [
            rollout._replace(logprobs=[math.nan] * len(rollout.completion_ids)) for rollout in real(prompts, sampling)
        ]

    with_engine(broken)
    with refused():
        backend.check_rollouts()


def test_a_model_that_ignores_its_adapter(backend: Backend) -> None:
    start = backend.snapshot()
    fresh = load_backend(RECIPE)  # a new backend, whose guard does not know the scale yet
    with pytest.raises(UserError, match=r"rollouts: what lean .* not depend on the adapter"):
        fresh.check_rollouts(lambda ids, _mask, n: torch.zeros(len(ids), n))
    assert is_same(start, fresh.snapshot())


# --- when it checks, and the cost of a check


def test_a_run_is_checked_at_its_start_and_when_it_resumes(
    backend: Backend, with_engine: Callable[..., None], tmp_path: Path
) -> None:
    backend.check_rollouts()  # the first check of a model costs more
    checks: list[bool] = []

    def record(real: Engine) -> Engine:
        def roll_out(prompts: list[Any], sampling: Sampling) -> list[Rollout]:
            checks.append(sampling.logprobs)
            return real(prompts, sampling)

        return roll_out

    with_engine(record)
    train(backend, tmp_path, max_steps=2)
    assert checks == [True, False, False]
    train(backend, tmp_path, max_steps=3)
    assert checks[3:] == [True, False]


def test_an_adapter_that_is_loaded_is_checked(
    backend: Backend, with_engine: Callable[..., None], tmp_path: Path
) -> None:
    backend.save(tmp_path)
    with_engine(stuck_at(backend, backend.snapshot()))
    with refused():
        backend.load(tmp_path)


def test_a_check_is_one_short_rollout_and_one_forward_pass(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.check_rollouts()
    model, _ = backend.trainable()
    forward, sample = model.forward, backend._engine.sample
    passes: list[Any] = []
    rollouts: list[int] = []

    def record_forward(*args: Any, **named: Any) -> Any:
        if not generating:
            passes.append(named["input_ids"].shape)
        return forward(*args, **named)

    def record_sample(requests: Any, sampling: Any, *more: Any) -> Any:
        rollouts.append(sampling.max_new_tokens)
        generating.append(True)
        yield from sample(requests, sampling, *more)
        generating.pop()

    generating: list[bool] = []
    monkeypatch.setattr(model, "forward", record_forward)
    monkeypatch.setattr(backend._engine, "sample", record_sample)
    backend.check_rollouts()
    assert rollouts == [16]
    assert len(passes) == 1
