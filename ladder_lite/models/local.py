"""A model on this machine: sampling from it, and its LoRA adapter as training and TTRL need it.

How it is loaded, by Unsloth or by transformers and peft, is `loading`'s; the embedded model, a folder and a model of
the Hugging Face hub are sampled by the same lines.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from ladder_lite.config import GrpoSettings, Recipe, recipe_for
from ladder_lite.errors import UserError, first_line
from ladder_lite.models import vllm
from ladder_lite.models.adapter import folded, trained
from ladder_lite.models.backend import Adapter, Rollout, Sampling, Score
from ladder_lite.models.guard import RolloutGuard
from ladder_lite.models.loading import choose_device, load
from ladder_lite.models.memory import Loader, Setup, generation_batch, gib, plan
from ladder_lite.models.shape import Shape
from ladder_lite.problems.attempts import Completion
from ladder_lite.tasks.task import Messages

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a prompt's logits may move, as a share of the largest, when it is padded: rounding errors of the type."""

_CPU_BATCH = 32
"""Replies that a CPU generates together: with prompts sorted by length, a batch ends with its own longest reply and
not with that of all. benchmarks/steps.py compares it with one batch."""

_DATE = "26 Jul 2024"
"""Llama 3's chat template would put the date of the day into each prompt: a run resumed tomorrow must ask the same."""


