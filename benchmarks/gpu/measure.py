"""Measure one recipe with one loader, and print a finding for each of memory, real steps, agreement and speed.

    python benchmarks/gpu/measure.py llama3b unsloth MODELS --seconds 220 --only load,memory_8,fits

Unsloth patches other libraries, so each loader needs a separate process. Training steps run through `grpo.train`. If
only memory matters, replies are random tokens. A rehearsal measures tiny models, with transformers in place of Unsloth.
"""

import argparse
import gc
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import workload
from plain import Plain
from workload import Finding, Findings, Sizes, predicted, take_peaks

from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import Recipe
from ladder_lite.errors import UserError
from ladder_lite.models import Rollout, Sampling, load_backend, memory
from ladder_lite.models.shape import read_shape
from ladder_lite.problems.attempts import Completion
from ladder_lite.train import grpo
from ladder_lite.train.curriculum import PassRates
from ladder_lite.train.state import Training, TrainingState


class Bench:
    """The measurements on a recipe's model. The file `shared` passes results from one loader to the other."""

    def __init__(self, name: str, recipe: Any, sizes: Sizes, findings: Findings, shared: Path) -> None:
        self.name, self.sizes, self.findings, self.shared = name, sizes, findings, shared
        self.recipe, self.largest = recipe, sizes.micro_batches[0]
        slow = 1.6 if self.name == "qwen7b" else 1.0
        memory_8, memory_1, memory_4 = (partial(self.train_memory, n) for n in self.sizes.micro_batches)
        few, more, many = (partial(self.generation, n) for n in self.sizes.generated)
        # Name: (minimum seconds, measurement), the most valuable first. The numbers in names are those of REAL sizes.
        plan = {"load": (20, self.load), "real_steps": (45 * slow, self.real_steps), "memory_8": (20 * slow, memory_8)}
        plan |= {"timed": (40, self.timed)} if name == "llama3b" else {}
        plan |= {"agreement": (15, self.agreement), "unequal": (20 * slow, self.unequal)}
        plan |= {"fits": (40 * slow, self.fits), "generation_64": (12, many), "resumed": (20, self.resumed)}
        plan |= {"memory_1": (20 * slow, memory_1), "memory_4": (20 * slow, memory_4)}
        self.measurements: workload.Measurements = plan | {"generation_8": (12, few), "generation_32": (12, more)}

    def load(self) -> Finding:
        """Load the model; compare its memory with the prediction."""
        own = load_recipe(self.name).grpo.trl
        reply = int(own["max_completion_length"]) if self.sizes is workload.REAL else self.sizes.reply
        self.base = self.recipe(min(own["per_device_train_batch_size"], self.largest), self.sizes.group, reply)
        self.backend: Any = load_backend(self.base)
        import torch

        gc.freeze()  # each training run collects garbage several times: exclude what is already loaded
        self.roll_out, (model, tokenizer) = self.backend.roll_out, self.backend.trainable()
        self.fresh_adapter = self.backend.snapshot()
        self.task = workload.ForcedTask(self.base, tokenizer)
        allocated, peaks = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0, take_peaks()
        self.bandwidth, parts = workload.bandwidth(), memory.train_parts(self.setup(self.base), 1)
        stored = ("weights", "weights_4bit", "embeddings_and_norms", "lora")
        self.weight_bytes = sum(parts.get(part, 0) for part in stored)
        finding = {"loader": self.backend._loader, "dtype": str(self.backend.dtype), "model": type(model).__name__}
        finding |= {"attention": getattr(model.config, "_attn_implementation", None), "bandwidth": self.bandwidth}
        return finding | {"allocated": allocated, "predicted": self.weight_bytes, "peaks": peaks}

    def real_steps(self) -> Finding:
        """Train as in a run, with short generated replies."""
        return self.train(self.recipe(self.largest, 2 * self.sizes.group, self.sizes.short_reply), 3)

    def train_memory(self, micro_batch: int) -> Finding:
        """Compare the memory peak of a step with prompts and replies of full length with the prediction."""
        recipe = self.recipe(micro_batch, self.largest, self.sizes.reply)
        finding, parts = self.train(recipe, 1, self.random_replies), memory.train_parts(self.setup(recipe), micro_batch)
        return finding | {"micro_batch": micro_batch} | predicted(parts, finding["peaks"])

    def agreement(self) -> Finding:
        """Compute logits of fixed tokens and greedy replies with a fixed adapter.

        The first loader saves them; the second one compares its own with them.
        """
        import torch

        model, generator = self.backend.trainable()[0], torch.Generator().manual_seed(6)
        self.backend.restore(self.fixed_adapter())
        ids = torch.randint(300, self.backend._shape.vocab_size, (2, 256), generator=generator).to(model.device)
        with self.backend._for_inference():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -32:].float().cpu()
        rollouts = self.backend.roll_out(self.task.prompts[:4], Sampling(0.0, 1.0, self.sizes.short_reply, 4, 0))
        greedy = torch.tensor([rollout.completion_ids for rollout in rollouts])
        finding: Finding = {"finite": bool(logits.isfinite().all()), "spread": float(logits.std())}
        if not self.shared.exists():
            torch.save({"logits": logits, "greedy": greedy}, self.shared)
            return finding
        other = torch.load(self.shared)
        gap = (logits - other["logits"]).abs() / logits.std()
        same_first = (logits.argmax(-1) == other["logits"].argmax(-1)).float().mean()
        finding |= {"mean_gap": float(gap.mean()), "largest_gap": float(gap.max()), "same_first": float(same_first)}
        until = (greedy == other["greedy"]).int().cumprod(1).sum(1)  # tokens before the first that differs
        return finding | {"greedy_until": until.tolist(), "greedy_tokens": self.sizes.short_reply}

    def unequal(self) -> Finding:
        """Train on replies of unequal lengths, which Unsloth packs and checks. Both loaders get the same rows."""
        recipe = self.recipe(self.largest, 2 * self.sizes.group, self.sizes.reply // 2)
        return self.train(recipe, 2, partial(self.random_replies, eighths=(3, 4, 5, 6, 7, 8)))

    def generation(self, sequences: int, new_tokens: int = 0) -> Finding:
        """Measure tokens per second, as a share of the bandwidth limit, and memory; for `lean`, also with `generate`.

        The limit assumes that each token step reads all weights once.
        """
        new_tokens = new_tokens or self.sizes.short_reply
        prompts, shape = self.task.prompts[:sequences], self.backend._shape
        take_peaks()
        began = time.monotonic()
        rollouts = self.backend.roll_out(prompts, Sampling(1.0, 1.0, new_tokens, sequences, 1))
        seconds, peaks = time.monotonic() - began, take_peaks()
        rate = sum(len(rollout.completion_ids) for rollout in rollouts) / seconds
        looked_up = 0 if shape.tie_word_embeddings else 2 * shape.vocab_size * shape.hidden_size  # not read whole
        limit = sequences * self.bandwidth / (self.weight_bytes - looked_up)
        parts = memory.generate_parts(self.setup(self.base), sequences, self.sizes.prompt, new_tokens)
        for part in ("optimizer", "lora_reference"):  # no trainer exists between measurements
            parts.pop(part, None)
        finding = {"sequences": sequences, "new_tokens": new_tokens, "seconds": seconds, "tokens_a_second": rate}
        finding["engine"] = self.backend._engine.name
        if self.backend._engine.name == "lean":
            own, self.backend._engine = self.backend._engine, self.backend.open_engine("generate")
            began = time.monotonic()
            self.backend.roll_out(prompts, Sampling(1.0, 1.0, new_tokens, sequences, 1))
            finding["seconds_with_generate"] = time.monotonic() - began
            self.backend._engine = own
        return finding | {"limit": limit, "share": rate / limit if limit else 0} | predicted(parts, peaks)

    def fits(self) -> Finding:
        """Plan and run a step with the recipe's lengths within the memory of its smallest card."""
        import torch

        cap = int(workload.CAP_GIB[self.name] * memory.GIB) - memory.CUDA_CONTEXT_BYTES
        gpu, reply = torch.cuda.is_available(), self.base.grpo.trl["max_completion_length"]
        if gpu:
            torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.mem_get_info()[1])
        try:
            finding = {"cap": cap, "micro_batch": self.backend.micro_batch(self.base.grpo), "reply": reply}
            finding |= self.train(self.base, 1, self.random_replies)
            at_once = self.backend._generation_batch(self.sizes.prompt, Sampling(1.0, 1.0, reply, 64, 0))
            enough_time = self.findings.left() > 0.05 * reply + 60  # 0.05 s per token, and a margin
            return finding | {"generated": self.generation(at_once, reply if enough_time else 0)}
        finally:
            if gpu:
                torch.cuda.set_per_process_memory_fraction(1.0)

    def resumed(self) -> Finding:
        """Compare the gradient norms of two uninterrupted steps with those of a run that resumes after one step."""
        recipe = self.recipe(self.largest, 2 * self.sizes.group, self.sizes.short_reply, "grpo.trl.save_steps=1")
        train = partial(self.train, recipe, replies=self.random_replies)
        with tempfile.TemporaryDirectory() as run:
            runs = {"whole": train(2), "first": train(1, run=run), "resumed": train(2, run=run)}
        return {name: [step["grad_norm"] for step in finding["steps"]] for name, finding in runs.items()}

    def timed(self) -> Finding:
        """Time steps with generated replies, and this package's own code in them."""
        from ladder_lite.models import adapter

        recipe = self.recipe(self.largest, self.sizes.timed_completions, self.sizes.timed_reply)
        clock, engine = workload.Clock(), self.backend._engine
        sample = engine.sample
        end_step = clock.timed("log", TrainingState.end_step)

        def end(log: TrainingState, logs: dict[str, float]) -> bool:
            ended: bool = end_step(log, logs)
            clock.end_step()
            return ended

        parts = [(self.task, "prompt", "data"), (PassRates, "draw", "data"), (TrainingState, "grade", "verify")]
        parts += [(self.backend, "roll_out", "roll_out")]
        parts += [(TrainingState, "check_step", "log"), (adapter, "is_finite", "log")]
        with ExitStack() as patches:
            for owner, name, part in parts:
                patches.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
            # `sample` yields the replies one by one, so its time is that of all of them.
            all_at_once = clock.timed("generate", lambda *args: list(sample(*args)))
            patches.enter_context(patch.object(engine, "sample", all_at_once))
            patches.enter_context(patch.object(TrainingState, "end_step", end))
            finding = self.train(recipe, 3, clock=clock)
        summary = clock.summary(recipe, self.backend.micro_batch(recipe.grpo))
        seconds = {"generate": 0.0} | summary["median"]
        # `roll_out` includes the model's `generate`, which is not this package's code.
        own = sum(seconds.get(part, 0.0) for part in ("data", "verify", "log", "roll_out")) - seconds["generate"]
        return summary | {"own_seconds": own, "peaks": finding["peaks"], "n_tokens": finding["steps"][-1]["n_tokens"]}

    def train(self, recipe: Recipe, steps: int, replies: Any = None, run: Any = None, clock: Any = None) -> Finding:
        """Train a fresh adapter on sampled replies, or the fixed one on given replies.

        Without a clock, the memory peak of each step is recorded.
        """
        from ladder_lite.models.guard import RolloutGuard

        messages, peaks = list[str](), list[dict[str, int]]()
        begin_step, check_rollouts = TrainingState.begin_step, RolloutGuard.check
        self.backend.restore(self.fixed_adapter() if replies else self.fresh_adapter)
        settings = recipe.grpo.model_copy(update={"trl": recipe.grpo.trl | {"max_steps": steps}})

        def begin(log: TrainingState) -> None:
            if not clock:
                peaks.append(take_peaks())
            begin_step(log)

        def check(*arguments: Any) -> None:
            with suppress(UserError):  # it would end a run; here the gap is part of the finding
                check_rollouts(*arguments)

        def stop(*_: Any) -> bool:  # when another step of the same duration would not finish in time
            return bool(clock and clock.steps) and clock.steps[-1]["seconds"] > self.findings.left()

        take_peaks()
        with tempfile.TemporaryDirectory() as temporary, ExitStack() as patches:
            patches.enter_context(patch.object(TrainingState, "begin_step", begin))
            patches.enter_context(patch.object(RolloutGuard, "check", check))
            patches.enter_context(patch.object(self.backend, "roll_out", replies or self.backend.roll_out))
            training = Training(self.task, self.backend, settings, Path(run or temporary), 0, say=messages.append)
            done = grpo.train(training, self.task.problems, stop)
        peaks.append(take_peaks())
        # The first peak is that of the memory test and the self-checks before the first step.
        before, during = ({}, peaks) if clock else (peaks[0], peaks[1:])
        largest = {key: max(peak[key] for peak in during) for key in ("allocated", "reserved")}
        finding = {"steps": [asdict(step) for step in done], "peaks": largest, "peaks_before": before, "said": messages}
        return finding | {"guard_gap": self.backend._guard.gap}

    def random_replies(self, prompts: list[Any], sampling: Sampling, eighths: Any = (8,)) -> list[Rollout]:
        """Return replies of random tokens, whose lengths rotate through `eighths` of the maximum length.

        The self-checks request log-probabilities, and get replies that the model has generated.
        """
        import torch

        if sampling.logprobs:
            return list(self.roll_out(prompts, sampling))
        size, top = (len(prompts), sampling.max_new_tokens), self.backend._shape.vocab_size
        replies = torch.randint(300, top, size, generator=torch.Generator().manual_seed(sampling.seed)).tolist()
        replies = [row[: size[1] * eighths[index % len(eighths)] // 8] for index, row in enumerate(replies)]
        texts = zip(self.backend._tokenizer.batch_decode(replies), replies, strict=True)
        completions = [Completion(text, len(reply), truncated=False) for text, reply in texts]
        return [*map(Rollout, map(self.backend._encode, prompts), replies, completions)]

    def fixed_adapter(self) -> dict[str, Any]:
        """Return an adapter that is the same for both loaders. Unlike a fresh one, it has no matrix of zeros."""
        import torch

        draw, fresh = torch.Generator().manual_seed(5), sorted(self.fresh_adapter.items())
        return {name: torch.randn(weight.shape, generator=draw) * 0.02 for name, weight in fresh}

    def setup(self, recipe: Recipe) -> memory.Setup:
        """Return the input of the memory prediction."""
        loading = self.backend._loader, str(self.backend.dtype).removeprefix("torch."), 0
        return memory.Setup.of(read_shape(recipe.model.id), recipe.model, recipe.grpo.trl, *loading)


def main() -> None:
    """Make the measurements that the command line selects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=workload.CAP_GIB)
    parser.add_argument("loader", choices=["unsloth", "transformers", "plain"])
    parser.add_argument("models", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", help="measurements, separated by commas")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    findings, sizes = Findings(), workload.REHEARSAL if options.rehearse else workload.REAL
    findings.ends_at = time.time() + options.seconds
    loader = "unsloth" if options.loader == "unsloth" and not options.rehearse else "transformers"
    recipe = partial(workload.recipe_of, options.recipe, options.models.absolute() / options.recipe, loader, sizes)
    bench: Any = Plain(recipe, sizes, findings)
    if options.loader != "plain":
        bench = Bench(options.recipe, recipe, sizes, findings, options.models / f"agreement-{options.recipe}.pt")
    for name, (least, measurement) in bench.measurements.items():
        done = (options.only and name not in options.only.split(",")) or findings.attempt(name, least, measurement)
        if not done and name == "load":
            raise SystemExit("the model was not loaded, so nothing can be measured")


if __name__ == "__main__":
    main()
