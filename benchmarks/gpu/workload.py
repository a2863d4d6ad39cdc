"""Code shared by the measuring programs: recipes with exact lengths, a task, a clock, memory peaks.

Imports none of the libraries that Unsloth patches, because Unsloth must be imported before them.
"""

import functools
import json
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace as Sizes
from typing import Any

from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import Recipe
from ladder_lite.models import release_memory
from ladder_lite.problems import Problem
from ladder_lite.tasks import Messages
from ladder_lite.tasks.integration import IntegrationTask
from ladder_lite.verify import Grade

Finding = dict[str, Any]
Measurements = dict[str, tuple[float, Callable[[], Finding]]]  # name -> (minimum seconds, measurement)
ANY_DEVICE = "model.device=auto"  # a rehearsal uses the CPU
MARK = "finding "  # prefix of each line of standard output that contains a finding as JSON
CAP_GIB = {"llama3b": 7.3, "qwen7b": 11.0}  # memory that one process can use on cards of 8 and 12 GB

REAL = Sizes(prompt=512, reply=1024, timed_reply=512, short_reply=128, group=8, timed_completions=32)
REAL.micro_batches, REAL.generated = (8, 1, 4), (8, 32, 64)  # the first micro-batch is that of all other steps
REHEARSAL = Sizes(prompt=24, reply=16, timed_reply=12, short_reply=8, group=4, timed_completions=8)
REHEARSAL.micro_batches, REHEARSAL.generated = (4, 1, 2), (2, 3, 4)


class Findings:
    """Makes measurements and prints their findings, until `ends_at` (in seconds of `time.time`)."""

    ends_at = float("inf")

    def attempt(self, what: str, least: float, measurement: Callable[[], Finding]) -> bool:
        """Make a measurement unless less than `least` seconds are left, and print its finding or its error.

        Returns whether it succeeded.
        """
        began, finding = time.monotonic(), {"skipped": f"{self.left():.0f} s left, {least:.0f} needed"}
        if self.left() >= least:
            try:
                finding = measurement()
            except BaseException as error:  # an error is a finding, too, and the next measurement may work
                finding = {"error": f"{type(error).__name__}: {error}"[:800], "trace": traceback.format_exc()[-3000:]}
                traceback.clear_frames(error.__traceback__)  # their local variables keep tensors alive
        finding = {"what": what, "took": round(time.monotonic() - began, 2)} | finding
        print(f"\n{MARK}{json.dumps(finding, default=str)}", flush=True)  # \n, as a progress bar may not end its line
        if "torch" in sys.modules:
            release_memory()
        return not {"error", "skipped"} & finding.keys()

    def left(self) -> float:
        """Return the seconds until `ends_at`."""
        return self.ends_at - time.time()


def recipe_of(
    name: str, model: Path, backend: str, sizes: Sizes, micro_batch: int, completions: int, reply: int, *more: str
) -> Recipe:
    """Return a recipe whose replies are `reply` tokens long, none of them masked."""
    changes = [f"model.id={model}", f"model.backend={backend}", f"model.max_prompt_length={sizes.prompt}"]
    changes += ["task.stop=[]", "task.thinking=false", "task.select=null", "grpo.plateau=null"]
    changes += [f"eval.max_new_tokens={reply}", f"variants.max_new_tokens={reply}"]
    trl = {"max_completion_length": reply, "num_generations": sizes.group, "per_device_train_batch_size": micro_batch}
    trl |= {"gradient_accumulation_steps": completions // micro_batch, "save_steps": 100_000}
    changes += [f"grpo.trl.{key}={value}" for key, value in trl.items()]
    changes += ["grpo.trl.mask_truncated_completions=false"]
    changes += ["grpo.trl.optim=adamw_torch"] if sizes is REHEARSAL else []  # the recipe's 8-bit AdamW needs a GPU
    return load_recipe(name, [ANY_DEVICE, *changes, *more])


class ForcedTask(IntegrationTask):
    """A task with prompts of maximum length. It grades a known answer instead of each random reply.

    About half of these answers are right.
    """

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        super().__init__(recipe.task)
        empty = [{"role": "user", "content": ""}]
        chat = tokenizer.apply_chat_template(empty, add_generation_prompt=True, tokenize=False)
        self._letters = recipe.model.max_prompt_length - len(tokenizer(chat, add_special_tokens=False).input_ids)
        lines = Path(__file__).parents[1].joinpath("undergrad.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [{"lower": None, "upper": None} | json.loads(line) for line in lines]
        keys = ("integrand", "variable", "lower", "upper")
        self.problems = [Problem.root("integration", {key: row[key] for key in keys}) for row in rows]
        self.prompts = [self.prompt(problem) for problem in self.problems]
        self._answers = {problem.id: row["answer"] for problem, row in zip(self.problems, rows, strict=True)}

    def prompt(self, problem: Problem) -> Messages:
        """Repeat the integrand up to the maximum length; each letter is a token."""
        text = f"{problem.data['integrand']} " * self._letters
        return [{"role": "user", "content": text[: self._letters]}]

    def grade(self, problem: Problem, text: str) -> Grade:
        """Grade the problem's answer plus a constant (right) or plus a multiple of x (wrong), depending on the text."""
        number = sum(text.encode())
        answer = f"{self._answers[problem.id]} + {number}{'*x/1000' if number % 2 else ''}"
        return super().grade(problem, f"<answer>{answer}</answer>")


class Clock:
    """Measures the seconds of each training step and of its parts, including the kernels that they launch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._parts, self._began = defaultdict[str, float](float), now()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added to a part."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            began = now()
            result = function(*args, **kwargs)
            self._parts[part] += now() - began
            return result

        return run

    def end_step(self) -> None:
        """End a step; the next one begins."""
        self.steps.append({"seconds": now() - self._began, **self._parts})
        self._parts.clear()
        self._began = now()

    def summary(self, recipe: Recipe, micro_batch: int) -> Finding:
        """Return the steps, the medians of all but the first step, and the workload that two findings must share.

        The first step compiles kernels.
        """
        trl, counted = recipe.grpo.trl, self.steps[1:] or self.steps
        workload = {"micro_batch": micro_batch, "completions": recipe.grpo.completions_per_step}
        workload |= {"prompt": recipe.model.max_prompt_length, "reply": trl["max_completion_length"]}
        medians = {part: median(step.get(part, 0.0) for step in counted) for part in sorted(set().union(*counted))}
        return {"steps": self.steps, "median": medians, "workload": workload}


def now() -> float:
    """Wait until all queued work of the GPU is done, and return the time."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def take_peaks() -> dict[str, int]:
    """Return the GPU's memory peaks in bytes and reset them; zeros without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {"allocated": 0, "reserved": 0}
    peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peaks


def predicted(parts: dict[str, int], peaks: dict[str, int]) -> Finding:
    """Return the peaks, the prediction of `ladder_lite.models.memory`, and their ratio."""
    total = sum(parts.values())
    return {"peaks": peaks, "predicted": total, "ratio": peaks["reserved"] / total, "parts": parts}


def bandwidth() -> float:
    """Measure the GPU's memory bandwidth in bytes per second with large copies; 0 without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    source = torch.zeros(2**31, dtype=torch.uint8, device="cuda")
    target = source.clone()
    began = now()
    for _ in range(20):
        target.copy_(source)
    return 20 * 2 * source.nbytes / (now() - began)  # a copy reads and writes
