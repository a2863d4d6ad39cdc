"""What a step of GRPO costs on a CPU, in parts, against the same step without the measures that shorten it.

    python -m ladder_lite.recipe tiny --only ladder --run-dir runs/tiny-s0    # half an hour, once
    python benchmarks/steps.py runs/tiny-s0                                   # minutes

Each step begins with the adapter at the end of that run, has the problems of one of its last steps, and is taken in
each arm in turn, on one thread. `baseline` has all rollouts in one batch, through weights and adapter apart, and
trains on all rows; `one_batch` lacks the smaller batches alone. Times are CPU seconds, which other processes disturb
less than a clock; training includes grading and the optimizer. Writes benchmarks/results/steps.json.
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
from ladder_lite.models import Backend, load_backend, local
from ladder_lite.problems import Problem
from ladder_lite.tasks import load_task
from ladder_lite.train import grpo, trainer
from ladder_lite.train.state import Training

HERE = Path(__file__).parent
_ONE_BATCH = ("_CPU_BATCH", 1_000_000)
ARMS = {
    "baseline": [
        (local, *_ONE_BATCH),
        (local, "folded", lambda _model: nullcontext()),
        (trainer, "depends_on_advantage_only", lambda _trainer: False),
    ],
    "one_batch": [(local, *_ONE_BATCH)],
    "now": [],
}
"""What is replaced where, by arm."""

Seconds = dict[str, float]


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a run of tiny whose condition ladder is trained.")],
    rounds: Annotated[int, typer.Option(help="How many steps each arm takes.")] = 8,
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "steps.json",
) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe("tiny", ["grpo.trl.max_steps=1"])
    task, backend, trained = load_task(recipe.task), load_backend(recipe), run / "conditions" / "ladder" / "train"
    taken: dict[str, list[Seconds]] = {arm: [] for arm in ARMS}
    without_signal = []
    for seed, problems in enumerate(_last_steps(run, rounds)):
        for arm, seconds in taken.items():
            backend.load(trained / "adapter")
            with _patched(arm), _clock(backend) as step, tempfile.TemporaryDirectory() as folder:
                (done,) = grpo.train(Training(task, backend, recipe.grpo, Path(folder), seed), problems, step.end)
            without_signal.append(done.groups_without_signal)
            seconds.append(step.seconds)
    figures = {
        "machine": f"{psutil.cpu_count()} cores, one used, {platform.machine()}, Python {platform.python_version()}",
        "command": "python benchmarks/steps.py RUN",
        "groups_without_signal": mean(without_signal),
        "seconds": {
            arm: {part: median(each[part] for each in found) for part in found[0]} for arm, found in taken.items()
        },
        "over_baseline": {arm: _ratios(found, taken["baseline"]) for arm, found in taken.items()},
        "steps": taken,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    for arm, ratios in figures["over_baseline"].items():
        cells = [f"{part} {ratio:.2f} ({figures['seconds'][arm][part]:.2f} s)" for part, ratio in ratios.items()]
        print(f"{arm}: {', '.join(cells)}")
    print(f"{figures['groups_without_signal']:.0%} of the groups had equal rewards")


def _last_steps(run: Path, n: int) -> list[list[Problem]]:
    """The problems of the last n steps."""
    trained = run / "conditions" / "ladder" / "train"
    fields = set(Problem.__dataclass_fields__)
    trees = [run / "variants" / "problems.jsonl", trained / "variants" / "problems.jsonl"]  # before training, meanwhile
    rows = [row for tree in trees for row in read_jsonl(tree)]
    variants = [Problem.from_row({name: value for name, value in row.items() if name in fields}) for row in rows]
    roots = load_task(load_recipe("tiny").task).problems("train")
    problems = {problem.id: problem for problem in [*roots, *variants]}
    drawn: dict[int, dict[str, Problem]] = {}
    for row in read_jsonl(trained / "attempts.jsonl"):
        drawn.setdefault(row["step"], {})[row["problem_id"]] = problems[row["problem_id"]]
    return [list(drawn[step].values()) for step in sorted(drawn)[-n:]]


@contextmanager
def _patched(arm: str) -> Iterator[None]:
    with ExitStack() as stack:
        for module, name, value in ARMS[arm]:
            stack.enter_context(patch.object(module, name, value))
        yield


class _Step:
    """The CPU seconds of a step, which begins with its rollouts, and of these."""

    seconds: Seconds

    def __init__(self, roll_out: Any) -> None:
        self._roll_out = roll_out

    def roll_out(self, *args: Any) -> Any:
        self._began = time.process_time()
        rollouts = self._roll_out(*args)
        self._sampled = time.process_time()
        return rollouts

    def end(self, *_: Any) -> bool:
        now = time.process_time()
        parts = {"sampling": self._sampled - self._began, "training": now - self._sampled}
        self.seconds = {"step": now - self._began, **parts}
        return False


@contextmanager
def _clock(backend: Backend) -> Iterator[_Step]:
    step = _Step(backend.roll_out)
    with patch.object(backend, "roll_out", step.roll_out):
        yield step


def _ratios(found: list[Seconds], baseline: list[Seconds]) -> Seconds:
    """The median over the rounds of what each part takes as a share of the same part of the baseline."""
    return {part: median(a[part] / b[part] for a, b in zip(found, baseline, strict=True)) for part in found[0]}


if __name__ == "__main__":
    typer.run(main)
