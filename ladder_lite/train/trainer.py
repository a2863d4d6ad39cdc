"""TRL's GRPOTrainer as `grpo` uses it: our rows, our sampling, our rewards, and settings that are checked.

TRL's defaults change between versions and Unsloth rewrites some of them, given values included. So every setting of
GRPOConfig is given a value (`config.trl_settings.settle`), and what the trainer holds when both libraries are done with
it is compared with that.

Importing this module imports TRL, so it comes after the model is loaded: Unsloth must patch TRL first.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from enum import Enum
from io import StringIO
from random import Random
from typing import Any

import torch
import trl
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, set_seed

from ladder_lite.config import SETTINGS, settle
from ladder_lite.errors import UserError, first_line
from ladder_lite.models import Sampling, adapter
from ladder_lite.models.unsloth_checks import forget_self_checks, training_pass
from ladder_lite.problems.attempts import Completion
from ladder_lite.runs import layout
from ladder_lite.train import divergence
from ladder_lite.train.state import Training, TrainingState
from ladder_lite.train.zero_advantage import (
    depends_on_advantage_only,
    is_column,
    positions_are_relative,
    teaching_part,
)

_MAX_ROWS = 1_000_000
"""More than any tree has: TRL wants a data set of fixed length, and rows that are never drawn cost nothing."""


class Trainer(trl.GRPOTrainer):
    """A trainer whose next step is the one after `progress.steps`; UserError where it would not train as asked.

    `micro_batch` completions are trained on at a time; how many a step has, in all, is the recipe's alone. With
    `probe_first`, the longest micro-batch there can be goes through the model before the first step.
    """

    def __init__(self, training: Training, progress: TrainingState, micro_batch: int, probe_first: bool) -> None:
        self.training, self.progress = training, progress
        self._micro_batch = micro_batch
        self._probing = False
        task, backend = training.task, training.backend
        model, tokenizer = backend.trainable()
        wanted = settings_of(training, micro_batch)
        config = _config(wanted, training.settings.trl)
        backend.check([task.prompt(problem) for problem in progress.problems])
        before = backend.snapshot()
        with redirect_stdout(StringIO()):  # Unsloth prints
            super().__init__(
                model=model,
                reward_funcs=self.reward,
                args=config,
                train_dataset=Dataset.from_dict({"row": range(_MAX_ROWS)}),
                processing_class=tokenizer,
                callbacks=[_Steps(self, probe_first)],
                rollout_func=self.roll_out,
            )
        adapter.in_full_precision(model)  # TRL rounds adapters on 4-bit weights to 16 bits, where small steps get lost
        backend.restore(before)
        self.data_collator = self.ask
        self.remove_callback(PrinterCallback)
        _require(self, wanted)

    def step_seed(self, step: int) -> int:
        """The seed of everything random in a step, which no other step of the training has."""
        return (self.training.seed * 1_000_003 + step) % 2**32

    def ask(self, rows: list[dict[str, int]]) -> list[dict[str, Any]]:
        """The rows with their prompts, made when a row is drawn, for the tree may have grown since."""
        return [{"prompt": self.training.task.prompt(self.progress.problems[row["row"]]), **row} for row in rows]

    def roll_out(self, prompts: list[Any], _: object) -> dict[str, Any]:
        """Generation as evaluation has it: sorted by length, as many at once as fit, each ended by a stop text."""
        config, backend = self.args, self.training.backend
        if self._probing:
            lengths = backend.max_prompt_length, config.max_completion_length
            return _longest(*lengths, len(prompts), config.num_generations, self.processing_class)
        sampling = Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_completion_length,
            batch_size=len(prompts),
            seed=self.step_seed(self.state.global_step),
            stop=self.training.task.stop,
        )
        rollouts = backend.roll_out(prompts, sampling)
        # TRL's own way takes for truncated what a stop text ended.
        masks_truncated = bool(self.training.settings.trl.get("mask_truncated_completions"))
        # A reply of padding alone holds a token that the model did not sample.
        cut = [(masks_truncated and r.completion.truncated) or not r.completion.n_tokens for r in rollouts]
        return {
            "prompt_ids": [rollout.prompt_ids for rollout in rollouts],
            "completion_ids": [rollout.completion_ids for rollout in rollouts],
            "logprobs": None,
            "env_mask": [[int(not c)] * len(r.completion_ids) for c, r in zip(cut, rollouts, strict=True)],
            "reply": [rollout.completion for rollout in rollouts],
        }

    def reward(self, row: list[int], reply: list[Completion], **_: Any) -> list[float | None]:
        """The rewards of replies to the problems of some rows."""
        return [0.0] * len(row) if self._probing else self.progress.grade(row, reply)

    def score(self, ids: torch.Tensor, mask: torch.Tensor, n: int) -> torch.Tensor:
        """Log-probabilities as those of the reference are computed, without dropout."""
        was_training = self.model.training
        self.model.eval()
        logprobs: torch.Tensor = self._get_per_token_logps_and_entropies(self.model, ids, mask, n)[0]
        self.model.train(was_training)
        return logprobs

    def probe(self) -> None:
        """A forward and a backward pass of a micro-batch as long as can be: what does not fit fails now, not later."""
        was_training = self.model.training
        self.model.train()  # without that, activations are not checkpointed
        self._probing = True
        try:
            n = self.args.num_generations * -(-self._micro_batch // self.args.num_generations)
            batch = self._generate_and_score_completions(self.ask([{"row": 0}] * n))
            part = {name: value[: self._micro_batch] if is_column(value, n) else value for name, value in batch.items()}
            self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps  # as each step does
            self.accelerator.backward(self.compute_loss(self.model_wrapped, part))
        finally:
            self._probing = False
            self.model_wrapped.zero_grad(set_to_none=True)
            self._metrics["train"].clear()
            self.model.train(was_training)

    # Overrides of TRL's and transformers' methods.

    def _get_train_sampler(self, _dataset: Dataset | None = None) -> Sampler[int]:
        return _Rows(self.args, self.progress)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter alone.

        The tokenizer and the arguments are known when training is resumed, and are megabytes. A frozen copy of the
        adapter beside it would even keep the adapter from being loaded: transformers then reads subfolders only.
        """
        self.model.save_pretrained(output_dir or self.args.output_dir, selected_adapters=[adapter.TRAINED])

    def compute_loss(self, model: Any, inputs: dict[str, Any], **more: Any) -> Any:
        """TRL's loss of all rows, from those that teach.

        So the entropies and clip ratios that TRL logs here are means over such rows, and over the micro-batches that
        have any; a step without one logs none.
        """
        # Unsloth's loss is its own. What a probe runs is to be as much as there can be, and its rewards are equal.
        if "unsloth" in sys.modules or self._probing or not depends_on_advantage_only(self):
            return super().compute_loss(model, inputs, **more)
        part = teaching_part(inputs, self.loss_type, trim_prompts=positions_are_relative(model))
        if part is None:  # gradients of zero and not none: the optimizer's momentum moves the weights all the same
            return sum((weight * 0).sum() for weight in model.parameters() if weight.requires_grad)
        return part.factor * super().compute_loss(model, part.inputs, **more)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: checkpoints are for resuming."""


class _Rows(Sampler[int]):
    """Endless rows; each generation is asked for once per micro-batch that reuses it, as TRL's own sampler does.

    That one drops what does not fill a generation: on a tree of few variants it would train nothing, and not say so.
    Here rows come again.
    """

    def __init__(self, config: trl.GRPOConfig, progress: TrainingState) -> None:
        self._config, self._progress = config, progress
        self._first_step = len(progress.steps) + 1

    def __len__(self) -> int:
        config = self._config
        n_rows: int = config.max_steps * config.generation_batch_size * config.steps_per_generation
        return n_rows

    def __iter__(self) -> Iterator[int]:
        config = self._config
        n_prompts = config.generation_batch_size // config.num_generations
        for step in range(self._first_step, config.max_steps + 1):
            drawn = self._progress.rates.draw(step, n_prompts)
            rows = [row for row in drawn for _ in range(config.num_generations)]
            for _ in range(config.steps_per_generation):
                yield from rows


class _Steps(TrainerCallback):
    """What happens around each step: its seed, its row in the logs, and whether there is time for another."""

    def __init__(self, trainer: Trainer, probe_first: bool) -> None:
        self._trainer, self._probe_first = trainer, probe_first
        self._began_at = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **at_hand: Any) -> None:  # noqa: ARG002
        trainer, training = self._trainer, self._trainer.training
        divergence.set_learning_rate(at_hand["optimizer"], at_hand["lr_scheduler"], args.learning_rate)
        training.backend.check_rollouts(trainer.score, args.temperature)
        forget_self_checks(trainer.model)  # those of other trainers and micro-batches, and of the guard's adapter
        if self._probe_first:
            trainer.probe()
        self._began_at = training.deadline.now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        set_seed(self._trainer.step_seed(state.global_step))
        self._trainer.progress.begin_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **at_hand: Any) -> None:  # noqa: ARG002
        """Comes before the step's checkpoint is saved, and only a step that went well gets one."""
        if "loss" not in logs:
            return
        training, progress, model = self._trainer.training, self._trainer.progress, self._trainer.model
        if "unsloth" in sys.modules and (current := training_pass(model)) != progress.training_pass:
            progress.training_pass = current
            training.say(f"Unsloth's training pass: {current}")
        skipped = at_hand["optimizer"].step_was_skipped
        progress.check_step(logs, clipped_at=args.max_grad_norm, skipped=skipped, finite=adapter.is_finite(model))
        has_ended = progress.end_step(logs)
        deadline = training.deadline
        now = deadline.now()
        deadline.note("step", now - self._began_at)
        self._began_at = now
        is_late = not deadline.allows(deadline.expected_s("step")) and not progress.ended(args.max_steps)
        if has_ended or is_late:
            control.should_save = control.should_training_stop = True


