"""TRL's GRPOTrainer with this package's rows, sampling and rewards, and with settings that are checked.

What happens in one optimizer step, and where:

1. TRL calls `Trainer.roll_out`, which draws rows by their pass rates, samples a group of completions for each, has them
   verified, and replaces groups without signal (`groups`).
2. TRL asks `Trainer.reward` for the rewards, which are known by then.
3. TRL computes the advantages. With `scale_rewards: group`, as in the paper, the advantage of a completion is its
   reward minus the mean of its group, divided by the group's standard deviation.
4. For each micro-batch, TRL calls `Trainer.compute_loss` and accumulates the gradient. Then the optimizer steps.
5. `_StepCallback.on_log` records the step, and decides whether training ends.

TRL's defaults change between versions, and Unsloth rewrites settings, even those that were passed explicitly. So every
setting of GRPOConfig is given a value (`config.trl_settings.settle`). After both libraries have built the trainer, its
values are compared with these.

Importing this module imports TRL. It must be imported after the model is loaded, as Unsloth has to patch TRL first.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stdout
from enum import Enum
from io import StringIO
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import trl
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl.trainer import grpo_trainer, utils

from ladder_lite.config import SETTINGS, settle
from ladder_lite.errors import UserError, first_line
from ladder_lite.models import Sampling, adapter
from ladder_lite.models.backend import Rollout
from ladder_lite.models.engines import lean
from ladder_lite.models.shared_prompts import sharing_prompts
from ladder_lite.models.unsloth_checks import forget_self_checks, training_pass
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Completion
from ladder_lite.runs import layout
from ladder_lite.train import divergence
from ladder_lite.train.state import Training, TrainingState
from ladder_lite.train.zero_advantage import (
    depends_on_advantage_only,
    drop_zero_advantage_rows,
    has_rows,
    positions_are_relative,
)

_PLACEHOLDER = {"prompt": [{"role": "user", "content": ""}]}
"""A row of TRL's data set. `Trainer.roll_out` chooses the problems of a step when it begins."""


