"""One measurement of `benchmarks/gpu.py`, in a process of its own: libraries patch each other, and memory is kept.

    python benchmarks/gpu_arm.py '{"kind": "ours", ...}'    # an `Arm` as JSON; prints the figures as the last line
    python benchmarks/gpu_arm.py card                       # the GPU, {} where there is none

`ours` trains a recipe by the package's own loop; `plain` makes the same step with TRL, peft and bitsandbytes as their
documentation has it. Both generate replies of the full length to prompts of the full length. What the verifier reads is
an answer from a problem set in place of the random reply, right for about half of them, so that it has to work and that
rewards differ.
"""

import functools
import gc
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ladder_lite import grpo, memory
from ladder_lite.backends import load_backend, prepare_environment
from ladder_lite.config import load_recipe
from ladder_lite.curriculum import PassRates
from ladder_lite.errors import UserError
from ladder_lite.problems import Problem
from ladder_lite.settings import Recipe
from ladder_lite.tasks import Messages
from ladder_lite.tasks.integration import IntegrationTask
from ladder_lite.verify import Grade

PROBLEMS = Path(__file__).with_name("undergrad.jsonl")
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """What to measure: a recipe with another model and changes, below `cap_gib` of GPU memory where that is given.

    With `apart`, memory that is cached goes back to the card between generation and training: each peak is its own.
    """

    kind: str
    recipe: str
    model: str
    changes: list[str]
    cap_gib: float | None = None
    apart: bool = False


class Forced(IntegrationTask):
    """Prompts of a given length in letters, which are tokens, and replies that are graded by their letters."""

    def __init__(self, recipe: Recipe, letters: int, answers: dict[str, str]) -> None:
        super().__init__(recipe.task)
        self._letters, self._answers = letters, answers

    def prompt(self, problem: Problem) -> Messages:
        """The problem's integrand over and over."""
        text = f"{problem.data['integrand']} "
        return [{"role": "user", "content": (text * self._letters)[: self._letters]}]

    def grade(self, problem: Problem, text: str) -> Grade:
        """The verifier's verdict on the problem's answer and a constant, or on that and a line."""
        number = sum(text.encode())
        answer = f"{self._answers[problem.id]} + {number}{'*x/1000' if number % 2 else ''}"
        return super().grade(problem, f"<answer>{answer}</answer>")


