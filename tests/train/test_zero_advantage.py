"""Leaving out rows with zero advantage changes neither the gradient nor the optimizer's update."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl

from ladder_lite.config.load import load_recipe
from ladder_lite.config.trl_settings import LOSS_TYPES
from ladder_lite.models import Backend, load_backend
from ladder_lite.tasks import load_task
from ladder_lite.train import trainer, zero_advantage
from ladder_lite.train.curriculum import PassRates
from ladder_lite.train.state import Training, TrainingState
from tests.support.problems import problem

RECIPE = load_recipe(
    "tiny",
    [
        "grpo.rows=uniform",
        "grpo.refill=null",
        "grpo.trl.max_steps=1",
        "grpo.trl.per_device_train_batch_size=16",
        "grpo.trl.num_generations=4",
        "grpo.trl.max_completion_length=40",
        "grpo.trl.temperature=2.0",  # replies of many lengths
    ],
)
PROBLEMS = [problem(text) for text in ("cos(2*x)", "5*sin(2*x)+x**3-exp(4*x)", "x**2+sin(3*x)", "x")]
ADVANTAGES = [0.5, -0.5, 0, 1.5, 0, 0, 0, 0, -1.0, 0.25, 0, 0.75, 0, 0, 0, 0]
"""Four groups of four. The second, which has the longest prompt, and the last have equal rewards."""

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def backend() -> Backend:
    """The embedded model with an adapter that changes its output."""
    backend = load_backend(RECIPE)
    generator = torch.Generator().manual_seed(0)
    backend.restore(
        {
            name: weight + 0.02 * torch.randn(weight.shape, generator=generator)
            for name, weight in backend.snapshot().items()
        }
    )
    return backend


def build(backend: Backend, folder: Path, **trl_settings: Any) -> "trl.GRPOTrainer":
    settings = RECIPE.grpo.model_copy(update={"trl": RECIPE.grpo.trl | trl_settings})
    training = Training(load_task(RECIPE.task), backend, settings, folder, 0)
    # The step draws the rows in a random order. Its groups then are in the order of `PROBLEMS`.
    drawn = PassRates(PROBLEMS, "uniform", 0, 1).draw(1, len(PROBLEMS))
    problems = [PROBLEMS[drawn.index(row)] for row in range(len(PROBLEMS))]
    state = TrainingState(training, problems, None, lambda *_: False)
    size = settings.trl["per_device_train_batch_size"]
    built = trainer.Trainer(training, state, size, test_memory_first=False)
    built.current_gradient_accumulation_steps = settings.trl["gradient_accumulation_steps"]
    built.model.train()
    return built


def roll_out(built: "trl.GRPOTrainer", advantages: list[float]) -> dict[str, Any]:
    rows = [built.train_dataset[0]] * len(advantages)
    batch: dict[str, Any] = built._generate_and_score_completions(rows)
    return batch | {"advantages": torch.tensor(advantages)}


def gradients(built: "trl.GRPOTrainer", parts: list[dict[str, Any]]) -> Weights:
    weights = {name: weight for name, weight in built.model.named_parameters() if weight.requires_grad}
    built.model.zero_grad()
    for part in parts:
        built.compute_loss(built.model, part).backward()
    return {name: weight.grad.clone() for name, weight in weights.items()}


def with_all_rows(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], Weights]) -> Weights:
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "depends_on_advantage_only", lambda _trainer: False)
        return compute()


def assert_close(actual: Weights, expected: Weights) -> None:
    largest = max(float(weight.abs().max()) for weight in expected.values())
    assert actual.keys() == expected.keys()
    assert largest > 0
    assert all(torch.allclose(actual[name], expected[name], rtol=1e-4, atol=1e-5 * largest) for name in expected)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of all inputs that go through the model in training."""
    shapes: list[tuple[int, int]] = []
    score = trl.GRPOTrainer._get_per_token_logps_and_entropies

    def record(self: Any, model: Any, input_ids: torch.Tensor, *args: Any, **named: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return score(self, model, input_ids, *args, **named)

    monkeypatch.setattr(trl.GRPOTrainer, "_get_per_token_logps_and_entropies", record)
    return shapes


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_gradient_equals_that_of_all_rows(
    backend: Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: list[tuple[int, int]],
    loss_type: str,
    accumulation: int,
) -> None:
    level = "sequence" if loss_type == "luspo" else "token"
    sizes = {"per_device_train_batch_size": 16 // accumulation, "gradient_accumulation_steps": accumulation}
    built = build(backend, tmp_path, loss_type=loss_type, importance_sampling_level=level, **sizes)
    batch = roll_out(built, ADVANTAGES)
    parts = trl.trainer.utils.split_tensor_dict(
        batch, accumulation
    )  # of four, the second and the last have no gradient
    expected = with_all_rows(monkeypatch, lambda: gradients(built, parts))
    whole = seen.copy()
    seen.clear()
    assert_close(gradients(built, parts), expected)
    assert [len(whole), len(seen)] == [accumulation, {1: 1, 4: 2}[accumulation]]
    assert sum(rows for rows, _ in seen) == sum(advantage != 0 for advantage in ADVANTAGES)
    assert max(length for _, length in seen) < max(length for _, length in whole)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo"])  # one for each kind of denominator
def test_masked_replies_are_left_out_too(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[tuple[int, int]], loss_type: str
) -> None:
    built = build(backend, tmp_path, loss_type=loss_type)
    batch = roll_out(built, ADVANTAGES)
    batch["tool_mask"] = torch.ones_like(batch["completion_mask"])
    batch["tool_mask"][[0, 5]] = 0
    expected = with_all_rows(monkeypatch, lambda: gradients(built, [batch]))
    assert_close(gradients(built, [batch]), expected)
    assert [rows for rows, _ in seen] == [16, sum(advantage != 0 for advantage in ADVANTAGES) - 1]


def test_without_any_advantage_gradients_are_zero_and_momentum_still_moves_the_weights(
    backend: Backend, tmp_path: Path
) -> None:
    built = build(backend, tmp_path)
    before = backend.snapshot()
    batch = roll_out(built, ADVANTAGES)
    optimizer = built.create_optimizer()
    gradients(built, [batch])
    optimizer.step()
    first = backend.snapshot()
    zeros = gradients(built, [batch | {"advantages": torch.zeros(16)}])
    assert all(not weight.any() for weight in zeros.values())
    optimizer.step()
    moved = [name for name, weight in backend.snapshot().items() if not weight.equal(first[name])]
    backend.restore(before)
    assert moved


def test_prompts_keep_their_padding_if_absolute_positions_matter(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(backend, tmp_path)
    assert zero_advantage.positions_are_relative(built.model)
    batch = roll_out(built, ADVANTAGES)
    lengths = {
        trim: zero_advantage.drop_zero_advantage_rows(batch, "grpo", trim_prompts=trim).inputs["prompt_ids"].shape[1]  # type: ignore[union-attr]
        for trim in (False, True)
    }
    assert lengths[False] == batch["prompt_ids"].shape[1]
    assert lengths[True] < lengths[False]
    monkeypatch.setattr(built.model.config, "rope_parameters", {"rope_type": "dynamic", "rope_theta": 10000.0})
    assert not zero_advantage.positions_are_relative(built.model)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.zeros(3), True),
        (torch.zeros(3, 2), True),
        (torch.zeros(2, 3), False),
        (torch.tensor(3), False),
        ([1, 2, 3], False),
        (3, False),
        (None, False),
    ],
)
def test_only_tensors_with_a_row_for_each_completion_are_reduced(value: object, expected: bool) -> None:
    assert zero_advantage.has_rows(value, 3) is expected
    inputs = {
        "advantages": torch.tensor([1.0, 0.0, -1.0]),
        "completion_mask": torch.ones(3, 2),
        "prompt_mask": torch.ones(3, 4),
        "entry": value,
    }
    reduced = zero_advantage.drop_zero_advantage_rows(inputs, "grpo", trim_prompts=True)
    assert reduced is not None
    if expected:
        assert len(reduced.inputs["entry"]) == 2
    else:
        assert reduced.inputs["entry"] is value


@pytest.mark.parametrize(
    "all_rows",
    [{"beta": 0.05}, {"top_entropy_quantile": 0.5}, {"entropy_coef": 0.01}],
)
def test_losses_with_other_parts_keep_all_rows(backend: Backend, tmp_path: Path, all_rows: dict[str, float]) -> None:
    assert zero_advantage.depends_on_advantage_only(build(backend, tmp_path / "plain"))
    assert not zero_advantage.depends_on_advantage_only(build(backend, tmp_path, **all_rows))