class Trainer(trl.GRPOTrainer):
    """A GRPO trainer whose next step is the one after `progress.steps`.

    It trains on `micro_batch` completions at a time; the number of completions in a step is always the recipe's. With
    `test_memory_first`, a micro-batch of the greatest possible length goes through the model before the first step, so
    that a lack of memory shows at once. Raises UserError if the libraries change a setting.
    """

    def __init__(self, training: Training, progress: TrainingState, micro_batch: int, test_memory_first: bool) -> None:
        self.training, self.progress = training, progress
        self._micro_batch = micro_batch
        self._testing_memory = False
        task, backend = training.task, training.backend
        model, tokenizer = backend.trainable()
        settings = settings_of(training, micro_batch)
        config = _make_config(settings, training.settings.trl)
        backend.check([task.prompt(problem) for problem in progress.problems])
        before = backend.snapshot()
        n_groups = config.generation_batch_size // config.num_generations
        with redirect_stdout(StringIO()):  # Unsloth prints advice
            super().__init__(
                model=model,
                reward_funcs=self.reward,
                args=config,
                # One epoch has all steps. TRL repeats each row for the completions of its group.
                train_dataset=Dataset.from_list([_PLACEHOLDER] * (config.max_steps * n_groups)),
                processing_class=tokenizer,
                callbacks=[_StepCallback(self, test_memory_first)],
                rollout_func=self.roll_out,
            )
        # TRL casts the adapter on a 4-bit model to bfloat16, in which small optimizer steps are lost. Widen it again,
        # and put back the values from before the rounding.
        adapter.in_full_precision(model)
        backend.restore(before)
        self.remove_callback(PrinterCallback)  # it would print each step's logs as a dict
        _check_settings(self, settings)

    def step_seed(self, step: int, wave: int = 0) -> int:
        """Return the seed of everything random in a step, or one of its waves of rollouts (wave 0 has the step's)."""
        return int(np.random.SeedSequence([self.training.seed, step, wave]).generate_state(1)[0])

    def roll_out(self, prompts: list[Any], _: object) -> dict[str, Any]:
        """Sample the completions of a step, in the form that TRL expects of a `rollout_func`.

        TRL's own generation would not stop at stop texts, sort prompts by length, or adapt batches to the memory. Only
        the number of `prompts` matters: which rows a step trains on is known only after their first completions.
        """
        size = self.args.num_generations
        if self._testing_memory:
            lengths = self.training.backend.max_prompt_length, self.args.max_completion_length
            return _longest_batch(*lengths, len(prompts), size, self.processing_class)
        groups = self.progress.roll_out(len(prompts) // size, size, self)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        # Whether to exclude truncated replies is decided here. TRL would look for an end token, and would take replies
        # that end with a stop text for truncated.
        masks_truncated = bool(self.training.settings.trl.get("mask_truncated_completions"))
        # A reply without sampled tokens has one end token that the model did not sample, and must not be trained on.
        excluded = [(masks_truncated and r.completion.truncated) or not r.completion.n_tokens for r in rollouts]
        return {
            "prompt_ids": [rollout.prompt_ids for rollout in rollouts],
            "completion_ids": [rollout.completion_ids for rollout in rollouts],
            "logprobs": None,  # only needed to correct for an engine that rounds differently from the trainer
            # TRL's mask for tokens that the model did not write: 1 for tokens to train on. TRL multiplies the loss of
            # each token by it (it is named "tool_mask" in the inputs of `compute_loss`).
            "env_mask": [[int(not e)] * len(r.completion_ids) for e, r in zip(excluded, rollouts, strict=True)],
            # An extra key, passed to the reward function.
            "rewards": [_exact(reward) for group in groups for reward in group.rewards],
        }

    def sample(self, problems: list[Problem], wave: int, from_base: bool = False) -> list[Rollout]:
        """Sample one completion for each problem, as evaluation does. `wave` counts the calls within a step."""
        config = self.args
        sampling = Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_completion_length,
            batch_size=len(problems),
            seed=self.step_seed(self.state.global_step, wave),
            stop=self.training.task.stop,
            from_base=from_base,
        )
        return self.training.backend.roll_out([self.training.task.prompt(problem) for problem in problems], sampling)

    def encode(self, completion: Completion) -> list[int]:
        """Return the token ids of an earlier completion."""
        ids: list[int] = self.processing_class(completion.text, add_special_tokens=False).input_ids
        # A completion that no stop text ended, and that is not truncated, was ended by the model.
        ended = not completion.truncated and not any(stop in completion.text for stop in self.training.task.stop)
        return [*ids, *[self.processing_class.eos_token_id] * ended]

    def reward(self, rewards: list[float | None], **_: Any) -> list[float | None]:
        """Return the rewards that `roll_out` passes on; None for a problem that cannot be verified."""
        return rewards

    def score(self, ids: torch.Tensor, mask: torch.Tensor, n: int) -> torch.Tensor:
        """Return log-probabilities (replies, n) of the last n tokens, computed as TRL computes the reference's."""
        was_training = self.model.training
        self.model.eval()  # without dropout
        logprobs: torch.Tensor = self._get_per_token_logps_and_entropies(self.model, ids, mask, n)[0]
        self.model.train(was_training)
        return logprobs

    def test_memory(self) -> None:
        """Run a forward and a backward pass on a micro-batch of the greatest possible length, and discard the result.

        If memory is not enough, this fails before the first step instead of hours later, at the first long replies.
        """
        was_training = self.model.training
        self.model.train()  # gradient checkpointing is active in training mode only
        self._testing_memory = True  # `roll_out` then returns random tokens with rewards of 0
        try:
            # TRL needs whole groups: round the micro-batch up to a multiple of the group size, then cut it again.
            n = self.args.num_generations * -(-self._micro_batch // self.args.num_generations)
            batch = self._generate_and_score_completions([dict(_PLACEHOLDER) for _ in range(n)])
            part = {name: value[: self._micro_batch] if has_rows(value, n) else value for name, value in batch.items()}
            # TRL's loss divides by this attribute, which the training loop sets at each step.
            self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
            self.accelerator.backward(self.compute_loss(self.model_wrapped, part))
        finally:
            # Leave no trace: neither gradients nor metrics in the log of the first step.
            self._testing_memory = False
            self.model_wrapped.zero_grad(set_to_none=True)
            self._metrics["train"].clear()
            self.model.train(was_training)

    # Overrides of methods of TRL and transformers.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save only the trained adapter."""
        # The tokenizer and the arguments, several megabytes, are not needed: a resumed run has them from the recipe.
        # The frozen copy "ref" must not be saved. It would go into a subfolder, and transformers, when it finds
        # adapters in subfolders of a checkpoint, does not load the one beside them.
        self.model.save_pretrained(output_dir or self.args.output_dir, selected_adapters=[adapter.TRAINED])

    def compute_loss(self, model: Any, inputs: dict[str, Any], **options: Any) -> Any:
        """Compute TRL's loss of a micro-batch from the rows with a nonzero advantage.

        The entropies and clip ratios that TRL logs are therefore means over these rows, and over micro-batches that
        have any. In a step without one, they are not logged.
        """
        if "unsloth" in sys.modules:  # it computes the loss in its own way
            return super().compute_loss(model, inputs, **options)
        factor = 1.0
        # A memory test must run all rows, and its rewards, being equal, would leave none.
        if depends_on_advantage_only(self) and not self._testing_memory:
            reduced = drop_zero_advantage_rows(inputs, self.loss_type, trim_prompts=positions_are_relative(model))
            if reduced is None:
                # A loss of 0 whose gradients are zeros. If they were None, the optimizer would skip the weights; with
                # zeros, its momentum still moves them, as TRL's own loss would let it.
                return sum((weight * 0).sum() for weight in model.parameters() if weight.requires_grad)
            inputs, factor = reduced
        base = model.get_base_model()
        shares_prompts = (
            not base.is_gradient_checkpointing  # the model's flag: an earlier trainer may have switched it on
            and not getattr(self, "aux_loss_enabled", False)  # the loss of a mixture's routers needs all tokens
            and positions_are_relative(model)
            and (self._keeps_groups or not self._testing_memory)  # a test has fewer prompts than a random micro-batch
            and lean.obstacle(base) is None
        )
        reply_length = inputs["completion_ids"].shape[1]
        with sharing_prompts(base, reply_length) if shares_prompts else nullcontext():
            return factor * super().compute_loss(model, inputs, **options)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Let TRL generate a step's completions and cut them into micro-batches, without shuffling them first.

        The gradient is the same, but replies to one prompt stay together, so that a micro-batch computes what they have
        in common once. Unsloth has its own copy of this method.
        """
        if not self._keeps_groups:
            return super()._prepare_inputs(generation_batch)
        with patch.object(grpo_trainer, "shuffle_sequence_dict", lambda batch: batch):
            return super()._prepare_inputs(generation_batch)

    @property
    def _keeps_groups(self) -> bool:
        """Whether the replies to a prompt stay in one micro-batch."""
        # These settings average, or choose tokens, within a micro-batch, which should be a random one then.
        has_entropy_bonus = getattr(self, "_entropy_bonus_enabled", False)
        return not (self.loss_type == "bnpo" or self.top_entropy_quantile < 1 or has_entropy_bonus)

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        """Compute log-probabilities and entropies as TRL does, for the tokens of the replies alone."""
        # Without Triton, TRL 1.16 multiplies the hidden states of all tokens, those of prompts and padding included, by
        # the whole vocabulary. That takes most of a step if prompts are long. The function only makes this choice.
        of_replies = patch.object(utils, "_use_triton", lambda _: True) if hasattr(utils, "_use_triton") else None
        with of_replies or nullcontext():
            return super()._get_per_token_logps_and_entropies(*arguments, **options)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing: checkpoints are for resuming only."""


class _StepCallback(TrainerCallback):
    """Work around each step: set its seed, record it, and stop training if it has ended or time is up."""

    def __init__(self, trainer: Trainer, test_memory_first: bool) -> None:
        self._trainer, self._test_memory_first = trainer, test_memory_first
        self._began_at = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:  # noqa: ARG002
        trainer, training = self._trainer, self._trainer.training
        # A checkpoint, if there is one, has been loaded by now, with the learning rate of its time.
        divergence.set_learning_rate(objects["optimizer"], objects["lr_scheduler"], args.learning_rate)
        training.backend.check_rollouts(trainer.score, args.temperature)
        if training.settings.base_rollouts:
            training.backend.check_rollouts(trainer.score, args.temperature, from_base=True)
        # Results from other trainers or micro-batches are not valid for this one, and neither are those with the random
        # adapter of `check_rollouts`.
        forget_self_checks(trainer.model)
        if self._test_memory_first:
            trainer.test_memory()
        self._began_at = training.deadline.now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        # Resets the global generators, so that a resumed run draws the same dropout as one that never stopped.
        set_seed(self._trainer.step_seed(state.global_step))
        self._trainer.progress.begin_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **objects: Any) -> None:  # noqa: ARG002
        """Check and record a step. transformers calls this after the update, before it saves the step's checkpoint."""
        if "loss" not in logs:  # the summary at the end of training
            return
        training, progress, model = self._trainer.training, self._trainer.progress, self._trainer.model
        if "unsloth" in sys.modules and (current := training_pass(model)) != progress.training_pass:
            progress.training_pass = current
            training.say(f"Unsloth's training pass: {current}")
        # Raises Diverged after a bad step, which then gets no checkpoint and no row in metrics.jsonl.
        skipped = objects["optimizer"].step_was_skipped  # by the gradient scaler in float16
        progress.check_step(logs, max_grad_norm=args.max_grad_norm, skipped=skipped, finite=adapter.is_finite(model))
        has_ended = progress.end_step(logs)
        deadline = training.deadline
        # The time since the last step was recorded: all of a step, and what `after_step` and the tree's growth took.
        now = deadline.now()
        deadline.record("step", now - self._began_at)
        self._began_at = now
        # Would the next step, as slow as the slowest recent one, exceed the budget?
        is_late = not deadline.allows(deadline.expected_s("step")) and not progress.ended(args.max_steps)
        # `should_save` writes a checkpoint of this step, whatever `save_steps` is.
        if has_ended or is_late:
            control.should_save = control.should_training_stop = True


