"""Measure one recipe with one loader: memory against its prediction, real steps, agreement, speed. A finding for each.

    python benchmarks/gpu/measure.py llama3b unsloth MODELS --seconds 220
    python benchmarks/gpu/measure.py qwen7b transformers MODELS --only load,memory_8,fits

Unsloth patches the other libraries, so each loader has a process of its own. The model has random weights (see
`random_models.py`), steps are those of `ladder_lite.grpo.train`. Where only memory matters, replies are random tokens
instead of generated ones. A rehearsal measures tiny models, with transformers in place of Unsloth.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import random_models
from plain import Plain
from workload import (
    CAP_GIB,
    REAL,
    REHEARSAL,
    Clock,
    Finding,
    Findings,
    ForcedTask,
    Measurements,
    Sizes,
    recipe_of,
    take_peaks,
)
from workload import bandwidth as measure_bandwidth

from ladder_lite import grpo, memory
from ladder_lite.attempts import Completion
from ladder_lite.backends import Rollout, Sampling, load_backend
from ladder_lite.config import load_recipe
from ladder_lite.curriculum import PassRates
from ladder_lite.settings import Recipe


class Bench:
    """A recipe's model, loaded once, and the measurements on it; each leaves the adapter as it was.

    `recipe(micro_batch, completions, reply, *changes)` makes the recipe of a measurement.
    """

    def __init__(
        self, name: str, recipe: Callable[..., Recipe], sizes: Sizes, shared: Path, findings: Findings
    ) -> None:
        self.name, self.sizes, self.findings = name, sizes, findings
        self._recipe, self._shared, self._largest = recipe, shared, sizes.micro_batches[0]

    def measurements(self) -> Measurements:
        """Return the measurements, the most valuable first."""
        slow = 1.6 if self.name == "qwen7b" else 1.0
        trained = dict(zip(REAL.micro_batches, self.sizes.micro_batches, strict=True))
        generated = dict(zip(REAL.generated, self.sizes.generated, strict=True))
        return {
            "load": (20, self.load),
            "real_steps": (45 * slow, self.real_steps),
            "memory_8": (20 * slow, partial(self.train_memory, trained[8])),
            "agreement": (15, self.agreement),
            "unequal": (20 * slow, self.unequal),
            "generation_64": (12, partial(self.generation, generated[64])),
            "fits": (40 * slow, self.fits),
            "resumed": (20, self.resumed),
            "timed": (40, self.timed),
            "memory_1": (20 * slow, partial(self.train_memory, trained[1])),
            "memory_4": (20 * slow, partial(self.train_memory, trained[4])),
            "generation_8": (12, partial(self.generation, generated[8])),
            "generation_32": (12, partial(self.generation, generated[32])),
        }

    def load(self) -> Finding:
        """Load the model; its bytes against those of the prediction."""
        own = load_recipe(self.name).grpo.trl
        reply = int(own["max_completion_length"]) if self.sizes is REAL else self.sizes.reply
        self.base = self._recipe(min(own["per_device_train_batch_size"], self._largest), self.sizes.group, reply)
        self.backend: Any = load_backend(self.base)
        import torch

        self._roll_out, (model, tokenizer) = self.backend.roll_out, self.backend.trainable()
        self.task = ForcedTask(self.base, tokenizer)
        allocated, peaks = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0, take_peaks()
        self._bandwidth, parts = measure_bandwidth(), memory.train_parts(self._setup(self.base), 1)
        stored = ("weights", "weights_4bit", "embeddings_and_norms", "lora")
        self._weight_bytes = sum(parts.get(part, 0) for part in stored)
        found: Finding = {
            "loader": self.backend._loader,
            "dtype": str(self.backend.dtype),
            "model": type(model).__name__,
        }
        found |= {"attention": getattr(model.config, "_attn_implementation", None), "bandwidth": self._bandwidth}
        return found | {"allocated": allocated, "predicted": self._weight_bytes, "peaks": peaks}

    def real_steps(self) -> Finding:
        """Steps as in a run, with short generated replies."""
        return self._train(self._recipe(self._largest, 2 * self.sizes.group, self.sizes.short_reply), 3)

    def train_memory(self, micro_batch: int) -> Finding:
        """The peak of a step with full prompts and replies against the prediction."""
        recipe = self._recipe(micro_batch, self._largest, self.sizes.reply)
        found = self._train(recipe, 1, self._random_replies)
        parts = memory.train_parts(self._setup(recipe), micro_batch)
        return found | {"micro_batch": micro_batch} | against_prediction(found["peaks"], parts)

    def agreement(self) -> Finding:
        """Logits of fixed tokens and greedy replies with a fixed adapter, against the other loader's if it has run."""
        import torch

        start, model = self.backend.snapshot(), self.backend.trainable()[0]
        self.backend.restore(self._fixed_adapter())
        ids = torch.randint(300, self.backend._shape.vocab_size, (2, 256), generator=torch.Generator().manual_seed(6))
        ids = ids.to(model.device)
        with self.backend._for_inference():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -32:].float().cpu()
        rollouts = self.backend.roll_out(self._prompts(4), Sampling(0.0, 1.0, self.sizes.short_reply, 4, 0))
        greedy = torch.tensor([rollout.completion_ids for rollout in rollouts])
        self.backend.restore(start)
        found: Finding = {"finite": bool(logits.isfinite().all()), "spread": float(logits.std())}
        if not self._shared.exists():
            torch.save({"logits": logits, "greedy": greedy}, self._shared)
            return found
        other = torch.load(self._shared)
        gap = (logits - other["logits"]).abs() / logits.std()
        found |= {"mean_gap": float(gap.mean()), "largest_gap": float(gap.max())}
        found["same_first_choice"] = float((logits.argmax(-1) == other["logits"].argmax(-1)).float().mean())
        same = (greedy == other["greedy"]).int().cumprod(1).sum(1)  # tokens until the first difference
        return found | {"greedy_same": same.tolist(), "greedy_tokens": self.sizes.short_reply}

    def unequal(self) -> Finding:
        """Steps on replies of unequal lengths, which Unsloth packs and checks; the same rows for either loader."""

        def replies(prompts: Sequence[Any], sampling: Sampling) -> list[Rollout]:
            rows = self._random_replies(prompts, sampling)
            if getattr(sampling, "logprobs", False):
                return rows
            lengths = [max(4, sampling.max_new_tokens * (3 + at % 6) // 8) for at in range(len(rows))]
            cut = [Completion(row.completion.text, n, truncated=False) for row, n in zip(rows, lengths, strict=True)]
            return [
                Rollout(row.prompt_ids, row.completion_ids[: c.n_tokens], c) for row, c in zip(rows, cut, strict=True)
            ]

        recipe = self._recipe(self._largest, 2 * self.sizes.group, self.sizes.reply // 2)
        return self._train(recipe, 2, replies, fixed=True)

    def generation(self, sequences: int, new_tokens: int | None = None) -> Finding:
        """Tokens a second, as a share of what bandwidth allows if each step reads all weights once; memory."""
        new_tokens = new_tokens or self.sizes.short_reply
        prompts, shape = self._prompts(sequences), self.backend._shape
        take_peaks()
        began = time.monotonic()
        rollouts = self.backend.roll_out(prompts, Sampling(1.0, 1.0, new_tokens, sequences, 1))
        seconds, peaks = time.monotonic() - began, take_peaks()
        rate = sum(len(rollout.completion_ids) for rollout in rollouts) / seconds
        looked_up = 0 if shape.tie_word_embeddings else 2 * shape.vocab_size * shape.hidden_size  # not read whole
        limit = sequences * self._bandwidth / (self._weight_bytes - looked_up)
        found: Finding = {"sequences": sequences, "new_tokens": new_tokens, "seconds": seconds, "tokens_a_second": rate}
        parts = memory.generate_parts(self._setup(self.base), sequences, self.sizes.prompt, new_tokens)
        for training in ("optimizer", "lora_reference"):  # there is no trainer between two measurements
            parts.pop(training, None)
        return found | {"limit": limit, "share": rate / limit if limit else 0} | against_prediction(peaks, parts)

    def fits(self) -> Finding:
        """A step with the recipe's own lengths, planned and run within the memory of its smallest card."""
        import torch

        cap, gpu = int(CAP_GIB[self.name] * memory.GIB) - memory.CUDA_CONTEXT_BYTES, torch.cuda.is_available()
        if gpu:
            torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.mem_get_info()[1])
        try:
            planned, reply = self.backend.micro_batch(self.base.grpo), self.base.grpo.trl["max_completion_length"]
            found = self._train(self.base, 1, self._random_replies)
            at_once = self.backend._generation_batch(self.sizes.prompt, Sampling(1.0, 1.0, reply, 64, 0))
            whole = self.sizes is REHEARSAL or self.findings.left() > 0.05 * reply + 60
            generated = self.generation(at_once, reply if whole else self.sizes.short_reply)
        finally:
            if gpu:
                torch.cuda.set_per_process_memory_fraction(1.0)
        return found | {"cap": cap, "micro_batch": planned, "reply": reply, "generated": generated}

    def resumed(self) -> Finding:
        """Two steps with and without a break between them, and an adapter that is saved and loaded."""
        from ladder_lite.backends.adapter import is_same

        recipe = self._recipe(self._largest, 2 * self.sizes.group, self.sizes.short_reply, "grpo.trl.save_steps=1")
        train = partial(self._train, recipe, roll_out=self._random_replies, fixed=True)
        start, adapter = self.backend.snapshot(), self._fixed_adapter()
        with tempfile.TemporaryDirectory() as temporary:
            run = Path(temporary)
            runs = {"whole": train(2), "first": train(1, folder=run), "resumed": train(2, folder=run)}
            self.backend.restore(adapter)
            self.backend.save(run / "adapter")
            self.backend.restore(start)
            self.backend.load(run / "adapter")
        loaded = is_same(adapter, self.backend.snapshot())
        self.backend.restore(start)
        return {"loaded": loaded} | {name: [step["grad_norm"] for step in run["steps"]] for name, run in runs.items()}

    def timed(self) -> Finding:
        """Timed steps, generated replies included, and the seconds of this package's own code in them."""
        from ladder_lite.backends import adapter

        recipe = self._recipe(self._largest, self.sizes.timed_completions, self.sizes.timed_reply)
        clock, model = Clock(), self.backend.trainable()[0]
        end_step = clock.timed("log", grpo.Log.end_step)

        def end(log: grpo.Log, logs: dict[str, float]) -> bool:
            ended: bool = end_step(log, logs)
            clock.end_step()
            return ended

        parts = [(self.task, "prompt", "data"), (PassRates, "draw", "data"), (grpo.Log, "grade", "verify")]
        parts += [(self.backend, "roll_out", "roll_out"), (model, "generate", "generate")]
        parts += [(grpo.Log, "check_step", "log"), (adapter, "is_finite", "log")]
        with ExitStack() as patches:
            for owner, name, part in parts:
                patches.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
            patches.enter_context(patch.object(grpo.Log, "end_step", end))
            found = self._train(recipe, 3, stop=lambda *_: clock.is_late(self.findings.left()), apart=False)
        summary = clock.summary(recipe, self.backend.micro_batch(recipe.grpo))
        seconds = summary["median"]
        own = sum(seconds.get(part, 0.0) for part in ("data", "verify", "log", "roll_out")) - seconds["generate"]
        tokens = [step["n_tokens"] for step in found["steps"]]
        return {"peaks": found["peaks"], "tokens": tokens, "own_seconds": own} | summary

    def _train(
        self, recipe: Recipe, steps: int, roll_out: Any = None, folder: Path | None = None, fixed: bool = False,
        stop: Callable[..., bool] = lambda *_: False, apart: bool = True,
    ) -> Finding:  # fmt: skip
        """Train and put the adapter back; with `apart`, what comes before the first step has a peak of its own."""
        start, said, peaks, begin_step = (
            self.backend.snapshot(),
            list[str](),
            list[dict[str, int]](),
            grpo.Log.begin_step,
        )
        if fixed:
            self.backend.restore(self._fixed_adapter())
        settings = recipe.grpo.model_copy(update={"trl": recipe.grpo.trl | {"max_steps": steps}})

        def begin(log: grpo.Log) -> None:
            if apart:
                peaks.append(take_peaks())
            begin_step(log)

        take_peaks()
        replies = patch.object(self.backend, "roll_out", roll_out or self.backend.roll_out)
        with tempfile.TemporaryDirectory() as temporary, patch.object(grpo.Log, "begin_step", begin), replies:
            arguments = self.task, self.backend, self.task.problems, settings, folder or Path(temporary), 0, stop
            done = grpo.train(*arguments, say=said.append)
        peaks.append(take_peaks())
        self.backend.restore(start)
        before, during = (peaks[0], peaks[1:]) if apart else ({}, peaks)
        largest = {key: max(peak[key] for peak in during) for key in ("allocated", "reserved")}
        found: Finding = {
            "steps": [asdict(step) for step in done],
            "peaks": largest,
            "peaks_before": before,
            "said": said,
        }
        if self.backend._loader == "unsloth":
            with suppress(ImportError):
                from ladder_lite.backends.unsloth import training_pass

                found["pass"] = training_pass(self.backend.trainable()[0])
        return found

    def _random_replies(self, prompts: Sequence[Any], sampling: Sampling) -> list[Rollout]:
        """Replies of full length without generating them; self-checks that need log-probabilities generate theirs."""
        import torch

        if getattr(sampling, "logprobs", False):
            return list(self._roll_out(prompts, sampling))
        draw, top = torch.Generator().manual_seed(sampling.seed), self.backend._shape.vocab_size
        rows = torch.randint(300, top, (len(prompts), sampling.max_new_tokens), generator=draw).tolist()
        texts = self.backend._tokenizer.batch_decode(rows)
        completions = [Completion(text, sampling.max_new_tokens, truncated=False) for text in texts]
        encoded = map(self.backend._encode, prompts)
        return [Rollout(*rollout) for rollout in zip(encoded, rows, completions, strict=True)]

    def _fixed_adapter(self) -> dict[str, Any]:
        """Return the same adapter for either loader; neither of its matrices is zero, as one of a fresh adapter is."""
        import torch

        draw = torch.Generator().manual_seed(5)
        start = sorted(self.backend.snapshot().items())
        return {name: torch.randn(weight.shape, generator=draw) * 0.02 for name, weight in start}

    def _prompts(self, n: int) -> list[Any]:
        return [self.task.prompt(self.task.problems[at % len(self.task.problems)]) for at in range(n)]

    def _setup(self, recipe: Recipe) -> memory.Setup:
        options: dict[str, Any] = {"loader": self.backend._loader, "context_bytes": 0}
        options["dtype"] = str(self.backend.dtype).removeprefix("torch.")
        return memory.Setup.of(memory.read_shape(recipe.model.id), recipe.model, recipe.grpo.trl, **options)


def against_prediction(peaks: dict[str, int], parts: dict[str, int]) -> Finding:
    """Return a peak beside its prediction, which `ladder_lite.memory` makes in parts."""
    predicted = sum(parts.values())
    return {"peaks": peaks, "predicted": predicted, "ratio": peaks["reserved"] / predicted, "parts": parts}


def main() -> None:
    """Make the findings that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=CAP_GIB)
    parser.add_argument("loader", choices=["unsloth", "transformers", "plain"])
    parser.add_argument("models", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", help="measurements, separated by commas")
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args()
    findings, sizes = Findings(time.time() + given.seconds), REHEARSAL if given.rehearse else REAL
    model = random_models.folder(given.models, given.recipe, tiny=given.rehearse)
    while not model.exists() and findings.left() > 0:  # random_models.py is still writing it
        time.sleep(0.2)
    loader = "unsloth" if given.loader == "unsloth" and not given.rehearse else "transformers"
    recipe = partial(recipe_of, given.recipe, model, loader, sizes)
    if given.loader == "plain":
        bench: Bench | Plain = Plain(recipe, sizes, findings)
    else:
        bench = Bench(given.recipe, recipe, sizes, given.models / f"agreement-{given.recipe}.pt", findings)
    wanted = given.only.split(",") if given.only else bench.measurements()
    for name, (least, measurement) in bench.measurements().items():
        if name in wanted and not findings.attempt(name, least, measurement) and name == "load":
            raise SystemExit("no measurement without a model")


if __name__ == "__main__":
    main()
