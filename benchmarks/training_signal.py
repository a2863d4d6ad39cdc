"""Measure what each way of choosing what to train on brings: LADDER on the tiny recipe, at equal generated tokens.

    python benchmarks/training_signal.py                  # 3 seeds x 7 arms, about 3 minutes each on one core
    python benchmarks/training_signal.py --runs FOLDER    # resumes or reuses the runs in FOLDER/ARM-s0, ...

Arms:

- `static`, the paper's method: the whole tree is written before training, and rows are drawn uniformly;
- `pass_rate`: the same tree, but rows are drawn by measured pass rate;
- `adaptive`: also starts with a smaller tree, which grows during training;
- `refill`, `replay`, `base_rollouts`, `downsample`: `adaptive` with that setting of `grpo` alone.

They are compared at equal numbers of generated tokens, counting all rollouts and the variants written before and during
training. An arm that samples more completions in a step has fewer steps, so that its learning rate decays over about
as many tokens. Seconds cover the same work; interim evaluations are not counted.

`reliability` compares the pass rates expected of the groups that were drawn with their outcomes, by bins of the
expected rate: how many groups there were, their mean reward, and how many had no signal.

Writes benchmarks/results/training_signal.json and training_signal.png.
"""

import json
import platform
import shlex
import subprocess
import sys
from bisect import bisect_right
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import psutil
import typer

from ladder_lite.problems import Problem
from ladder_lite.train.curriculum import PassRates

HERE = Path(__file__).parent
OFF = ["grpo.refill=null", "grpo.base_rollouts=null"]
ARMS = {
    "static": [*OFF, "variants.adaptive=null", "grpo.rows=uniform"],
    "pass_rate": [*OFF, "variants.adaptive=null"],
    "adaptive": OFF,
    "refill": [*OFF, "grpo.refill={pilot: 4, limit: 2}"],
    "replay": [*OFF, "grpo.replay=true"],
    "base_rollouts": [*OFF, "grpo.base_rollouts={rows: 2, samples: 8}"],
    "downsample": [*OFF, "grpo.downsample_from=16"],
}
STEPS = {"refill": 75, "downsample": 75}
"""Steps of the arms that sample more than 64 completions in a step; the others have 150."""