def _exact(reward: float | None) -> float | None:
    """Round a reward to a multiple of 1/65536, so that the mean of equal rewards is exact in 32 bits.

    In 32 bits, the mean of eight rewards of 0.1 is not 0.1. Each reply would then have a small advantage, which Adam
    would turn into steps as large as any other.
    """
    return None if reward is None else round(reward * 65536) / 65536


def settings_of(training: Training, micro_batch: int) -> dict[str, Any]:
    """Return the value of every setting of GRPOConfig for a training run."""
    settings, backend = training.settings, training.backend
    model, _ = backend.trainable()
    # Unsloth's trainer sets `use_vllm` for a model with a vLLM engine, so the config must, too.
    has_engine = hasattr(model, "vllm_engine")
    # A step of 64 completions in micro-batches of 8 takes 8 accumulation steps.
    accumulation = settings.completions_per_step // micro_batch
    per_run = {
        "output_dir": str(training.folder / layout.CHECKPOINTS),
        "seed": training.seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": backend.dtype == torch.bfloat16,
        "fp16": backend.dtype == torch.float16,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # The number of parts in which Unsloth computes the reference's log-probabilities; by default, it fills the
        # memory. If it cannot pack sequences, it also splits micro-batches by this.
        "unsloth_grpo_mini_batch": accumulation,
        "mask_truncated_completions": False,  # `roll_out` does it
        "top_k": -1 if has_engine else 0,  # all tokens, in vLLM's and in transformers' notation
        "use_vllm": has_engine,
    }
    return settle(settings.trl, per_run)


