"""Groups of rollouts: which ones a step trains on, which ones are replaced, and what that costs."""

from collections import Counter
from itertools import combinations
from statistics import pvariance

import pytest

from ladder_lite.config import Refill
from ladder_lite.models import Rollout
from ladder_lite.problems.attempts import Completion
from ladder_lite.train.groups import Group, most_groups, sample_groups

# Rewards of a row's rollouts, in their order: (right, wrong) repeated, or all the same.
MIXED, SOLVED, FAILED, LATE, UNVERIFIABLE = (1.0, 0.0), (1.0,), (0.0,), (0.0, 0.0, 0.0, 0.0, 1.0), (None,)


class Sampler:
    """Samples rollouts whose rewards are given by row, and records the waves."""

    def __init__(self, *rewards: tuple[float | None, ...]) -> None:
        self.rewards = rewards
        self.waves: list[Counter[int]] = []
        self._sampled = Counter[int]()

    def __call__(self, rows: list[int]) -> tuple[list[Rollout], list[float | None]]:
        self.waves.append(Counter(rows))
        rollouts, rewards = [], []
        for row in rows:
            number = self._sampled[row]
            self._sampled[row] += 1
            rollouts.append(Rollout([row], [number], Completion("", 1, truncated=False)))
            rewards.append(self.rewards[row][number % len(self.rewards[row])])
        return rollouts, rewards

    @property
    def n_rollouts(self) -> int:
        return self._sampled.total()


def sample(sampler: Sampler, n: int, size: int, refill: Refill | None) -> tuple[list[Group], list[Group]]:
    return sample_groups(list(range(len(sampler.rewards))), sampler, n, size, refill)


def refill(pilot: int = 2, limit: float = 2.0) -> Refill:
    return Refill(pilot=pilot, limit=limit)


def test_without_refill_each_of_the_first_rows_has_one_group_sampled_at_once() -> None:
    sampler = Sampler(SOLVED, FAILED, MIXED)
    trained, dropped = sample(sampler, 2, 4, None)
    assert [(group.row, group.rewards) for group in trained] == [(0, [1.0] * 4), (1, [0.0] * 4)]
    assert dropped == []
    assert sampler.waves == [{0: 4, 1: 4}]
    assert [rollout.completion_ids for rollout in trained[1].rollouts] == [[0], [1], [2], [3]]
    assert most_groups(2, 4, None) == 2


def test_a_group_without_signal_in_its_pilot_is_replaced() -> None:
    sampler = Sampler(SOLVED, FAILED, MIXED, UNVERIFIABLE, MIXED, MIXED, MIXED)
    trained, dropped = sample(sampler, 2, 4, refill())
    assert [group.row for group in trained] == [2, 4]
    assert [group.rewards for group in trained] == [[1.0, 0.0, 1.0, 0.0]] * 2
    assert {group.row for group in dropped} == {0, 1, 3, 5}
    # Pilots with as many rollouts as a step has; then the rest of the group that is kept, beside two further pilots for
    # each group that is missing.
    assert sampler.waves == [{0: 2, 1: 2, 2: 2, 3: 2}, {2: 2, 4: 2, 5: 2}, {4: 2}]


def test_surplus_groups_are_dropped_after_their_pilot() -> None:
    sampler = Sampler(MIXED, MIXED, MIXED, MIXED)
    trained, dropped = sample(sampler, 2, 4, refill())
    assert ([group.row for group in trained], [group.row for group in dropped]) == ([0, 1], [2, 3])
    assert sampler.waves == [dict.fromkeys(range(4), 2), {0: 2, 1: 2}]


def test_missing_groups_are_taken_from_the_dropped_ones() -> None:
    sampler = Sampler(LATE, FAILED, MIXED)
    trained, dropped = sample(sampler, 3, 8, refill(pilot=4))
    assert [group.row for group in trained] == [2, 0, 1]
    assert [len(group.rollouts) for group in trained] == [8] * 3
    assert [group.has_signal for group in trained] == [True, True, False]
    assert dropped == []


