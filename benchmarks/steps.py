"""Measure the parts of a GRPO step on a CPU, with and without the optimizations of this package.

    python -m ladder_lite.recipe tiny --only ladder --run-dir runs/tiny-s0    # five minutes, once
    python benchmarks/steps.py runs/tiny-s0                                   # minutes

Each step starts from the final adapter of that run and trains on the problems of one of its last steps. All arms take
the same steps in turn, on one thread:

- `baseline` samples all rollouts in one batch of `generate`, computes weights and adapter separately, trains on all
  rows, and reads the prompt of each;
- `generate` samples in smaller batches with the adapter merged into the weights, and trains on the rows with a nonzero
  advantage only;
- `prompts` also has the engine `lean`, and its loss reads each prompt once, but each reply by itself;
- `now` also computes once what replies to a prompt begin with.

Times are CPU seconds, which other processes disturb less than wall-clock time. Sampling includes grading, training the
optimizer. Writes benchmarks/results/steps.json.
"""

import json
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

from ladder_lite.config.load import load_recipe
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models import load_backend, local, shared_prompts
from ladder_lite.problems import Problem
from ladder_lite.tasks import load_task
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
    run: Annotated[Path, typer.Argument(help="Folder of a run of tiny with a trained condition ladder.")],
    rounds: Annotated[int, typer.Option(help="Number of steps of each arm.")] = 8,
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "steps.json",
) -> None:
    """Measure the parts of a GRPO step on a CPU, with and without the optimizations of this package."""
    torch.set_num_threads(1)
    recipe = load_recipe("tiny", ["grpo.trl.max_steps=1"])
    backend: Any = load_backend(recipe)
    task, trained = load_task(recipe.task), run / "conditions" / "ladder" / "train"
    taken: dict[str, list[Seconds]] = {arm: [] for arm in ARMS}
    without_signal = []
    for seed, problems in enumerate(_last_steps(run, rounds)):
        for arm, seconds in taken.items():
            backend.load(trained / "adapter")  # the previous arm's step has changed it
            with _patched(arm), _clock() as step, tempfile.TemporaryDirectory() as folder:
                (done,) = grpo.train(Training(task, backend, recipe.grpo, Path(folder), seed), problems, step.end)
            without_signal.append(done.groups_without_signal)
            seconds.append(step.seconds)
    figures = {
        "machine": f"{psutil.cpu_count()} cores, one used, {platform.machine()}, Python {platform.python_version()}",
        "command": "python benchmarks/steps.py RUN",
        "groups_without_signal": mean(without_signal),
        "seconds": {
            arm: {part: median(step[part] for step in steps) for part in steps[0]} for arm, steps in taken.items()
        },
        "over_baseline": {arm: _ratios(steps, taken["baseline"]) for arm, steps in taken.items()},
        "steps": taken,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    for arm, ratios in figures["over_baseline"].items():
        cells = [f"{part} {ratio:.2f} ({figures['seconds'][arm][part]:.2f} s)" for part, ratio in ratios.items()]
        print(f"{arm}: {', '.join(cells)}")
    print(f"zero-variance groups: {figures['groups_without_signal']:.0%}")


def _last_steps(run: Path, n: int) -> list[list[Problem]]:
    """Return the problems of each of the run's last n steps."""
    trained = run / "conditions" / "ladder" / "train"
    # The tree written before training, and the variants added during training.
    trees = [run / "variants" / "problems.jsonl", trained / "variants" / "problems.jsonl"]
    rows = [row for tree in trees for row in read_jsonl(tree)]
    variants = [Problem.from_row(row) for row in rows]
    roots = load_task(load_recipe("tiny").task).problems("train")
    problems = {problem.id: problem for problem in [*roots, *variants]}
    drawn: dict[int, dict[str, Problem]] = {}  # step -> problem id -> problem
    for row in read_jsonl(trained / "attempts.jsonl"):
        if row.get("from_base"):  # asked beside the step, see `grpo.base_rollouts`
            continue
        drawn.setdefault(row["step"], {})[row["problem_id"]] = problems[row["problem_id"]]
    return [list(drawn[step].values()) for step in sorted(drawn)[-n:]]


@contextmanager
def _patched(arm: str) -> Iterator[None]:
    with ExitStack() as stack:
        for module, name, value in ARMS[arm][1]:
            stack.enter_context(patch.object(module, name, value))
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
