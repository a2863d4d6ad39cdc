"""The numbers of report.json: what each condition cost, and which conditions are compared on which problems."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ladder_lite.config import load_recipe
from ladder_lite.jsonl import append_jsonl, read_jsonl, write_json
from ladder_lite.problems import load_problems
from ladder_lite.report import chapters
from ladder_lite.report.findings import known_problems, measure, outcomes
from ladder_lite.runs.finished import Run, open_run
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


# --- runs written by hand, so that every number is known


def a_run(folder: Path, files: dict[str, Any], *settings: str) -> Run:
    """Return a run with these files: a dict for JSON, a list of rows for JSON lines."""
    small = ["name=small", "seed=1", "model.id=m", "task.test=no such set", "eval.samples=4", "eval.k=2"]
    small += ["conditions=[base, ladder, ladder_ttrl]"]
    recipe = load_recipe("tiny", [*small, *settings])
    write_json(folder / "recipe.resolved.yaml", recipe.model_dump(mode="json"))
    for name, contents in files.items():
        if isinstance(contents, dict):
            write_json(folder / name, contents)
        else:
            append_jsonl(folder / name, contents)
    return open_run(folder)


def attempt(problem_id: str, right: bool, **more: Any) -> dict[str, Any]:
    verdict = {"reward": float(right), "reason": "CORRECT" if right else "WRONG", "answer": "x"}
    return {"problem_id": problem_id, "index": 0, "text": "", "n_tokens": 1, "truncated": False} | verdict | more


def test_an_empty_run_has_no_findings(tmp_path: Path) -> None:
    report = measure(a_run(tmp_path, {}))
    nothing = {"n_left": None, "attempted": 0, "solved": 0, "steps_to_solve": [], "voted_right": 0}
    assert (report["ttrl"], report["ttrl_without_ladder"]) == (nothing, nothing)
    assert report["variants"] == {"kept": 0, "rejected": 0, "duplicates": 0, "by_depth": {}, "tokens": 0}
    about = (report["recipe"], report["seed"], report["model"], report["experiment"])
    assert about == ("small", 1, "m", "own")
    empty = {key: report[key] for key in ("conditions", "training", "race", "depths", "versions")}
    assert set(map(len, empty.values())) == {0}
    assert (report["curve"], report["differences"], report["costs"], report["peak_memory_bytes"]) == ([], [], [], 0)


def test_a_condition_sums_the_costs_of_its_stages(tmp_path: Path) -> None:
    share = {"value": 0.5, "low": 0.2, "high": 0.8}
    run = a_run(
        tmp_path,
        {
            "conditions/base/eval/done.json": {"digest": "", "pass@1": share, "n_problems": 3},
            "conditions/ladder/train/done.json": {"steps": 7, "seconds": 2.5, "n_tokens": 10, "variants": 4},
            "conditions/ladder/eval/done.json": {"pass@1": share, "seconds": 1.0, "n_tokens": 5, "greedy": share},
            "conditions/ladder_ttrl/problems/done.json": {"steps": 9, "seconds": 4.0},
            "conditions/ladder_ttrl/eval/done.json": {"n_problems": 3},
        },
    )
    assert measure(run)["conditions"] == {
        "base": {"pass@1": share, "n_problems": 3, "steps": 0, "seconds": 0.0},
        "ladder": {"pass@1": share, "greedy": share, "steps": 7, "seconds": 3.5, "n_tokens": 15, "variants": 4},
    }
    costs = [(row["stage"], row["n_tokens"], row["seconds"]) for row in measure(run)["costs"]]
    assert costs == [
        ("conditions/base/eval", None, None),
        ("conditions/ladder/train", 10, 2.5),
        ("conditions/ladder/eval", 5, 1.0),
        ("conditions/ladder_ttrl/problems", None, 4.0),
        ("conditions/ladder_ttrl/eval", None, None),
    ]
    assert measure(run)["peak_memory_bytes"] == 0  # of stages that measured none


def test_costs_begin_with_what_conditions_share(tmp_path: Path) -> None:
    stages = ("select", "transformations", "variants", "conditions/ladder/variants")
    done = {"tokens": 3, "peak_memory_bytes": 5}
    report = measure(a_run(tmp_path, {f"{stage}/done.json": done for stage in stages}))
    assert [row["stage"] for row in report["costs"]] == list(stages)
    assert {(row["n_tokens"], row["peak_memory_bytes"]) for row in report["costs"]} == {(3, 5)}
    assert report["peak_memory_bytes"] == 5


def test_training_is_averaged_over_at_most_40_bins(tmp_path: Path) -> None:
    """Of 81 steps, each three make a bin; the shares of zero-variance groups are 0, 0.01, 0.02, ..."""
    metrics = [
        {"step": step, "groups_without_signal": (step - 1) / 100, "entropy": 1 / step if step % 3 else None}
        for step in range(81, 0, -1)
    ]
    rows = [attempt("p", step % 3 == 0, step=step) for step in range(1, 82)]
    rows.append(attempt("p", False, step=2, truncated=True))
    rows.append(attempt("p", True, step=2, from_base=True))  # not an answer of the model that is trained
    train = "conditions/ladder/train"
    found = measure(a_run(tmp_path, {f"{train}/metrics.jsonl": metrics, f"{train}/attempts.jsonl": rows}))["training"]
    assert list(found) == ["ladder"]
    assert found["ladder"]["steps"] == list(range(2, 82, 3))
    assert found["ladder"]["groups_without_signal"] == pytest.approx([(step - 1) / 100 for step in range(2, 82, 3)])
    # Of the steps 1, 2 and 3, the last one has no entropy: no completion of it was trained on.
    assert found["ladder"]["entropy"] == pytest.approx([(1 / (n - 1) + 1 / n) / 2 for n in range(2, 82, 3)])
    rollouts = found["ladder"]["rollouts"]
    assert rollouts["right"] == [1 / 4, *[1 / 3] * 26]
    assert rollouts["wrong"] == [2 / 4, *[2 / 3] * 26]
    assert rollouts["truncated"] == [1 / 4, *[0.0] * 26]


def test_pass_rates_by_technique(tmp_path: Path) -> None:
    """TTRL's are means over its problems, each with its last probe."""

    def probe(**rates: float) -> dict[str, Any]:
        entries = {name: {"n_problems": 9, "pass@1": share(value)} for name, value in rates.items()}
        return {"n_problems": 9, "techniques": entries}

    def share(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    place = "conditions/ladder_ttrl/problems"
    files: dict[str, Any] = {
        "conditions/base/eval/done.json": {"pass@1": share(0.5), "probe": probe(sine=0.4, log=0.3)},
        "conditions/ladder/eval/done.json": {"pass@1": share(0.5), "probe": probe(sine=0.1, log=0.9)},
        "conditions/rl_without_variants/eval/done.json": {"pass@1": share(0.5)},
        f"{place}/a/done.json": outcome("a", True),
        f"{place}/a/train/probes.jsonl": [{"step": 5} | probe(sine=0.2), {"step": 9} | probe(sine=0.5)],
        f"{place}/b/done.json": outcome("b", False),
        f"{place}/b/train/probes.jsonl": [{"step": 5} | probe(sine=1.0)],
    }
    probes = measure(a_run(tmp_path, files))["probes"]
    assert list(probes) == ["base", "ladder", "ladder_ttrl"]
    assert (probes["base"], probes["ladder"]["log"]) == ({"sine": share(0.4), "log": share(0.3)}, share(0.9))
    assert probes["ladder_ttrl"]["sine"]["value"] == 0.75


def test_techniques_that_training_lost(tmp_path: Path) -> None:
    """Of ten problems of each technique, LADDER answers those of one worse, all of them a little."""
    probe = tmp_path / "probe.jsonl"
    rows = [{"integrand": f"{n}*x", "technique": ("log|", "sine")[n % 2]} for n in range(2, 22)]
    append_jsonl(probe, rows)
    problems = load_problems(str(probe), "probe")

    def answers(n_right: tuple[int, int]) -> list[dict[str, Any]]:
        return [attempt(problem.id, turn < n_right[n % 2]) for n, problem in enumerate(problems) for turn in range(10)]

    files: dict[str, Any] = {}
    for name, n_right in (("base", (3, 3)), ("ladder", (2, 9))):
        summary = {"pass@1": {"value": 0.5, "low": 0.4, "high": 0.6}}
        names = {row["technique"]: {"pass@1": {"value": right / 10}} for row, right in zip(rows, n_right, strict=False)}
        files[f"conditions/{name}/eval/done.json"] = summary | {"probe": {"techniques": names}}
        files[f"conditions/{name}/eval/probe/attempts.jsonl"] = answers(n_right)
    folder = tmp_path / "run"
    assert measure(a_run(folder, files))["lost"] == {}  # without a probe in the recipe
    report = measure(a_run(folder, {}, f"task.probe={probe}"))
    assert report["lost"] == {"ladder": ["log|"]}
    words = chapters._lost_techniques(report)
    assert words == ["LADDER answers these techniques worse than the base model: `log|` (30 % to 20 %)."]
    words = chapters._lost_techniques(report | {"lost": {"ladder": []}})
    assert words == ["LADDER answers no technique significantly worse than the base model."]


@pytest.mark.parametrize(("n_steps", "size"), [(1, 1), (40, 1), (41, 2), (80, 2), (81, 3), (1000, 25)])
def test_a_bin_is_as_small_as_possible(tmp_path: Path, n_steps: int, size: int) -> None:
    metrics = [{"step": step} for step in range(1, n_steps + 1)]
    metrics[0]["groups_without_signal"] = 1  # the others lack it
    found = measure(a_run(tmp_path, {"conditions/ladder/train/metrics.jsonl": metrics}))["training"]["ladder"]
    assert len(found["steps"]) == -(-n_steps // size)
    assert found["steps"][0] == (1 + size) / 2
    assert found["groups_without_signal"] == [1.0, *[None] * (len(found["steps"]) - 1)]
    assert found["rollouts"] == {}  # there is no log of them


def outcome(problem_id: str, solved: bool, **more: Any) -> dict[str, Any]:
    row = {"problem_id": problem_id, "solved": solved, "steps_to_solve": 3 if solved else None, "n_tokens": 50}
    return row | {"voted_right": False} | more


def test_single_problems_are_in_the_order_of_the_work(tmp_path: Path) -> None:
    place = "conditions/ladder_ttrl/problems"
    files = {f"{place}/{name}/done.json": outcome(name, name != "a", voted_right=name == "b") for name in "abc"}
    run = a_run(tmp_path, files)
    assert [row["problem_id"] for row in outcomes(run, "ladder_ttrl")] == ["a", "b", "c"]
    write_json(tmp_path / place / "done.json", {"problems": ["c", "gone", "a"], "n_left": 5})
    assert [row["problem_id"] for row in outcomes(run, "ladder_ttrl")] == ["c", "a", "b"]
    assert measure(run)["ttrl"] == {
        "n_left": 5,
        "attempted": 3,
        "solved": 2,
        "steps_to_solve": [3, 3],
        "voted_right": 1,
    }
    assert measure(run)["race"] == {}  # there is nothing to compare with


def test_a_race_counts_tokens(tmp_path: Path) -> None:
    tried = {
        "ladder_ttrl": [outcome("a", True), outcome("b", False, n_tokens=70), outcome("c", True)],
        "ladder_pass100": [outcome("b", True, tokens_to_right=9), outcome("a", False, tokens_to_right=None)],
        "ttrl": [],
    }
    files = {
        f"conditions/{name}/problems/{row['problem_id']}/done.json": row for name, rows in tried.items() for row in rows
    }
    assert measure(a_run(tmp_path, files))["race"] == {
        "problems": ["a", "b"],
        "methods": {
            "ladder_ttrl": {"solved": 1, "tokens_to_solve": [50, None], "spent": [50, 70]},
            "ladder_pass100": {"solved": 1, "tokens_to_solve": [None, 9], "spent": [50, 50]},
        },
    }


def test_an_unfinished_ablation_of_ttrl_does_not_shrink_the_race(tmp_path: Path) -> None:
    tried = {name: [outcome("a", True), outcome("b", True)] for name in ("ladder_ttrl", "ttrl")}
    tried["control"] = [outcome("b", False)]

    def race() -> Any:
        files = {
            f"conditions/{name}/problems/{row['problem_id']}/done.json": row
            for name, rows in tried.items()
            for row in rows
        }
        control = "ablations={control: {ttrl.train_on: problem}}"
        return measure(a_run(tmp_path / str(len(tried["control"])), files, control, "full=[]"))["race"]

    assert (race()["problems"], list(race()["methods"])) == (["a", "b"], ["ladder_ttrl", "ttrl"])
    tried["control"].append(outcome("a", True))
    assert race()["methods"]["control"]["tokens_to_solve"] == [50, None]


def test_a_race_without_a_common_problem_is_empty(tmp_path: Path) -> None:
    places = {"ladder_ttrl": "a", "ladder_pass100": "b"}
    files = {f"conditions/{name}/problems/{at}/done.json": outcome(at, True) for name, at in places.items()}
    assert measure(a_run(tmp_path, files))["race"] == {}


def test_depths_are_those_of_both_trees(tmp_path: Path) -> None:
    train = "conditions/ladder/train"
    rows = [attempt(name, right, step=step) for step, name, right in ((1, "a", True), (1, "b", False), (3, "c", True))]
    files = {
        "variants/problems.jsonl": [{"id": "a", "depth": 1}],
        f"{train}/variants/problems.jsonl": [{"id": "b", "depth": 2}],
        f"{train}/attempts.jsonl": rows,
    }
    one = {"n": 1, "pass_rate": 1.0}
    assert measure(a_run(tmp_path, files))["depths"] == {
        "0": {"last": one},
        "1": {"first": one},
        "2": {"first": {"n": 1, "pass_rate": 0.0}},
    }


def test_a_condition_without_verifiable_answers_is_not_compared(tmp_path: Path) -> None:
    unverifiable = attempt("a", False, reward=None, reason="UNVERIFIABLE")
    files: dict[str, Any] = {}
    for name in ("base", "ladder"):
        files[f"conditions/{name}/eval/attempts.jsonl"] = [unverifiable]
        files[f"conditions/{name}/eval/done.json"] = {"pass@1": {"value": 0.0}}
    assert measure(a_run(tmp_path, files))["differences"] == []


def test_a_problem_set_that_cannot_be_read_has_no_problems(run: Path) -> None:
    opened = open_run(run)
    assert known_problems(opened, "no such set", "test") == []
    task = opened.recipe.task.model_copy(update={"name": "gone.py:Task"})
    gone = dataclasses.replace(opened, recipe=opened.recipe.model_copy(update={"task": task}))
    assert known_problems(gone, "tiny", "test") == []
    assert len(known_problems(opened, "tiny", "test")) == 100
