"""The state of a training run: steps, rewards, when training ends, and the checkpoint to resume from."""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import pytest

from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import BaseRollouts, GrpoSettings
from ladder_lite.jsonl import read_jsonl, truncate_jsonl
from ladder_lite.models import Rollout
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt, Completion
from ladder_lite.train.curriculum import PassRates
from ladder_lite.train.grpo import _complete_checkpoints
from ladder_lite.train.state import Step, Training, TrainingState
from ladder_lite.verify import Grade, Reason
from tests.support.fakes import FakeBackend
from tests.support.problems import TASK, problem
from tests.support.steps import grade_groups

# --- steps

LOGS = {"loss": 0.25, "learning_rate": 0.125, "entropy": 1.5}
RIGHT, WRONG, NONE = "<answer>x**2</answer>", "<answer>x**3</answer>", "no idea"
PROBLEMS = [problem("2*x"), problem("x+x"), problem("1/(x-x)")]  # the last one cannot be verified
UNVERIFIABLE = 2


def never(step: Step, rollouts: list[Attempt]) -> bool:  # noqa: ARG001
    return False


@lru_cache
def settings(plateau: str = "null", format_reward: float = 0.0) -> GrpoSettings:
    overrides = (f"grpo.plateau={plateau}", f"grpo.format_reward={format_reward}", "grpo.trl.num_generations=2")
    return load_recipe("tiny", overrides).grpo


def open_state(
    folder: Path,
    chosen: GrpoSettings | None = None,
    after_step: Callable[[Step, list[Attempt]], bool] = never,
) -> TrainingState:
    training = Training(TASK, FakeBackend([]), chosen or settings(), folder, 0)
    return TrainingState(training, PROBLEMS, None, after_step)


def do_step(state: TrainingState, *groups: tuple[int, str, str]) -> bool:
    """Do a step of groups (row, reply, reply), graded in one call."""
    state.begin_step()
    rows = [row for row, *_ in groups for _ in range(2)]
    grade_groups(state, rows, [text for _, *texts in groups for text in texts], 2)
    return state.end_step(LOGS)


SIGNAL, NO_SIGNAL = (0, RIGHT, WRONG), (0, WRONG, WRONG)
STEPS = [
    ("one right", [SIGNAL], 0.5, 0.0),
    ("all right", [(0, RIGHT, RIGHT)], 1.0, 1.0),
    ("all wrong", [NO_SIGNAL, (1, NONE, NONE)], 0.0, 1.0),
    ("one group of two", [SIGNAL, NO_SIGNAL], 0.25, 0.5),
    ("rewards are not compared across groups", [(0, RIGHT, RIGHT), (1, WRONG, WRONG)], 0.5, 1.0),
    ("an unverifiable problem is left out of the mean", [SIGNAL, (UNVERIFIABLE, RIGHT, WRONG)], 0.5, 0.5),
    ("only unverifiable problems", [(UNVERIFIABLE, RIGHT, WRONG)], 0.0, 1.0),
]