GOALS = (0.6, 0.8)
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def main(
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/training-signal"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    arms: Annotated[str, typer.Option(help="Arms, separated by commas.")] = ",".join(ARMS),
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "training_signal.json",
) -> None:
    """Run LADDER with each way of choosing what to train on, and compare them at equal tokens."""
    measured: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms.split(",")}
    for seed in seeds.split(","):
        for arm in measured:
            folder = runs / f"{arm}-s{seed}"
            command = [sys.executable, "-m", "ladder_lite.recipe", "tiny", f"seed={seed}", "grpo.eval_every=10"]
            command += [*ARMS[arm], f"grpo.trl.max_steps={STEPS.get(arm, 150)}"]
            command += ["--only", "ladder", "--run-dir", str(folder)]
            subprocess.run(command, check=True)
            measured[arm].append({"seed": int(seed), **_measure(folder)})
    # The run that generated the fewest tokens limits the comparison.
    budget = min(run["curve"][-1]["tokens"] for runs_of_arm in measured.values() for run in runs_of_arm)
    figures = {
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "command": shlex.join(["python", *sys.argv]),
        "tokens_compared": budget,
        "arms": {arm: _summarize(runs_of_arm, budget) for arm, runs_of_arm in measured.items()},
        "runs": measured,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    _draw(measured, out.with_suffix(".png"))
    _print(figures)


def _measure(run: Path) -> dict[str, Any]:
    """Return a run's accuracy over generated tokens, its share of zero-variance groups per step, and its final scores.

    "curve" has a row for each interim evaluation, "signal" a pair (tokens, share) for each step.
    """
    train = run / "conditions/ladder/train"
    steps = _rows(train / "metrics.jsonl")
    grown = {row["round"]: row for row in _rows(train / "variants/rounds.jsonl")}  # step -> variants written after it
    tree = _rows(run / "variants/rounds.jsonl")
    # Totals after each step; the key 0 is the tree written before training.
    tokens = {0: sum(row["n_tokens"] for row in tree)}
    seconds = {0: sum(row["seconds"] for row in tree)}
    for previous, step in enumerate(steps):
        growth = grown.get(step["step"], {"n_tokens": 0, "seconds": 0.0})
        tokens[step["step"]] = tokens[previous] + step["n_tokens"] + growth["n_tokens"]
        seconds[step["step"]] = seconds[previous] + step["seconds"] + growth["seconds"]
    report = json.loads((run / "report.json").read_text())
    return {
        "pass@1": report["conditions"]["ladder"]["pass@1"]["value"],
        "pass@10": report["conditions"]["ladder"]["pass@10"]["value"],
        "variants": report["variants"]["kept"] + len(_rows(train / "variants/problems.jsonl")),
        "tokens_of_variants": tokens[0] + sum(row["n_tokens"] for row in grown.values()),
        "seconds": seconds[len(steps)],
        "curve": [
            {"step": step, "tokens": tokens[step], "pass@1": row["pass@1"], "seconds": round(seconds[step], 1)}
            for row in _rows(train / "curve.jsonl")
            for step in [row["step"]]
        ],
        "signal": [[tokens[step["step"]], step["groups_without_signal"]] for step in steps],
        "sampled_without_signal": mean(step["sampled_groups_without_signal"] for step in steps),
        "reliability": _reliability(run, train),
    }


def _reliability(run: Path, train: Path) -> list[dict[str, float]]:
    """Return for each bin of expected pass rates the outcomes of the groups drawn from variants in it."""
    first, grown = ([dict(row) for row in _rows(folder / "variants/problems.jsonl")] for folder in (run, train))
    round_of = {row["id"]: row.pop("round") for row in first + grown}
    problems = [Problem.from_row(row) for row in first + grown]
    row_of = {problem.id: row for row, problem in enumerate(problems)}
    rates = PassRates(problems[: len(first)], "pass_rate", 0)
    for problem in problems[len(first) :]:
        rates.add([problem], round_of[problem.id])
    outcomes: dict[int, list[list[bool]]] = {number: [] for number in range(len(BINS) - 1)}
    for step, attempts in groupby(_rows(train / "attempts.jsonl"), itemgetter("step")):
        expected = rates.estimate(step - 1)
        groups: dict[int, list[bool]] = {}
        for attempt in attempts:
            # Neither of a root nor of the base model.
            if attempt["problem_id"] in row_of and attempt["reward"] is not None and not attempt.get("from_base"):
                groups.setdefault(row_of[attempt["problem_id"]], []).append(attempt["reason"] == "CORRECT")
        for row, right in groups.items():
            outcomes[min(bisect_right(BINS, expected[row]), len(BINS) - 1) - 1].append(right)
            for correct in right:
                rates.observe(step, row, correct)
    return [
        {
            "expected_from": BINS[number],
            "groups": len(groups),
            "mean": mean(mean(right) for right in groups),
            "without_signal": mean(len(set(right)) == 1 for right in groups),
        }
        for number, groups in outcomes.items()
        if groups
    ]


def _summarize(runs: list[dict[str, Any]], budget: int) -> dict[str, Any]:
    """Return means over the seeds within a budget of tokens, and for each goal the tokens and seconds of each seed."""
    summary: dict[str, Any] = {
        "pass@1": mean(run["pass@1"] for run in runs),
        "pass@1_at_equal_tokens": mean(_last_within(run, budget)["pass@1"] for run in runs),
        "groups_without_signal": mean(mean(share for used, share in run["signal"] if used <= budget) for run in runs),
        "sampled_without_signal": mean(run["sampled_without_signal"] for run in runs),
    }
    for goal in GOALS:
        # None for a seed that never reaches the goal.
        reached = [next((row for row in run["curve"] if row["pass@1"] >= goal), None) for run in runs]
        summary[f"tokens_to_{goal:.0%}"] = [row and row["tokens"] for row in reached]
        summary[f"seconds_to_{goal:.0%}"] = [row and row["seconds"] for row in reached]
    return summary


def _last_within(run: dict[str, Any], budget: int) -> dict[str, Any]:
    return [row for row in run["curve"] if row["tokens"] <= budget][-1]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _draw(measured: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    from matplotlib import pyplot

    figure, (accuracy, signal) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, (arm, runs) in enumerate(measured.items()):
        colour = f"C{number}"
        for index, run in enumerate(runs):
            tokens = [row["tokens"] / 1000 for row in run["curve"]]
            label = arm if index == 0 else None  # one entry of the legend for all seeds
            accuracy.plot(tokens, [100 * row["pass@1"] for row in run["curve"]], color=colour, label=label, alpha=0.8)
            step_tokens, shares = zip(*run["signal"], strict=True)
            smooth = [100 * mean(shares[max(0, end - 10) : end]) for end in range(1, len(shares) + 1)]
            signal.plot([count / 1000 for count in step_tokens], smooth, color=colour, alpha=0.8)
    accuracy.set(xlabel="generated tokens (thousands)", ylabel="test pass@1 (%)", ylim=(0, 100))
    signal.set(xlabel="generated tokens (thousands)", ylabel="zero-variance groups (%), last 10 steps", ylim=(0, 100))
    accuracy.legend(frameon=False)
    for axes in (accuracy, signal):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _print(figures: dict[str, Any]) -> None:
    for arm, summary in figures["arms"].items():
        print(f"{arm}: pass@1 {summary['pass@1']:.1%} at the end, {summary['pass@1_at_equal_tokens']:.1%} after")
        print(
            f"  {figures['tokens_compared']} tokens, with {summary['groups_without_signal']:.1%} zero-variance groups"
        )
        for goal in GOALS:
            print(f"  tokens to {goal:.0%}, by seed: {summary[f'tokens_to_{goal:.0%}']}")
        for row in (row for run in figures["runs"][arm] for row in run["reliability"]):
            print(
                f"  expected from {row['expected_from']:.0%}: {row['groups']} groups, {row['mean']:.0%} right, "
                f"{row['without_signal']:.0%} without signal"
            )


if __name__ == "__main__":
    typer.run(main)
