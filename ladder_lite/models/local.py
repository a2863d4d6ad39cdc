"""A model on this machine: sampling from it, and the snapshots of its LoRA adapter that training and TTRL need.

`loading.py` loads the model, with Unsloth or with transformers and peft. The same code then samples from the embedded
model, from a model in a folder, and from one of the Hugging Face hub.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from ladder_lite.config import GrpoSettings, Recipe, recipe_for
from ladder_lite.errors import UserError, first_line
from ladder_lite.models.adapter import merged, trained
from ladder_lite.models.backend import Adapter, Rollout, Sampling, Score
from ladder_lite.models.engines import Engine, Reply, Request, open_engine
from ladder_lite.models.engines.stopping import Stopping
from ladder_lite.models.guard import RolloutGuard
from ladder_lite.models.loading import choose_device, load
from ladder_lite.models.memory import Loader, Setup, generation_batch, gib, plan
from ladder_lite.models.shape import Shape
from ladder_lite.problems.attempts import Completion
from ladder_lite.tasks.task import Messages

_CPU_BATCH = 32
"""Replies that `generate` generates together on a CPU. A batch runs until its longest reply ends, so with prompts
sorted by length, several small batches take fewer steps than one large batch."""

_ONE_THREAD = 20_000_000
"""Models with fewer weights run on one thread on a CPU: their matrices are too small to be shared.
`python benchmarks/rollouts.py --threads 2` takes 1.5 times as long by the clock for the embedded model."""

_DATE = "26 Jul 2024"
"""The date in Llama 3's chat template, which defaults to today: a run resumed tomorrow must have the same prompts."""


