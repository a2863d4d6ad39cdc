"""The curriculum: estimated pass rates, and the rows that a step trains on."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import beta

from ladder_lite.problems import Problem
from ladder_lite.train.curriculum import PassRates
from tests.support.problems import problem

SHORT = [problem(f"{n}*x") for n in range(2, 6)]
LONG = [problem(f"{n}*x+sin({n}*x)*exp({n}*x)*cos({n}*x)") for n in range(2, 6)]
KINDS = [*SHORT, *LONG]
ALIKE = [problem(f"{n}*x") for n in range(10, 90)]  # all with the same tokens


def rates(problems: list[Problem], rows: Any = "pass_rate", seed: int = 0, **seen: list[tuple[int, bool]]) -> PassRates:
    """Create pass rates for 30 steps and record rollouts (row, correct) of the steps `s1`, `s2`, ..."""
    result = PassRates(problems, rows, seed, max_steps=30)
    for step, rollouts in seen.items():
        for row, correct in rollouts:
            result.observe(int(step[1:]), row, correct)
    return result


# --- stages


def test_staged_rows_go_from_short_to_long_problems() -> None:
    middle = [problem(f"{n}*x+sin({n}*x)") for n in range(2, 6)]
    mixed = [each for group in zip(LONG, SHORT, middle, strict=True) for each in group]
    staged = rates(mixed, "staged")  # for 30 steps
    for steps, stage in ((range(1, 11), SHORT), (range(11, 21), middle), (range(21, 31), LONG)):
        drawn = {mixed[row].id for step in steps for row in staged.draw(step, 2)}
        assert drawn == {each.id for each in stage}, steps
    solved = [(row, True) for row in range(1, 12, 3)] * 8  # the short ones, in step 1: all are retired
    assert {mixed[row].id for row in rates(mixed, "staged", s1=solved).draw(2, 4)} == {each.id for each in SHORT}
    assert [rates(mixed[:1], "staged").draw(step, 2) for step in (1, 30)] == [[0, 0]] * 2
    assert [rates([LONG[0], SHORT[0]], "staged").draw(step, 2) for step in (1, 30)] == [[1, 1], [0, 0]]
    # Within a stage, rows are drawn by pass rate: a retired one is left out.
    assert all(1 not in rates(mixed, "staged", s1=solved[::4]).draw(step, 3) for step in range(2, 11))


# --- estimates


def test_without_rollouts_every_pass_rate_is_one_half() -> None:
    for problems in (KINDS, ALIKE, SHORT[:1]):
        estimated = rates(problems)
        assert estimated.estimate(0) == pytest.approx([0.5] * len(problems))
        assert estimated.stuck(0) == []
        assert estimated.frontier(0) == []  # not known to be solved sometimes


def test_a_problem_that_was_never_tried_is_judged_by_its_tokens() -> None:
    estimated = rates(KINDS, s1=[(0, True)] * 16 + [(1, True)] * 16 + [(4, False)] * 16 + [(5, False)] * 16)
    estimate = estimated.estimate(1)
    assert min(estimate[2:4]) > 0.8 > 0.2 > max(estimate[6:8])
    with_sine, without = problem("sin(7*x)"), problem("-7*x+x")  # six tokens each
    estimated = rates([*KINDS, with_sine, without], s1=[(0, True)] * 8 + [(4, False)] * 8)
    assert estimated.estimate(1)[8] < estimated.estimate(1)[9]  # as long, but with a function that has failed


def test_own_rollouts_outweigh_those_of_similar_problems() -> None:
    failing_kind = [(row, False) for row in range(1, 80)] * 4
    estimate = rates(ALIKE, s1=[*failing_kind, *[(0, True)] * 32]).estimate(1)
    assert estimate[0] > 0.75
    assert max(estimate[1:]) < 0.15


def test_old_rollouts_count_less() -> None:
    seen = rates(ALIKE, s1=[(0, False)] * 8, s21=[(0, True)] * 8)
    assert seen.estimate(1)[0] < 0.5 < seen.estimate(21)[0]
    assert seen.estimate(20)[0] == pytest.approx(rates(ALIKE, s1=[(0, False)] * 8).estimate(20)[0])
    tries = [row["tries"] for row in seen.table(21)]
    assert (tries[0], sum(tries[1:])) == (16, 0)


def test_failing_rows_are_drawn_if_their_answers_are_replayed() -> None:
    failing = rates(ALIKE, s1=[(row, False) for row in range(80) for _ in range(16)])
    often, seldom = (
        sum(7 in failing.draw(step, 4, 0, replayed, 8) for step in range(2, 42)) for replayed in ({7}, set())
    )
    assert often > 30 > 10 > seldom
    # Where the model is right itself, its groups seldom need that.
    solved = rates(ALIKE, s1=[(row, turn < 12) for row in range(80) for turn in range(16)])
    assert sum(7 in solved.draw(step, 4, 0, {7}, 8) for step in range(2, 42)) < 10


@pytest.mark.parametrize(("age", "weight"), [(0, 8), (10, 4), (20, 2)])
def test_the_prior_counts_as_one_rollout_and_old_rollouts_half_after_ten_steps(age: int, weight: float) -> None:
    """Six of eight rollouts were right. A problem without rollouts has the prior's pass rate."""
    seen = rates(ALIKE, s1=[(0, turn < 6) for turn in range(8)])
    own, prior = seen.estimate(1 + age)[:2]
    assert own == pytest.approx((weight * 6 / 8 + prior) / (weight + 1))
    low, high = beta.ppf([0.025, 0.975], prior, 1 - prior)
    assert [seen.table(1 + age)[1][key] for key in ("low", "high")] == pytest.approx([low, high])


