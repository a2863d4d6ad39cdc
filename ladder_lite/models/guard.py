"""Does the engine that samples hold the weights that are trained? Its log-probabilities against the trainer's.

An engine that ignores the adapter, or keeps an old copy of it, samples fluent text from other weights, and nothing
fails: losses stay finite (unslothai/unsloth#8701, huggingface/trl#5312, huggingface/transformers#45323). A fresh
adapter cannot reveal this, because its B is zero. So for a check the adapter gets random values, different ones each
time, that move log-probabilities by at least `MARGIN` tolerances. The engine samples a few short replies, the trainer
scores the same tokens, and the adapter is restored bit by bit.

A check costs one short rollout and one forward pass, which Unsloth may cut into several. The first check of a model
also finds the scale of the random values: a second forward pass, and another draw as long as they move too little.
"""

import math

import torch

from ladder_lite.errors import UserError
from ladder_lite.models.backend import Adapter, Backend, Rollout, Sampling, Score
from ladder_lite.tasks.task import Messages

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 2e-2}
"""The KL divergence of the engine from the trainer, in nats a token, that rounding in each type explains."""

MARGIN = 10
_AIM, _DRAWS = 60, 20
"""The effect aimed at, in tolerances: more makes rounding errors grow, less leaves other draws below the margin."""
_PROMPT: Messages = [{"role": "user", "content": "solve integrate(x,x)"}]
_REPLIES, _TOKENS = 8, 16

_REMEDIES = {
    "vllm": "set model.fast_inference=false",
    "unsloth": "set model.backend=transformers",
    "transformers": "try other versions of transformers and peft; ladder_lite.doctor prints those installed",
}


class RolloutGuard:
    """Checks one backend, whose engine is "vllm", "unsloth" or "transformers"; `gap` is what the last check found."""

    def __init__(self, backend: Backend, engine: str) -> None:
        self._backend, self._engine, self._remedy = backend, engine, _REMEDIES[engine]
        self._scale, self._scale_is_known, self._n_draws = 0.1, False, 0
        self.gap = math.nan

    def check(self, score: Score, temperature: float) -> None:
        """UserError where the engine's log-probabilities are not those of `score`; the adapter is as it was."""
        tolerance, start = TOLERANCE[self._backend.dtype], self._backend.snapshot()
        self.gap = math.nan
        try:
            for _ in range(2):  # rounding may exceed the tolerance once; other weights exceed the margin
                self.gap = self._compare(start, score, temperature)
                if not tolerance < self.gap < MARGIN * tolerance:
                    break
        finally:
            self._backend.restore(start)
        if not self.gap <= tolerance:  # NaN included
            raise UserError(
                f"rollouts: {self._engine} samples from other weights than those that are trained: the KL divergence "
                f"between the two is {self.gap:.2g}, the limit is {tolerance:g}; {self._remedy}"
            )

    def _compare(self, start: Adapter, score: Score, temperature: float) -> float:
        """The KL divergence of the engine from `score`, with random values in the adapter."""
        nothing = {name: torch.zeros_like(weight) for name, weight in start.items()}
        aim = max(_AIM * TOLERANCE[self._backend.dtype], 0.01)  # 32 bits have room for more
        for _ in range(_DRAWS):
            self._backend.restore(self._draw(start))
            sampling = Sampling(temperature, 1.0, _TOKENS, _REPLIES, self._n_draws, logprobs=True)
            rollouts = [r for r in self._backend.roll_out([_PROMPT] * _REPLIES, sampling) if r.completion.n_tokens]
            if not rollouts:  # all began with padding
                continue
            scored = self._score(rollouts, score)
            if not self._scale_is_known:
                self._backend.restore(nothing)
                effect = _divergence(scored, self._score(rollouts, score))
                self._scale_is_known = effect >= aim / 2
            if self._scale_is_known:
                sampled = torch.tensor([value for rollout in rollouts for value in rollout.logprobs or ()])
                return _divergence(sampled, scored)
            # A divergence is quadratic in a small change, which is the product of two of these matrices.
            self._scale *= min(max((aim / max(effect, 1e-9)) ** 0.25, 1.1), 1.5)
        raise UserError(f"rollouts: what {self._engine} samples does not depend on the adapter; {self._remedy}")

    def _draw(self, start: Adapter) -> Adapter:
        """Other values each time: an engine that keeps those of an earlier check is found out."""
        self._n_draws += 1
        draw = torch.Generator().manual_seed(self._n_draws)
        return {
            name: self._scale * torch.randn(weight.shape, generator=draw) / weight.shape[-1] ** 0.5
            for name, weight in start.items()
        }

    def _score(self, rollouts: list[Rollout], score: Score) -> torch.Tensor:
        """Log-probabilities of all replies' tokens, one reply after the other, on the CPU; one forward pass."""
        model, tokenizer = self._backend.trainable()
        lengths = torch.tensor([len(rollout.completion_ids) for rollout in rollouts])
        longest = int(lengths.max())
        padding = [[tokenizer.pad_token_id] * (longest - length) for length in lengths.tolist()]
        rows = [[*r.prompt_ids, *r.completion_ids, *pad] for r, pad in zip(rollouts, padding, strict=True)]
        replies = torch.arange(longest) < lengths[:, None]
        prompts = torch.ones(len(rows), len(rows[0]) - longest, dtype=torch.bool)
        mask = torch.cat([prompts, replies], dim=1).long()
        with torch.no_grad():
            found = score(torch.tensor(rows).to(model.device), mask.to(model.device), longest)
        return found.float().cpu()[replies]


def _divergence(sampled: torch.Tensor, other: torch.Tensor) -> float:
    """KL divergence from log-probabilities of tokens sampled by the first, by GRPO's estimator (arXiv 2402.03300).

    Each token's part is at least 0, and quadratic in a small difference: rounding errors hardly count.
    """
    ratio = other - sampled
    return float((ratio.exp() - 1 - ratio).mean())