class LocalBackend:
    """A causal language model with one LoRA adapter, on the GPU if there is one, else on the CPU.

    Implements the `Backend` protocol, which documents the methods.
    """

    def __init__(self, recipe: Recipe, loader: Loader) -> None:
        settings = recipe.model
        self._device = choose_device(settings)
        self.max_prompt_length = settings.max_prompt_length
        self._loader, length = loader, settings.max_prompt_length + _longest_reply(recipe)
        self._model, self._tokenizer, self.dtype = load(settings, loader, self._device, recipe.seed, length)
        self._model.eval()  # peft adds its layers, with their dropout, in training mode
        self._end_ids = _end_token_ids(self._model, self._tokenizer)
        # The tokens at which a reply ends: the ends of turn, and padding that the model sampled.
        self._special_ids = self._end_ids | {self._tokenizer.pad_token_id}
        self._recipe = recipe
        self._shape = Shape.from_config(self._model.config.to_dict(), settings.id)
        self._choose_threads()
        self._check_overflow()
        self._engine = self.open_engine(settings.engine)
        is_unsloths = loader == "unsloth" and self._engine.name == "generate"
        self._guard = RolloutGuard(self, "unsloth" if is_unsloths else self._engine.name)

    def open_engine(self, choice: str) -> Engine:
        """Return an engine that samples from this model: "lean", "generate", "vllm", or "auto"."""
        with self._for_inference():
            return open_engine(choice, self._loader, self._model, self._tokenizer, self._end_ids, self.dtype)

    def sample(self, prompts: Sequence[Messages], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Sample `n` replies to each prompt; prompts of similar length are generated together."""
        # Prompts p, q with n = 2 are rolled out as p, p, q, q, and their temperatures likewise.
        temperature = sampling.temperature
        if isinstance(temperature, tuple):
            sampling = replace(sampling, temperature=tuple(each for each in temperature for _ in range(n)))
        rollouts = self.roll_out([prompt for prompt in prompts for _ in range(n)], sampling)
        return [[each.completion for each in rollouts[start : start + n]] for start in range(0, len(rollouts), n)]

    def roll_out(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Rollout]:
        """Sample one reply to each prompt, with the token ids of both."""
        # Each distinct prompt is encoded once.
        keys = [json.dumps(prompt) for prompt in prompts]
        ids = {key: self._encode(prompt) for key, prompt in dict(zip(keys, prompts, strict=True)).items()}
        encoded = [ids[key] for key in keys]
        temperatures = sampling.temperature
        if not isinstance(temperatures, tuple):
            temperatures = (temperatures,) * len(prompts)
        requests = [Request(*each) for each in zip(range(len(prompts)), encoded, temperatures, strict=True)]
        stopping = Stopping(self._tokenizer, self._special_ids, sampling.stop)
        at_once = min(len(prompts), self._generation_batch(max(map(len, encoded), default=0), sampling))
        rollouts: dict[int, Rollout] = {}
        with self._for_inference(), self._model.disable_adapter() if sampling.from_base else merged(self._model):
            while len(rollouts) < len(requests):
                missing = [request for request in requests if request.id not in rollouts]
                try:
                    for reply in self._engine.sample(missing, sampling, stopping, at_once):
                        rollouts[reply.id] = self._rollout(encoded[reply.id], reply, sampling.stop)
                except torch.OutOfMemoryError as error:
                    # The prediction was too optimistic. Replies that have ended are kept, the others start again.
                    at_once = min(at_once, len(missing))
                    if at_once == 1:
                        raise UserError(
                            f"out of memory: not even one reply of {sampling.max_new_tokens} tokens can be generated; "
                            "take a smaller model, or lower grpo.trl.max_completion_length and eval.max_new_tokens"
                        ) from error
                    at_once //= 2
        return [rollouts[index] for index in range(len(prompts))]

    def check(self, prompts: Sequence[Messages]) -> None:
        """Raise UserError if a prompt is too long, or has a word that is not in the vocabulary."""
        for prompt in prompts:
            if not self.fits(prompt):
                raise UserError(
                    f"the prompt {prompt[-1]['content'][:80]!r} is longer than model.max_prompt_length, "
                    f"{self.max_prompt_length} tokens; raise it or leave this problem out"
                )

    def fits(self, prompt: Messages) -> bool:
        """Return whether the prompt has at most `model.max_prompt_length` tokens."""
        return len(self._encode(prompt)) <= self.max_prompt_length

    def micro_batch(self, settings: GrpoSettings) -> int:
        """Return how many completions to train on at once.

        On a CPU it is the recipe's number, on a GPU the largest one, at most the recipe's, that is predicted to fit.
        """
        if self._device.type == "cpu":
            return int(settings.trl["per_device_train_batch_size"])
        free_bytes = self._memory_bytes()
        if (chosen := plan(self._setup(settings), free_bytes)) is None:
            raise UserError(
                f"the {gib(free_bytes)} GiB of free GPU memory are not enough, not even for one completion at a "
                "time; --dry-run shows what takes the memory"
            )
        return chosen.micro_batch

    def trainable(self) -> tuple[Any, Any]:
        """Return the peft model and its tokenizer."""
        return self._model, self._tokenizer

    def snapshot(self) -> Adapter:
        """Return a copy of the adapter's weights on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in trained(self._model).items()}

    def restore(self, adapter: Adapter) -> None:
        """Set the adapter's weights to those of a snapshot, bit by bit."""
        # Copying in place keeps the Parameter objects: an optimizer may refer to them.
        with torch.no_grad():
            for name, weight in trained(self._model).items():
                weight.copy_(adapter[name])
        self._drop_unsloth_copies()

    def save(self, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`."""
        config = self._model.peft_config["default"]
        if isinstance(config.target_modules, set):  # whose order differs between processes
            config.target_modules = sorted(config.target_modules)
        self._model.save_pretrained(folder)

    def load(self, folder: Path, check: bool = True) -> None:
        """Read an adapter that `save` wrote."""
        path = folder / "adapter_model.safetensors"
        try:
            result = set_peft_model_state_dict(self._model, load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"{path}: cannot read this adapter ({first_line(error)}); train it again with --redo"
            ) from error
        if result.unexpected_keys:
            raise UserError(f"{path}: this adapter belongs to another model; train it again with --redo")
        self._drop_unsloth_copies()
        if check:
            self.check_rollouts()
            self.check_rollouts(from_base=True)  # variants are written with the adapter off

    def check_rollouts(self, score: Score | None = None, temperature: float = 1.0, from_base: bool = False) -> None:
        """Raise UserError if the engine samples with other weights than those of `score`, or of a forward pass."""
        self._guard.check(score or self._score, temperature, from_base)

    def _score(self, ids: torch.Tensor, mask: torch.Tensor, n: int) -> torch.Tensor:
        # ids and mask are (B, L). The logits at a position predict the token after it, so those of the last n tokens
        # begin one position earlier: (B, n, vocabulary) -> log-probabilities (B, n).
        with self._for_inference():
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -n - 1 : -1].float()
        logprobs: torch.Tensor = logits.log_softmax(-1).gather(-1, ids[:, -n:, None]).squeeze(-1)
        return logprobs

    def _drop_unsloth_copies(self) -> None:
        """Drop the 16-bit copies of the adapter that Unsloth keeps for generation.

        Unsloth drops them only before it trains, so it would generate with the old weights after a restore.
        """
        for weight in trained(self._model).values():
            weight.__dict__.pop("_fast_lora", None)

    def _encode(self, prompt: Messages) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, date_string=_DATE
        )
        # The template has written the special tokens into the text already; adding them again would double them.
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # A tokenizer of whole words, such as the embedded model's, has an unknown token; the offsets locate the word.
        unknown = self._tokenizer.unk_token_id
        if unknown is not None and unknown in encoding.input_ids:
            start, end = encoding.offset_mapping[encoding.input_ids.index(unknown)]
            raise UserError(f"the model has no word for {text[start:end]!r} in the prompt {prompt[-1]['content']!r}")
        return list(encoding.input_ids)

    def _generation_batch(self, prompt_length: int, sampling: Sampling) -> int:
        """Return how many replies to generate at once: at most the caller's number, fewer if memory is short."""
        if self._device.type == "cpu":
            return min(sampling.batch_size, _CPU_BATCH) if self._engine.name == "generate" else sampling.batch_size
        setup, lengths = self._setup(self._recipe.grpo), (prompt_length, sampling.max_new_tokens)
        fits = generation_batch(setup, self._memory_bytes(), *lengths, sampling.batch_size, sampling.top_p)
        return max(1, fits)

    def _setup(self, settings: GrpoSettings) -> Setup:
        dtype = str(self.dtype).removeprefix("torch.")
        # CUDA runs already, so the free memory that it is compared with excludes the CUDA context.
        return Setup.of(self._shape, self._recipe.model, settings.trl, self._loader, dtype, context_bytes=0)

    def _memory_bytes(self) -> int:
        """Return the GPU memory that this process has reserved or can still get, without its CUDA context."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self._device)
        # `mem_get_info` ignores the limit of `set_per_process_memory_fraction`. PyTorch 2.6 has no function to read it.
        fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: 1.0)(self._device)
        return int(min(free_bytes + torch.cuda.memory_reserved(self._device), fraction * total_bytes))

    @contextmanager
    def _for_inference(self) -> Iterator[None]:
        """Put the model into inference mode while the block runs, then back into its previous mode."""
        was_training = self._model.training
        self._set_training(False)
        try:
            with torch.no_grad():
                yield
        finally:
            self._set_training(was_training)

    def _set_training(self, training: bool) -> None:
        if self._loader == "unsloth":
            # Unsloth has separate kernels for training and inference, and must switch its gradient checkpointing.
            from unsloth import FastLanguageModel

            (FastLanguageModel.for_training if training else FastLanguageModel.for_inference)(self._model)
            # Its trainer sets this so that the model returns hidden states instead of logits, and does not reset it
            # when memory runs out.
            os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"
        else:
            self._model.train(training)

    def _rollout(self, prompt: list[int], reply: Reply, stop: tuple[str, ...]) -> Rollout:
        """Cut a row of generated ids to the reply: the tokens before the padding, and its end of turn if it has one."""
        ids, logprobs = reply.tokens, reply.logprobs
        # Text, then an end token or padding: [5, 9, 7, <end>, <pad>, <pad>] -> length 3.
        length = next((index for index, token in enumerate(ids) if token in self._special_ids), len(ids))
        text = self._tokenizer.decode(ids[:length], skip_special_tokens=True)
        stopped = any(word in text for word in stop)
        # If the padding token is also the end of turn, the one after a stop text is padding.
        ended = not stopped and length < len(ids) and ids[length] in self._end_ids
        tokens = ids[: length + ended]
        completion = Completion(text, len(tokens), truncated=not (stopped or ended))
        # TRL fails on an empty reply, so one gets an end token; `n_tokens` stays 0 and keeps it out of training.
        return Rollout(prompt, tokens or [min(self._end_ids)], completion, logprobs and logprobs[: len(tokens)])

    def _choose_threads(self) -> None:
        """Limit PyTorch's threads for a small model on a CPU, unless the user has set their number.

        The limit holds for the whole process: PyTorch has no other one.
        """
        n_weights = sum(weight.numel() for weight in self._model.parameters())
        if self._device.type == "cpu" and n_weights < _ONE_THREAD and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)

    def _check_overflow(self) -> None:
        """Raise UserError if the model's logits are not finite."""
        ids = torch.tensor([self._tokenizer.encode("solve integrate(x,x)", add_special_tokens=False)])
        if not self._score(ids.to(self._device), torch.ones_like(ids).to(self._device), 1).isfinite().all():
            raise UserError(
                f"model.id: this model's logits overflow in {str(self.dtype).removeprefix('torch.')}; "
                "set model.dtype=bfloat16 if the card supports it, else float32"
            )


def _end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids of all tokens that end a turn: Llama 3 and Qwen 2 have more than the tokenizer's `eos_token`."""
    named = model.generation_config.eos_token_id
    return frozenset({tokenizer.eos_token_id} | set(named if isinstance(named, list) else [named])) - {None}


def _longest_reply(recipe: Recipe) -> int:
    """Return the largest number of tokens of a reply in any condition, the recipe's ablations included."""
    recipes = [recipe, *(recipe_for(recipe, name) for name in recipe.ablations)]
    grpo_settings = [recipe.ttrl.over(recipe.grpo), *(each.grpo for each in recipes)]
    return max(
        recipe.eval.max_new_tokens,
        *(each.variants.max_new_tokens for each in recipes),
        *(int(each.trl["max_completion_length"]) for each in grpo_settings),
    )