class Clock:
    """Seconds of each step and of its parts, and the GPU's peaks in generation and around it."""

    def __init__(self, cuda: bool, apart: bool) -> None:
        self.steps: list[dict[str, float]] = []
        self.peaks: dict[str, dict[str, int]] = {}
        self.replies_at_once = 0
        self._cuda, self._apart = cuda, apart
        self._now: dict[str, float] = defaultdict(float)
        self._phase, self._began_at = "load", time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block, kernels that it started included."""
        self._wait()
        started = time.monotonic()
        try:
            yield
        finally:
            self._wait()
            self._now[name] += time.monotonic() - started

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted as this part's."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return run

    def watch(self, model: Any) -> None:
        """Count the model's generation from now on."""
        generate = self.timed("generate", model.generate)

        @functools.wraps(generate)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.enter("generate")
            output = generate(*args, **kwargs)
            self.replies_at_once = max(self.replies_at_once, len(kwargs["input_ids"]))
            self.enter("train")
            return output

        model.generate = run

    def enter(self, phase: str) -> None:
        """End a phase, noting its peak, and begin another one."""
        if self._cuda:
            import torch

            peak = self.peaks.setdefault(self._phase, {"allocated": 0, "reserved": 0})
            peak["allocated"] = max(peak["allocated"], torch.cuda.max_memory_allocated())
            peak["reserved"] = max(peak["reserved"], torch.cuda.max_memory_reserved())
            if self._apart:
                torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._phase = phase

    def lap(self) -> None:
        """End a step."""
        self._wait()
        now = time.monotonic()
        self.steps.append({"seconds": now - self._began_at, **self._now})
        self._now.clear()
        self._began_at = now

    def figures(self) -> Figures:
        """Medians over the steps but the first, in which kernels are compiled, and peaks over all."""
        self.enter("end")
        counted = self.steps[1:] or self.steps
        parts = sorted(set().union(*counted))
        return {
            "steps": self.steps,
            "median": {part: median(step.get(part, 0.0) for step in counted) for part in parts},
            "replies_at_once": self.replies_at_once,
            "peaks": self.peaks,
        }

    def _wait(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.synchronize()


def measure(arm: Arm) -> Figures:
    """Measure in this process, which must not have imported transformers: Unsloth wants to come before it."""
    prepare_environment()
    recipe = load_recipe(arm.recipe, [f"model.id={arm.model}", *arm.changes])
    if arm.cap_gib is not None:
        _cap(arm.cap_gib)
    figures = (_ours if arm.kind == "ours" else _plain)(arm, recipe)
    trl = recipe.grpo.trl
    return figures | {
        "completions": recipe.grpo.completions_per_step,
        "prompt_tokens": recipe.model.max_prompt_length,
        "reply_tokens": trl["max_completion_length"],
        "cap_gib": arm.cap_gib,
        "context_bytes": _context_bytes(),
    }


def _cap(gib: float) -> None:
    """Forbid PyTorch what a card that leaves so many GiB would not have; of these, CUDA's context is not PyTorch's."""
    import torch

    if torch.cuda.is_available():
        _, total_bytes = torch.cuda.mem_get_info()
        allowed = gib * memory.GIB - memory.CUDA_CONTEXT_BYTES
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total_bytes))


def _context_bytes() -> int | None:
    """What is taken of the GPU beside PyTorch's memory: CUDA's context and kernels, and other processes."""
    import torch

    if not torch.cuda.is_available():
        return None
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return int(total_bytes - free_bytes - torch.cuda.memory_reserved())


# --- arms


def _ours(arm: Arm, recipe: Recipe) -> Figures:
    from ladder_lite.backends import adapter
    from ladder_lite.backends.loading import choose_loader

    backend = load_backend(recipe)
    model, tokenizer = backend.trainable()
    clock = Clock(model.device.type == "cuda", arm.apart)
    clock.watch(model)
    task, problems = _task(recipe, tokenizer)
    micro_batches: list[int] = []
    _count_ours(clock, task, backend, adapter)
    build = grpo.build

    def note_micro_batch(*args: Any, **kwargs: Any) -> Any:
        micro_batches.append(args[7])
        return build(*args, **kwargs)

    grpo.build = note_micro_batch
    said: list[str] = []
    with tempfile.TemporaryDirectory() as run:
        steps = grpo.train(
            task, backend, problems, recipe.grpo, Path(run), recipe.seed, lambda *_: False, say=said.append
        )
    _demand_length([step.n_tokens / recipe.grpo.completions_per_step for step in steps], recipe)
    setup = memory.Setup.of(
        memory.read_shape(recipe.model.id),
        recipe.model,
        recipe.grpo.trl,
        loader=(loader := choose_loader(recipe.model)),
        dtype=(dtype := str(backend.dtype).removeprefix("torch.")),
        context_bytes=0,
    )
    lengths = setup.max_prompt_length, setup.max_completion_length
    return clock.figures() | {
        "loader": loader,
        "dtype": dtype,
        "micro_batch": micro_batches[-1],
        "said": said,
        "signal": 1 - sum(step.groups_without_signal for step in steps) / len(steps),
        "predicted": {
            "train": memory.train_parts(setup, micro_batches[-1]),
            "generate": memory.generate_parts(setup, clock.replies_at_once, *lengths, setup.top_p),
        },
    }