@pytest.mark.parametrize("kinds", [(FAILED,), (MIXED,), (FAILED, MIXED), (FAILED, FAILED, SOLVED, FAILED, MIXED)])
@pytest.mark.parametrize(
    ("n", "size", "pilot", "limit"), [(8, 8, 4, 2.0), (8, 8, 8, 2.0), (2, 4, 3, 1.5), (3, 8, 2, 1)]
)
def test_the_limit_is_kept_and_every_trained_group_is_complete(
    kinds: tuple[tuple[float, ...], ...], n: int, size: int, pilot: int, limit: float
) -> None:
    chosen = refill(pilot, limit)
    rows = [kinds[row % len(kinds)] for row in range(most_groups(n, size, chosen))]
    sampler = Sampler(*rows)
    trained, dropped = sample(sampler, n, size, chosen)
    assert sampler.n_rollouts <= limit * n * size
    # With one more pilot, a step could exceed the limit.
    assert n * (size - pilot) + (len(rows) + 1) * pilot > limit * n * size
    assert len(trained) == n
    assert all(len(group.rollouts) == len(group.rewards) == size for group in trained)
    assert all(len(group.rollouts) == pilot for group in dropped)
    assert len({group.row for group in trained + dropped}) == len(trained + dropped)


def test_a_pilot_longer_than_a_group_is_the_whole_group() -> None:
    sampler = Sampler(FAILED, MIXED, MIXED)
    trained, _ = sample(sampler, 1, 2, refill(pilot=4))
    assert [(group.row, len(group.rollouts)) for group in trained] == [(1, 2)]


OTHER = Rollout([1], [77], Completion("", 1, truncated=False))


@pytest.mark.parametrize("refilled", [None, refill()])
def test_earlier_answers_go_into_groups_without_a_right_one(refilled: Refill | None) -> None:
    asked: list[int] = []

    def replay(groups: list[Group]) -> None:
        asked.extend(group.row for group in groups)
        for group in groups:
            if group.row == 1:
                group.rollouts[-1], group.rewards[-1] = OTHER, 1.0

    sampler = Sampler(FAILED, FAILED, SOLVED, MIXED, UNVERIFIABLE)
    trained, dropped = sample_groups(list(range(5)), sampler, 5, 4, refilled, replay)
    assert sorted(asked) == [0, 1]
    groups = {group.row: group for group in trained + dropped}
    assert sorted(groups[1].rewards) == [0.0, 0.0, 0.0, 1.0]
    assert groups[1].rollouts[groups[1].rewards.index(1.0)] == OTHER
    assert set(groups[0].rewards) == {0.0}
    assert [rollout for group in groups.values() for rollout in group.rollouts].count(OTHER) == 1
    # Such a group has a signal, so refilling does not replace it.
    assert refilled is None or 1 in [group.row for group in trained]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([0.0, 0.0], False), ([0.0, 0.1], False), ([1.0, 0.0], True), ([1.1, 0.1], True), ([None, None], True)],
)
def test_solved(rewards: list[float | None], expected: bool) -> None:
    assert Group(0, [], rewards).is_solved is expected


@pytest.mark.parametrize(
    ("rewards", "size", "expected"),
    [
        ([1, 0, 0, 0, 0, 0, 0, 0], 4, [0, 0, 0, 1]),
        ([1, 1, 1, 1, 1, 1, 0, 0], 4, [0, 0, 1, 1]),
        ([1, 1, 1, 0, 1, 1, 1, 1], 4, [0, 1, 1, 1]),
        ([0.1, 1.1, 0.1, 0, 1.1, 0.1], 2, [0, 1.1]),
        ([1, 1, 1, 1], 2, [1, 1]),
        ([0, 1, 0, 1.01, 1, 0], 3, [0, 0, 1.01]),
        ([0, None, 1, 1], 4, [None, 0, 1, 1]),
    ],
)
def test_the_rollouts_whose_rewards_vary_most_are_selected(
    rewards: list[float | None], size: int, expected: list[float | None]
) -> None:
    rollouts = [Rollout([], [number], Completion("", 1, truncated=False)) for number in range(len(rewards))]
    group = Group(3, rollouts, rewards).select(size)
    assert sorted(group.rewards, key=lambda reward: -1 if reward is None else reward) == expected
    assert [rewards[rollout.completion_ids[0]] for rollout in group.rollouts] == group.rewards
    best = max(pvariance(chosen) for chosen in combinations([reward or 0 for reward in rewards], size))
    assert pvariance([reward or 0 for reward in group.rewards]) == pytest.approx(best)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([1.0, 0.0], True), ([1.0, 1.0], False), ([0.0, 0.1], True), ([None, 1.0], False), ([None, 1.0, 0.0], True)],
)
def test_signal(rewards: list[float | None], expected: bool) -> None:
    assert Group(0, [], rewards).has_signal is expected
