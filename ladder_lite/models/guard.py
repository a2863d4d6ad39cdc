"""The rollout guard: checks that the engine that samples uses the weights that are trained.

An engine that ignores the adapter, or keeps an old copy of it, samples fluent text from other weights, and nothing
fails: losses stay finite (unslothai/unsloth#8701, huggingface/trl#5312, huggingface/transformers#45323). The guard
compares the engine's log-probabilities with the trainer's:

1. Set the adapter to random values that move log-probabilities by at least `MARGIN` tolerances. A fresh adapter could
   not reveal an error, because its B matrices are zero.
2. Let the engine sample a few short replies, with its log-probabilities.
3. Let the trainer score the same tokens. The KL divergence between the two must be within the tolerance.
4. Restore the adapter bit by bit.

With `from_base`, the engine samples with the adapter switched off, and must agree with a trainer whose adapter is zero.

A check costs one short rollout and one forward pass, which Unsloth may split into several. The first check of a model
also finds the scale of the random values: it needs a second forward pass, and more draws while the effect is too small.
"""

import math

import torch

from ladder_lite.errors import UserError
from ladder_lite.models.backend import Adapter, Backend, Rollout, Sampling, Score
from ladder_lite.tasks.task import Messages

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 2e-2}
"""The KL divergence of engine and trainer, in nats per token, that rounding in each dtype can explain."""

MARGIN = 10
"""The random adapter moves log-probabilities by at least this many tolerances, so ignoring it exceeds the limit."""

# The effect that the random adapter should have, in tolerances. A larger one amplifies rounding errors; with a smaller
# one, some later draws would fall below MARGIN.
_TARGET, _MAX_DRAWS = 60, 20
_PROMPT: Messages = [{"role": "user", "content": "solve integrate(x,x)"}]
_REPLIES, _TOKENS = 8, 16  # a check samples 8 replies of at most 16 tokens

_REMEDIES = {
    "vllm": "set model.engine=auto",
    "lean": "set model.engine=generate",
    "unsloth": "set model.backend=transformers",
    "generate": "try other versions of transformers and peft; ladder_lite.doctor prints those installed",
}


class RolloutGuard:
    """Checks one backend, whose engine is "lean", "generate", "unsloth" (its `generate`) or "vllm".

    `gap` is the KL divergence that the last check measured, NaN before the first one.
    """

    def __init__(self, backend: Backend, engine: str) -> None:
        self._backend, self._engine, self._remedy = backend, engine, _REMEDIES[engine]
        self._scale, self._scale_is_known, self._n_draws = 0.1, False, 0
        self.gap = math.nan

    def check(self, score: Score, temperature: float, from_base: bool = False) -> None:
        """Raise UserError if the engine's log-probabilities are not those of `score`; the adapter is left unchanged."""
        tolerance, start = TOLERANCE[self._backend.dtype], self._backend.snapshot()
        self.gap = math.nan
        try:
            # Rounding may exceed the tolerance by chance, so a gap just above it is measured once more. A gap beyond
            # the margin can only come from other weights and is not.
            for _ in range(2):
                self.gap = self._compare(start, score, temperature, from_base)
                if not tolerance < self.gap < MARGIN * tolerance:
                    break
        finally:
            self._backend.restore(start)
        if not self.gap <= tolerance:  # written so that NaN fails, too
            raise UserError(
                f"rollouts: {self._engine} samples from other weights than "
                f"{'the base model' if from_base else 'those that are trained'}: the KL divergence "
                f"between the two is {self.gap:.2g}, the limit is {tolerance:g}; {self._remedy}"
            )

    def _compare(self, start: Adapter, score: Score, temperature: float, from_base: bool) -> float:
        """Return the KL divergence of the engine from `score`, measured with random values in the adapter."""
        zero = {name: torch.zeros_like(weight) for name, weight in start.items()}
        # In float32, 60 tolerances are only 6e-4; rounding errors leave room for a larger effect.
        target = max(_TARGET * TOLERANCE[self._backend.dtype], 0.01)
        for _ in range(_MAX_DRAWS):
            self._backend.restore(self._random_adapter(start))
            sampling = Sampling(temperature, 1.0, _TOKENS, _REPLIES, self._n_draws, logprobs=True, from_base=from_base)
            # Replies without a sampled token began with padding: the engine has no log-probability for their end token.
            rollouts = [r for r in self._backend.roll_out([_PROMPT] * _REPLIES, sampling) if r.completion.n_tokens]
            if not rollouts:
                continue
            if from_base:
                self._backend.restore(zero)
            scored = self._score(rollouts, score)  # (tokens of all replies,)
            if not (self._scale_is_known or from_base):
                # The effect of the random adapter: how far its log-probabilities are from those of the base model,
                # which a zero adapter leaves unchanged. Half the target is still 3 margins.
                self._backend.restore(zero)
                effect = divergence(scored, self._score(rollouts, score))
                self._scale_is_known = effect >= target / 2
            if self._scale_is_known or from_base:
                sampled = torch.tensor([value for rollout in rollouts for value in rollout.logprobs or ()])
                return divergence(sampled, scored)
            # The adapter's change is the product B A, so it is quadratic in the scale, and the divergence is quadratic
            # in a small change: effect ~ scale**4. Steps are limited, as that fails for large changes.
            self._scale *= min(max((target / max(effect, 1e-9)) ** 0.25, 1.1), 1.5)
        raise UserError(f"rollouts: what {self._engine} samples does not depend on the adapter; {self._remedy}")

    def _random_adapter(self, start: Adapter) -> Adapter:
        """Return random weights, different ones each time: an engine that kept earlier ones must be noticed."""
        self._n_draws += 1
        generator = torch.Generator().manual_seed(self._n_draws)  # its own, so the run's random state is untouched
        # A is (r, inputs) and B is (outputs, r). Dividing by the root of the last dimension makes the effect of one
        # scale about the same for layers of any width.
        return {
            name: self._scale * torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5
            for name, weight in start.items()
        }

    def _score(self, rollouts: list[Rollout], score: Score) -> torch.Tensor:
        """Return the log-probabilities of all replies' tokens, reply after reply, on the CPU; one forward pass."""
        model, tokenizer = self._backend.trainable()
        # All prompts are the same, so only the replies need padding, on the right:
        #   ids   P P P R R R .      mask  1 1 1 1 1 1 0
        #         P P P R . . .            1 1 1 1 0 0 0
        rows = {"input_ids": [[*rollout.prompt_ids, *rollout.completion_ids] for rollout in rollouts]}
        inputs = tokenizer.pad(rows, padding_side="right", return_tensors="pt").to(model.device)
        longest = max(len(rollout.completion_ids) for rollout in rollouts)
        with torch.no_grad():
            logprobs = score(inputs.input_ids, inputs.attention_mask, longest)
        return logprobs.float()[inputs.attention_mask[:, -longest:].bool()].cpu()  # flattened, row by row


def divergence(sampled: torch.Tensor, other: torch.Tensor) -> float:
    """Estimate the KL divergence from log-probabilities of tokens that the first distribution sampled.

    This is GRPO's estimator, the mean of exp(d) - 1 - d for d = other - sampled (arXiv 2402.03300).
    """
    # Each term is at least 0 and quadratic in a small d, so rounding errors hardly count.
    log_ratio = other - sampled
    return float((log_ratio.exp() - 1 - log_ratio).mean())