def _count_ours(clock: Clock, task: Forced, backend: Any, adapter: Any) -> None:
    """Count the time of what is neither generation nor TRL's: verification, data, logging."""
    task.prompt = clock.timed("data", task.prompt)  # type: ignore[method-assign]
    backend.roll_out = clock.timed("roll_out", backend.roll_out)
    PassRates.draw = clock.timed("data", PassRates.draw)  # type: ignore[method-assign]
    adapter.is_finite = clock.timed("log", adapter.is_finite)
    grpo.Log.grade = clock.timed("verify", grpo.Log.grade)  # type: ignore[method-assign]
    grpo.Log.check_step = clock.timed("log", grpo.Log.check_step)  # type: ignore[method-assign]
    end_step = clock.timed("log", grpo.Log.end_step)

    def end_lap(log: grpo.Log, logs: dict[str, float]) -> Any:
        ended = end_step(log, logs)
        clock.lap()
        return ended

    grpo.Log.end_step = end_lap  # type: ignore[method-assign]


def _plain(arm: Arm, recipe: Recipe) -> Figures:
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    from ladder_lite.backends.loading import choose_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_dtype(recipe.model, device)
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(recipe.model.id, padding_side="left")
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        recipe.model.id,
        dtype=dtype,
        attn_implementation="sdpa",
        device_map={"": device},
        quantization_config=quantization,
    )
    clock = Clock(device.type == "cuda", arm.apart)
    task, problems = _task(recipe, tokenizer)
    lengths: list[float] = []

    def reward(completions: Sequence[Any], row: Sequence[int], **_: Any) -> list[float | None]:
        with clock.part("verify"):
            return [task.grade(problems[at], c[0]["content"]).reward for at, c in zip(row, completions, strict=True)]

    class Laps(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:  # noqa: ARG002
            if "loss" in logs:
                lengths.append(logs["completions/mean_length"])
                clock.lap()

    with tempfile.TemporaryDirectory() as run:
        config = GRPOConfig(
            **recipe.grpo.trl
            | {
                "output_dir": run,
                "seed": recipe.seed,
                "use_cpu": device.type == "cpu",
                "bf16": dtype == torch.bfloat16,
                "fp16": dtype == torch.float16,
                "logging_steps": 1,
                "save_strategy": "no",
                "disable_tqdm": True,
            }
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": task.prompt(p), "row": at} for at, p in enumerate(problems)]),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **recipe.model.lora),
            callbacks=[Laps()],
        )
        del model
        gc.collect()
        clock.watch(trainer.model)
        trainer.train()
    _demand_length(lengths, recipe)
    return clock.figures() | {
        "loader": "transformers",
        "dtype": str(dtype).removeprefix("torch."),
        "micro_batch": config.per_device_train_batch_size,
    }


def _task(recipe: Recipe, tokenizer: Any) -> tuple[Forced, list[Problem]]:
    rows = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()]
    answers: dict[str, str] = {}
    problems = []
    for row in rows:
        data = {"integrand": row["integrand"], "variable": row["variable"], "lower": None, "upper": None}
        problems.append(Problem.root("integration", data))
        answers[problems[-1].id] = row["answer"]
    empty = tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False)
    around = len(tokenizer(empty, add_special_tokens=False).input_ids)
    return Forced(recipe, recipe.model.max_prompt_length - around, answers), problems


def _demand_length(found: Sequence[float], recipe: Recipe) -> None:
    wanted = recipe.grpo.trl["max_completion_length"]
    if any(length != wanted for length in found):
        raise UserError(f"replies of {', '.join(f'{length:g}' for length in found)} tokens, and not of {wanted}")


def card() -> Figures:
    """The GPU as PyTorch sees it, nothing where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "gib": properties.total_memory / memory.GIB,
        "cuda": torch.version.cuda,
    }


if __name__ == "__main__":
    try:
        result = card() if sys.argv[1] == "card" else measure(Arm(**json.loads(sys.argv[1])))
    except UserError as error:
        sys.exit(str(error))
    print(json.dumps(result))