def settings_of(training: Training, micro_batch: int) -> dict[str, Any]:
    """The value of every setting of GRPOConfig for a training."""
    settings, backend = training.settings, training.backend
    model, _ = backend.trainable()
    has_engine = hasattr(model, "vllm_engine")  # Unsloth's trainer then says that it generates with vLLM
    accumulation = settings.completions_per_step // micro_batch
    per_run = {
        "output_dir": str(training.folder / layout.CHECKPOINTS),
        "seed": training.seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": backend.dtype == torch.bfloat16,
        "fp16": backend.dtype == torch.float16,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # Into how many portions Unsloth cuts what the reference scores; by itself it would fill the memory. Where it
        # cannot pack sequences, it cuts micro-batches by this too.
        "unsloth_grpo_mini_batch": accumulation,
        "mask_truncated_completions": False,  # done with the rollouts
        "top_k": -1 if has_engine else 0,  # either means all tokens
        "use_vllm": has_engine,
    }
    return settle(settings.trl, per_run)


def _config(wanted: dict[str, Any], recipes: Iterable[str]) -> trl.GRPOConfig:
    known = {field.name for field in dataclasses.fields(trl.GRPOConfig) if field.init}
    if missing := sorted(set(recipes) - known):
        raise UserError(f"grpo.trl.{missing[0]}: the installed TRL has no such setting; leave it out, or update TRL")
    try:
        with redirect_stdout(StringIO()):  # Unsloth prints what it overrules, and that does not last
            config = trl.GRPOConfig(**{name: value for name, value in wanted.items() if name in known})
    except ValueError as error:
        raise UserError(f"grpo.trl: TRL takes no such settings ({first_line(error)}); change them") from error
    for name in filter(_is_compared, known & wanted.keys()):
        if _plain(getattr(config, name)) != wanted[name]:  # Unsloth's constructor overrules what it disagrees with
            setattr(config, name, wanted[name])
    return config