def test_old_rollouts_are_moved_up_by_the_gain_of_the_steps_since() -> None:
    """All pass rates gain 0.3 logits per step. A problem that was tried at step 2 alone gains the same until step 8."""
    shares = {step: expit(0.3 * step - 1.2) for step in range(1, 9)}
    rollouts = {
        f"s{step}": [(row, turn < 500 * share) for row in range(1, 9) for turn in range(500)]
        for step, share in shares.items()
    }
    rollouts["s2"] += [(0, turn < 150) for turn in range(500)]
    estimate = rates(ALIKE, **rollouts).estimate(8)
    assert estimate[0] == pytest.approx(expit(np.log(0.3 / 0.7) + 0.3 * 6), abs=0.02)
    assert estimate[9] == pytest.approx(shares[8], abs=0.02)  # never tried: the level of today


@pytest.mark.parametrize("solved", [False, True])
def test_a_problem_always_or_never_solved_long_ago_is_not_expected_to_stay_so(solved: bool) -> None:
    """All pass rates fall, or rise, by 0.3 logits per step, since the problem was always, or never, solved."""
    sign = -1 if solved else 1
    shares = {step: expit(sign * (0.3 * step - 1.2)) for step in range(1, 9)}
    rollouts = {
        f"s{step}": [(row, turn < 100 * share) for row in range(1, 9) for turn in range(100)]
        for step, share in shares.items()
    }
    rollouts["s2"] += [(0, solved)] * 500
    estimate = rates(ALIKE, **rollouts).estimate(8)[0]
    assert 0.08 < (1 - estimate if solved else estimate) < 0.2


def test_a_row_is_failing_once_eight_rollouts_in_a_row_were_wrong() -> None:
    first = [(0, True), *[(1, False)] * 4]
    failing = rates(SHORT, s1=first, s2=[(0, False)] * 8, s3=[(1, False)] * 4 + [(2, False)] * 7)
    assert [failing.failing(step) for step in (1, 2, 3)] == [[], [0], [0, 1]]
    failing.observe(4, 0, correct=True)
    failing.observe(5, 1, correct=None)  # cannot be verified, so there is no right answer
    assert [failing.failing(step) for step in (3, 4, 5)] == [[0, 1], [1], []]


