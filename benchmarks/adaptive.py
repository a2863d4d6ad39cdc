"""Measure the benefit of the adaptive tree: LADDER on the tiny recipe with three ways of choosing what to train on.

    python benchmarks/adaptive.py                  # 3 seeds x 3 arms, about 10 minutes each on one core
    python benchmarks/adaptive.py --runs FOLDER    # resumes or reuses the runs in FOLDER/ARM-s0, ...

Arms:

- `static`, the paper's method: the whole tree is written before training, and rows are drawn uniformly;
- `pass_rate`: the same tree, but rows are drawn by measured pass rate;
- `adaptive`: also starts with a smaller tree, which grows during training.

They are compared at equal numbers of generated tokens, counting all rollouts and the variants written before and during
training. Seconds cover the same work; interim evaluations are not counted.
Writes benchmarks/results/adaptive.json and adaptive.png.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import psutil
import typer

HERE = Path(__file__).parent
ARMS = {
    "static": ["variants.adaptive=null", "grpo.rows=uniform"],
    "pass_rate": ["variants.adaptive=null"],
    "adaptive": [],
}
GOALS = (0.6, 0.8)


def main(
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/benchmark-adaptive"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    arms: Annotated[str, typer.Option(help="Arms, separated by commas.")] = ",".join(ARMS),
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "adaptive.json",
) -> None:
    """Run LADDER with three ways of choosing what to train on, and compare them at equal tokens."""
    measured: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms.split(",")}
    for seed in seeds.split(","):
        for arm in measured:
            folder = runs / f"{arm}-s{seed}"
            command = [sys.executable, "-m", "ladder_lite.recipe", "tiny", f"seed={seed}", "grpo.eval_every=10"]
            command += [*ARMS[arm], "--only", "ladder", "--run-dir", str(folder)]
            subprocess.run(command, check=True)
            measured[arm].append({"seed": int(seed), **_measure(folder)})
    # The run that generated the fewest tokens limits the comparison.
    budget = min(run["curve"][-1]["tokens"] for runs_of_arm in measured.values() for run in runs_of_arm)
    figures = {
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "command": "python benchmarks/adaptive.py",
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
    }


def _summarize(runs: list[dict[str, Any]], budget: int) -> dict[str, Any]:
    """Return means over the seeds within a budget of tokens, and for each goal the tokens and seconds of each seed."""
    summary: dict[str, Any] = {
        "pass@1": mean(run["pass@1"] for run in runs),
        "pass@1_at_equal_tokens": mean(_last_within(run, budget)["pass@1"] for run in runs),
        "groups_without_signal": mean(mean(share for used, share in run["signal"] if used <= budget) for run in runs),
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
    static, adaptive = figures["arms"].get("static"), figures["arms"].get("adaptive")
    if static and adaptive:
        ratio = adaptive["groups_without_signal"] / static["groups_without_signal"]
        print(f"adaptive has {ratio:.2f} times as many zero-variance groups as static")


if __name__ == "__main__":
    typer.run(main)
