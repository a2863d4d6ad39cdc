"""Which steps count as diverged, where training rolls back to, and its learning rate afterwards."""

import math
from pathlib import Path

import pytest

from ladder_lite.errors import UserError
from ladder_lite.train import divergence
from ladder_lite.train.divergence import Diverged, Rollback, check_step, roll_back

QUIET = [(0.0, 0.0), (0.001, 0.02), (-0.002, 0.5), (None, None)]
STEPS = [
    ("an ordinary step", 0.003, 0.4, {}, None),
    ("larger than before, but ordinary", -0.5, 3.0, {}, None),
    ("the largest policy loss of a large group", 8.0, 5.0, {}, None),
    ("a loss of NaN", math.nan, 0.4, {}, ("its loss is not finite", 8)),
    ("an infinite loss", -math.inf, 0.4, {}, ("its loss is not finite", 8)),
    (
        "a loss over a hundred times an ordinary one",
        11.0,
        0.4,
        {},
        ("its loss of 11 is over 100 times those before", 8),
    ),
    ("a loss that explodes", 40.0, 0.4, {}, ("its loss of 40 is over 100 times those before", 8)),
    ("a negative loss that explodes", -40.0, 0.4, {}, ("its loss of 40 is over 100 times those before", 8)),
    ("a gradient of NaN", 0.1, math.nan, {}, ("its gradient is not finite", 8)),
    ("an infinite gradient", 0.1, math.inf, {}, ("its gradient is not finite", 8)),
    ("a hundred times the clipping norm, not over it", 0.1, 100.0, {}, None),
    ("a gradient that explodes", 0.1, 101.0, {}, ("its gradient of 101 is over 100 times those before", 8)),
    ("within a hundred times a larger clipping norm", 0.1, 101.0, {"max_grad_norm": 2.0}, None),
    ("not clipped", 0.1, 101.0, {"max_grad_norm": 0.0}, ("its gradient of 101 is over 100 times those before", 8)),
    ("skipped by the scaler", 0.1, math.inf, {"skipped": True}, None),
    ("skipped by the scaler, with a huge norm", 0.1, 1e30, {"skipped": True}, None),
    ("skipped, with a loss of NaN", math.nan, math.inf, {"skipped": True}, ("its loss is not finite", 8)),
    ("weights that are not finite", 0.1, 0.4, {"finite": False}, ("a weight of the adapter is not finite", 9)),
]


@pytest.mark.parametrize(("loss", "grad_norm", "given", "trouble"), [s[1:] for s in STEPS], ids=[s[0] for s in STEPS])
def test_which_steps_diverge(
    loss: float, grad_norm: float, given: dict[str, float], trouble: tuple[str, int] | None
) -> None:
    given = {"max_grad_norm": 1.0, "skipped": False, "finite": True} | given
    if trouble is None:
        check_step(10, loss, grad_norm, QUIET, **given)
        return
    with pytest.raises(Diverged) as caught:
        check_step(10, loss, grad_norm, QUIET, **given)
    assert (caught.value.step, caught.value.reason, caught.value.last_sound) == (10, *trouble)


def test_large_values_are_ordinary_if_recent_steps_had_them() -> None:
    ordinary = {"max_grad_norm": 1.0, "skipped": False, "finite": True}
    recent = [(2.0, 30.0)] * 5
    check_step(6, 190.0, 2900.0, recent, **ordinary)
    for loss, norm in ((210.0, 1.0), (1.0, 3100.0)):
        with pytest.raises(Diverged):
            check_step(6, loss, norm, recent, **ordinary)
    long_ago = [*recent, *[(0.0, 0.01)] * 20]
    with pytest.raises(Diverged):
        check_step(26, 190.0, 1.0, long_ago, **ordinary)
    skipped = [(0.1, math.inf)] * 3  # an infinite norm must not make every other one ordinary
    with pytest.raises(Diverged):
        check_step(4, 0.1, 200.0, skipped, **ordinary)


