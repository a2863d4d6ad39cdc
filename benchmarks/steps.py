"""Measure the parts of a GRPO step on a CPU, with and without the optimizations of this package.

    python -m ladder_lite.recipe tiny --only ladder --run-dir runs/tiny-s0    # five minutes, once
    python benchmarks/steps.py runs/tiny-s0                                   # minutes
    python benchmarks/steps.py runs/smollm-s0 --arms prompts,now --rounds 1   # minutes

Each step starts from the final adapter of that run and trains on the problems of one of its last steps. All arms take
the same steps in turn, on one thread:

- `baseline` samples all rollouts in one batch of `generate`, computes weights and adapter separately, trains on all
  rows, and reads the prompt of each;
- `generate` samples in smaller batches with the adapter merged into the weights, and trains on the rows with a nonzero
  advantage only;
- `prompts` also has the engine `lean`, and its loss reads each prompt once, but each reply by itself;
- `now` also computes once what replies to a prompt begin with.

Times are CPU seconds, which other processes disturb less than wall-clock time. Sampling includes grading, and
training includes the optimizer. Writes benchmarks/results/steps-RECIPE.json.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any
from unittest.mock import patch

import psutil
import torch
import typer

from ladder_lite.models import load_backend, local, shared_prompts
from ladder_lite.problems import Problem
from ladder_lite.runs import layout
from ladder_lite.runs.finished import Run, open_run
from ladder_lite.tasks import Task, load_task
from ladder_lite.train import grpo, trainer
from ladder_lite.train.state import Training, TrainingState

HERE = Path(__file__).parent
_ROLL_OUT = TrainingState.roll_out
_ONE_BATCH = (local, "_CPU_BATCH", 1_000_000)
_NOTHING_SHARED = (trainer, "sharing_prompts", lambda *_: nullcontext())


def _each_for_itself(replies: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(replies))[:, None].expand_as(replies)


ARMS: dict[str, tuple[str, list[tuple[Any, str, Any]]]] = {
    "baseline": (
        "generate",
        [
            _ONE_BATCH,
            _NOTHING_SHARED,
            (local, "merged", lambda _model: nullcontext()),
            (trainer, "depends_on_advantage_only", lambda _trainer: False),
        ],
    ),
    "generate": ("generate", [_NOTHING_SHARED]),
    "prompts": ("lean", [(shared_prompts, "_first_alike", _each_for_itself)]),
    "now": ("lean", []),
}
"""The engine of each arm, and what is replaced where."""

Seconds = dict[str, float]


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of a run with a trained condition ladder, on a CPU.")],
    rounds: Annotated[int, typer.Option(help="Number of steps of each arm.")] = 8,
    arms: Annotated[str, typer.Option(help="Arms, separated by commas; the first one is the baseline.")] = ",".join(
        ARMS
    ),
    out: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Measure the parts of a GRPO step on a CPU, with and without the optimizations of this package."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # loading a model leaves a number set by the user as it is
    run = open_run(folder)
    recipe = run.recipe_with(["grpo.trl.max_steps=1"])
    backend: Any = load_backend(recipe)
    task = load_task(recipe.task)
    taken: dict[str, list[Seconds]] = {arm: [] for arm in arms.split(",")}
    without_signal = []
    for seed, problems in enumerate(_last_steps(run, task, rounds)):
        for arm, seconds in taken.items():
            backend.load(run.adapter("ladder"))  # the previous arm's step has changed it
            with _patched(backend, arm), _clock() as step, tempfile.TemporaryDirectory() as folder_of_step:
                training = Training(task, backend, recipe.grpo, Path(folder_of_step), seed)
                (done,) = grpo.train(training, problems, step.end)
            without_signal.append(done.groups_without_signal)
            seconds.append(step.seconds)
    baseline = next(iter(taken.values()))
    figures = {
        "machine": f"{psutil.cpu_count()} cores, one used, {platform.machine()}, Python {platform.python_version()}",
        "command": f"python benchmarks/steps.py RUN --arms {arms} --rounds {rounds}",
        "recipe": run.recipe.name,
        "groups_without_signal": mean(without_signal),
        "seconds": {
            arm: {part: median(step[part] for step in steps) for part in steps[0]} for arm, steps in taken.items()
        },
        "over_baseline": {arm: _ratios(steps, baseline) for arm, steps in taken.items()},
        "steps": taken,
    }
    out = out or HERE / "results" / f"steps-{run.recipe.name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    for arm, ratios in figures["over_baseline"].items():
        cells = [f"{part} {ratio:.2f} ({figures['seconds'][arm][part]:.2f} s)" for part, ratio in ratios.items()]
        print(f"{arm}: {', '.join(cells)}")
    print(f"zero-variance groups: {figures['groups_without_signal']:.0%}")


def _last_steps(run: Run, task: Task, n: int) -> list[list[Problem]]:
    """Return the problems of each of the run's last n steps."""
    trained = layout.train("ladder")
    # The tree written before training, and the variants added during training.
    trees = [run.rows(layout.VARIANTS, layout.PROBLEMS), run.rows(f"{trained}/{layout.VARIANTS}", layout.PROBLEMS)]
    selected = run.path / layout.SELECT / layout.PROBLEMS
    roots = task.load(str(selected), "train") if selected.exists() else task.problems("train")
    variants = [Problem.from_row(row) for tree in trees for row in tree]
    problems = {problem.id: problem for problem in [*roots, *variants]}
    drawn: dict[int, dict[str, Problem]] = {}  # step -> problem id -> problem
    for row in run.rows(trained, layout.ATTEMPTS):
        if row.get("from_base"):  # asked beside the step, see `grpo.base_rollouts`
            continue
        drawn.setdefault(row["step"], {})[row["problem_id"]] = problems[row["problem_id"]]
    return [list(drawn[step].values()) for step in sorted(drawn)[-n:]]


@contextmanager
def _patched(backend: Any, arm: str) -> Iterator[None]:
    engine, replaced = ARMS[arm]
    with ExitStack() as stack:
        for owner, name, value in [(backend, "_engine", backend.open_engine(engine)), *replaced]:
            stack.enter_context(patch.object(owner, name, value))
        yield


class _StepClock:
    """Measures the CPU seconds of one step and of its rollouts, with which the step begins."""

    seconds: Seconds

    def roll_out(self, state: TrainingState, *args: Any) -> Any:
        self._began = time.process_time()
        groups = _ROLL_OUT(state, *args)
        self._sampled = time.process_time()
        return groups

    def end(self, *_: Any) -> bool:
        now = time.process_time()
        parts = {"sampling": self._sampled - self._began, "training": now - self._sampled}
        self.seconds = {"step": now - self._began, **parts}
        return False


@contextmanager
def _clock() -> Iterator[_StepClock]:
    step = _StepClock()
    with patch.object(TrainingState, "roll_out", lambda *args: step.roll_out(*args)):
        yield step


def _ratios(steps: list[Seconds], baseline: list[Seconds]) -> Seconds:
    """Return the median ratio to the baseline, over the rounds, for each part of a step."""
    return {part: median(a[part] / b[part] for a, b in zip(steps, baseline, strict=True)) for part in steps[0]}


if __name__ == "__main__":
    typer.run(main)
