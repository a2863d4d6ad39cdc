"""Sampling with `generate` of transformers, in fixed batches: slow, but every model that transformers loads can do it.

Unsloth replaces `generate` by its own, so this is also the engine of its loader.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from ladder_lite.models.backend import Sampling
from ladder_lite.models.engines.engine import Reply, Request
from ladder_lite.models.engines.stopping import Stopping


class GenerateEngine:
    """`model.generate`, with settings that do not depend on the model's own generation config."""

    name = "generate"

    def __init__(self, model: Any, tokenizer: Any, ends: frozenset[int]) -> None:
        self._model, self._tokenizer, self._ends = model, tokenizer, ends

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, stopping: Stopping, at_once: int
    ) -> Iterator[Reply]:
        """Yield a reply to each request, batch after batch."""
        # Prompts of similar length share a batch: the shorter ones are padded to the longest.
        waiting = sorted(requests, key=lambda request: len(request.prompt))
        device = self._model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # Replies that are requested again, after memory ran out, need other random numbers than the first ones.
            torch.manual_seed(sampling.seed + max(request.id for request in requests) + 1 - len(requests))
            for start in range(0, len(waiting), at_once):
                yield from self._sample_batch(waiting[start : start + at_once], sampling, stopping)

    def _sample_batch(self, batch: Sequence[Request], sampling: Sampling, stopping: Stopping) -> Iterator[Reply]:
        # Pass the side on each call, because TRL's trainers change the tokenizer's own to the right.
        prompts = {"input_ids": [list(request.prompt) for request in batch]}
        inputs = self._tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(self._model.device)
        length = inputs.input_ids.shape[1]
        temperatures = torch.tensor([request.temperature for request in batch], device=self._model.device)[:, None]
        greedy = not temperatures.any()
        settings = transformers.GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=not greedy,
            temperature=None if greedy else 1.0,  # divided by below, row by row
            top_p=None if greedy else sampling.top_p,
            top_k=None if greedy else 0,  # transformers' default would cut the distribution to 50 tokens
            repetition_penalty=1.0,  # settings left out come from the model, and Qwen 2.5 has a penalty
            eos_token_id=sorted(self._ends),
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=sampling.logprobs,
        )
        output = self._model.generate(
            **inputs,
            generation_config=settings,
            pad_token_id=self._tokenizer.pad_token_id,  # in the settings, Unsloth would replace it by an end token
            logits_processor=[] if greedy else [_Temperatures(temperatures)],
            stopping_criteria=[_StopTexts(stopping, length)] if stopping.stop else [],
        )
        replies = output.sequences[:, length:]
        logprobs: list[list[float] | None] = [None] * len(batch)
        if sampling.logprobs:
            logits = torch.stack(output.logits, dim=1).float() / temperatures[..., None]  # (batch, tokens, vocabulary)
            logprobs = logits.log_softmax(-1).gather(-1, replies[..., None]).squeeze(-1).tolist()
        for request, tokens, own in zip(batch, replies.tolist(), logprobs, strict=True):
            yield Reply(request.id, tokens, own)


class _Temperatures(transformers.LogitsProcessor):  # type: ignore[misc]
    """Divides the logits of each row by its own temperature (rows, 1); transformers has one for all rows."""

    def __init__(self, temperatures: torch.Tensor) -> None:
        self._temperatures = temperatures

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores / self._temperatures


class _StopTexts(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends rows that contain a stop text; transformers' `stop_strings` fails on word-level vocabularies."""

    def __init__(self, stopping: Stopping, start: int) -> None:
        self._stopping, self._start = stopping, start

    def __call__(self, input_ids: torch.Tensor, _scores: torch.Tensor, **_: Any) -> torch.Tensor:
        # Only the last tokens of each reply: this is called after each new token.
        tails = input_ids[:, self._start :][:, -self._stopping.tail_length :].tolist()
        return torch.tensor([self._stopping.completes_stop_text(tail) for tail in tails], device=input_ids.device)
