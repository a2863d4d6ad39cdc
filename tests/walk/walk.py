"""One loader's part of the walk: load a small random model, sample from it and train it, on rollouts that are forced.

    python tests/walk/walk.py llama3b|qwen7b unsloth|transformers MODEL RESULT.json

Unsloth patches transformers, peft and TRL for the whole process, so each loader gets a process of its own. Both do the
same to the same weights; test_walk.py compares what they write. A part that fails leaves its traceback in the result,
and the others go on.
"""

import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import stand_in

Result = dict[str, Any]

_RECIPE = [
    "model.device=cpu",
    "model.load_in_4bit=false",
    "model.dtype=float32",
    "model.max_prompt_length=8",
    "task.stop=[]",
    "task.thinking=false",
    "grpo.plateau=null",
    "grpo.rows=uniform",
    "grpo.trl.max_steps=3",
    "grpo.trl.num_generations=2",
    "grpo.trl.per_device_train_batch_size=2",
    "grpo.trl.gradient_accumulation_steps=2",
    "grpo.trl.max_completion_length=6",
    "grpo.trl.mask_truncated_completions=false",
    "grpo.trl.optim=adamw_torch",
    "grpo.trl.learning_rate=5.0e-4",
    "grpo.trl.warmup_steps=0",
    "grpo.trl.beta=0.1",
    "grpo.trl.save_steps=1",
]
_ONE_STEP = {"max_steps": 1}
_ONE_PORTION = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
_FITS = 2 * (8 + 6)  # tokens of two rollouts, the longest that there can be
_REPLY_LENGTHS = (5, 2, 6, 4)
_FIRST_WORD, _LAST_WORD = 6, 500  # those of the vocabulary that have no function
_TEXTS = ("x", "x**2", "1/x")