def _require(trainer: Trainer, wanted: dict[str, Any]) -> None:
    """UserError where the trainer, after all patches, holds another value than the recipe or the loop gave it."""
    held = [(name, trainer, setting.copy) for name, setting in SETTINGS.items() if setting.copy]
    held += [(name, trainer.args, name) for name in wanted if hasattr(trainer.args, name) and _is_compared(name)]
    for name, holder, own in held:
        value = _plain(getattr(holder, own))
        if value != wanted[name]:
            raise UserError(
                f"grpo.trl.{name} is {json.dumps(wanted[name])}, and the trainer holds {value!r}: the installed TRL or "
                f"Unsloth changes it; set it to that in the recipe, or use model.backend=transformers"
            )


def _is_compared(name: str) -> bool:
    return name not in SETTINGS or SETTINGS[name].compared


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _longest(prompt_length: int, completion_length: int, n: int, group_size: int, tokenizer: Any) -> dict[str, Any]:
    """Rollouts of the greatest length there can be: each group has one prompt, and replies that differ.

    The tokens are random: among repeated ones every attention mask gives the same output, and Unsloth, which compares
    its packed pass with the padded one on the first batch it sees, would find nothing wrong with any.
    """
    tokens = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    draw = Random(0)  # its own generator: a probe must not move the run's
    prompts = [draw.choices(tokens, k=prompt_length) for _ in range(n // group_size)]
    return {
        "prompt_ids": [prompt for prompt in prompts for _ in range(group_size)],
        "completion_ids": [draw.choices(tokens, k=completion_length) for _ in range(n)],
        "logprobs": None,
        "env_mask": [[1] * completion_length] * n,
        "reply": [None] * n,
    }
