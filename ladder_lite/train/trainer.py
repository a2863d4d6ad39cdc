"""TRL's GRPOTrainer as `grpo` uses it: our rows, our sampling, our rewards, and settings that are checked.

TRL's defaults change between versions and Unsloth rewrites some of them, given values included. So every setting of
GRPOConfig is given a value (the recipe's, the loop's, or the default that trl_settings.json has on record), and what
the trainer holds when both libraries are done with it is compared with that.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from enum import Enum
from io import StringIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ladder_lite.budget import Deadline
from ladder_lite.config.schema import GrpoSettings
from ladder_lite.config.trl_settings import grpo_config_defaults
from ladder_lite.errors import UserError, first_line
from ladder_lite.models import Backend, Sampling
from ladder_lite.problems.attempts import Completion
from ladder_lite.tasks import Task
from ladder_lite.train import divergence
from ladder_lite.train.zero_advantage import (
    is_column,
    positions_are_relative,
    teaches_by_advantage_alone,
    teaching_part,
)

if TYPE_CHECKING:  # importing TRL takes seconds; reading this module must not
    import torch
    from trl import GRPOConfig, GRPOTrainer

    from ladder_lite.train.log import Log

_MAX_ROWS = 1_000_000
"""More than any tree has: TRL wants a data set of fixed length, and rows that are never drawn cost nothing."""

_DERIVED = {
    *("accelerator_config", "dataloader_pin_memory", "debug", "disable_tqdm", "generation_batch_size", "report_to"),
    *("output_dir", "steps_per_generation"),
}
"""Settings that GRPOConfig itself writes in another form than it was given."""

_UNSLOTHS = {"gradient_checkpointing", "gradient_checkpointing_kwargs", "bf16_full_eval", "fp16_full_eval"}
"""Settings that Unsloth replaces by its own way, and that say how and not what is learned."""

_HELD = {
    name: name
    for name in (
        *("beta", "importance_sampling_level", "loss_type", "mask_truncated_completions", "max_completion_length"),
        *("num_generations", "num_iterations", "scale_rewards", "temperature", "top_k", "top_p", "use_vllm"),
    )
} | {"epsilon": "epsilon_low"}
"""Settings that the trainer copies from its config, under the name it gives the copy."""


def build(
    task: Task,
    backend: Backend,
    settings: GrpoSettings,
    folder: Path,
    seed: int,
    log: "Log",
    deadline: Deadline,
    micro_batch: int,
    probe_first: bool,
) -> "GRPOTrainer":
    """A trainer whose next step is the one after `log.steps`; UserError where it would not train as the recipe says.

    `micro_batch` completions are trained on at a time; how many a step has, in all, is the recipe's alone. With
    `probe_first`, the longest micro-batch there can be goes through the model before the first step.
    """
    from datasets import Dataset
    from torch.utils.data import Sampler
    from transformers import PrinterCallback, TrainerCallback, set_seed
    from trl import GRPOTrainer

    from ladder_lite.models import adapter
    from ladder_lite.models.unsloth_checks import forget_self_checks, training_pass

    model, tokenizer = backend.trainable()
    wanted = _wanted(settings, folder, seed, backend, micro_batch)
    config = _config(wanted, settings.trl)
    backend.check([task.prompt(problem) for problem in log.problems])
    first_step = len(log.steps) + 1
    probing = False

    def step_seed(step: int) -> int:
        return (seed * 1_000_003 + step) % 2**32

    def ask(rows: list[dict[str, int]]) -> list[dict[str, Any]]:
        """A prompt is made when its row is drawn, for the tree may have grown since."""
        return [{"prompt": task.prompt(log.problems[row["row"]]), **row} for row in rows]

    class Rows(Sampler[int]):
        """Endless rows; each generation is asked for once per micro-batch that reuses it, as TRL's own sampler does.

        That one drops what does not fill a generation: on a tree of few variants it would train nothing, and not say
        so. Here rows come again.
        """

        def __len__(self) -> int:
            n_rows: int = config.max_steps * config.generation_batch_size * config.steps_per_generation
            return n_rows

        def __iter__(self) -> Iterator[int]:
            n_prompts = config.generation_batch_size // config.num_generations
            for step in range(first_step, config.max_steps + 1):
                rows = [row for row in log.rates.draw(step, n_prompts) for _ in range(config.num_generations)]
                for _ in range(config.steps_per_generation):
                    yield from rows

    class Trainer(GRPOTrainer):
        def _get_train_sampler(self, _dataset: Dataset | None = None) -> Sampler[int]:
            return Rows()

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            """Save the adapter alone.

            The tokenizer and the arguments are at hand when training is resumed, and megabytes. A frozen copy of the
            adapter beside it would even keep the adapter from being loaded: transformers then reads subfolders only.
            """
            model.save_pretrained(output_dir or config.output_dir, selected_adapters=[adapter.TRAINED])

        def compute_loss(self, model: Any, inputs: dict[str, Any], **more: Any) -> Any:
            """TRL's loss of all rows, from those that teach.

            So the entropies and clip ratios that TRL logs here are means over such rows, and over the micro-batches
            that have any; a step without one logs none.
            """
            # Unsloth's loss is its own. What a probe runs is to be as much as there can be, and its rewards are equal.
            if "unsloth" in sys.modules or probing or not teaches_by_advantage_alone(self):
                return super().compute_loss(model, inputs, **more)
            part = teaching_part(inputs, self.loss_type, trim_prompts=positions_are_relative(model))
            if part is None:  # gradients of zero and not none: the optimizer's momentum moves the weights all the same
                return sum((weight * 0).sum() for weight in model.parameters() if weight.requires_grad)
            return part.factor * super().compute_loss(model, part.inputs, **more)

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Write none: checkpoints are for resuming."""

    class Steps(TrainerCallback):
        began_at = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **at_hand: Any) -> None:  # noqa: ARG002
            divergence.set_learning_rate(at_hand["optimizer"], at_hand["lr_scheduler"], args.learning_rate)
            backend.check_rollouts(score, config.temperature)
            forget_self_checks(model)  # those of other trainers and micro-batches, and of the guard's random adapter
            if probe_first:
                probe()
            self.began_at = deadline.now()

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            set_seed(step_seed(state.global_step))
            log.begin_step()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **at_hand: Any) -> None:  # noqa: ARG002
            """Comes before the step's checkpoint is saved, and only a step that went well gets one."""
            if "loss" not in logs:
                return
            if "unsloth" in sys.modules and (current := training_pass(model)) != log.training_pass:
                log.training_pass = current
                log.say(f"Unsloth's training pass: {current}")
            skipped = at_hand["optimizer"].step_was_skipped
            log.check_step(logs, clipped_at=args.max_grad_norm, skipped=skipped, finite=adapter.is_finite(model))
            if log.end_step(logs):
                control.should_save = control.should_training_stop = True
            now = deadline.now()
            deadline.note("step", now - self.began_at)
            self.began_at = now
            if not deadline.allows(deadline.expected_s("step")) and not log.ended(args.max_steps):
                control.should_save = control.should_training_stop = True

    def roll_out(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Generation as evaluation has it: sorted by length, as many at once as fit, each ended by a stop text."""
        if probing:
            lengths = backend.max_prompt_length, config.max_completion_length
            return _longest(*lengths, len(prompts), config.num_generations, tokenizer)
        sampling = Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_completion_length,
            batch_size=len(prompts),
            seed=step_seed(trainer.state.global_step),
            stop=task.stop,
        )
        rollouts = backend.roll_out(prompts, sampling)
        # TRL's own way takes for truncated what a stop text ended.
        masks_truncated = bool(settings.trl.get("mask_truncated_completions"))
        # A reply of padding alone holds a token that the model did not sample.
        cut = [(masks_truncated and r.completion.truncated) or not r.completion.n_tokens for r in rollouts]
        return {
            "prompt_ids": [rollout.prompt_ids for rollout in rollouts],
            "completion_ids": [rollout.completion_ids for rollout in rollouts],
            "logprobs": None,
            "env_mask": [[int(not c)] * len(r.completion_ids) for c, r in zip(cut, rollouts, strict=True)],
            "reply": [rollout.completion for rollout in rollouts],
        }

    def reward(row: list[int], reply: list[Completion], **_: Any) -> list[float | None]:
        return [0.0] * len(row) if probing else log.grade(row, reply)

    def score(ids: "torch.Tensor", mask: "torch.Tensor", n: int) -> "torch.Tensor":
        """Log-probabilities as those of the reference are computed, without dropout."""
        was_training = trainer.model.training
        trainer.model.eval()
        logprobs: torch.Tensor = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, n)[0]
        trainer.model.train(was_training)
        return logprobs

    def probe() -> None:
        """A forward and a backward pass of a micro-batch as long as can be: what does not fit fails now, not later."""
        nonlocal probing
        was_training = trainer.model.training
        trainer.model.train()  # without that, activations are not checkpointed
        probing = True
        try:
            n = config.num_generations * -(-micro_batch // config.num_generations)
            batch = trainer._generate_and_score_completions(ask([{"row": 0}] * n))
            part = {name: value[:micro_batch] if is_column(value, n) else value for name, value in batch.items()}
            trainer.current_gradient_accumulation_steps = config.gradient_accumulation_steps  # as each step does
            trainer.accelerator.backward(trainer.compute_loss(trainer.model_wrapped, part))
        finally:
            probing = False
            trainer.model_wrapped.zero_grad(set_to_none=True)
            trainer._metrics["train"].clear()
            trainer.model.train(was_training)

    before = backend.snapshot()
    with redirect_stdout(StringIO()):  # Unsloth prints
        trainer = Trainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"row": range(_MAX_ROWS)}),
            processing_class=tokenizer,
            callbacks=[Steps()],
            rollout_func=roll_out,
        )
    adapter.in_full_precision(model)  # TRL rounds adapters on 4-bit weights to 16 bits, where small steps get lost
    backend.restore(before)
    trainer.data_collator = ask
    trainer.remove_callback(PrinterCallback)
    _demand(trainer, wanted)
    return trainer


def _wanted(settings: GrpoSettings, folder: Path, seed: int, backend: Backend, micro_batch: int) -> dict[str, Any]:
    """The value of every setting of GRPOConfig: the loop's, else the recipe's, else TRL's default on record."""
    import torch

    trl = settings.trl
    model, _ = backend.trainable()
    has_engine = hasattr(model, "vllm_engine")  # Unsloth's trainer then says that it generates with vLLM
    return grpo_config_defaults() | {
        "report_to": "none",
        **trl,
        "output_dir": str(folder / "checkpoints"),
        "seed": seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": backend.dtype == torch.bfloat16,
        "fp16": backend.dtype == torch.float16,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": settings.completions_per_step // micro_batch,
        # Into how many portions Unsloth cuts what the reference scores; by itself it would fill the memory. Where it
        # cannot pack sequences, it cuts micro-batches by this too.
        "unsloth_grpo_mini_batch": settings.completions_per_step // micro_batch,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,  # it would log a loss that is no number as that of the step before
        "save_strategy": "steps",
        "save_total_limit": 2,  # the one being written may be torn by a kill, the one before it is whole
        "disable_tqdm": True,
        "ignore_data_skip": True,  # the sampler starts at the right step by itself
        "dataloader_num_workers": 0,
        "num_iterations": 1,
        "remove_unused_columns": False,
        "mask_truncated_completions": False,  # done with the rollouts
        "top_k": -1 if has_engine else 0,  # either means all tokens
        "min_p": None,
        "repetition_penalty": 1.0,
        "generation_kwargs": None,
        "use_vllm": has_engine,
        "vllm_mode": "colocate",
        "vllm_importance_sampling_correction": False,  # it wants vLLM's own probabilities; rollouts have none
    }


def _config(wanted: dict[str, Any], recipes: Iterable[str]) -> "GRPOConfig":
    from trl import GRPOConfig

    known = {field.name for field in dataclasses.fields(GRPOConfig) if field.init}
    if missing := sorted(set(recipes) - known):
        raise UserError(f"grpo.trl.{missing[0]}: the installed TRL has no such setting; leave it out, or update TRL")
    try:
        with redirect_stdout(StringIO()):  # Unsloth prints what it overrules, and that does not last
            config = GRPOConfig(**{name: value for name, value in wanted.items() if name in known})
    except ValueError as error:
        raise UserError(f"grpo.trl: TRL takes no such settings ({first_line(error)}); change them") from error
    for name in known & wanted.keys() - _DERIVED - _UNSLOTHS:
        if _plain(getattr(config, name)) != wanted[name]:  # Unsloth's constructor overrules what it disagrees with
            setattr(config, name, wanted[name])
    return config


def _demand(trainer: "GRPOTrainer", wanted: dict[str, Any]) -> None:
    """UserError where the trainer, after all patches, holds another value than the recipe or the loop gave it."""
    held = [(name, trainer, own) for name, own in _HELD.items()]
    held += [
        (name, trainer.args, name)
        for name in wanted
        if hasattr(trainer.args, name) and name not in _DERIVED | _UNSLOTHS
    ]
    for name, holder, own in held:
        value = _plain(getattr(holder, own))
        if value != wanted[name]:
            raise UserError(
                f"grpo.trl.{name} is {json.dumps(wanted[name])}, and the trainer holds {value!r}: the installed TRL or "
                f"Unsloth changes it; set it to that in the recipe, or use model.backend=transformers"
            )


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