@pytest.mark.parametrize("solved", [False, True])
def test_the_prior_is_never_certain(solved: bool) -> None:
    estimate = rates(ALIKE, s1=[(row, solved) for row in range(79) for _ in range(200)]).estimate(1)
    assert estimate[79] == pytest.approx(0.99 if solved else 0.01)


@pytest.mark.parametrize(("n", "right"), [(1, 1), (4, 1), (40, 10)])
def test_few_rollouts_of_similar_problems_move_the_prior_little(n: int, right: int) -> None:
    """The prior minimizes the cross entropy plus a ridge of |parameters|^2 / 2.

    All problems have the same tokens, so the four columns of tokens and length and the constant have the same parameter
    a, the logit is 5 a, and the ridge 5 a^2 / 2.
    """
    prior = rates(ALIKE, s1=[(row, row < right) for row in range(n)]).estimate(1)[79]
    assert n * prior - right + np.log(prior / (1 - prior)) / 5 == pytest.approx(0, abs=1e-4)


def test_old_rollouts_are_corrected_for_what_the_model_has_learned_since() -> None:
    """A problem that was solved half the time six steps ago is solved more often now if all pass rates rise."""
    rising = {f"s{step}": [(row, turn < step) for row in range(10, 20) for turn in range(10)] for step in range(1, 9)}
    early = [(0, turn < 4) for turn in range(8)]
    steady = {f"s{step}": [(row, turn < 5) for row in range(10, 20) for turn in range(10)] for step in range(1, 9)}
    assert rates(ALIKE, **{**rising, "s2": [*rising["s2"], *early]}).estimate(8)[0] > 0.7
    assert rates(ALIKE, **{**steady, "s2": [*steady["s2"], *early]}).estimate(8)[0] == pytest.approx(0.5, abs=0.05)


def test_states() -> None:
    seen = [(row, row < 20) for row in range(40) for _ in range(32)] + [(40, turn % 2 == 0) for turn in range(64)]
    estimated = rates([problem(f"{n}*x") if n % 2 else problem(f"{n}*x**3") for n in range(10, 90)], s1=seen)
    states = [row["state"] for row in estimated.table(1)]
    unseen_kind = rates(KINDS, s1=[(row, row < 4) for row in (0, 1, 2, 3, 4, 5, 6) for _ in range(100)])
    assert 7 in unseen_kind.stuck(1)  # expected to be stuck, so it may get children
    assert unseen_kind.table(1)[7]["state"] == "drawn"  # its state needs tries of its own
    assert states[40] == "drawn"
    assert set(states[41:]) == {"drawn"}  # never tried: neither retired nor stuck
    assert set(states[:20]) <= {"retired", "drawn"}
    sure = rates(ALIKE, s1=[(row, row < 40) for row in range(80) for _ in range(100)])
    assert [row["state"] for row in sure.table(1)] == ["retired"] * 40 + ["stuck"] * 40
    assert sure.stuck(1) == list(range(40, 80))
    assert sure.frontier(1) == []


@pytest.mark.parametrize(
    ("right", "tries", "state"),
    [
        (3, 3, "drawn"),  # too few tries of its own
        (4, 4, "retired"),
        (97, 100, "retired"),
        (93, 100, "drawn"),
        (7, 100, "drawn"),
        (3, 100, "stuck"),
        (0, 4, "stuck"),
        (0, 3, "drawn"),
    ],
)
def test_a_problem_is_retired_above_95_percent_and_stuck_below_5_percent_after_four_tries(
    right: int, tries: int, state: str
) -> None:
    similar = [(row, right > tries / 2) for row in range(1, 80) for _ in range(100)]
    estimated = rates(ALIKE, s1=[*similar, *[(0, turn < right) for turn in range(tries)]])
    assert estimated.table(1)[0]["state"] == state
    assert (0 in estimated.stuck(1)) == (estimated.estimate(1)[0] < 0.05)
    assert estimated.table(2)[0]["state"] == (state if tries > 4 else "drawn")  # older rollouts count less


