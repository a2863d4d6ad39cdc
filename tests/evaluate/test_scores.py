"""The numbers of an evaluation, each compared with an independent computation; majority votes."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from ladder_lite.evaluate.scores import (
    Vote,
    majority_vote,
    paired_bootstrap,
    pass_at_k,
    pass_rates,
    pass_rates_by_depth,
    summarize,
    wilson_interval,
)
from ladder_lite.problems import Notes, Problem
from ladder_lite.problems.attempts import Attempt, Completion
from ladder_lite.verify import Grade, Reason
from tests.support.problems import TASK, problem

RIGHT = Grade(1.0, Reason.CORRECT, "x")
WRONG = Grade(0.0, Reason.WRONG, "y")
SILENT = Grade(0.0, Reason.NO_ANSWER, None)
UNVERIFIABLE = Grade(None, Reason.UNVERIFIABLE, "x")


# --- pass@k and intervals


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_attempt(n: int) -> None:
    for n_right in range(n + 1):
        attempts = [place < n_right for place in range(n)]
        for k in range(1, n + 1):
            draws = [any(draw) for draw in combinations(attempts, k)]
            assert pass_at_k(n, n_right, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12), (n, n_right, k)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 5000])
def test_the_interval_equals_scipys_wilson_interval(n: int) -> None:
    for right in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        reference = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson_interval(right / n, n) == pytest.approx((reference.low, reference.high), abs=1e-9), right


def test_an_interval_contains_its_share() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
    for n in (1, 3, 100):
        for share in (0.0, 0.01, 0.1, 0.735, 0.99, 1.0):
            low, high = wilson_interval(share, n)
            assert 0 <= low <= share <= high <= 1, (share, n)


def attempts(**grades: list[Grade]) -> list[Attempt]:
    completion = Completion("text", 1, truncated=False)
    return [
        Attempt(problem_id, index, completion, grade)
        for problem_id, given in grades.items()
        for index, grade in enumerate(given)
    ]


SUMMARIES = [
    ("nothing", attempts(), 2, {"n_problems": 0, "pass@1": 0.0, "pass@2": 0.0}),
    ("all wrong", attempts(a=[WRONG, SILENT]), 2, {"n_problems": 1, "pass@1": 0.0, "pass@2": 0.0}),
    ("all right", attempts(a=[RIGHT] * 3, b=[RIGHT] * 3), 3, {"n_problems": 2, "pass@1": 1.0, "pass@3": 1.0}),
    (
        "one of four",
        attempts(a=[WRONG, RIGHT, WRONG, WRONG], b=[WRONG] * 4),
        2,
        {"n_problems": 2, "pass@1": 0.125, "pass@2": 0.25},
    ),
    ("k is 1", attempts(a=[RIGHT, WRONG]), 1, {"n_problems": 1, "pass@1": 0.5}),
    (
        "a problem without enough attempts counts for pass@1 alone",
        attempts(a=[RIGHT], b=[WRONG, RIGHT]),
        2,
        {"n_problems": 2, "pass@1": 0.75, "pass@2": 1.0},
    ),
    (
        "unverifiable",
        attempts(a=[RIGHT, WRONG], b=[UNVERIFIABLE, UNVERIFIABLE]),
        2,
        {"n_problems": 1, "pass@1": 0.5, "pass@2": 1.0},
    ),
    (
        "unverifiable, and some replies have no answer",
        attempts(a=[RIGHT, WRONG], b=[SILENT, UNVERIFIABLE, SILENT]),
        2,
        {"n_problems": 1, "pass@1": 0.5, "pass@2": 1.0},
    ),
    ("all unverifiable", attempts(a=[UNVERIFIABLE]), 1, {"n_problems": 0, "pass@1": 0.0}),
]


@pytest.mark.parametrize(("given", "k", "expected"), [case[1:] for case in SUMMARIES], ids=[c[0] for c in SUMMARIES])
def test_summary(given: list[Attempt], k: int, expected: dict[str, float]) -> None:
    summary = summarize(given, k)
    rates = {key: value for key, value in summary.items() if key == "n_problems" or key.startswith("pass@")}
    assert {key: value["value"] if isinstance(value, dict) else value for key, value in rates.items()} == expected
    assert summary["n_tokens"] == len(given)
    assert summarize(reversed(given), k) == summary


def test_the_interval_counts_the_problems_behind_each_number() -> None:
    summary = summarize(
        attempts(a=[RIGHT, WRONG], b=[RIGHT, RIGHT], c=[WRONG, WRONG], d=[RIGHT], e=[UNVERIFIABLE] * 2), 2
    )
    for key, share, n in (("pass@1", 2.5 / 4, 4), ("pass@2", 2 / 3, 3)):
        low, high = wilson_interval(share, n)
        assert summary[key] == pytest.approx({"value": share, "low": low, "high": high})


@pytest.mark.parametrize(
    ("n", "n_right", "k"), [(10_000, 1, 1), (10_000, 37, 100), (1_000_000, 3, 500_000), (1_000_000, 500_000, 2)]
)
def test_pass_at_k_of_many_attempts(n: int, n_right: int, k: int) -> None:
    none_right = 1.0  # draw by draw, instead of attempt by attempt
    for drawn in range(min(k, 1_000_000)):
        none_right *= (n - n_right - drawn) / (n - drawn)
        if none_right < 1e-30:
            break
    assert pass_at_k(n, n_right, k) == pytest.approx(1 - none_right, rel=1e-8)


@pytest.mark.parametrize(("n", "n_right", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses_impossible_numbers(n: int, n_right: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {n_right} right ones among {n}"):
        pass_at_k(n, n_right, k)


def rates(values: Sequence[float]) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values)}


def test_the_paired_bootstrap_agrees_with_scipy() -> None:
    rng = np.random.default_rng(3)
    first = rng.integers(0, 11, 60) / 10
    second = np.clip(first + rng.integers(-2, 5, 60) / 10, 0, 1)
    reference = bootstrap(
        (second, first),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(4),
    ).confidence_interval
    found = paired_bootstrap(rates(first.tolist()), rates(second.tolist()))
    assert found["value"] == pytest.approx(fmean(second - first))
    assert (found["low"], found["high"]) == pytest.approx((reference.low, reference.high), abs=0.004)


def test_the_paired_bootstrap_agrees_with_all_resamples() -> None:
    first, second = [0.0, 0.2, 0.5, 0.1], [0.3, 0.1, 0.9, 0.1]
    differences = [b - a for a, b in zip(first, second, strict=True)]
    every = [fmean(drawn) for drawn in product(differences, repeat=4)]
    found = paired_bootstrap(rates(first), rates(second))
    assert found["value"] == pytest.approx(0.15)
    assert (found["low"], found["high"]) == pytest.approx(np.quantile(every, (0.025, 0.975)), abs=0.02)


def test_only_problems_of_both_conditions_are_paired() -> None:
    first, second = {"a": 0.0, "b": 0.5, "c": 1.0}, {"b": 1.0, "d": 0.0}
    assert paired_bootstrap(first, second) == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert paired_bootstrap(first, {"d": 1.0}) == {"value": 0.0, "low": -1.0, "high": 1.0}


def test_the_paired_bootstrap_is_seeded_and_antisymmetric() -> None:
    first, second = rates([0.1, 0.9, 0.4, 0.0, 0.3]), rates([0.2, 0.9, 0.9, 0.1, 0.1])
    found = paired_bootstrap(first, second)
    assert paired_bootstrap(first, second) == found
    assert paired_bootstrap(first, second, seed=1)["value"] == found["value"]
    turned = paired_bootstrap(second, first)
    assert (-turned["value"], -turned["high"], -turned["low"]) == pytest.approx(tuple(found.values()), abs=0.03)


def test_pass_rates_leave_out_unverifiable_problems() -> None:
    given = attempts(a=[RIGHT, WRONG], b=[SILENT, UNVERIFIABLE], c=[RIGHT])
    assert pass_rates(given) == {"a": 0.5, "c": 1.0}
    assert pass_rates(given, 2) == {"a": 1.0}


# --- the rest of a summary


def cut(grade: Grade) -> Attempt:
    return Attempt("a", 0, Completion("text", 20, truncated=True), grade)


def test_shares_of_the_sampled_answers() -> None:
    unparseable, forbidden = (Grade(0.0, reason, "?") for reason in (Reason.UNPARSEABLE, Reason.FORBIDDEN))
    whole = attempts(a=[RIGHT, WRONG, WRONG, SILENT, unparseable], b=[forbidden], c=[UNVERIFIABLE, RIGHT])
    summary = summarize([*whole, cut(RIGHT), cut(WRONG), cut(SILENT), cut(unparseable)], 1)
    assert summary["shares"] == {"solved": 0.2, "wrong": 0.2, "unreadable": 0.3, "truncated": 0.3}
    assert summary["n_tokens"] == 8 + 4 * 20  # those of c count too, though it is left out
    assert summarize([], 1)["shares"] == {"solved": 0.0, "wrong": 0.0, "unreadable": 0.0, "truncated": 0.0}


def test_greedy_answers_are_counted_separately() -> None:
    summary = summarize(
        attempts(a=[WRONG] * 2, b=[RIGHT] * 2), 2, greedy=attempts(a=[RIGHT], b=[RIGHT], c=[UNVERIFIABLE])
    )
    low, high = wilson_interval(1.0, 2)
    assert summary["greedy"] == {"value": 1.0, "low": low, "high": high}
    assert (summary["pass@1"]["value"], summary["n_problems"], summary["n_tokens"]) == (0.5, 2, 7)
    assert "greedy" not in summarize(attempts(a=[WRONG]), 1)
    nothing = summarize(
        attempts(a=[UNVERIFIABLE]), 1, greedy=attempts(a=[UNVERIFIABLE])
    )  # the key exists even if no problem counts
    assert nothing["greedy"] == nothing["pass@1"] == {"value": 0.0, "low": 0.0, "high": 1.0}


def test_techniques_come_from_the_notes_of_the_set() -> None:
    given = attempts(a=[RIGHT, WRONG], b=[RIGHT, RIGHT], c=[WRONG, WRONG], d=[RIGHT, RIGHT], e=[UNVERIFIABLE])
    named = {"a": "by parts", "b": "by parts", "c": "substitution", "d": None, "e": "substitution", "z": "by parts"}
    summary = summarize(given, 2, notes={name: Notes(technique, None) for name, technique in named.items()})
    assert {name: (part["n_problems"], part["pass@1"]["value"]) for name, part in summary["techniques"].items()} == {
        "by parts": (2, 0.75),
        "substitution": (1, 0.0),
    }
    low, high = wilson_interval(0.75, 2)
    assert summary["techniques"]["by parts"]["pass@1"] == {"value": 0.75, "low": low, "high": high}
    assert "techniques" not in summarize(given, 2, notes={"a": Notes(None, None)})


def test_notes_of_a_problem_set() -> None:
    problems = TASK.problems("test")
    known = TASK.notes("tiny")
    assert {asked.id for asked in problems} < known.keys()
    for asked in problems[:10]:
        answer = known[asked.id].answer
        assert answer is not None
        assert TASK.grade(asked, f"<answer>{answer}</answer>").reason is Reason.CORRECT
    assert {note.technique for note in TASK.notes("undergrad").values()} > {"powers and algebra"}


# --- votes


def tries(asked: Problem, *answers: str | None) -> list[Attempt]:
    """Graded attempts with these answers; None stands for a reply without an answer."""
    texts = ["no idea" if answer is None else f"<answer>{answer}</answer>" for answer in answers]
    return [
        Attempt(asked.id, index, Completion(text, 1, truncated=False), TASK.grade(asked, text))
        for index, text in enumerate(texts)
    ]


VOTES = [
    ("the most frequent", problem("2*x"), ["x", "x**2", "x**2"], ("x**2", 2 / 3, True)),
    ("in other words", problem("1/x"), ["x", "log(x)", "x", "log(2*x) + 7", "log(Abs(x)) + C"], ("log(x)", 0.6, True)),
    (
        "the verifier has no vote",
        problem("2*x"),
        ["x**2", "x**3", "3*x**3/3", "x**2+1", "x**3+2"],
        ("x**3", 0.6, False),
    ),
    ("a tie", problem("2*x"), ["x", "x**2", "x+1", "x**2-1"], ("x", 0.5, False)),
    ("a tie, the other way round", problem("2*x"), ["x**2", "x", "x+1", "x**2-1"], ("x**2", 0.5, True)),
    ("unreadable answers", problem("2*x"), ["x**", "x**", "<script>", None, "", "x**2"], ("x**2", 1 / 6, True)),
    ("nothing to read", problem("2*x"), ["x**", None, "import os"], (None, 0.0, False)),
    ("no attempts", problem("2*x"), [], (None, 0.0, False)),
    ("a value", problem("x", "x", "0", "1"), ["2/3", "0.5", "1/2", "sqrt(1)/2", "x"], ("0.5", 0.6, True)),
    ("no integral", problem("1/x", "x", "0", "1"), ["1", "1"], (None, 0.0, False)),
]


@pytest.mark.parametrize(("asked", "answers", "expected"), [case[1:] for case in VOTES], ids=[c[0] for c in VOTES])
def test_majority_vote(asked: Problem, answers: list[str | None], expected: tuple[str | None, float, bool]) -> None:
    vote = majority_vote(TASK, asked, tries(asked, *answers))
    assert vote == Vote(expected[0], pytest.approx(expected[1]), expected[2])


def test_verdicts_do_not_influence_a_vote() -> None:
    asked = problem("2*x")
    fair = tries(asked, "x", "x**2", "x**2", "x+1", "x**3", "x+3")
    turned = [
        Attempt(
            one.problem_id, one.index, one.completion, Grade(1.0 - float(one.correct), Reason.WRONG, one.grade.answer)
        )
        for one in fair
    ]
    assert majority_vote(TASK, asked, fair) == Vote("x", 0.5, right=False)
    assert majority_vote(TASK, asked, turned) == Vote("x", 0.5, right=False)


def test_a_summary_counts_votes_and_official_answers() -> None:
    asked = [problem("2*x"), problem("3*x**2"), problem("1/x", "x", "0", "1"), problem("cos(x)")]
    given = [
        *tries(asked[0], "x**2", "x**2+1", "x"),
        *tries(asked[1], "x", "x+1", "x**3"),
        *tries(asked[2], "1", "1"),
        *tries(asked[3], "sin(x)", None, None),
    ]
    official = {asked[0].id: "x**2 + 5", asked[1].id: "x**4", asked[2].id: "1"}
    summary = summarize(
        given, 1, task=TASK, problems=asked, notes={name: Notes(None, answer) for name, answer in official.items()}
    )
    assert summary["n_problems"] == 3
    assert summary["majority"]["value"] == pytest.approx(2 / 3)
    assert summary["official"] == {"n_compared": 3, "n_agree": 2}  # the official answer to the second problem is wrong
    without = summarize(given, 1, task=TASK, problems=asked)
    assert "official" not in without
    assert without["majority"] == summary["majority"]


# --- by depth


def rollout(step: int, problem_id: str, grade: Grade) -> Mapping[str, object]:
    (attempt,) = attempts(**{problem_id: [grade]})
    return {"step": step, **attempt.to_row()}


def test_pass_rates_by_depth_early_and_late() -> None:
    rows = [
        *(rollout(step, "root", WRONG) for step in range(1, 10)),
        *(rollout(step, "child", RIGHT if step % 2 else WRONG) for step in range(1, 10)),
        rollout(3, "grandchild", RIGHT),
        rollout(3, "grandchild", UNVERIFIABLE),
        *(rollout(5, "grandchild", SILENT) for _ in range(5)),
    ]
    assert pass_rates_by_depth(rows, {"child": 1, "grandchild": 2}) == {
        0: {"first": {"n": 3, "pass_rate": 0.0}, "last": {"n": 3, "pass_rate": 0.0}},
        1: {"first": {"n": 3, "pass_rate": 2 / 3}, "last": {"n": 3, "pass_rate": 2 / 3}},
        2: {"first": {"n": 1, "pass_rate": 1.0}},
    }
    assert pass_rates_by_depth([], {}) == {}
    assert pass_rates_by_depth(rows[:1], {}) == {0: {key: {"n": 1, "pass_rate": 0.0} for key in ("first", "last")}}


def test_thirds_are_those_of_all_steps_rounded_up() -> None:
    """Of seven steps the first three and the last three; the problem at depth 2 was tried between them alone."""
    rows = [
        *(rollout(step, "child", RIGHT if step >= 5 else WRONG) for step in range(1, 8)),
        rollout(4, "grandchild", RIGHT),
        rollout(7, "root", WRONG),
    ]
    assert pass_rates_by_depth(rows, {"child": 1, "grandchild": 2}) == {
        0: {"last": {"n": 1, "pass_rate": 0.0}},
        1: {"first": {"n": 3, "pass_rate": 0.0}, "last": {"n": 3, "pass_rate": 1.0}},
    }
