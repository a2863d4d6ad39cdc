"""GRPO on problems: rows drawn by pass rate -> TRL's rollouts -> verified rewards -> TRL's update of a LoRA adapter.

From the paper: group-relative advantages, the clipped ratio, and an accuracy reward plus a small format reward. Added
here: the choice of the rows that a step trains on (`grpo.rows: pass_rate`, see `curriculum`; the paper's is `uniform`),
and a tree that may grow between steps, below problems that are too hard (`variants.adaptive`).

Everything random in a step follows from the seed and the step's number, and the results of earlier steps are read back
from `attempts.jsonl`. A run that was killed resumes from its last complete checkpoint. On a CPU, it ends with the same
numbers as one that was not killed. The same holds for a run that a `Deadline` stopped: its last step is saved. A step
that diverges is undone, see `ladder_lite.train.divergence`.

With `beta` above 0, KL is measured against the adapter as it is when training begins: a fresh one, which equals the
base model, or for TTRL the adapter that LADDER trained.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from ladder_lite.errors import UserError
from ladder_lite.jsonl import truncate_jsonl
from ladder_lite.models import Backend, release_memory
from ladder_lite.problems import Problem
from ladder_lite.runs import layout
from ladder_lite.train import divergence
from ladder_lite.train.divergence import Diverged
from ladder_lite.train.state import AfterStep, Step, Training, TrainingState
from ladder_lite.variants import Growth


def train(
    training: Training, problems: Sequence[Problem], after_step: AfterStep, growth: Growth | None = None
) -> list[Step]:
    """Train the backend's adapter on the problems, starting from its current weights; return all steps, in order.

    `after_step` is called with each step and its rollouts, and may end training by returning True. `growth` adds
    problems between steps. The backend has the trained adapter afterwards.

    The folder receives `metrics.jsonl` (the steps), `attempts.jsonl` (every rollout with its grade),
    `pass_rates.jsonl` (the final pass rate of each problem), `rollbacks.jsonl` if a step diverged, and `checkpoints/`.

    Called again with the same arguments after a kill, training resumes from the last complete checkpoint. Rows of the
    logs that are later than it are dropped, including those of the caller's `curve.jsonl`.

    Raises OutOfTime if the deadline comes before the end, with the last step saved, and UserError if training diverges
    a second time or if memory is not enough for a single completion.
    """
    # torch is slow to import, and `--help` must not need it. The trainer imports TRL, which Unsloth must have patched
    # before, when it loaded the backend's model.
    import torch

    from ladder_lite.models import adapter
    from ladder_lite.models.memory import smaller_micro_batch
    from ladder_lite.train.trainer import Trainer

    backend, settings, folder = training.backend, training.settings, training.folder
    start = backend.snapshot()
    model, _ = backend.trainable()
    micro_batch = backend.micro_batch(settings)
    # Most runs take one round. Another one follows a rollback, or memory that ran out, and resumes from the last
    # checkpoint as a new process would.
    while True:
        checkpoint = next(reversed(_complete_checkpoints(folder)), None)
        # The logs may be ahead of the checkpoint (it is not saved after every step). Cut them to the same step, then
        # read the state from them.
        _cut_logs(folder, _step_of(checkpoint) if checkpoint else 0)
        state = TrainingState(training, problems, growth, after_step)
        with adapter.without_reference_after(model), adapter.without_wrappers_after(model):
            trainer = Trainer(training, state, micro_batch, test_memory_first=_has_to_test_memory(backend))
            # Half the recipe's rate if an earlier round or process rolled back.
            trainer.args.learning_rate = divergence.learning_rate(folder, trainer.args.learning_rate)
            if trainer.beta:
                adapter.set_reference(model)
            try:
                # The process may have been killed after training ended, before the caller recorded that. Then only the
                # weights are missing. TRL itself would continue a run that stopped before max_steps.
                if checkpoint and state.ended(trainer.args.max_steps):
                    trainer._load_from_checkpoint(str(checkpoint))
                else:
                    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                break
            except Diverged as diverged:
                complete = [_step_of(path) for path in _complete_checkpoints(folder)]
                training.say(str(divergence.roll_back(folder, complete, diverged, trainer.args.learning_rate)))
            except torch.OutOfMemoryError as error:
                # A smaller micro-batch with more accumulation steps computes the same update in less memory.
                smaller = smaller_micro_batch(settings.completions_per_step, micro_batch)
                if smaller is None:
                    raise UserError(
                        f"out of memory: not even one completion at a time can be trained on ({error}); "
                        "lower grpo.trl.max_completion_length or model.max_prompt_length, or take a smaller model"
                    ) from error
                training.say(f"out of memory: going on with a micro-batch of {smaller} instead of {micro_batch}")
                micro_batch = smaller
            finally:
                trainer.accelerator.free_memory()
        # Only reached for another round. Its reference is copied from the adapter, which must be that of the start; if
        # there is a checkpoint, the weights to train come from there.
        backend.restore(start)
        del trainer
        release_memory()
    # The trainer stops for two reasons. If the run has not ended, it was the deadline.
    if not state.ended(trainer.args.max_steps):
        raise training.deadline.out_of_time()
    state.write_pass_rates()
    return state.steps


def _has_to_test_memory(backend: Backend) -> bool:
    """Return whether to test the memory before the first step. On a CPU, that would cost a step and show nothing."""
    model, _ = backend.trainable()
    return bool(model.device.type == "cuda")


def _cut_logs(folder: Path, last_step: int) -> None:
    for name in (layout.METRICS, layout.ATTEMPTS, layout.CURVE, layout.PROBES):
        truncate_jsonl(folder / name, lambda row: row["step"] <= last_step)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])  # ".../checkpoint-40" -> 40


def _complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that were written completely, in the order of their steps."""

    def is_complete(checkpoint: Path) -> bool:
        # The trainer writes this file last, so the others are complete if it can be read.
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            return False
        return True

    # Sorted as numbers: as text, checkpoint-10 would come before checkpoint-9.
    return sorted(filter(is_complete, folder.glob(f"{layout.CHECKPOINTS}/checkpoint-*")), key=_step_of)