@pytest.mark.parametrize(
    ("last_sound", "back_to", "left"), [(9, 8, [4, 8]), (8, 8, [4, 8]), (7, 4, [4]), (3, 0, []), (-1, 0, [])]
)
def test_it_rolls_back_to_the_last_sound_checkpoint(
    tmp_path: Path, last_sound: int, back_to: int, left: list[int]
) -> None:
    for step in (4, 8, 9, 10):
        (tmp_path / f"checkpoints/checkpoint-{step}").mkdir(parents=True)
        (tmp_path / f"checkpoints/checkpoint-{step}/trainer_state.json").write_text("{}")
    assert divergence.learning_rate(tmp_path, 0.5) == 0.5
    rollback = roll_back(tmp_path, [4, 8], Diverged(10, "its loss is not finite", last_sound), 0.5)  # 9, 10: incomplete
    assert rollback == Rollback(10, "its loss is not finite", back_to, 0.25)
    assert sorted(int(path.name[11:]) for path in (tmp_path / "checkpoints").iterdir()) == left
    assert divergence.load(tmp_path) == [rollback]
    assert divergence.learning_rate(tmp_path, 0.5) == 0.25
    place = f"the checkpoint of step {back_to}" if back_to else "the start"
    assert str(rollback) == (
        f"training diverged at step 10 (its loss is not finite): back to {place} and on at half the learning rate, 0.25"
    )


def test_a_second_divergence_is_an_error(tmp_path: Path) -> None:
    roll_back(tmp_path, [], Diverged(3, "its loss is not finite", 1), 0.5)
    with pytest.raises(UserError, match=r"metrics\.jsonl: training diverged again at step 7 .*learning_rate.*--redo"):
        roll_back(tmp_path, [], Diverged(7, "its loss is not finite", 5), 0.25)
    assert len(divergence.load(tmp_path)) == 1


@pytest.mark.parametrize("schedule", ["constant", "linear", "polynomial", "cosine", "constant_with_warmup"])
def test_the_whole_schedule_is_halved_after_a_checkpoint(schedule: str) -> None:
    import torch
    from transformers import get_scheduler

    def start(rate: float):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=rate)
        options = {"power": 2.0} if schedule == "polynomial" else {}
        return optimizer, get_scheduler(schedule, optimizer, 3, 20, options)

    def go_on(optimizer, scheduler, n: int) -> list[float]:  # type: ignore[no-untyped-def]
        rates = []
        for _ in range(n):
            rates.append(optimizer.param_groups[0]["lr"])
            assert scheduler.get_last_lr() == rates[-1:]
            optimizer.step()
            scheduler.step()
        return rates

    before = start(0.4)
    planned = go_on(*before, 5)
    resumed = start(0.2)
    for new, old in zip(resumed, before, strict=True):
        new.load_state_dict(old.state_dict())
    divergence.set_learning_rate(*resumed, 0.2)
    planned = go_on(*before, 15)
    assert go_on(*resumed, 15) == pytest.approx(
        [rate / 2 for rate in planned], abs=1e-7
    )  # the end of "polynomial" is an absolute rate
    divergence.set_learning_rate(*resumed, 0.2)  # a checkpoint that has this rate already is left as it is
    assert resumed[0].param_groups[0]["initial_lr"] == 0.2


def test_a_run_with_a_learning_rate_of_zero_resumes() -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.0)
    scheduler = get_scheduler("constant", optimizer)
    divergence.set_learning_rate(optimizer, scheduler, 0.0)
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]] == [0.0]


def test_gradients_that_overflow_at_every_scale_are_a_divergence() -> None:
    skipped = [(0.1, math.inf)] * 20
    with pytest.raises(Diverged, match="step 25: its gradient and those of 20 steps before are not finite") as caught:
        check_step(25, 0.1, math.inf, skipped, max_grad_norm=1.0, skipped=True, finite=True)
    assert caught.value.last_sound == 4  # the last step before those that were skipped
    check_step(21, 0.1, math.inf, [(0.1, 0.5), *skipped[1:]], max_grad_norm=1.0, skipped=True, finite=True)
