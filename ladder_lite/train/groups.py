"""The groups of rollouts that a step trains on. Those without signal are recognised early and replaced.

If all completions of a group have the same reward, their advantages are zero, and the group teaches nothing. Four
measures against that, each a setting of the recipe:

- `grpo.refill`: DAPO (arXiv 2503.14476) samples whole groups, drops those without signal, and samples others until the
  step is full. Here a group starts with a pilot, a few of its completions. Only if their rewards differ is the rest
  sampled, so that a dropped group costs the pilot alone.
- `grpo.replay`: half of a group without a right answer becomes its problem's latest one from an earlier step, which is
  trained on as if it were new. The idea is that of ExGRPO (arXiv 2510.02245), which weights such answers.
- `grpo.base_rollouts`: the same, with right answers of the base model, which is the same model with its adapter
  switched off. In each step, it tries the shortest problems that the model fails. Training sharpens a model to
  its likeliest answers. Where these are wrong, it stops sampling right ones, which the base model still does.
- `grpo.downsample_from`: more completions are sampled than are trained on, and those whose rewards vary most are
  selected (PODS, arXiv 2504.13818). This saves time in the update, not in sampling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import pvariance

from ladder_lite.config import Refill
from ladder_lite.models.backend import Rollout

Sample = Callable[[list[int]], tuple[list[Rollout], list[float | None]]]
"""Samples one completion for each of the given rows, and returns the rollouts with their rewards."""


@dataclass(slots=True)
class Group:
    """Rollouts of one row, with their rewards; a reward is None if the problem cannot be verified."""

    row: int
    rollouts: list[Rollout] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ. Rewards of None do not count, as TRL gives them an advantage of 0."""
        return len(set(self.rewards) - {None}) > 1

    @property
    def is_solved(self) -> bool:
        """Whether an answer is right, or the problem cannot be verified."""
        # A right answer has a reward of 1, with the format reward a little more.
        return any(reward is None or reward >= 1 for reward in self.rewards)

    def select(self, size: int) -> "Group":
        """Return the group with only those `size` rollouts whose rewards have the largest variance."""
        # Such a subset consists of the k largest and the size - k smallest rewards, for some k (PODS, Theorem 1).
        values = [reward or 0.0 for reward in self.rewards]
        order = sorted(range(len(values)), key=values.__getitem__)
        subsets = [order[: size - k] + order[len(order) - k :] for k in range(size + 1)]
        places = max(subsets, key=lambda places: pvariance([values[place] for place in places]))
        return Group(self.row, [self.rollouts[i] for i in places], [self.rewards[i] for i in places])


Replay = Callable[[list[Group]], None]
"""Puts earlier right answers into unsolved groups whose rows have one."""


def most_groups(n: int, size: int, refill: Refill | None) -> int:
    """Return how many groups may be started to get `n` complete ones of `size` rollouts."""
    if refill is None:
        return n
    # Completing n groups takes n (size - pilot) rollouts in any case; the rest of the limit can be spent on pilots.
    pilot = min(refill.pilot, size)
    return int(refill.limit * n * size - n * (size - pilot)) // pilot


def sample_groups(
    rows: Sequence[int], sample: Sample, n: int, size: int, refill: Refill | None, replay: Replay = lambda _: None
) -> tuple[list[Group], list[Group]]:
    """Sample `n` groups of `size` rollouts from the rows, in their order; return them and the groups that were dropped.

    Without `refill`, these are the groups of the first `n` rows. With it, a group that shows no signal in its pilot is
    replaced by one of the next row, while there are rows. Groups that are then missing are taken from the dropped ones.
    """
    pilot = min(refill.pilot, size) if refill else size
    waiting = [Group(row) for row in rows]
    kept: list[Group] = []
    dropped: list[Group] = []
    # The first pilots have as many rollouts as a step without refilling, so that most steps take two or three waves.
    n_new = n * size // pilot
    while True:
        new, waiting = waiting[:n_new], waiting[n_new:]
        if not new:
            kept, dropped = kept + dropped, []  # groups that are missing are taken from the dropped ones
        # A wave: the rest of the groups that will be trained on, and pilots of new ones.
        wave = [group for group in kept[:n] for _ in range(size - len(group.rollouts))]
        wave += [group for group in new for _ in range(pilot)]
        if not wave:
            return kept[:n], kept[n:]
        rollouts, rewards = sample([group.row for group in wave])
        for group, rollout, reward in zip(wave, rollouts, rewards, strict=True):
            group.rollouts.append(rollout)
            group.rewards.append(reward)
        replay([group for group in new if not group.is_solved])
        for group in new:
            (kept if group.has_signal or not refill else dropped).append(group)
        n_new = 2 * max(0, n - len(kept))  # about half of them will have signal
