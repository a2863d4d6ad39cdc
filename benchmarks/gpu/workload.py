"""What the measuring programs share: findings, the recipes' workload in exact lengths, clock, memory peaks.

Importing this module imports neither torch nor transformers, TRL or peft: Unsloth has to be imported before them.
"""

import functools
import gc
import json
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ladder_lite.config import load_recipe
from ladder_lite.problems import Problem
from ladder_lite.settings import ModelSettings, Recipe
from ladder_lite.tasks import Messages
from ladder_lite.tasks.integration import IntegrationTask
from ladder_lite.verify import Grade

Finding = dict[str, Any]
Measurements = dict[str, tuple[float, Callable[[], Finding]]]  # (least seconds, measurement) by name
MARK = "finding "  # begins each line of standard output that holds a finding as JSON
CAP_GIB = {"llama3b": 7.3, "qwen7b": 11.0}  # what cards of 8 and 12 GB leave to one process


@dataclass(frozen=True)
class Findings:
    """Makes measurements one by one and prints what each has found; `ends_at` is in seconds of `time.time`."""

    ends_at: float = float("inf")

    def attempt(self, what: str, least: float, measurement: Callable[[], Finding]) -> bool:
        """Print a finding, be it an error, and return whether it is a result; without `least` seconds, skip it."""
        began, found = time.monotonic(), Finding()
        if self.left() < least:
            found["skipped"] = f"{self.left():.0f} s left, {least:.0f} needed"
        else:
            try:
                found = measurement()
            except BaseException as error:  # the next measurement may work, and this error is a result, too
                found = {"error": f"{type(error).__name__}: {error}"[:800], "trace": traceback.format_exc()[-3000:]}
                traceback.clear_frames(error.__traceback__)  # they hold tensors
        found = {"what": what, "took": round(time.monotonic() - began, 2)} | found
        print(f"\n{MARK}{json.dumps(found, default=str)}", flush=True)  # a progress bar may have no line end
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return not {"error", "skipped"} & found.keys()

    def left(self) -> float:
        """Return the seconds until `ends_at`."""
        return self.ends_at - time.time()


@dataclass(frozen=True)
class Sizes:
    """Lengths and batches of the measurements; a rehearsal has small ones."""

    prompt: int = 512
    reply: int = 1024
    timed_reply: int = 512
    short_reply: int = 128
    group: int = 8
    timed_completions: int = 32
    micro_batches: tuple[int, int, int] = (8, 1, 4)  # the first one is that of all other steps
    generated: tuple[int, int, int] = (8, 32, 64)


REAL, REHEARSAL = Sizes(), Sizes(24, 16, 12, 8, 4, 8, (4, 1, 2), (2, 3, 4))


def overrides(*changes: str) -> list[str]:
    """Return the changes to a recipe with `model.device=auto`, so that a rehearsal can take the CPU."""
    known = "device" in ModelSettings.model_fields  # until model.device is merged
    return [*(["model.device=auto"] if known else []), *changes]


def recipe_of(
    name: str, model: Path, backend: str, sizes: Sizes, micro_batch: int, completions: int, reply: int, *more: str
) -> Recipe:
    """Return a recipe whose replies are `reply` tokens long, and which trains on each of them."""
    changes = [f"model.id={model}", f"model.backend={backend}", f"model.max_prompt_length={sizes.prompt}"]
    changes += ["task.stop=[]", "task.thinking=false", "task.select=null", "grpo.plateau=null"]
    changes += [f"{section}.max_new_tokens={reply}" for section in ("eval", "variants")]
    trl = {"max_completion_length": reply, "num_generations": sizes.group, "per_device_train_batch_size": micro_batch}
    trl |= {"gradient_accumulation_steps": completions // micro_batch, "save_steps": 100_000}
    changes += [f"grpo.trl.{key}={value}" for key, value in trl.items()]
    changes += ["grpo.trl.mask_truncated_completions=false"]
    changes += ["grpo.trl.optim=adamw_torch"] if sizes is REHEARSAL else []  # the 8-bit one needs a GPU
    return load_recipe(name, overrides(*changes, *more))


class ForcedTask(IntegrationTask):
    """Prompts of an exact number of letters, each of which is a token, and real work for the verifier.

    In place of a random reply, the verifier reads the problem's answer, right for about half of the replies.
    """

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        super().__init__(recipe.task)
        empty = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False
        )
        n_around = len(tokenizer(empty, add_special_tokens=False).input_ids)
        self._letters = recipe.model.max_prompt_length - n_around
        lines = Path(__file__).parents[1].joinpath("undergrad.jsonl").read_text(encoding="utf-8").splitlines()
        self.problems, self._answers = list[Problem](), dict[str, str]()
        for row in map(json.loads, lines):
            integral = {"integrand": row["integrand"], "variable": row["variable"], "lower": None, "upper": None}
            self.problems.append(Problem.root("integration", integral))
            self._answers[self.problems[-1].id] = row["answer"]

    def prompt(self, problem: Problem) -> Messages:
        """Repeat the integrand up to the length."""
        text = f"{problem.data['integrand']} " * self._letters
        return [{"role": "user", "content": text[: self._letters]}]

    def grade(self, problem: Problem, text: str) -> Grade:
        """Grade the problem's answer plus a constant, or plus a line."""
        number = sum(text.encode())
        answer = f"{self._answers[problem.id]} + {number}{'*x/1000' if number % 2 else ''}"
        return super().grade(problem, f"<answer>{answer}</answer>")


class Clock:
    """Seconds of each training step and of its parts, including the kernels that they launch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._parts: dict[str, float] = defaultdict(float)
        self._began = self._now()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added to a part."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            began = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._parts[part] += self._now() - began

        return run

    def end_step(self) -> None:
        """End a step; the next one begins."""
        now = self._now()
        self.steps.append({"seconds": now - self._began, **self._parts})
        self._parts.clear()
        self._began = now

    def is_late(self, left: float) -> bool:
        """Return whether another step may take longer than the seconds that are left."""
        return bool(self.steps) and self.steps[-1]["seconds"] > left

    def summary(self, recipe: Recipe, micro_batch: int) -> Finding:
        """Return steps, medians without the first step, which compiles kernels, and what comparisons depend on."""
        counted, reply = self.steps[1:], recipe.grpo.trl["max_completion_length"]
        names = sorted({name for step in counted for name in step})
        medians = {name: median(step.get(name, 0.0) for step in counted) for name in names}
        batches = {"micro_batch": micro_batch, "completions": recipe.grpo.completions_per_step}
        lengths = {"prompt": recipe.model.max_prompt_length, "reply": reply}
        return {"steps": self.steps, "median": medians, "workload": batches | lengths}

    @staticmethod
    def _now() -> float:
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic()


def take_peaks() -> dict[str, int]:
    """Return the GPU's memory peaks since the last call, in bytes, and begin again; zeros without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {"allocated": 0, "reserved": 0}
    peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peaks


def bandwidth() -> float:
    """Measure the GPU's memory bandwidth in bytes a second with large copies; 0 without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    source = torch.zeros(2**31, dtype=torch.uint8, device="cuda")
    target = source.clone()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    end.synchronize()
    return 10 * 2 * source.nbytes / (start.elapsed_time(end) / 1000)  # a copy reads and writes