class LocalBackend:
    """A causal language model with one LoRA adapter, on the GPU where there is one and on the CPU elsewhere."""

    def __init__(self, recipe: Recipe, loader: Loader) -> None:
        settings = recipe.model
        self._device = choose_device(settings)
        self.max_prompt_length = settings.max_prompt_length
        self._loader, length = loader, settings.max_prompt_length + _longest_reply(recipe)
        self._model, self._tokenizer, self.dtype = load(settings, loader, self._device, recipe.seed, length)
        self._model.eval()
        self._ends = _end_tokens(self._model, self._tokenizer)
        self._fast_inference = settings.fast_inference
        self._recipe = recipe
        self._shape = Shape.from_config(self._model.config.to_dict(), settings.id)
        if not self._fast_inference:  # which pads nothing
            self._check_padding()
        self._guard = RolloutGuard(self, "vllm" if self._fast_inference else loader)

    def sample(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Sample `n` replies to each prompt; prompts of like length are generated together."""
        own = sampling.temperature
        repeated = tuple(each for each in own for _ in range(n)) if isinstance(own, tuple) else own
        sampling = replace(sampling, temperature=repeated)
        rollouts = self.roll_out([prompt for prompt in prompts for _ in range(n)], sampling)
        return [[rollout.completion for rollout in rollouts[at : at + n]] for at in range(0, len(rollouts), n)]

    def roll_out(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Rollout]:
        """Sample one reply to each prompt, with the tokens of both."""
        encoded = [self._encode(prompt) for prompt in prompts]
        if self._fast_inference:
            rows = zip(encoded, vllm.generate(self._model, encoded, sampling), strict=True)
            return [self._rollout(prompt, row, sampling.stop, logprobs) for prompt, (row, logprobs) in rows]
        waiting = sorted(range(len(prompts)), key=lambda at: len(encoded[at]))
        rollouts: dict[int, Rollout] = {}
        devices = [self._device] if self._device.type == "cuda" else []
        size = self._generation_batch(max(map(len, encoded), default=0), sampling)
        with torch.random.fork_rng(devices), self._for_inference(), folded(self._model):
            torch.manual_seed(sampling.seed)
            while waiting:
                batch = waiting[:size]
                own = sampling.temperature
                temperature = [own[at] for at in batch] if isinstance(own, tuple) else own
                try:
                    replies = list(self._generate([encoded[at] for at in batch], sampling, temperature))
                except torch.OutOfMemoryError as error:
                    if len(batch) == 1:
                        raise UserError(
                            f"out of memory: not even one reply of {sampling.max_new_tokens} tokens can be generated; "
                            "take a smaller model, or lower grpo.trl.max_completion_length and eval.max_new_tokens"
                        ) from error
                    size = len(batch) // 2
                    continue
                rollouts |= dict(zip(batch, replies, strict=True))
                waiting = waiting[len(batch) :]
        return [rollouts[at] for at in range(len(prompts))]

    def check(self, prompts: Sequence[Messages]) -> None:
        """UserError for a prompt that is too long, or has a word that is not in the vocabulary."""
        for prompt in prompts:
            if not self.fits(prompt):
                raise UserError(
                    f"the prompt {prompt[-1]['content'][:80]!r} is longer than model.max_prompt_length, "
                    f"{self.max_prompt_length} tokens; raise it or leave this problem out"
                )

    def fits(self, prompt: Messages) -> bool:
        """Whether the prompt has at most `model.max_prompt_length` tokens."""
        return len(self._encode(prompt)) <= self.max_prompt_length

    def micro_batch(self, settings: GrpoSettings) -> int:
        """How many completions to train on at a time: on a CPU the recipe's, on a GPU as many of them as should fit."""
        if self._device.type == "cpu":
            return int(settings.trl["per_device_train_batch_size"])
        free_bytes = self._memory_bytes()
        if (chosen := plan(self._setup(settings), free_bytes)) is None:
            raise UserError(
                f"the {gib(free_bytes)} GiB of free GPU memory do not suffice, not even for one completion at a "
                "time; --dry-run shows what takes them"
            )
        return chosen.micro_batch

    def trainable(self) -> tuple[Any, Any]:
        """The peft model and its tokenizer."""
        return self._model, self._tokenizer

    def snapshot(self) -> Adapter:
        """A copy of the adapter's weights, on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in trained(self._model).items()}

    def restore(self, adapter: Adapter) -> None:
        """Put the weights of a snapshot back, bit by bit."""
        with torch.no_grad():
            for name, weight in trained(self._model).items():
                weight.copy_(adapter[name])
        self._forget_copies()

    def save(self, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`."""
        self._model.save_pretrained(folder)

    def load(self, folder: Path, check: bool = True) -> None:
        """Read the adapter of a folder that `save` wrote."""
        path = folder / "adapter_model.safetensors"
        try:
            result = set_peft_model_state_dict(self._model, load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"{path}: cannot read this adapter ({first_line(error)}); train it again with --redo"
            ) from error
        if result.unexpected_keys:
            raise UserError(f"{path}: this adapter belongs to another model; train it again with --redo")
        self._forget_copies()
        if check:
            self.check_rollouts()

    def check_rollouts(self, score: Score | None = None, temperature: float = 1.0) -> None:
        """UserError where the engine samples with other weights than those of `score`, or of a plain forward pass."""
        self._guard.check(score or self._score, temperature)

    def _score(self, ids: torch.Tensor, mask: torch.Tensor, n: int) -> torch.Tensor:
        with self._for_inference():
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -n - 1 : -1].float()
        logprobs: torch.Tensor = logits.log_softmax(-1).gather(-1, ids[:, -n:, None]).squeeze(-1)
        return logprobs

    def _forget_copies(self) -> None:
        """Drop the 16-bit copies of the adapter that Unsloth generates with: it drops them before it trains only."""
        for weight in trained(self._model).values():
            weight.__dict__.pop("_fast_lora", None)

    def _encode(self, prompt: Messages) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, date_string=_DATE
        )
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        unknown = self._tokenizer.unk_token_id
        if unknown is not None and unknown in encoding.input_ids:
            start, end = encoding.offset_mapping[encoding.input_ids.index(unknown)]
            raise UserError(f"the model has no word for {text[start:end]!r} in the prompt {prompt[-1]['content']!r}")
        return list(encoding.input_ids)

    def _generation_batch(self, prompt_length: int, sampling: Sampling) -> int:
        """How many replies to generate at once: as many as the caller allows and memory should hold."""
        if self._device.type == "cpu":
            return min(sampling.batch_size, _CPU_BATCH)
        setup, lengths = self._setup(self._recipe.grpo), (prompt_length, sampling.max_new_tokens)
        fits = generation_batch(setup, self._memory_bytes(), *lengths, sampling.batch_size, sampling.top_p)
        return max(1, fits)

    def _setup(self, settings: GrpoSettings) -> Setup:
        dtype = str(self.dtype).removeprefix("torch.")
        return Setup.of(self._shape, self._recipe.model, settings.trl, self._loader, dtype, context_bytes=0)

    def _memory_bytes(self) -> int:
        """GPU memory that this process has or can have, without its CUDA context."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self._device)
        # What set_per_process_memory_fraction forbids is free all the same. PyTorch 2.6 cannot tell.
        fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: 1.0)(self._device)
        return int(min(free_bytes + torch.cuda.memory_reserved(self._device), fraction * total_bytes))

    @contextmanager
    def _for_inference(self) -> Iterator[None]:
        """The model as generation wants it, and afterwards as it was."""
        was_training = self._model.training
        self._set_training(False)
        try:
            with torch.no_grad():
                yield
        finally:
            self._set_training(was_training)

    def _set_training(self, training: bool) -> None:
        if self._loader == "unsloth":  # it has kernels of its own for either, and its checkpointing to switch
            from unsloth import FastLanguageModel

            (FastLanguageModel.for_training if training else FastLanguageModel.for_inference)(self._model)
            # Its trainer asks models for hidden states in place of logits, and goes on asking when memory runs out.
            os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"
        else:
            self._model.train(training)

    def _generate(
        self, prompts: list[list[int]], sampling: Sampling, temperature: float | list[float]
    ) -> Iterator[Rollout]:
        tokenizer = self._tokenizer
        inputs = self._pad(prompts).to(self._device)
        greedy = temperature == 0
        heat = torch.tensor(temperature, device=self._device).reshape(-1, 1, 1)
        processors = []
        if isinstance(temperature, list):
            processors, temperature = [_Temperatures(temperature, self._device)], 1.0
        settings = transformers.GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=not greedy,
            temperature=None if greedy else temperature,
            top_p=None if greedy else sampling.top_p,
            top_k=None if greedy else 0,  # transformers' own default would cut the distribution at 50 tokens
            repetition_penalty=1.0,  # what is left out comes from the model, and Qwen 2.5 penalises
            eos_token_id=sorted(self._ends),
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=sampling.logprobs,
        )
        stopping = [_StopTexts(tokenizer, sampling.stop, inputs.input_ids.shape[1])] if sampling.stop else []
        output = self._model.generate(
            **inputs,
            generation_config=settings,
            pad_token_id=tokenizer.pad_token_id,  # in the settings, Unsloth would overrule it with an end token
            logits_processor=processors,
            stopping_criteria=stopping,
        )
        replies = output.sequences[:, inputs.input_ids.shape[1] :]
        logprobs: list[list[float] | None] = [None] * len(prompts)
        if sampling.logprobs:
            logits = torch.stack(output.logits, dim=1).float() / heat
            logprobs = logits.log_softmax(-1).gather(-1, replies[..., None]).squeeze(-1).tolist()
        for prompt, row, own in zip(prompts, replies.tolist(), logprobs, strict=True):
            yield self._rollout(prompt, row, sampling.stop, own)

    def _rollout(
        self, prompt: list[int], row: list[int], stop: tuple[str, ...], logprobs: list[float] | None = None
    ) -> Rollout:
        """What of a row of the output is the reply: all before the padding, with its end of turn where it has one."""
        over = self._ends | {self._tokenizer.pad_token_id}
        at = next((at for at, token in enumerate(row) if token in over), len(row))
        text = self._tokenizer.decode(row[:at], skip_special_tokens=True)
        stopped = any(word in text for word in stop)
        # Where padding is done with the end of turn, what follows a stop text is padding.
        ended = not stopped and at < len(row) and row[at] in self._ends
        tokens = row[: at + ended]
        completion = Completion(text, len(tokens), truncated=not (stopped or ended))
        return Rollout(prompt, tokens or [min(self._ends)], completion, logprobs and logprobs[: len(tokens)])

    def _check_padding(self) -> None:
        """UserError if padding changes what the model says next: then every batch would be wrong, and none fail."""
        prompts = [self._tokenizer.encode(text, add_special_tokens=False) for text in ("solve integrate(x,x)", "x")]
        together = self._next_logits(prompts)
        alone = torch.cat([self._next_logits([prompt]) for prompt in prompts])
        if not alone.isfinite().all():
            raise UserError(
                f"model.id: this model's numbers overflow in {str(self.dtype).removeprefix('torch.')}; "
                "set model.dtype=bfloat16 where the card has it, else float32"
            )
        error = float((together - alone).abs().max() / alone.abs().max())
        if not error <= _TOLERANCE[self.dtype]:
            raise UserError(
                f"model.id: this model's next token depends on padding (logits move by {error:.1%}); "
                "another version of transformers, or of unsloth, may not have this fault"
            )

    def _pad(self, prompts: list[list[int]]) -> Any:
        # The side is given each time: trainers set the tokenizer's own to the right.
        return self._tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")

    def _next_logits(self, prompts: list[list[int]]) -> torch.Tensor:
        inputs = self._pad(prompts).to(self._device)
        with self._for_inference():
            output = self._model.generate(
                **inputs,
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        logits: torch.Tensor = output.logits[0].float()
        return logits


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """What ends a turn: Llama 3 and Qwen 2 have others beside the tokenizer's own."""
    named = model.generation_config.eos_token_id
    return frozenset({tokenizer.eos_token_id} | set(named if isinstance(named, list) else [named])) - {None}


