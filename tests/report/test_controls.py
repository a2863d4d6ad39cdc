"""The controls: what LADDER and TTRL are compared with, and what the report says about it."""

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from ladder_lite.config.load import load_recipe
from ladder_lite.problems import load_problems
from ladder_lite.problems.similarity import distances
from ladder_lite.report import controls, write_comparison, write_report
from ladder_lite.report.figures import distance
from ladder_lite.report.findings import measure, pass_rates
from ladder_lite.runs.finished import open_run
from ladder_lite.variants import load
from tests.support.finished_run import build_run, problem_set

ABLATIONS = load_recipe("exam").ablations


def difference(control: str, low: float, high: float) -> dict[str, Any]:
    """The control minus LADDER, as in report.json."""
    return {"condition": control, "reference": "ladder", "value": (low + high) / 2, "low": low, "high": high}


def race(**solved: str) -> dict[str, Any]:
    """A race of methods; each letter is a problem, capital if it was solved."""
    return {
        "methods": {
            name: {"tokens_to_solve": [9 if letter.isupper() else None for letter in word], "spent": [9] * len(word)}
            for name, word in solved.items()
        }
    }


@pytest.mark.parametrize(
    ("low", "high", "answer"), [(-0.5, -0.1, "yes"), (0.1, 0.5, "no"), (-0.1, 0.5, "not shown"), (0, 0, "not shown")]
)
def test_a_control_of_ladder_is_judged_by_its_interval(low: float, high: float, answer: str) -> None:
    reports = [{"race": {}, "costs": []}]
    (row,) = controls.measure(ABLATIONS, [difference("ladder_random", low, high)], reports)
    assert (row["method"], row["control"], row["answer"]) == ("ladder", "ladder_random", answer)
    assert "at random" in row["more_than"]
    assert row["points"] == pytest.approx({"low": -high, "value": -(low + high) / 2, "high": -low})
    # LADDER itself is compared with the paper's control, and an ablation that is no control has no row.
    other_way = {"condition": "ladder", "reference": "rl_without_variants", "value": -low, "low": -high, "high": -low}
    rows = controls.measure(ABLATIONS, [other_way, difference("ladder_on_policy", low, high)], reports)
    assert [(row["control"], row["points"]["low"]) for row in rows] == [("rl_without_variants", -high)]


@pytest.mark.parametrize(
    ("ours", "theirs", "answer"),
    [("ABCDEF", "abcdef", "yes"), ("abcdef", "ABCDEF", "no"), ("ABCDe", "abcde", "not shown"), ("A", "A", "not shown")],
)
def test_a_control_of_ttrl_is_judged_by_a_sign_test(ours: str, theirs: str, answer: str) -> None:
    costs = [
        {"stage": "conditions/ladder_ttrl/problems", "n_tokens": 7, "n_verifier_calls": 3},
        {"stage": "conditions/ttrl_direct/problems", "n_tokens": 5, "n_verifier_calls": 2},
        {"stage": "conditions/ttrl_direct/eval", "n_tokens": 1000, "n_verifier_calls": None},
    ]
    reports = [
        {"race": race(ladder_ttrl=word, ttrl_direct=other), "costs": costs}
        for word, other in zip(ours, theirs, strict=True)
    ]
    (row,) = controls.measure(ABLATIONS, [], reports)
    assert (row["method"], row["control"], row["answer"]) == ("ladder_ttrl", "ttrl_direct", answer)
    solved = [sum(letter.isupper() for letter in word) for word in (ours, theirs)]
    assert (row["test"]["solved"], row["test"]["n_problems"]) == (solved, len(ours))
    assert (row["n_tokens"], row["n_verifier_calls"]) == (
        [7 * len(ours), 5 * len(ours)],
        [3 * len(ours), 2 * len(ours)],
    )


