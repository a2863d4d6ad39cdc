"""Divergence of a training run: how it is detected, and how the run is rolled back once, to half the learning rate.

A step has diverged if its loss, its gradient or a weight of the adapter is not finite, or if its loss or gradient is
more than a hundred times that of the steps before. Loss and gradient of a step are computed with the weights that the
step before left. If they are bad, that step is to blame as well, and training goes back to a checkpoint from before it.
`rollbacks.jsonl` in the folder of the training run records the rollback. A resumed run reads the learning rate to
continue with from it.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ladder_lite.errors import UserError
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.runs import layout

_WINDOW = 20
"""A step is compared with this many steps before it."""

_EXPLOSION_FACTOR = 100.0
"""A value explodes if it exceeds the largest one of the recent steps by this factor.

The largest one and not a mean or median: in GRPO, steps without a signal, whose loss and gradient are almost 0, lie
between ordinary ones.
"""

_ORDINARY_LOSS = 0.1
"""Losses up to this size are always ordinary, so none up to a hundred times it explodes.

A policy loss cannot get there: on the model's own rollouts it is at most the largest advantage, the square root of the
group size minus one (with 64 replies in a group, 7.9). A KL term can.
"""

_RATE_FACTOR = 0.5
"""A rollback multiplies the learning rate by this."""


class Diverged(Exception):  # noqa: N818 - the first one is handled by a rollback
    """A step diverged; `last_sound` is the last step whose weights can be trusted, 0 or less for the start."""

    def __init__(self, step: int, reason: str, last_sound: int) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step, self.reason, self.last_sound = step, reason, last_sound


@dataclass(frozen=True, slots=True)
class Rollback:
    """A row of `rollbacks.jsonl`: the step that diverged, the step that training went back to, and its new rate."""

    step: int
    reason: str
    back_to: int
    learning_rate: float

    def __str__(self) -> str:
        start = f"the checkpoint of step {self.back_to}" if self.back_to else "the start"
        return (
            f"training diverged at step {self.step} ({self.reason}): back to {start} and on at half the learning rate, "
            f"{self.learning_rate:.3g}"
        )


def check_step(
    step: int,
    loss: float,
    grad_norm: float,
    recent: Sequence[tuple[float | None, float | None]],
    *,
    max_grad_norm: float,
    skipped: bool,
    finite: bool,
) -> None:
    """Raise Diverged if a step went wrong.

    `recent` has loss and gradient norm of the steps before, in order. Gradients are clipped at `max_grad_norm` (0: not
    clipped), and norms up to it are ordinary. `skipped` tells that the gradient scaler skipped the optimizer step,
    `finite` that all weights are finite after the step.
    """
    losses = [abs(value) for value, _ in recent[-_WINDOW:] if value is not None]
    # A skipped step before this one has an infinite norm, which would make any norm look ordinary.
    norms = [norm for _, norm in recent[-_WINDOW:] if norm is not None and math.isfinite(norm)]
    _check_size(step, "loss", abs(loss), max([_ORDINARY_LOSS, *losses]))
    # In float16, the gradient scaler multiplies the loss by a large number. If a gradient overflows, it skips the step,
    # leaves the weights as they were and tries a smaller scale. That is normal, unless it happens in a whole window.
    if skipped and len(recent) >= _WINDOW and not norms:
        raise Diverged(step, f"its gradient and those of {_WINDOW} steps before are not finite", step - _WINDOW - 1)
    if not skipped:
        _check_size(step, "gradient", grad_norm, max([max_grad_norm or 1.0, *norms]))
    # Loss and gradient of this step were fine, so the weights that it started from, those of step - 1, are.
    if not finite:
        raise Diverged(step, "a weight of the adapter is not finite", step - 1)


def _check_size(step: int, name: str, size: float, ordinary: float) -> None:
    # The value was computed with the weights that step - 1 left; step - 2 is the last one that is not in doubt.
    if not math.isfinite(size):
        raise Diverged(step, f"its {name} is not finite", step - 2)
    if size > _EXPLOSION_FACTOR * ordinary:
        raise Diverged(step, f"its {name} of {size:.3g} is over {_EXPLOSION_FACTOR:.0f} times those before", step - 2)


def learning_rate(folder: Path, planned: float) -> float:
    """Return the learning rate for the run in a folder: the planned one, or that of the rollback if there was one."""
    rows = read_jsonl(folder / layout.ROLLBACKS)
    return float(rows[-1]["learning_rate"]) if rows else planned


def set_learning_rate(optimizer: Any, scheduler: Any, rate: float) -> None:
    """Rescale the schedule, wherever it is now, to one that starts at `rate`.

    This is needed after loading a checkpoint, which restores the optimizer and the scheduler with the rate of its time.
    """
    groups = optimizer.param_groups
    # `initial_lr` is the rate that the schedule multiplies with a factor at each step to get `lr`.
    if groups[0]["initial_lr"] == rate:
        return
    factor = rate / groups[0]["initial_lr"]
    for group in groups:
        group["initial_lr"] *= factor
        group["lr"] *= factor
    scheduler.base_lrs = [base * factor for base in scheduler.base_lrs]  # the scheduler's own copy of `initial_lr`
    scheduler._last_lr = [last * factor for last in scheduler._last_lr]  # logged with the next step


def roll_back(folder: Path, checkpoints: Sequence[int], diverged: Diverged, planned: float) -> Rollback:
    """Delete the checkpoints that are in doubt, and record where and at which rate training continues.

    `checkpoints` are the steps of the complete checkpoints. The caller truncates the logs to the step that training
    goes back to, as after a kill. Raises UserError if the run was rolled back before.
    """
    if read_jsonl(folder / layout.ROLLBACKS):
        raise UserError(
            f"{folder / layout.METRICS}: training diverged again at step {diverged.step} ({diverged.reason}), at half "
            "the learning rate; lower grpo.trl.learning_rate or max_grad_norm and --redo the stage of this folder"
        )
    back_to = max((step for step in checkpoints if step <= diverged.last_sound), default=0)
    # Delete before recording. A kill in between leaves a run that resumes from `back_to` at the old rate and diverges
    # at the same step again, which is harmless. The other order could leave one that resumes from a bad checkpoint.
    for checkpoint in (folder / layout.CHECKPOINTS).glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > back_to:
            # A checkpoint without this file counts as incomplete, so a half-deleted one is never resumed from.
            (checkpoint / "trainer_state.json").unlink(missing_ok=True)
            shutil.rmtree(checkpoint)
    rollback = Rollback(diverged.step, diverged.reason, back_to, planned * _RATE_FACTOR)
    append_jsonl(folder / layout.ROLLBACKS, [asdict(rollback)])
    return rollback


def load(folder: Path) -> list[Rollback]:
    """Return the rollbacks of the training run in a folder, at most one."""
    return [Rollback(**row) for row in read_jsonl(folder / layout.ROLLBACKS)]
