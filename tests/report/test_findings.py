"""The numbers of report.json: what each condition cost, and which conditions are compared on which problems."""

import json
from pathlib import Path

import pytest

from ladder_lite.jsonl import read_jsonl
from ladder_lite.report.findings import measure
from ladder_lite.runs.finished import open_run
from tests.support.finished_run import build_run, replace


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two ablations."""
    build_run(tmp_path / "run", full=True)
    return tmp_path / "run"


def tokens(*files: Path) -> int:
    return sum(row["n_tokens"] for file in files for row in read_jsonl(file))


def test_costs_count_the_tokens_of_variants(run: Path) -> None:
    """Those of the tree before training, and those that grew while LADDER trained."""
    costs = {row["stage"]: row["n_tokens"] for row in measure(open_run(run))["costs"]}
    train = run / "conditions/ladder/train"
    assert costs["variants"] == tokens(run / "variants/rounds.jsonl") > 0
    assert tokens(train / "variants/rounds.jsonl") > 0
    assert costs["conditions/ladder/train"] == tokens(train / "metrics.jsonl", train / "variants/rounds.jsonl")


def test_costs_count_an_ablations_own_tree(run: Path) -> None:
    folder = run / "conditions/ladder_static/variants"
    folder.mkdir(parents=True, exist_ok=True)
    done = {"digest": "", "tokens": 4321, "seconds": 5.0, "peak_memory_bytes": 2**40}
    (folder / "done.json").write_text(json.dumps(done), encoding="utf-8")
    report = measure(open_run(run))
    assert {row["stage"]: row["n_tokens"] for row in report["costs"]}["conditions/ladder_static/variants"] == 4321
    assert report["peak_memory_bytes"] == 2**40


def test_each_condition_is_compared_with_what_it_adds_to(run: Path) -> None:
    pairs = [(row["condition"], row["reference"]) for row in measure(open_run(run))["differences"]]
    assert sorted(pairs) == [
        ("ladder", "base"),
        ("ladder", "rl_without_variants"),
        ("ladder_10", "ladder"),
        ("ladder_static", "ladder"),
        ("ladder_ttrl", "ladder"),
        ("rl_without_variants", "base"),
        ("ttrl", "base"),
    ]


def test_a_difference_is_the_condition_minus_its_reference(run: Path) -> None:
    report = measure(open_run(run))
    for row in report["differences"]:
        rate, reference = (report["conditions"][row[key]]["pass@1"]["value"] for key in ("condition", "reference"))
        assert row["value"] == pytest.approx(rate - reference)
        assert row["n_problems"] == 20


def test_conditions_that_answered_other_problems_are_not_compared(run: Path) -> None:
    attempts = run / "conditions/ladder/eval/attempts.jsonl"
    rows = read_jsonl(attempts)
    replace(attempts, [row for row in rows if row["problem_id"] != rows[0]["problem_id"]])
    compared = {name for row in measure(open_run(run))["differences"] for name in (row["condition"], row["reference"])}
    assert compared == {"base", "rl_without_variants", "ttrl"}