def test_costs_are_those_of_the_reports_that_know_both() -> None:
    ladder = {"stage": "conditions/ladder/train", "n_tokens": 100, "n_verifier_calls": 10}
    control = {"stage": "conditions/ladder_random/train", "n_tokens": 50, "n_verifier_calls": None}  # an older version
    own_tree = {"stage": "conditions/ladder_random/variants", "n_tokens": 7, "n_verifier_calls": None}
    shared_tree = {"stage": "variants", "n_tokens": 1000, "n_verifier_calls": None}
    reports = [{"race": {}, "costs": costs} for costs in ([ladder, control, own_tree, shared_tree], [ladder])]
    (row,) = controls.measure(ABLATIONS, [difference("ladder_random", -0.5, -0.1)], reports)
    assert (row["n_tokens"], row["n_verifier_calls"]) == ([100, 57], None)
    (text, _) = controls.describe([row])
    assert text.endswith("| 100 / 57 |  |")


def test_a_sign_test_counts_the_problems_that_only_one_method_solves() -> None:
    races = [race(a="ABcdEF", b="Abcdef"), {}, race(a="abc"), race(a="g", b="G")]
    found = controls.sign_test(races, "a", "b")
    assert found == {"n_problems": 7, "solved": [4, 2], "wins": 3, "losses": 1, "p": pytest.approx(0.625)}
    assert controls.sign_test([race(a="x")], "a", "b") == {}


def test_the_report_answers_in_a_table(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("s0", "s1")]
    for seed, run in enumerate(runs):
        build_run(run, seed, full=True)
    report = write_report(runs[0])
    assert [(row["control"], row["answer"]) for row in report["controls"]] == [
        ("rl_without_variants", "yes"),
        ("ladder_pass100", "not shown"),
    ]
    spent = {row["stage"]: row for row in report["costs"]}
    assert report["controls"][0]["n_verifier_calls"] == [
        spent[f"conditions/{name}/train"]["n_verifier_calls"] for name in ("ladder", "rl_without_variants")
    ]
    assert min(report["controls"][0]["n_verifier_calls"]) > 0
    text = (runs[0] / "report.md").read_text(encoding="utf-8")
    assert "| more tries | not shown | `ladder_pass100` | 2 and 1 of 3 solved, p = 1 |" in text
    comparison = write_comparison(runs, tmp_path / "both")
    (mean,) = comparison["means"]
    assert [row["test"]["n_problems"] for row in mean["controls"] if "test" in row] == [6]
    assert "| more tries | not shown | `ladder_pass100` | 4 and 2 of 6 solved" in (
        tmp_path / "both/comparison.md"
    ).read_text(encoding="utf-8")


def test_the_distance_of_each_test_problem_from_the_variants(tmp_path: Path) -> None:
    build_run(tmp_path / "run")
    run = open_run(tmp_path / "run")
    report = measure(run)
    found, rates = report["contamination"], pass_rates(run, "ladder")
    tree = [*load(run.path / "variants"), *load(run.path / "conditions/ladder/train/variants")]
    expected = distances(load_problems(str(problem_set()), "test"), tree).min(axis=1)
    assert [row["distance"] for row in found["problems"]] == pytest.approx(expected.tolist())
    assert [row["ladder"] for row in found["problems"]] == [rates[row["problem_id"]] for row in found["problems"]]
    assert {row["nearest"] for row in found["problems"]} <= {str(each.data["integrand"]) for each in tree}
    correlation = found["spearman"]
    assert correlation["value"] == pytest.approx(spearmanr(expected, list(rates.values())).statistic)
    assert -1 < correlation["low"] < correlation["value"] < correlation["high"] < 1
    figure = distance(report)
    assert figure is not None
    assert f"{correlation['value']:.2f} ({correlation['low']:.2f} to" in figure.caption
    assert distance({"contamination": {}}) is None
    (tmp_path / "run/conditions/ladder/eval/attempts.jsonl").unlink()
    assert measure(run)["contamination"] == {}


def test_without_variation_there_is_no_correlation(tmp_path: Path) -> None:
    build_run(tmp_path / "run")
    file = tmp_path / "run/conditions/ladder/eval/attempts.jsonl"
    text = file.read_text(encoding="utf-8").replace('"reason": "CORRECT"', '"reason": "WRONG"')
    file.write_text(text, encoding="utf-8")
    assert measure(open_run(tmp_path / "run"))["contamination"]["spearman"] is None