def _longest_reply(recipe: Recipe) -> int:
    """Tokens of the longest reply in any condition, those of the recipe's ablations included."""
    settings = [recipe, *(recipe_for(recipe, name) for name in recipe.ablations)]
    trainings = [recipe.ttrl.over(recipe.grpo), *(each.grpo for each in settings)]
    return max(
        recipe.eval.max_new_tokens,
        *(each.variants.max_new_tokens for each in settings),
        *(int(training.trl["max_completion_length"]) for training in trainings),
    )


class _Temperatures(transformers.LogitsProcessor):  # type: ignore[misc]
    """Divides the logits of each row of a batch by a temperature of its own; transformers knows one for all."""

    def __init__(self, temperatures: list[float], device: torch.device) -> None:
        self._temperatures = torch.tensor(temperatures, device=device)[:, None]

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores / self._temperatures


class _StopTexts(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends each row whose reply holds a stop text; transformers' `stop_strings` fails on word-level vocabularies."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], start: int) -> None:
        self._tokenizer, self._stop, self._start = tokenizer, stop, start
        self._may_end = _tokens_with(tokenizer, "".join(word[-1] for word in stop))
        self._longest = max(len(word) for word in stop) + 4  # in tokens too; some of them decode to nothing

    def __call__(self, input_ids: torch.Tensor, _scores: torch.Tensor, **_: Any) -> torch.Tensor:
        # Models may have more tokens than their tokenizer: all of them say nothing.
        self._may_end = self._may_end.to(input_ids.device)  # once: it has as many entries as the vocabulary
        ended = self._may_end[input_ids[:, -1].clamp(max=len(self._may_end) - 1)]
        for row in ended.nonzero().flatten().tolist():
            tail = input_ids[row, self._start :][-self._longest :]
            ended[row] = any(word in self._tokenizer.decode(tail) for word in self._stop)
        return ended


@functools.cache
def _tokens_with(tokenizer: Any, letters: str) -> torch.Tensor:
    """For each token, whether its text holds one of the letters: only such a token can complete a stop text."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return torch.tensor([*(any(letter in text for letter in letters) for text in texts), False])
