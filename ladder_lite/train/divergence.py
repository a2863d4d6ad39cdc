"""A training that diverges: how that is noticed, and how it goes back and on at half the learning rate, once.

A step has diverged when its loss, its gradient or a weight of the adapter is no number, or when loss or gradient are a
hundred times what the steps before it had. What the loss and the gradient of a step show is the weights that the step
before left, so training goes back to a checkpoint from before that one. `rollbacks.jsonl` of the training's folder
says so, and a training that is resumed reads from it at which rate to go on.
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

_RECENT = 20
_TIMES = 100.0
"""How many times the largest of the recent steps explodes. Compared with the largest and not with the typical one,
because GRPO's steps without a signal have a loss and a gradient of almost 0 between others of ordinary size."""

_ORDINARY_LOSS = 0.1
"""No loss up to a hundred times this explodes. A policy loss cannot get there, whatever the steps before: on its own
rollouts it is at most the largest advantage, the root of the group's size less one. A KL term can."""

_SLOWER = 0.5


class Diverged(Exception):  # noqa: N818 - mended, the first time
    """A step went wrong; `sound` is the last step whose weights are not in doubt."""

    def __init__(self, step: int, reason: str, sound: int) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step, self.reason, self.sound = step, reason, sound


@dataclass(frozen=True, slots=True)
class Rollback:
    """A row of `rollbacks.jsonl`: what happened at which step, and from where and at which rate it went on."""

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
    clipped_at: float,
    skipped: bool,
    finite: bool,
) -> None:
    """Raise Diverged where a step went wrong; `recent` are loss and gradient norm of the steps before, in order.

    With 16-bit floats the gradient scaler tries scales that are too large and skips such a step: with `skipped` the
    gradient is not looked at unless that goes on for all of the recent steps, and the weights are those of the step
    before. Gradients up to `clipped_at`, the norm
    they are clipped at, are ordinary. `finite` says whether all weights are numbers after the step.
    """
    losses = [abs(value) for value, _ in recent[-_RECENT:] if value is not None]
    norms = [norm for _, norm in recent[-_RECENT:] if norm is not None and math.isfinite(norm)]
    _check_size(step, "loss", abs(loss), max([_ORDINARY_LOSS, *losses]))
    if skipped and len(recent) >= _RECENT and not norms:
        raise Diverged(step, f"its gradient and those of {_RECENT} steps before are no numbers", step - _RECENT - 1)
    if not skipped:
        _check_size(step, "gradient", grad_norm, max([clipped_at or 1.0, *norms]))
    if not finite:
        raise Diverged(step, "a weight of the adapter is no number", step - 1)


def _check_size(step: int, name: str, size: float, ordinary: float) -> None:
    if not math.isfinite(size):
        raise Diverged(step, f"its {name} is no number", step - 2)
    if size > _TIMES * ordinary:
        raise Diverged(step, f"its {name} of {size:.3g} is over {_TIMES:.0f} times those before", step - 2)


def learning_rate(folder: Path, planned: float) -> float:
    """The rate at which the training of a folder goes on: the planned one unless it was rolled back."""
    rows = read_jsonl(folder / layout.ROLLBACKS)
    return float(rows[-1]["learning_rate"]) if rows else planned


def set_learning_rate(optimizer: Any, scheduler: Any, rate: float) -> None:
    """Make `rate` the one that the schedule starts from, wherever it is now: a checkpoint brings its own one back."""
    groups = optimizer.param_groups
    if groups[0]["initial_lr"] == rate:
        return
    times = rate / groups[0]["initial_lr"]
    for group in groups:
        group["initial_lr"] *= times
        group["lr"] *= times
    scheduler.base_lrs = [base * times for base in scheduler.base_lrs]
    scheduler._last_lr = [last * times for last in scheduler._last_lr]  # what the next step is logged with


def roll_back(folder: Path, checkpoints: Sequence[int], diverged: Diverged, planned: float) -> Rollback:
    """Remove the checkpoints in doubt, of those that are complete, and note down where and how training goes on.

    UserError where it was done before. The logs are cut by whoever goes on, as after a kill.
    """
    if read_jsonl(folder / layout.ROLLBACKS):
        raise UserError(
            f"{folder / layout.METRICS}: training diverged again at step {diverged.step} ({diverged.reason}), at half "
            "the learning rate; lower grpo.trl.learning_rate or max_grad_norm and --redo the stage of this folder"
        )
    back_to = max((step for step in checkpoints if step <= diverged.sound), default=0)
    # First: a kill in between leaves a training that comes to the same step again, and not one that goes on from it.
    for checkpoint in (folder / layout.CHECKPOINTS).glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > back_to:
            (checkpoint / "trainer_state.json").unlink(missing_ok=True)  # without it a half removed one does not count
            shutil.rmtree(checkpoint)
    rollback = Rollback(diverged.step, diverged.reason, back_to, planned * _SLOWER)
    append_jsonl(folder / layout.ROLLBACKS, [asdict(rollback)])
    return rollback


def load(folder: Path) -> list[Rollback]:
    """The rollbacks of a training, one at most."""
    return [Rollback(**row) for row in read_jsonl(folder / layout.ROLLBACKS)]
