"""Small TTRL runs on the embedded model: their recipe, their results, and faults to inject."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ladder_lite import ttrl
from ladder_lite.budget import Deadline
from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import Recipe
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models import Adapter, Backend
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt
from ladder_lite.terminal import Live
from ladder_lite.train.state import Step
from ladder_lite.variants import Writer
from ladder_lite.variants.transformations import open_library
from tests.support.problems import TASK

SMALL = (
    *("ttrl.per_root=4", "ttrl.depth=1", "ttrl.max_steps=3", "ttrl.samples_per_step=2", "eval.samples=4", "eval.k=2"),
    *("ttrl.stop_when_solved=false", "grpo.trl.per_device_train_batch_size=16"),
    *("grpo.trl.max_completion_length=24", "grpo.trl.learning_rate=0.002"),
)
HARD = TASK.read("x**2*exp(x)")  # the embedded model never answers it in these few steps
EASY = TASK.read("cos(2*x)")


def small_recipe(*overrides: str) -> Recipe:
    return load_recipe("tiny", [*SMALL, *overrides])


def run_ttrl(
    backend: Backend,
    folder: Path,
    recipe: Recipe,
    problem: Problem = HARD,
    deadline: Deadline | None = None,
    observer: ttrl.Observer | None = None,
    root: Problem | None = None,
) -> ttrl.Outcome:
    library = open_library(TASK, recipe.variants, folder)
    writer = Writer(TASK, backend, recipe.variants, library, {}, recipe.seed, deadline)
    with Live() as live:
        return ttrl.train_on_problem(writer, problem, recipe, folder, live, observer, root=root)


def without_times(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def result_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all rows that TTRL on a problem writes, without times."""
    names = ("variants/problems", *(f"train/{name}" for name in ("metrics", "attempts", "curve", "pass_rates")))
    names = (*names, "eval/attempts", "eval/greedy/attempts")
    return {name: without_times(read_jsonl(folder / f"{name}.jsonl")) for name in names}


class AdapterLog:
    """Records the backend's weights before each restore; the last ones are the adapter that answered the problem."""

    def __init__(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.adapters: list[Adapter] = []
        restore = backend.restore

        def record_and_restore(adapter: Adapter) -> None:
            self.adapters.append(backend.snapshot())
            restore(adapter)

        monkeypatch.setattr(backend, "restore", record_and_restore)


def same(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(weight.equal(other[name]) for name, weight in one.items())


def perturbed(backend: Backend) -> Adapter:
    """Change the backend's adapter slightly, as if LADDER had trained it, and return a copy of the new weights."""
    import torch

    generator = torch.Generator().manual_seed(1)
    adapter = backend.snapshot()
    for weight in adapter.values():
        weight += 1e-3 * torch.randn(weight.shape, generator=generator)
    backend.restore(adapter)
    return adapter


class Recorder:
    """An observer that records its calls."""

    def __init__(self) -> None:
        self.trees: list[list[Problem]] = []
        self.steps: list[tuple[Step, list[Attempt], list[Attempt]]] = []

    def tree(self, variants: Sequence[Problem]) -> None:
        self.trees.append(list(variants))

    def step(self, step: Step, rollouts: list[Attempt], tries: list[Attempt]) -> None:
        self.steps.append((step, rollouts, tries))


@contextmanager
def nan_in_steps(backend: Backend, *steps: int) -> Iterator[None]:
    """Make hidden states NaN in the forward pass of these training steps, counted from 1, but not during sampling."""
    import torch

    model, _ = backend.trainable()
    number = count(1)

    def spoil(_module: object, _inputs: object, output: Any) -> None:
        if torch.is_grad_enabled() and next(number) in steps:
            output.last_hidden_state = output.last_hidden_state * torch.nan

    # On the model below the LM head, because TRL 1.16 does not call the head.
    hook = model.get_base_model().base_model.register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()