class Walk:
    """A loaded model, the adapters that it is given, and the task that it is trained on."""

    def __init__(self, recipe_name: str, loader: str, model: str, folder: Path) -> None:
        from ladder_lite.config.load import load_recipe
        from ladder_lite.models import prepare_environment

        prepare_environment()
        if loader == "unsloth":
            stand_in.import_unsloth()
        self.loader, self.folder = loader, folder
        # Both sample with `generate`: the lean engine draws other random numbers.
        settings = [f"model.id={model}", f"model.backend={loader}", "model.engine=generate", *_RECIPE]
        self.recipe = load_recipe(recipe_name, settings)

        import torch

        torch.set_num_threads(1)
        from ladder_lite.models import guard, local
        from ladder_lite.problems import Problem
        from ladder_lite.train import grpo

        # What differs on a GPU: memory is tested before the first step, and adapters are not merged into the weights
        # for sampling.
        stand_in.replace(grpo, _has_to_test_memory=lambda _backend: loader == "unsloth")
        stand_in.replace(local, merged=lambda _model: nullcontext())
        stand_in.replace(guard, _REPLIES=2, _TOKENS=4)  # its checks would take half of the time of the walk
        self.backend: Any = local.LocalBackend(self.recipe, loader)  # load_backend refuses Unsloth without a GPU
        self.model, self.tokenizer = self.backend.trainable()
        self.start, self.other = (self._adapter(seed) for seed in (1, 2))
        self.sample = self.backend.roll_out
        self.task = _task(self.recipe)
        empty = {"variable": "x", "lower": None, "upper": None}
        self.problems = [Problem.root("integration", {"integrand": text, **empty}) for text in _TEXTS]

    def _adapter(self, seed: int) -> Any:
        """An adapter whose two matrices are both away from zero."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        weights = sorted(self.backend.snapshot().items())
        return {name: 0.05 * torch.randn(weight.shape, generator=generator) for name, weight in weights}

    # --- parts

    def loading(self) -> Result:
        """Who has loaded what, and what the model says to fixed tokens, with the start adapter."""
        self.backend.restore(self.start)
        layer = self.model.get_base_model().model.layers[0]
        return {
            "dtype": str(self.backend.dtype),
            "adapter": sorted(self.start),
            "attention": type(layer.self_attn).forward.__qualname__,
            "logits": self.logits(_words(0, 20), _words(1, 20)).tolist(),
        }

    def packing(self) -> Result:
        """How far packing moves the log-probabilities of a sequence, as it is and where borders are ignored."""
        self.backend.restore(self.start)
        found = {"kept": self.moved_by_packing()}
        with _borders_ignored():
            return found | {"ignored": self.moved_by_packing()}

    def adapters(self) -> Result:
        """What comes back of an adapter that was put aside, in memory and in a file."""
        from ladder_lite.models.adapter import is_same

        self.backend.restore(self.start)
        kept = self.backend.snapshot()
        self.backend.save(self.folder / "adapter")
        self.backend.restore(self.other)
        found = {"changed": not is_same(self.backend.snapshot(), kept)}
        self.backend.restore(kept)
        found["restored"] = is_same(self.backend.snapshot(), self.start)
        self.backend.restore(self.other)
        self.backend.load(self.folder / "adapter")
        return found | {"loaded": is_same(self.backend.snapshot(), self.start)}

    def sampling(self) -> Result:
        """Greedy and random replies with one adapter, and greedy ones with another after it."""
        from ladder_lite.models import Sampling

        prompts = [self.task.prompt(problem) for problem in self.problems]
        greedy = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=6, batch_size=4, seed=0)
        warm = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=6, batch_size=4, seed=0)
        asks = {"start": (self.start, greedy), "other": (self.other, greedy), "random": (self.other, warm)}
        found: Result = {}
        for name, (adapter, sampling) in asks.items():
            self.backend.restore(adapter)
            found[name] = [rollout.completion_ids for rollout in self.sample(prompts, sampling)]
            found["copies"] = self.separate_copies()
        return found

    def training(self) -> Result:
        """Three steps, and the last of them once more from the checkpoint before it."""
        found = self.train("three", {})
        shutil.rmtree(self.folder / "three" / "checkpoints" / "checkpoint-3")
        return found | {"resumed": self.train("three", {})["steps"]}

    def padding(self) -> Result:
        """A step with a rollout that was nothing but padding."""
        return self.train("padding", _ONE_STEP, self.force(empty_row=1))

    def leaking(self) -> Result:
        """A step where packed sequences attend to those before them."""
        with _borders_ignored():
            return self.train("leaking", _ONE_STEP)

    def short_of_memory(self) -> Result:
        """A step in one micro-batch, where memory suffices for half of it."""
        return self.train("short_of_memory", _ONE_STEP | _ONE_PORTION, short=True)

    def short_of_memory_in_check(self) -> Result:
        """The same, where the packed pass itself just fits and leaves no room for the pass that it is checked with."""
        return self.train("short_of_memory_in_check", _ONE_STEP | _ONE_PORTION, short=True, packed_fits=True)

    def separate_copies(self) -> int:
        """Give Unsloth's copies of the adapter, which it generates with, memory of their own; how many there are.

        It makes them in the type of the model. In float32 they share the memory of the adapter, and an old one would
        not be noticed. Since 2026.10.9, there are none in float32, and Unsloth itself notices when one is old.
        """
        copied = [weight for weight in self.model.parameters() if hasattr(weight, "_fast_lora")]
        for weight in copied:
            weight._fast_lora = weight._fast_lora.clone()
        return len(copied)

    # --- passes without gradients

    def logits(self, *sequences: list[int], **options: Any) -> Any:
        """Logits of sequences of equal lengths, (sequences, tokens, words)."""
        import torch

        self.model.train()  # as GRPO's passes are, those of the reference included
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor(sequences), use_cache=False, **options).logits.float()
        self.model.eval()
        return logits

    def moved_by_packing(self) -> float:
        """The most by which a log-probability of a sequence depends on being packed behind another one."""
        import torch

        first, second = _words(2, 12), _words(3, 12)
        packed = self.logits(
            first + second,
            position_ids=torch.arange(12).repeat(2)[None],
            packed_seq_lengths=torch.tensor([12, 12], dtype=torch.int32),
        )
        alone = self.logits(second)
        moved = (packed[0, 12:].log_softmax(-1) - alone[0].log_softmax(-1)).abs()
        return float(moved[range(11), second[1:]].max())

    # --- training

    def train(
        self,
        name: str,
        changes: Result,
        roll_out: Callable[..., Any] | None = None,
        **memory: bool,
    ) -> Result:
        """Train the start adapter with changed settings, in a folder that is kept for a second call."""
        from ladder_lite.train import grpo
        from ladder_lite.train.state import Training

        settings = self.recipe.grpo.model_copy(update={"trl": self.recipe.grpo.trl | changes})
        said: list[str] = []
        self.backend.restore(self.start)
        self.backend.roll_out = roll_out or self.force()
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        with self.watched(**memory) as passes:
            training = Training(self.task, self.backend, settings, folder, 0, say=said.append)
            steps = grpo.train(training, self.problems, lambda *_: False)
        return {"steps": [asdict(step) for step in steps], "said": said, "passes": passes} | self.verdict()

    def verdict(self) -> Result:
        """What the package says of Unsloth's training pass, and what Unsloth's self-checks have left on the model."""
        if self.loader != "unsloth":
            return {}
        marks = {name: mark for name, mark in vars(self.model).items() if name.startswith("_unsloth_seq_packing_")}
        from ladder_lite.models.unsloth_checks import training_pass

        return {"marks": marks, "training_pass": training_pass(self.model)}

    def force(self, empty_row: int | None = None) -> Callable[..., Any]:
        """A backend's `roll_out` of given replies, of unequal lengths, half of which end by themselves."""
        from ladder_lite.models import Rollout
        from ladder_lite.problems.attempts import Completion

        end = self.tokenizer.eos_token_id

        def roll_out(prompts: Sequence[Any], sampling: Any) -> list[Rollout]:
            if sampling.logprobs:  # a check of the backend's own replies
                return list(self.sample(prompts, sampling))
            rollouts = []
            for row, prompt in enumerate(prompts):
                length = _REPLY_LENGTHS[row % len(_REPLY_LENGTHS)]
                words = _words(sampling.seed + row, length)
                tokens = words if row % 2 else [*words[:-1], end]
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                completion = Completion(text, len(tokens), truncated=bool(row % 2))
                if row == empty_row:
                    tokens, completion = [end], Completion("", 0, truncated=True)
                rollouts.append(Rollout(self.backend._encode(prompt), tokens, completion))
            return rollouts

        return roll_out

    @contextmanager
    def watched(self, short: bool = False, packed_fits: bool = False) -> Iterator[list[str]]:
        """Note each pass with gradients: "packed" or "padded".

        Where memory is short, one of more than `_FITS` tokens runs out of it. With `packed_fits`, a packed one does
        not, and the next pass does, which is the first row of Unsloth's self-check.
        """
        import torch

        passes: list[str] = []
        memory_is_full = False

        def watch(_model: Any, args: Any, options: Result) -> None:
            nonlocal memory_is_full
            if torch.is_grad_enabled():
                tokens = options["input_ids"] if "input_ids" in options else args[0]
                passes.append("packed" if "packed_seq_lengths" in options else "padded")
                fits = not short or tokens.numel() <= _FITS
                memory_is_full = not fits and packed_fits and passes[-1] == "packed"
                if fits or memory_is_full:
                    return
            elif not memory_is_full:
                return
            memory_is_full = False
            passes[-1] += ", out of memory"
            raise torch.cuda.OutOfMemoryError("no room for this pass")

        hook = self.model.register_forward_pre_hook(watch, with_kwargs=True)
        try:
            yield passes
        finally:
            hook.remove()


