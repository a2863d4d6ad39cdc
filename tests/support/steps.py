"""Steps of a training run whose rows and replies a test chooses."""

from collections.abc import Sequence

from ladder_lite.problems.attempts import Completion
from ladder_lite.train.groups import Group
from ladder_lite.train.state import TrainingState


def grade_groups(state: TrainingState, rows: Sequence[int], texts: Sequence[str], size: int) -> None:
    """Grade replies to the problems in `rows` as the current step's; each `size` of them are a group."""
    rewards = state.grade(rows, [Completion(text, len(text), truncated=False) for text in texts])
    starts = range(0, len(rows), size)
    state.trained += [Group(rows[start], [], rewards[start : start + size]) for start in starts]
