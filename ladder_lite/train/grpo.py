"""GRPO on problems: rows drawn by pass rate -> TRL's rollouts -> verified rewards -> TRL's update of a LoRA adapter.

What is the paper's: group-relative advantages, the clipped ratio, accuracy reward plus a small format reward. What is
ours: which rows a step trains on (`grpo.rows: pass_rate`, see `curriculum`; the paper's is `uniform`), and
that the tree may grow between steps below problems that are too hard (`variants.adaptive`).

Everything random in a step follows from the seed and the step's number, and what earlier steps saw is read back from
`attempts.jsonl`. A run that was killed goes on from its last complete checkpoint and, on a CPU, ends with the same
numbers as one that was not. So does one that a `Deadline` stopped: the step it stops after is saved. A step that
diverges is undone, see `ladder_lite.train.divergence`.

With `beta` above 0, KL is measured against the adapter as it is when training begins: a fresh one, which equals the
base model, and LADDER's for TTRL.
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
    """Train the backend's adapter on the problems, from the weights it holds now; the trained adapter stays in it.

    `after_step` is called with each step and its rollouts and may end training by returning True; `growth` adds
    problems between steps. The folder receives `metrics.jsonl`, `attempts.jsonl` (every rollout with its grade),
    `pass_rates.jsonl` (what is known of each problem at the end), `rollbacks.jsonl` where a step diverged, and
    `checkpoints/`. Called again with the same arguments after a kill, training goes on from the last complete
    checkpoint; rows of the logs that came after it (those of the caller's `curve.jsonl` included) are dropped. Returns
    all steps, the first one first.

    OutOfTime where the deadline comes before the end, with the last step saved; UserError where training diverges a
    second time, and where memory does not suffice for a single completion.
    """
    import torch

    from ladder_lite.models import adapter
    from ladder_lite.models.memory import smaller_micro_batch
    from ladder_lite.train.trainer import Trainer

    backend, settings, folder = training.backend, training.settings, training.folder
    start = backend.snapshot()
    model, _ = backend.trainable()
    micro_batch = backend.micro_batch(settings)
    while True:
        checkpoint = next(reversed(_complete_checkpoints(folder)), None)
        _cut_logs(folder, _number(checkpoint) if checkpoint else 0)
        state = TrainingState(training, problems, growth, after_step)
        with adapter.without_reference_after(model):
            trainer = Trainer(training, state, micro_batch, probe_first=_has_to_probe(backend))
            trainer.args.learning_rate = divergence.learning_rate(folder, trainer.args.learning_rate)
            if trainer.beta:
                adapter.set_reference(model)
            try:
                if checkpoint and state.ended(trainer.args.max_steps):
                    trainer._load_from_checkpoint(str(checkpoint))
                else:
                    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                break
            except Diverged as diverged:
                complete = [_number(path) for path in _complete_checkpoints(folder)]
                training.say(str(divergence.roll_back(folder, complete, diverged, trainer.args.learning_rate)))
            except torch.OutOfMemoryError as error:
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
        backend.restore(start)  # what the next round's reference is copied from
        del trainer
        release_memory()
    if not state.ended(trainer.args.max_steps):
        raise training.deadline.out_of_time()
    state.write_pass_rates()
    return state.steps


def _has_to_probe(backend: Backend) -> bool:
    """On a GPU memory may not suffice; on a CPU the probe would cost a step and tell nothing."""
    model, _ = backend.trainable()
    return bool(model.device.type == "cuda")


def _cut_logs(folder: Path, done: int) -> None:
    for name in (layout.METRICS, layout.ATTEMPTS, layout.CURVE):
        truncate_jsonl(folder / name, lambda row: row["step"] <= done)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, in order: the trainer's state is the last of their files."""

    def complete(checkpoint: Path) -> bool:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            return False
        return True

    return sorted(filter(complete, folder.glob(f"{layout.CHECKPOINTS}/checkpoint-*")), key=_number)
