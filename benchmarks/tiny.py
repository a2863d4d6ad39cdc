"""The figures of the tiny recipe over seeds: accuracy by condition, TTRL, time, memory, and what start-up costs.

    python benchmarks/tiny.py                      # runs seeds 0, 1, 2 (15 to 20 minutes each on 2 cores)
    python benchmarks/tiny.py --runs FOLDER        # finished or half-finished runs in FOLDER/s0, FOLDER/s1, ... go on

Writes benchmarks/results/tiny.json. Times are of the machine at hand; the ratio of start-up is against importing torch
in the same run.
"""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import psutil
import typer

HERE = Path(__file__).parent


def main(
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/benchmark-tiny"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "tiny.json",
) -> None:
    reports = []
    for seed in seeds.split(","):
        folder = runs / f"s{seed}"
        command = [sys.executable, "-m", "ladder_lite.recipe", "tiny", f"seed={seed}", "--run-dir", str(folder)]
        subprocess.run(command, check=True)
        reports.append(json.loads((folder / "report.json").read_text()) | {"verification": _verification_share(folder)})
    figures = {
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "help_over_import_torch": _startup_ratio(),
        "mean": {name: _mean(reports, name) for name in reports[0]["conditions"]},
        "runs": reports,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    _print(figures)


def _mean(reports: list[dict[str, Any]], name: str) -> dict[str, float]:
    conditions = [report["conditions"][name] for report in reports]
    keys = [key for key in conditions[0] if key.startswith("pass@")]
    return {key: mean(condition[key]["value"] for condition in conditions) for key in keys}


def _verification_share(run: Path) -> float:
    """Share of the time of LADDER's training steps that went into verification."""
    lines = (run / "conditions/ladder/train/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    return sum(step["verify_seconds"] for step in steps) / sum(step["seconds"] for step in steps)


def _startup_ratio(repeats: int = 5) -> float:
    """Median time of `python -m ladder_lite.recipe --help` over that of `python -c "import torch"`."""

    def seconds(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    pairs = [(seconds("-m", "ladder_lite.recipe", "--help"), seconds("-c", "import torch")) for _ in range(repeats)]
    return median(ours for ours, _ in pairs) / median(torch for _, torch in pairs)


def _print(figures: dict[str, Any]) -> None:
    for report in figures["runs"]:
        ttrl, seconds = report["ttrl"], sum(c["seconds"] for c in report["conditions"].values())
        cells = [f"{name} {condition['pass@1']['value']:.1%}" for name, condition in report["conditions"].items()]
        print(f"seed {report['seed']}: pass@1 {', '.join(cells)}")
        print(f"  TTRL solved {ttrl['solved']} of {ttrl['attempted']} tried, {ttrl['n_left']} were left unsolved")
        gib = report["peak_memory_bytes"] / 2**30
        print(f"  {seconds / 60:.1f} min of training steps and evaluation, {gib:.2f} GiB at most")
        print(f"  verification: {report['verification']:.2%} of LADDER's training time")
    for name, means in figures["mean"].items():
        print(f"mean {name}: {', '.join(f'{key} {value:.1%}' for key, value in means.items())}")
    print(f"--help takes {figures['help_over_import_torch']:.2f} of the time of importing torch")


if __name__ == "__main__":
    typer.run(main)
