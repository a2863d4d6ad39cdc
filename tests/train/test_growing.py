"""Growth of the tree during training: when it is asked, for what, and that training draws what has grown."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pytest

from ladder_lite.config import Adaptive
from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import GrpoSettings
from ladder_lite.jsonl import read_jsonl
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Completion
from ladder_lite.train.state import Training, TrainingState
from ladder_lite.variants import Growth
from tests.support.fakes import FakeBackend
from tests.support.problems import TASK, problem
from tests.support.steps import grade_groups

NEVER_SOLVED, SOMETIMES_SOLVED, UNVERIFIABLE = problem("exp(x**2)*cos(x)"), problem("2*x"), problem("1/(x-x)")
PROBLEMS = [NEVER_SOLVED, SOMETIMES_SOLVED, UNVERIFIABLE]


class Grower:
    """A growth that brings one new problem each time, and records what it was asked."""

    settings = Adaptive(start=1, every=3, requests=1)

    def __init__(self, grown: Sequence[tuple[int, Problem]] = ()) -> None:
        self.asked: list[tuple[int, list[Problem], list[Problem]]] = []
        self.rewound_to: int | None = None
        self._grown = list(grown)

    def rewind(self, step: int) -> list[tuple[int, Problem]]:
        self.rewound_to = step
        return self._grown

    def grow(self, step: int, stuck: Sequence[Problem], frontier: Sequence[Problem]) -> list[Problem]:
        self.asked.append((step, list(stuck), list(frontier)))
        return [problem(f"{step}*x**{step}")]


@lru_cache
def settings(max_steps: int) -> GrpoSettings:
    overrides = ("grpo.plateau=null", "grpo.trl.num_generations=2", f"grpo.trl.max_steps={max_steps}")
    return load_recipe("tiny", overrides).grpo


def open_state(folder: Path, growth: Grower, max_steps: int = 12, stops_at: int | None = None) -> TrainingState:
    training = Training(TASK, cast(Any, FakeBackend([])), settings(max_steps), folder, 0)
    return TrainingState(training, PROBLEMS, cast(Growth, growth), lambda step, _: step.step == stops_at)


def do_step(state: TrainingState) -> None:
    """Do a step of 20 pairs of rollouts for each problem: one of each pair is right for the second problem alone."""
    state.begin_step()
    rows = [row for row in range(3) for _ in range(40)]
    texts = [f"<answer>x**{2 + place % 2}</answer>" for place in range(len(rows))]
    grade_groups(state, rows, texts, 2)
    state.end_step({"loss": 0.5, "learning_rate": 0.1})


@pytest.mark.parametrize(("max_steps", "grows_at"), [(9, [3, 6]), (10, [3, 6, 9]), (12, [3, 6, 9])])
def test_stuck_problems_and_the_frontier_grow_at_every_third_step_but_the_last(
    tmp_path: Path, max_steps: int, grows_at: list[int]
) -> None:
    growth = Grower()
    state = open_state(tmp_path, growth, max_steps)
    for _ in range(max_steps):
        do_step(state)
    assert [step for step, _, _ in growth.asked] == grows_at
    for _, stuck, frontier in growth.asked:
        assert NEVER_SOLVED in stuck
        assert NEVER_SOLVED not in frontier
        assert SOMETIMES_SOLVED in frontier
        assert SOMETIMES_SOLVED not in stuck
        assert UNVERIFIABLE not in stuck + frontier


def test_nothing_grows_after_the_step_that_ends_training(tmp_path: Path) -> None:
    growth = Grower()
    state = open_state(tmp_path, growth, stops_at=6)
    for _ in range(6):
        do_step(state)
    assert [step for step, _, _ in growth.asked] == [3]


def test_a_problem_that_grew_after_step_three_is_drawn_from_step_four_on(tmp_path: Path) -> None:
    state = open_state(tmp_path, Grower())
    for _ in range(3):
        do_step(state)
    new = problem("3*x**3")
    assert new == state.problems[3]
    assert 3 not in state.rates.draw(3, 20)
    assert 3 in state.rates.draw(4, 3)
    state.begin_step()
    state.grade([3, 3], [Completion("<answer>3*x**4/4</answer>", 9, truncated=False)] * 2)
    last = read_jsonl(tmp_path / "attempts.jsonl")[-1]
    assert (last["step"], last["problem_id"], last["reason"]) == (4, new.id, "CORRECT")


def test_a_resumed_run_has_the_problems_that_grew_and_draws_the_same_rows(tmp_path: Path) -> None:
    whole = open_state(tmp_path, Grower())
    for _ in range(7):
        do_step(whole)
    growth = Grower([(3, problem("3*x**3")), (6, problem("6*x**6"))])
    resumed = open_state(tmp_path, growth)
    assert growth.rewound_to == 7
    assert resumed.problems == whole.problems
    assert resumed.rates.table(7) == whole.rates.table(7)
    for step in range(4, 10):
        assert resumed.rates.draw(step, 4) == whole.rates.draw(step, 4)