def _make_config(settings: dict[str, Any], recipe_keys: Iterable[str]) -> trl.GRPOConfig:
    """Create TRL's config.

    Settings that the installed TRL lacks are left out. Raises UserError if the recipe has one of them.
    """
    known = {field.name for field in dataclasses.fields(trl.GRPOConfig) if field.init}
    if missing := sorted(set(recipe_keys) - known):
        raise UserError(f"grpo.trl.{missing[0]}: the installed TRL has no such setting; leave it out, or update TRL")
    try:
        with redirect_stdout(StringIO()):  # Unsloth reports the settings that it overrides; they are set back below
            config = trl.GRPOConfig(**{name: value for name, value in settings.items() if name in known})
    except ValueError as error:
        raise UserError(f"grpo.trl: TRL refuses these settings ({first_line(error)}); change them") from error
    # A process uses one GPU. If several are visible, transformers would wrap the model in DataParallel.
    if config.n_gpu > 1:
        config._n_gpu = 1
    # Unsloth's constructor overrides some settings, such as `scale_rewards` with loss_type dr_grpo.
    for name in filter(_is_compared, known & settings.keys()):
        if _without_enum(getattr(config, name)) != settings[name]:
            setattr(config, name, settings[name])
    return config


def _check_settings(trainer: Trainer, settings: dict[str, Any]) -> None:
    """Raise UserError if the trainer, after all patches, has another value than the recipe or the loop gave it."""
    # Some settings exist twice: in `trainer.args`, and as an attribute of the trainer, which is the one that it uses.
    places = [(name, trainer, setting.copy) for name, setting in SETTINGS.items() if setting.copy]
    places += [(name, trainer.args, name) for name in settings if hasattr(trainer.args, name) and _is_compared(name)]
    for name, owner, attribute in places:
        value = _without_enum(getattr(owner, attribute))
        if value != settings[name]:
            raise UserError(
                f"grpo.trl.{name} is {json.dumps(settings[name])}, but the trainer has {value!r}: the installed TRL or "
                f"Unsloth changes it; set it to that in the recipe, or use model.backend=transformers"
            )


def _is_compared(name: str) -> bool:
    # GRPOConfig stores some settings in another form than it takes them; those cannot be compared.
    return name not in SETTINGS or SETTINGS[name].compared


def _without_enum(value: Any) -> Any:
    # GRPOConfig turns names such as "adamw_torch" into members of an enum.
    return value.value if isinstance(value, Enum) else value


def _longest_batch(
    prompt_length: int, completion_length: int, n: int, group_size: int, tokenizer: Any
) -> dict[str, Any]:
    """Return n rollouts of the greatest possible length: one random prompt for each group, and random replies."""
    # Unsloth compares its packed pass with the padded one on the first batch that it sees. If one token were repeated,
    # attention would give the same output with any mask, and a faulty packed pass would go unnoticed.
    tokens = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    rng = Random(0)  # its own generator: a memory test must not advance the run's
    prompts = [rng.choices(tokens, k=prompt_length) for _ in range(n // group_size)]
    return {
        "prompt_ids": [prompt for prompt in prompts for _ in range(group_size)],
        "completion_ids": [rng.choices(tokens, k=completion_length) for _ in range(n)],
        "logprobs": None,
        "env_mask": [[1] * completion_length] * n,
        "rewards": [0.0] * n,
    }
