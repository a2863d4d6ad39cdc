"""A finished run, made by the package's own stages with a scripted model that writes hostile text.

Only the model and the optimizer's steps are fakes, so the files and their keys are those of a real run. Times and
memory depend on the machine, so they are overwritten afterwards. The run is made once per process and then copied.
"""

import atexit
import io
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from ladder_lite.config.load import dump_recipe, load_recipe
from ladder_lite.install import shipped
from ladder_lite.jsonl import append_jsonl, read_jsonl, truncate_jsonl, write_json
from ladder_lite.models import Adapter, Rollout, Sampling
from ladder_lite.problems import Problem, load_problems
from ladder_lite.problems.attempts import Completion
from ladder_lite.recipe import run_recipe
from ladder_lite.tasks import Messages
from ladder_lite.terminal import Live
from ladder_lite.train import grpo
from ladder_lite.train.state import AfterStep, Step, Training, TrainingState
from ladder_lite.variants import Growth
from tests.support.fakes import FakeBackend

HOSTILE = "`|``<script>alert(1)</script> ![x](http://x/y.png) \x1b[31m\u202e\n# heading\n| a | b |\n$x$ [b]"
CONDITIONS = ("base", "rl_without_variants", "ladder", "ladder_ttrl")
MORE_CONDITIONS = ("ladder_10", "ladder_static", "ttrl", "ladder_pass100")
PASS_1 = {"base": 1 / 80, "rl_without_variants": 0.0, "ladder": 51 / 80, "ladder_ttrl": 55 / 80}
N_TESTS = 20
GIB = 2**30

# The scripted model's skill: condition -> {number of a test problem: right answers of four}
RIGHT = {"base": {0: 1}, "ladder": dict.fromkeys(range(17), 3), "ladder_10": {0: 4}, "ladder_static": {1: 2}}
SOLVED_AT = {17: 4, 19: 11}
"""The step of TTRL after LADDER from which on an answer to a problem is right; for problem 17, three answers."""

_LEVELS = ("base", "rl_without_variants", "ladder", "ladder_10", "ladder_static")
_SETTINGS = (
    *("eval.samples=4", "eval.k=2", "eval.batch_size=50", "grpo.eval_every=20"),
    *("grpo.trl.max_steps=60", "grpo.trl.num_generations=4", "grpo.trl.per_device_train_batch_size=8"),
    *("variants.per_root=3", "variants.adaptive={start: 2, every: 20, requests: 4}"),
    *("ttrl.problems=3", "ttrl.per_root=6", "ttrl.max_steps=30", "ttrl.samples_per_step=2", "ttrl.probe_every=10"),
)
_POWER = re.compile(r"integrate\((\d+)\*x\*\*(\d+),x\)")