def _words(seed: int, length: int) -> list[int]:
    draw = Random(seed)
    return [draw.randrange(_FIRST_WORD, _LAST_WORD) for _ in range(length)]


@contextmanager
def _borders_ignored() -> Iterator[None]:
    """Attention that takes a packed row for one sequence, as a kernel without support for packing would."""
    from unsloth.models import llama

    packed_info = llama.get_packed_info_from_kwargs
    llama.get_packed_info_from_kwargs = lambda *_, **__: None
    try:
        yield
    finally:
        llama.get_packed_info_from_kwargs = packed_info


def _task(recipe: Any) -> Any:
    from ladder_lite.tasks.integration import IntegrationTask
    from ladder_lite.verify import Grade, Reason

    class ByLetters(IntegrationTask):
        """Short prompts, and rewards that differ within a group."""

        def prompt(self, problem: Any) -> Any:
            return [{"role": "user", "content": str(problem.data["integrand"])}]

        def grade(self, _problem: Any, text: str) -> Grade:
            reward = sum(text.encode()) % 5 / 4
            return Grade(reward, Reason.CORRECT if reward == 1 else Reason.WRONG, text)

    return ByLetters(recipe.task)


def _run(result: Result, name: str, part: Callable[[], Result]) -> None:
    began_at = time.monotonic()
    try:
        result[name] = part()
    except Exception:
        result[name] = {"error": traceback.format_exc()}
    result[name]["seconds"] = round(time.monotonic() - began_at, 1)


def _walk(recipe: str, loader: str, model: str, path: str) -> None:
    result: Result = {}
    with tempfile.TemporaryDirectory() as folder:
        began_at = time.monotonic()
        walk = Walk(recipe, loader, model, Path(folder))
        result["import_seconds"] = round(time.monotonic() - began_at, 1)
        parts = [walk.loading, walk.adapters, walk.sampling, walk.training, walk.padding]
        if loader == "unsloth":
            parts += [walk.packing, walk.leaking, walk.short_of_memory, walk.short_of_memory_in_check]
        for part in parts:
            _run(result, part.__name__, part)
    Path(path).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as compiled:
        stand_in.prepare(Path(compiled))
        stand_in.with_large_stack(_walk)(*sys.argv[1:])