@pytest.mark.parametrize(("right", "at_frontier"), [(15, False), (22, True), (50, True), (78, True), (85, False)])
def test_a_problem_is_at_the_frontier_if_rewards_vary(right: int, at_frontier: bool) -> None:
    estimated = rates(ALIKE, s1=[(0, turn < right) for turn in range(100)])
    assert (0 in estimated.frontier(1)) is at_frontier


def test_intervals_contain_the_rate_and_narrow_with_tries() -> None:
    table = rates(ALIKE, s1=[(row, turn % 2 == 0) for row, n in ((0, 4), (1, 100)) for turn in range(n)]).table(1)
    for row in table:
        assert 0 <= row["low"] < row["pass_rate"] < row["high"] <= 1
    few, many, none = table[:3]
    assert many["high"] - many["low"] < few["high"] - few["low"] < none["high"] - none["low"]
    assert (many["tries"], many["right"], none["tries"]) == (100, 50, 0)


# --- rows


@pytest.mark.parametrize("rows", ["pass_rate", "uniform"])
@pytest.mark.parametrize("count", [1, 8, 80, 100, 200])
def test_every_row_is_drawn_once_before_any_is_drawn_twice(rows: str, count: int) -> None:
    drawn = rates(ALIKE, rows, s1=[(row, row % 3 == 0) for row in range(80)] * 2).draw(9, count)
    assert len(drawn) == count
    assert set(drawn) <= set(range(80))
    for start in range(0, count, 80):
        assert len(set(drawn[start : start + 80])) == len(drawn[start : start + 80])


@pytest.mark.parametrize("rows", ["pass_rate", "uniform"])
@pytest.mark.parametrize(
    ("count", "spare", "n"),
    [(8, 0, 8), (8, 16, 24), (8, 200, 80), (80, 1, 80), (100, 50, 100)],
)
def test_spare_rows_follow_and_repeat_none(rows: str, count: int, spare: int, n: int) -> None:
    drawn = rates(ALIKE, rows, s1=[(row, row % 3 == 0) for row in range(80)]).draw(3, count, spare)
    assert len(drawn) == n
    assert len(set(drawn)) == min(n, 80)


def test_rows_are_determined_by_seed_and_step() -> None:
    draws = [rates(ALIKE, seed=seed).draw(step, 8) for seed in range(3) for step in range(1, 4)]
    assert draws == [rates(ALIKE, seed=seed).draw(step, 8) for seed in range(3) for step in range(1, 4)]
    assert len({tuple(drawn) for drawn in draws}) == 9


def test_a_draw_uses_only_what_was_known_when_its_step_began() -> None:
    early = {f"s{step}": [(row, True) for row in range(80)] for step in range(1, 5)}
    late = {"s5": [(row, turn < 8) for row in range(20) for turn in range(16)], "s6": [(79, False)] * 9}
    for step in range(1, 9):
        known = {name: seen for name, seen in (early | late).items() if int(name[1:]) < step}
        assert rates(ALIKE, **early, **late).draw(step, 20) == rates(ALIKE, **known).draw(step, 20)
    assert rates(ALIKE, **early).draw(6, 20) != rates(ALIKE, **early, **late).draw(6, 20)


@pytest.mark.parametrize("rows", ["pass_rate", "uniform"])
def test_added_problems_are_drawn_from_the_next_step_on(rows: str) -> None:
    before, grown = rates(ALIKE[:40], rows), rates(ALIKE[:40], rows)
    grown.add(ALIKE[40:], step=5)
    for step in range(1, 6):
        assert set(grown.draw(step, 40)) == set(before.draw(step, 40)) == set(range(40))
    assert set(grown.draw(6, 80)) == set(range(80))