@lru_cache(maxsize=1)
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@lru_cache(maxsize=1)
def problem_set() -> Path:
    """Return the file with the test problems of the finished run: the first ones of tiny, three with a technique."""
    rows = [json.loads(line) for line in (shipped("benchmarks") / "tiny.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "test"][:N_TESTS]
    append_jsonl(_folder() / "few.jsonl", [*({**row, "technique": HOSTILE} for row in rows[:3]), *rows[3:]])
    return _folder() / "few.jsonl"


@lru_cache(maxsize=1)
def probe() -> Path:
    """Return the file with the probe of the finished run: powers, which its tree does not have, of two techniques."""
    rows = [{"integrand": f"{factor}*x**3", "technique": (HOSTILE, "power")[factor % 2]} for factor in range(51, 57)]
    append_jsonl(_folder() / "probe.jsonl", rows)
    return _folder() / "probe.jsonl"


def problems_of_run() -> list[Problem]:
    """Return the test problems of the finished run; the index is the problem's number in RIGHT and SOLVED_AT."""
    return load_problems(str(problem_set()), "test")


def build_run(run: Path, seed: int = 3, *, full: bool = False) -> None:
    """Copy the finished run with the four default conditions, or also with `MORE_CONDITIONS`, to a new folder."""
    shutil.copytree(_made(full), run)
    # The set that the problems are from, so that the run is shown beside the paper's results.
    revise_recipe(run, f"seed={seed}", "task.test=tiny")


def revise_recipe(run: Path, *overrides: str) -> None:
    """Change settings of the run's recipe."""
    file = run / "recipe.resolved.yaml"
    file.write_text(dump_recipe(load_recipe(str(file), overrides)), encoding="utf-8")


def model_of_run() -> "ScriptedModel":
    """Return the model that made the run, in its initial state."""
    return ScriptedModel(read_jsonl(problem_set()))


def revise(file: Path, **changes: Any) -> None:
    """Change values of existing keys in a JSON file of the run."""
    values = json.loads(file.read_text(encoding="utf-8"))
    assert changes.keys() <= values.keys(), (file, changes.keys() - values.keys())
    write_json(file, values | changes)


def replace(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replace the rows of a JSON lines file of the run."""
    truncate_jsonl(file, lambda _: False)
    append_jsonl(file, rows)


class ScriptedModel(FakeBackend):
    """Answers depending on the problem's number, the condition and the training step, and adds hostile text.

    Its adapter has two numbers: the index in `_LEVELS` of the condition that it was trained for, and the number of
    training steps since it was loaded.
    """

    def __init__(self, tests: Sequence[dict[str, Any]]) -> None:
        super().__init__([])
        self.weights = {"lora": torch.zeros(2)}
        self._tests = {f"integrate({row['integrand']},x)": (number, row) for number, row in enumerate(tests)}

    def sample(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        texts = [
            [
                self._write(prompt[-1]["content"], index, n, Random(f"{sampling.seed}/{place}/{index}"))
                for index in range(n)
            ]
            for place, prompt in enumerate(prompts)
        ]
        return [[Completion(text, len(text), truncated=False) for text in replies] for replies in texts]

    def snapshot(self) -> Adapter:
        return {name: weight.clone() for name, weight in self.weights.items()}

    def restore(self, adapter: Adapter) -> None:
        self.weights = {name: weight.clone() for name, weight in adapter.items()}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file(self.weights, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text("{}")

    def load(self, folder: Path) -> None:
        self.weights = load_file(folder / "adapter_model.safetensors")
        self.weights["lora"][:] = torch.tensor([_LEVELS.index(folder.parts[-3]), 0])

    def step(self) -> None:
        """Take one step of training."""
        self.weights["lora"][1] += 1

    def _write(self, prompt: str, index: int, n: int, rng: Random) -> str:
        level, step = _LEVELS[int(self.weights["lora"][0])], int(self.weights["lora"][1])
        integral = prompt[prompt.index("integrate(") :]
        if not prompt.startswith("solve "):
            return self._variant(rng)
        number, row = self._tests.get(integral, (None, None))
        if number is not None and row is not None:
            if self._solves(number, level, step, index, n):
                return self._answer(row["answer"], rng)
            if step:  # during TTRL; equal wrong answers outvote a right one
                return self._answer("x", rng)
            return rng.choice([HOSTILE, f"<answer>{HOSTILE}</answer>"]) if index == 0 else self._answer(None, rng)
        if power := _POWER.fullmatch(integral):  # a variant: the share of right answers grows with the training steps
            factor, exponent = map(int, power.groups())
            right = rng.random() < min(0.9, 0.3 + step / 60)
            return self._answer(f"{factor}*x**{exponent + 1}/{exponent + 1}" if right else None, rng)
        return self._answer(None, rng)

    def _solves(self, number: int, level: str, step: int, index: int, n: int) -> bool:
        if step and level == "ladder":  # TTRL after LADDER
            return step >= SOLVED_AT.get(number, 1_000) and index < (3 if number == 17 else 1)
        if step:  # training from the base model
            return False
        if n > 4:  # ladder_pass100, which samples more than the evaluation's four answers
            return number == 19 and index == 4
        return index < RIGHT.get(level, {}).get(number, 0)

    def _answer(self, answer: str | None, rng: Random) -> str:
        if answer is not None:
            return f"{HOSTILE}<answer>{answer}</answer>"
        return rng.choice([HOSTILE, f"<answer>{HOSTILE}</answer>", f"{HOSTILE}<answer>x</answer>", "<answer>x"])

    def _variant(self, rng: Random) -> str:
        new = f"integrate({rng.randrange(2, 40)}*x**{rng.randrange(1, 9)},x)"
        test = rng.choice(list(self._tests))
        return rng.choice([new, new, new, f"{new} and integrate(x, x)", f"integrate({HOSTILE}, x)", test])


def train(
    training: Training, problems: Sequence[Problem], after_step: AfterStep, growth: Growth | None = None
) -> list[Step]:
    """Replace `grpo.train`: draw, answer, grade and record rows in the same way, but without gradients."""
    state, trl = TrainingState(training, problems, growth, after_step), training.settings.trl
    while not state.ended(int(trl["max_steps"])):
        number = len(state.steps) + 1
        state.begin_step()
        size = int(trl["num_generations"])
        n_groups = training.settings.completions_per_step // size
        state.roll_out(n_groups, size, Sampler(training, number))
        training.backend.step()
        state.end_step({"loss": 0.5, "learning_rate": 1e-3, "entropy": 0.5, "grad_norm": 1.0})
    state.write_pass_rates()
    return state.steps


class Sampler(NamedTuple):
    """Replaces the trainer's sampling: asks the backend for one answer to each problem, without token ids."""

    training: Training
    step: int

    def sample(self, problems: list[Problem], wave: int, from_base: bool = False) -> list[Rollout]:  # noqa: ARG002
        sampling = Sampling(1.0, 1.0, 200, 50, self.training.seed * 1_000_000 + 1_000 * self.step + wave)
        prompts = [self.training.task.prompt(problem) for problem in problems]
        answers = self.training.backend.sample(prompts, 1, sampling)
        return [Rollout([], [], completion) for (completion,) in answers]

    def encode(self, completion: Completion) -> list[int]:  # noqa: ARG002
        return []


@lru_cache(maxsize=2)
def _made(full: bool) -> Path:
    """Return the run that is copied; the full run resumes the other one with more conditions."""
    run = _folder() / ("full" if full else "four")
    if full:
        shutil.copytree(_made(full=False), run)
    sets = (f"task.test={problem_set()}", f"task.probe={probe()}")
    recipe = load_recipe("tiny", ["seed=3", *sets, *_SETTINGS])
    conditions = (*CONDITIONS, *MORE_CONDITIONS) if full else CONDITIONS
    model = model_of_run()
    with (
        patch("ladder_lite.models.load_backend", lambda _: model),
        patch.object(grpo, "train", train),
        patch("ladder_lite.report.write_report", lambda _: {}),
    ):
        run_recipe(recipe.model_copy(update={"conditions": conditions}), run, Live(Console(file=io.StringIO())))
    _set_times(run)
    return run


def _set_times(run: Path) -> None:
    """Overwrite times and memory with fixed values: 5.5 s for an evaluation, 100.25 s for a training run, and so on."""
    for name, seconds, memory in (
        ("variants", 61.0, 7 * GIB),
        ("train", 100.25, 3 * GIB),
        ("problems", 60.0, GIB),
        ("eval", 5.5, GIB),
    ):
        for marker in run.glob(f"**/{name}/done.json"):
            revise(marker, seconds=seconds, peak_memory_bytes=memory)
    for marker in run.glob("conditions/*/problems/*/done.json"):
        if "seconds" in json.loads(marker.read_text(encoding="utf-8")):
            revise(marker, seconds=20.0)
    for file in run.glob("**/metrics.jsonl"):
        replace(file, [row | {"seconds": 1.5} for row in read_jsonl(file)])
    for file in run.glob("**/rounds.jsonl"):
        replace(file, [row | {"seconds": 0.0 if at else 61.0} for at, row in enumerate(read_jsonl(file))])
    for file in run.glob("**/curve.jsonl"):
        replace(file, [row | {"seconds": 1.5 * row["step"]} for row in read_jsonl(file)])
