"""The rollout guard: an engine that samples from other weights than those that are trained stops the run."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lessons import shaken

from ladder_lite import grpo
from ladder_lite.backends import Adapter, Backend, Rollout, Sampling, load_backend
from ladder_lite.backends.adapter import is_same
from ladder_lite.backends.guard import MARGIN, TOLERANCE
from ladder_lite.backends.loading import choose_dtype
from ladder_lite.config import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.problems import Problem
from ladder_lite.tasks import load_task

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
PROBLEM = Problem.root("integration", {"integrand": "cos(2*x)", "variable": "x", "lower": None, "upper": None})
TRAINED = pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
Engine = Callable[[list[Any], Sampling], list[Rollout]]


def train(backend: Backend, folder: Path, max_steps: int = 2) -> None:
    settings = RECIPE.grpo.model_copy(update={"trl": RECIPE.grpo.trl | {"max_steps": max_steps}})
    grpo.train(load_task(RECIPE.task), backend, [PROBLEM], settings, folder, 0, lambda *_: False)


@pytest.fixture
def with_engine(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Engine], Engine]], None]:
    """Replaces how the backend samples; what it is replaced by is given the real thing."""

    def replace(make: Callable[[Engine], Engine]) -> None:
        monkeypatch.setattr(backend, "roll_out", make(backend.roll_out))

    return replace


def holding(backend: Backend, adapter: Adapter) -> Callable[[Engine], Engine]:
    """An engine that samples with this adapter, whatever the model has."""

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
    with pytest.raises(UserError, match="rollouts: transformers samples from other weights") as caught:
        yield
    assert "1e-05" in str(caught.value)  # what is allowed in float32
    assert "ladder_lite.doctor" in str(caught.value)


# --- engines that are right


@TRAINED
def test_an_engine_that_is_right_passes_and_nothing_has_changed(backend: Backend, trained: bool) -> None:
    start = shaken(backend) if trained else backend.snapshot()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    for _ in range(5):
        backend.check_rollouts()
    assert torch.equal(torch.rand(1), expected)  # the run's own random numbers are those that they were
    assert is_same(start, backend.snapshot())


@pytest.mark.parametrize("settings", [["model.dtype=bfloat16"], ["model.dtype=float16"], ["model.load_in_4bit=true"]])
def test_rounding_passes(settings: list[str]) -> None:
    backend = load_backend(load_recipe("tiny", settings))
    for _ in range(3):
        backend.check_rollouts()


def test_every_type_has_a_tolerance() -> None:
    settings = [load_recipe("tiny", [f"model.dtype={name}"]).model for name in ("float32", "bfloat16", "float16")]
    assert TOLERANCE.keys() == {choose_dtype(each, torch.device("cpu")) for each in settings}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_random_values_move_log_probabilities_by_the_margin(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load_backend(load_recipe("tiny", [f"model.dtype={dtype}"]))
    effects = []

    def check_effect(score: Any, temperature: float) -> None:
        def score_without(ids: torch.Tensor, mask: torch.Tensor, n: int) -> torch.Tensor:
            found = score(ids, mask, n)
            with backend.trainable()[0].disable_adapter():
                ratio = (score(ids, mask, n) - found)[mask[:, -n:].bool()]
            effects.append(float((ratio.exp() - 1 - ratio).mean()))
            return found

        check(score_without, temperature)

    backend.check_rollouts()  # finds the scale
    check = backend._guard.check
    monkeypatch.setattr(backend._guard, "check", check_effect)
    for _ in range(20):
        backend.check_rollouts()
    assert len(effects) == 20
    assert min(effects) >= MARGIN * TOLERANCE[backend.dtype]


# --- engines that are wrong


@TRAINED
def test_an_engine_without_the_adapter(
    backend: Backend, with_engine: Callable[..., None], tmp_path: Path, trained: bool
) -> None:
    start = shaken(backend) if trained else backend.snapshot()

    def ignorant(real: Engine) -> Engine:
        def roll_out(prompts: list[Any], sampling: Sampling) -> list[Rollout]:
            with backend.trainable()[0].disable_adapter():
                return real(prompts, sampling)

        return roll_out

    with_engine(ignorant)
    with refused():
        train(backend, tmp_path)
    assert is_same(start, backend.snapshot())
    assert not (tmp_path / "attempts.jsonl").exists()


@TRAINED
def test_an_engine_with_a_copy_of_the_adapter_from_before(
    backend: Backend, with_engine: Callable[..., None], tmp_path: Path, trained: bool
) -> None:
    if trained:
        shaken(backend)
    with_engine(holding(backend, backend.snapshot()))
    with refused():
        train(backend, tmp_path)


def test_an_engine_that_keeps_what_it_was_checked_with(
    backend: Backend, with_engine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Adapter] = []

    def note(real: Engine) -> Engine:
        def roll_out(prompts: list[Any], sampling: Sampling) -> list[Rollout]:
            seen.append(backend.snapshot())
            return real(prompts, sampling)

        return roll_out

    with_engine(note)
    backend.check_rollouts()
    monkeypatch.undo()
    with_engine(holding(backend, seen[-1]))
    with refused():
        backend.check_rollouts()


def test_an_engine_that_says_nothing_of_use(backend: Backend, with_engine: Callable[..., None]) -> None:
    def broken(real: Engine) -> Engine:
        return lambda prompts, sampling: [
            rollout._replace(logprobs=[math.nan] * len(rollout.completion_ids)) for rollout in real(prompts, sampling)
        ]

    with_engine(broken)
    with refused():
        backend.check_rollouts()


def test_a_model_that_no_adapter_changes(backend: Backend) -> None:
    start = backend.snapshot()
    fresh = load_backend(RECIPE)  # the scale of the other is known already
    with pytest.raises(UserError, match="rollouts: no adapter changes"):
        fresh.check_rollouts(lambda ids, _mask, n: torch.zeros(len(ids), n))
    assert is_same(start, fresh.snapshot())


# --- when it checks, and what that costs


def test_a_training_is_checked_once_and_once_more_when_it_is_resumed(
    backend: Backend, with_engine: Callable[..., None], tmp_path: Path
) -> None:
    backend.check_rollouts()  # the first check of a model costs more
    asked: list[bool] = []

    def note(real: Engine) -> Engine:
        def roll_out(prompts: list[Any], sampling: Sampling) -> list[Rollout]:
            asked.append(sampling.logprobs)
            return real(prompts, sampling)

        return roll_out

    with_engine(note)
    train(backend, tmp_path, max_steps=2)
    assert asked == [True, False, False]
    train(backend, tmp_path, max_steps=3)
    assert asked[3:] == [True, False]


def test_an_adapter_that_is_loaded_is_checked(
    backend: Backend, with_engine: Callable[..., None], tmp_path: Path
) -> None:
    backend.save(tmp_path)
    with_engine(holding(backend, backend.snapshot()))
    with refused():
        backend.load(tmp_path)


def test_a_check_is_one_short_rollout_and_one_forward_pass(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.check_rollouts()
    model, _ = backend.trainable()
    forward, generate = model.forward, model.generate
    passes: list[Any] = []
    rollouts: list[int] = []

    def note_forward(*args: Any, **named: Any) -> Any:
        if not generating:
            passes.append(named["input_ids"].shape)
        return forward(*args, **named)

    def note_generate(**named: Any) -> Any:
        rollouts.append(named["generation_config"].max_new_tokens)
        generating.append(True)
        try:
            return generate(**named)
        finally:
            generating.pop()

    generating: list[bool] = []
    monkeypatch.setattr(model, "forward", note_forward)
    monkeypatch.setattr(model, "generate", note_generate)
    backend.check_rollouts()
    assert rollouts == [16]
    assert len(passes) == 1