@pytest.mark.parametrize("rows", ["pass_rate", "uniform"])
def test_later_problems_and_rollouts_change_no_earlier_draw(rows: str) -> None:
    """A run that resumes after a kill has all problems from the start."""
    seen = {"s1": [(row, row % 3 == 0) for row in range(40) for _ in range(4)], "s4": [(3, True)] * 8}
    for seed in range(20):
        before, after = rates(ALIKE[:40], rows, seed, **seen), rates(ALIKE[:40], rows, seed, **seen)
        after.add(LONG, step=5)
        after.observe(6, 40, True)
        after.observe(6, 41, None)
        for step in range(1, 6):
            assert after.draw(step, 8) == before.draw(step, 8)
        assert after.estimate(4).tolist() == before.estimate(4).tolist()
        assert len(after.table(4)) == 40


def test_rows_that_are_sometimes_right_are_drawn_most() -> None:
    rollouts = [(row, row < 40 or (row < 60 and turn % 2 == 0)) for row in range(80) for turn in range(200)]
    share = {}
    for rows in ("pass_rate", "uniform"):
        drawn = [row for seed in range(200) for row in rates(ALIKE, rows, seed, s1=rollouts).draw(3, 8)]
        share[rows] = sum(40 <= row < 60 for row in drawn) / len(drawn)
    assert share["uniform"] == pytest.approx(0.25, abs=0.04)
    assert 0.85 < share["pass_rate"] < 1  # rows that were never solved are still drawn sometimes


def test_rows_are_drawn_in_proportion_to_the_square_of_their_signal() -> None:
    """Four groups of 100 rows, drawn until all have come: a row comes before another one as often as its weight says.

    The first group was right half the time, the second one in a tenth of the tries, the third one never. The last one
    was not tried, so its pass rate is less certain.
    """
    right = {0: 50, 1: 10, 2: 0}
    problems = [problem(f"{n}*x") for n in range(10, 410)]
    rollouts = [(row, turn < right[row // 100]) for row in range(300) for turn in range(100)]
    table = rates(problems, s1=rollouts).table(1)[50::100]  # a row of each group
    n = np.array([row["tries"] + 1 for row in table])  # with the prior
    mean = np.array([row["pass_rate"] for row in table])
    signal = mean * (1 - mean) - mean * (1 - mean) / (n + 1)  # E[p (1 - p)] = E[p] (1 - E[p]) - Var[p]
    weights = signal**2 + 0.05 * np.mean(signal**2)

    earlier = []
    for seed in range(60):
        places = np.argsort(rates(problems, seed=seed, s1=rollouts).draw(3, 400)).reshape(4, 100)
        earlier.append((places[:, :, None] < places[0]).mean(axis=(1, 2)))  # than rows of the first group
    assert np.mean(earlier, axis=0)[1:] == pytest.approx((weights / (weights + weights[0]))[1:], rel=0.06)


def test_solved_problems_are_retired_unless_all_are_solved() -> None:
    solved = [(row, True) for row in range(80) for _ in range(100)]
    some = rates(ALIKE, s1=[*solved, *[(79, turn % 2 == 0) for turn in range(200)]])
    assert np.unique([row for step in range(3, 30) for row in some.draw(step, 1)]).tolist() == [79]
    assert len(set(rates(ALIKE, s1=solved).draw(3, 8))) == 8


def test_unverifiable_problems_are_not_drawn_again() -> None:
    estimated = rates(ALIKE[:10], s1=[(0, True), (0, False)] * 8)
    estimated.observe(1, 1, None)
    assert 1 in estimated.draw(1, 10)  # drawn before that was known
    assert sorted(estimated.draw(2, 9)) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert 1 not in estimated.frontier(1)
    assert [row["state"] for row in estimated.table(1)][:3] == ["drawn", "unverifiable", "drawn"]
    nothing = rates(ALIKE[:2])
    nothing.observe(1, 0, None)
    nothing.observe(1, 1, None)
    assert sorted(nothing.draw(3, 2)) == [0, 1]  # there are no others