@pytest.mark.parametrize(("groups", "reward", "without_signal"), [s[1:] for s in STEPS], ids=[s[0] for s in STEPS])
def test_a_step_sums_up_its_rollouts(
    tmp_path: Path, groups: list[tuple[int, str, str]], reward: float, without_signal: float
) -> None:
    seen: list[tuple[Step, list[Attempt]]] = []
    state = open_state(tmp_path, after_step=lambda step, rollouts: bool(seen.append((step, rollouts))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a user would see them between the progress bars
        assert do_step(state, *groups) is False
    (step,) = state.steps
    assert (step.step, step.stop) == (1, None)
    assert (step.reward, step.groups_without_signal) == pytest.approx((reward, without_signal))
    assert (step.loss, step.learning_rate, step.entropy) == (0.25, 0.125, 1.5)
    assert step.n_tokens == sum(len(text) for _, *texts in groups for text in texts)
    assert 0 <= step.verify_seconds <= step.seconds
    rows = read_jsonl(tmp_path / "attempts.jsonl")
    assert seen == [(step, [Attempt.from_row(row) for row in rows])]
    assert [row["step"] for row in rows] == [1] * 2 * len(groups)
    assert [row["text"] for row in rows] == [text for _, *texts in groups for text in texts]
    assert read_jsonl(tmp_path / "metrics.jsonl") == [asdict(step)]


@pytest.mark.parametrize(("format_reward", "expected"), [(0.0, [1, 0, 0, 0, None]), (0.1, [1.1, 0.1, 0.1, 0, None])])
def test_rewards(tmp_path: Path, format_reward: float, expected: list[float | None]) -> None:
    state = open_state(tmp_path, settings(format_reward=format_reward))
    state.begin_step()
    texts = [RIGHT, WRONG, "<answer>x**</answer>", NONE, RIGHT]
    completions = [Completion(text, 1, truncated=False) for text in texts]
    assert state.grade([0, 0, 1, 1, UNVERIFIABLE], completions) == pytest.approx(expected)
    rows = read_jsonl(tmp_path / "attempts.jsonl")
    assert [row["reward"] for row in rows] == [1, 0, 0, 0, None]  # without the format reward
    reasons = [Reason.CORRECT, Reason.WRONG, Reason.UNPARSEABLE, Reason.NO_ANSWER, Reason.UNVERIFIABLE]
    assert [row["reason"] for row in rows] == reasons
    assert [row["problem_id"] for row in rows] == [PROBLEMS[row].id for row in (0, 0, 1, 1, UNVERIFIABLE)]


def test_a_task_may_reward_an_answer_that_is_not_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASK, "grade", lambda _, text: Grade(0.4, Reason.WRONG, text))
    state = open_state(tmp_path, settings(format_reward=0.1))
    state.begin_step()
    grade_groups(state, [0, 0], [WRONG] * 2, 2)
    assert state.trained[0].rewards == pytest.approx([0.5, 0.5])
    state.end_step(LOGS)
    assert state.steps[0].reward == pytest.approx(0.5)
    assert state.rates.table(1)[0]["right"] == 0  # a pass rate counts right answers


@pytest.mark.parametrize("reward", ["format", "random"])
def test_rewards_of_controls_do_not_depend_on_the_verdict(tmp_path: Path, reward: str) -> None:
    chosen = settings(format_reward=0.1).model_copy(update={"reward": reward, "replay": True})
    replies = [RIGHT, WRONG, NONE, "<answer>2**</answer>"] * 100
    state = open_state(tmp_path, chosen)
    state.begin_step()
    grade_groups(state, [0] * 400, replies, 400)
    rewards = state.trained[0].rewards
    cut = state.grade([0, 0], [Completion(text, 1, truncated=True) for text in (RIGHT, WRONG)])
    assert reward == "random" or cut == pytest.approx([1.1, 1.1])  # also where the token limit cut a reply
    earned_by_cut = [value is not None and value >= 1 for value in cut]
    state.end_step(LOGS)
    earned = [value is not None and value >= 1 for value in rewards]
    shares = [sum(earned[place::4]) / 100 for place in range(4)]
    assert shares == ([1, 1, 0, 0] if reward == "format" else pytest.approx([0.5] * 4, abs=0.15))
    formatted = [value - own for value, own in zip(rewards, earned, strict=True) if value is not None]
    assert formatted == pytest.approx([0.1, 0.1, 0, 0.1] * 100)
    # Neither the rows nor replayed answers get to know the verdicts, and a resumed run sees the same rewards.
    again = open_state(tmp_path, chosen)
    assert state.rates.table(1)[0]["right"] == sum(earned) + sum(earned_by_cut) == again.rates.table(1)[0]["right"]
    assert again.rates.estimate(1) == pytest.approx(state.rates.estimate(1))
    again.begin_step()
    (group,) = [group for group in again.roll_out(3, 2, WrongAgain()) if group.row == 0]
    assert group.is_solved  # an earlier answer that earned the reward is replayed
    assert state.grade([UNVERIFIABLE], [Completion(RIGHT, 1, truncated=False)]) == [None]
    # The report counts verdicts, whatever was rewarded.
    assert state.steps[0].solved_problems == 1
    assert [row["reward"] for row in read_jsonl(tmp_path / "attempts.jsonl")[:4]] == [1, 0, 0, 0]


def test_a_step_graded_in_parts_is_one_step(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    do_step(state, SIGNAL)
    state.begin_step()
    for texts in ((RIGHT, RIGHT), (RIGHT, WRONG)):
        grade_groups(state, [1, 1], texts, 2)
    state.end_step(LOGS)
    assert [(step.step, step.reward, step.groups_without_signal) for step in state.steps] == [
        (1, 0.5, 0),
        (2, 0.75, 0.5),
    ]
    assert state.steps[1].n_tokens == 4 * len(RIGHT)
    assert [row["step"] for row in read_jsonl(tmp_path / "attempts.jsonl")] == [1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("plateau", "signals", "stops_at"),
    [
        ("null", "000000", None),
        ("{patience: 3, min_signal: 0.2}", "000", 3),
        ("{patience: 3, min_signal: 0.2}", "00", None),
        ("{patience: 3, min_signal: 0.2}", "100000", 4),
        ("{patience: 3, min_signal: 0.2}", "001001001", None),  # a third of the groups has signal, which is above 0.2
        ("{patience: 3, min_signal: 0.4}", "101001", 4),  # two of three steps have signal, then one of three
        ("{patience: 3, min_signal: 0.0}", "000000", None),
    ],
)
def test_training_ends_on_a_plateau(tmp_path: Path, plateau: str, signals: str, stops_at: int | None) -> None:
    state = open_state(tmp_path, settings(plateau))
    for number, signal in enumerate(signals, start=1):
        state = open_state(tmp_path, settings(plateau))  # as after a kill: earlier steps count too
        stopped = do_step(state, SIGNAL if signal == "1" else NO_SIGNAL)
        assert stopped is (number == stops_at), number
        assert state.steps[-1].stop == ("plateau" if stopped else None)
        assert state.ended(max_steps=100) is stopped
        if stopped:
            break
    assert len(state.steps) == (stops_at or len(signals))


def test_after_step_ends_training(tmp_path: Path) -> None:
    state = open_state(tmp_path, settings("{patience: 2, min_signal: 0.5}"), lambda step, rollouts: step.step == 2)
    assert [do_step(state, NO_SIGNAL), do_step(state, NO_SIGNAL)] == [False, True]
    assert [step.stop for step in state.steps] == [None, "asked"]
    assert [row["stop"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [None, "asked"]


def test_the_last_step_ends_training(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    assert state.ended(max_steps=2) is False
    do_step(state, SIGNAL)
    assert (state.ended(max_steps=2), state.ended(max_steps=1)) == (False, True)


def test_a_state_read_from_its_folder_equals_the_one_that_wrote_it(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    do_step(state, SIGNAL, (1, RIGHT, RIGHT))
    do_step(state, (1, WRONG, NONE), (UNVERIFIABLE, RIGHT, WRONG))
    do_step(state, NO_SIGNAL)
    again = open_state(tmp_path)
    assert again.steps == state.steps
    for step in range(1, 7):
        assert again.rates.estimate(step) == pytest.approx(state.rates.estimate(step)), step
        assert again.rates.draw(step, 5) == state.rates.draw(step, 5)

    for name in ("metrics.jsonl", "attempts.jsonl"):  # as when resuming from the checkpoint of step 1
        truncate_jsonl(tmp_path / name, lambda row: row["step"] <= 1)
    earlier = open_state(tmp_path)
    assert earlier.steps == state.steps[:1]
    fresh = PassRates(PROBLEMS, "pass_rate", 0, 1)
    for row, correct in ((0, True), (0, False), (1, True), (1, True)):
        fresh.observe(1, row, correct)
    assert earlier.rates.estimate(5) == pytest.approx(fresh.estimate(5))


class WrongAgain:
    """Samples wrong answers only, and encodes an answer as the codes of its characters.

    The base model answers with the given texts, in turn.
    """

    def __init__(self, *base: str) -> None:
        self.base = base
        self.asked: list[Problem] = []  # of the base model

    def sample(self, problems: list[Problem], wave: int, from_base: bool = False) -> list[Rollout]:  # noqa: ARG002
        if not from_base:
            return [Rollout([1], [2], Completion(WRONG, 1, truncated=False)) for _ in problems]
        self.asked += problems
        texts = [self.base[number % len(self.base)] for number in range(len(problems))]
        return [Rollout([1], [3], Completion(text, 1, truncated=False)) for text in texts]

    def encode(self, completion: Completion) -> list[int]:
        return list(map(ord, completion.text))


def test_each_step_trains_on_the_rows_that_are_drawn_for_it(tmp_path: Path) -> None:
    chosen = settings().model_copy(update={"refill": None, "base_rollouts": None})
    for step in range(1, 7):
        state = open_state(tmp_path, chosen)  # as after a kill
        state.begin_step()
        assert [group.row for group in state.roll_out(2, 2, WrongAgain())] == state.rates.draw(step, 2)
        state.end_step(LOGS)


@pytest.mark.parametrize("replay", [True, False])
def test_a_resumed_run_replays_the_latest_right_answer(tmp_path: Path, replay: bool) -> None:
    chosen = settings(format_reward=0.1).model_copy(update={"replay": replay})
    latest = "<answer>x*x</answer>"
    do_step(open_state(tmp_path, chosen), (0, RIGHT, latest), (0, WRONG, WRONG), (1, WRONG, RIGHT))
    state = open_state(tmp_path, chosen)
    state.begin_step()
    groups = {group.row: group for group in state.roll_out(3, 2, WrongAgain()) if group.row != UNVERIFIABLE}
    for row, group in groups.items():
        earlier = [*map(ord, (latest, RIGHT)[row])] if replay else [2]
        assert [rollout.completion_ids for rollout in group.rollouts] == [[2], earlier]
        assert group.rewards == pytest.approx([0.1, 1.1 if earlier != [2] else 0.1])
    assert set(groups) == {0, 1}
    # A replayed answer is no measurement of the model: it is neither logged nor counted.
    assert [row["text"] for row in read_jsonl(tmp_path / "attempts.jsonl") if row["step"] == 2] == [WRONG] * 6


def with_base_rollouts(rows: int) -> GrpoSettings:
    changes = {"base_rollouts": BaseRollouts(rows=rows, samples=3), "refill": None}
    return settings(format_reward=0.1).model_copy(update=changes)


def test_the_base_model_tries_what_the_model_never_solves(tmp_path: Path) -> None:
    base = [WRONG, "<answer>x*x</answer>", RIGHT]
    chosen = with_base_rollouts(2)
    told: list[Attempt] = []

    def after_step(_: Step, rollouts: list[Attempt]) -> bool:
        told.extend(rollouts)
        return False

    for step in range(1, 5):
        # A new state each time, as after a kill.
        state, sampler = open_state(tmp_path, chosen, after_step), WrongAgain(*base)
        state.begin_step()
        groups = {group.row: group for group in state.roll_out(3, 4, sampler)}
        state.end_step(LOGS)
        # In the first step, nothing is known. Afterwards, each problem is tried in one step only, the shortest first.
        expected = [PROBLEMS[row].id for row in (0, 1) for _ in base] if step == 2 else []
        assert [problem.id for problem in sampler.asked] == expected
        for row in (0, 1):
            replayed = [*map(ord, RIGHT)] if step > 1 else [2]
            assert [rollout.completion_ids for rollout in groups[row].rollouts] == [[2]] * 2 + [replayed] * 2
            assert groups[row].rewards == pytest.approx([0.1] * 2 + [1.1 if step > 1 else 0.1] * 2)
    # The base model's answers are logged as such. They do not measure the trained model, and no caller counts them.
    assert [attempt.from_base for attempt in told] == [False] * 4 * 12
    rows = read_jsonl(tmp_path / "attempts.jsonl")
    assert [row["text"] for row in rows if row.get("from_base")] == base * 2
    assert [row["index"] for row in rows if row["step"] == 2] == list(range(18))
    assert "from_base" not in rows[0]
    second = state.steps[1]
    assert (second.n_rollouts, second.n_base_rollouts, second.reward) == (18, 6, pytest.approx(0.1))
    assert second.solved_problems == 0
    assert [row["right"] for row in state.rates.table(4)] == [0, 0, 0]


@pytest.mark.parametrize("n_rows", [1, 2])
def test_the_base_model_tries_as_many_problems_as_asked(tmp_path: Path, n_rows: int) -> None:
    asked = []
    for _ in range(4):
        state, sampler = open_state(tmp_path, with_base_rollouts(n_rows)), WrongAgain(WRONG)
        state.begin_step()
        groups = state.roll_out(3, 4, sampler)
        state.end_step(LOGS)
        asked.append([problem.id for problem in sampler.asked])
        assert {rollout.completion_ids[0] for group in groups for rollout in group.rollouts} == {2}
    ids = [PROBLEMS[row].id for row in (0, 1)]
    once = [[ids[0]] * 3, [ids[1]] * 3] if n_rows == 1 else [[ids[0]] * 3 + [ids[1]] * 3, []]
    assert asked == [[], *once, []]


@pytest.mark.parametrize("replay", [False, True])
def test_what_was_solved_earlier_is_replayed_or_tried_by_the_base_model(tmp_path: Path, replay: bool) -> None:
    chosen = with_base_rollouts(2).model_copy(update={"replay": replay})
    failing = [(0, WRONG, WRONG)] * 8 + [(1, WRONG, WRONG)] * 40
    do_step(open_state(tmp_path, chosen), (1, RIGHT, WRONG), *failing)
    state, sampler = open_state(tmp_path, chosen), WrongAgain(WRONG)
    assert {0, 1} <= set(state.rates.stuck(1))
    state.begin_step()
    state.roll_out(3, 4, sampler)
    assert (PROBLEMS[1].id in {problem.id for problem in sampler.asked}) is not replay
    assert PROBLEMS[0].id in {problem.id for problem in sampler.asked}


def test_the_base_model_tries_what_the_model_has_unlearned(tmp_path: Path) -> None:
    chosen = with_base_rollouts(2)
    for answer in (RIGHT, WRONG):
        do_step(open_state(tmp_path, chosen), *[(0, answer, answer)] * 4, *[(1, RIGHT, RIGHT)] * 4)
    state, sampler = open_state(tmp_path, chosen), WrongAgain(WRONG)
    assert 0 not in state.rates.stuck(2)  # the right answers count, too
    state.begin_step()
    state.roll_out(3, 4, sampler)
    assert {problem.id for problem in sampler.asked} == {PROBLEMS[0].id}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_does_not_break_the_log(tmp_path: Path, loss: float) -> None:
    state = open_state(tmp_path)
    state.begin_step()
    grade_groups(state, [0, 0], [RIGHT] * 2, 2)
    state.end_step(LOGS | {"loss": loss})
    assert [step.step for step in open_state(tmp_path).steps] == [1]
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["loss"] is None


# --- checkpoints

STATE = json.dumps({"global_step": 3, "log_history": [{"loss": 0.5}]}, indent=2)
CHECKPOINTS: list[tuple[str, dict[int, str | None], int | None]] = [
    ("no checkpoint", {}, None),
    ("one", {1: STATE}, 1),
    ("steps are compared as numbers, not as text", {9: STATE, 10: STATE, 2: STATE}, 10),
    ("the newest is torn", {3: STATE, 4: STATE[: len(STATE) // 2]}, 3),
    ("the newest lost its last byte", {3: STATE, 4: STATE[:-1]}, 3),
    ("the newest is empty", {3: STATE, 4: ""}, 3),
    ("the newest has no state yet", {3: STATE, 4: None}, 3),
    ("the two newest are torn", {3: STATE, 4: "{", 5: "\0" * 40}, 3),
    ("all are torn", {3: "{", 4: None}, None),
]


@pytest.mark.parametrize(("states", "expected"), [c[1:] for c in CHECKPOINTS], ids=[c[0] for c in CHECKPOINTS])
def test_the_last_complete_checkpoint(tmp_path: Path, states: dict[int, str | None], expected: int | None) -> None:
    for step, state in states.items():
        folder = tmp_path / f"checkpoints/checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    (tmp_path / "runs").mkdir()
    last = [] if expected is None else [tmp_path / f"checkpoints/checkpoint-{expected}"]
    assert _complete_checkpoints(tmp_path)[-1:] == last


def test_a_checkpoint_whose_state_is_not_text_is_incomplete(tmp_path: Path) -> None:
    assert _complete_checkpoints(tmp_path / "absent") == []
    (tmp_path / "checkpoints/checkpoint-1").mkdir(parents=True)
    (tmp_path / "checkpoints/checkpoint-1/trainer_state.json").write_bytes(b'{"a": "\xff')
    assert _complete_checkpoints(tmp_path) == []
