"""Run `tiny` with several seeds: conditions with intervals, TTRL against more samples, time, memory.

    python benchmarks/tiny.py                      # seeds 0, 1, 2 with the default conditions and TTRL without LADDER
    python benchmarks/tiny.py --conditions full    # with the ablations
    python benchmarks/tiny.py --runs FOLDER        # resumes or reuses the runs in FOLDER/tiny-s0, ...

Writes benchmarks/results/tiny.json, and comparison.html and .md in FOLDER/comparison. Times depend on the machine. The
start-up time of `--help` is therefore given as a ratio to the time of importing torch.
"""

import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import typer

from ladder_lite.report import write_comparison

HERE = Path(__file__).parent
CONDITIONS = ("base", "rl_without_variants", "ladder", "ladder_ttrl", "ttrl", "ladder_pass100")


def main(
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    conditions: Annotated[str, typer.Option(help="Conditions, separated by commas, or full.")] = ",".join(CONDITIONS),
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "tiny.json",
) -> None:
    """Run `tiny` with several seeds and summarize the results."""
    folders = [runs / f"tiny-s{seed}" for seed in seeds.split(",")]
    for seed, folder in zip(seeds.split(","), folders, strict=True):
        command = [sys.executable, "-m", "ladder_lite.recipe", "tiny", f"seed={seed}"]
        command += ["--full"] if conditions == "full" else [f"conditions=[{conditions}]"]
        subprocess.run([*command, "--run-dir", str(folder)], check=True)
    comparison = write_comparison(folders, runs / "comparison")
    figures = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "help_over_import_torch": _startup_ratio(),
        "means": comparison["means"],
        "runs": [_measure(folder) for folder in folders],
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    _print(figures)


def _measure(run: Path) -> dict[str, Any]:
    """Return report.json without its curves, and the share of LADDER's training time spent on verification."""
    report = json.loads((run / "report.json").read_text())
    lines = (run / "conditions/ladder/train/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    share = sum(step["verify_seconds"] for step in steps) / sum(step["seconds"] for step in steps)
    kept = {key: value for key, value in report.items() if key not in ("training", "depths")}
    return kept | {"verification": share}


def _startup_ratio(repeats: int = 5) -> float:
    """Return the median time of `python -m ladder_lite.recipe --help` divided by that of `python -c "import torch"`."""

    def seconds(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    pairs = [(seconds("-m", "ladder_lite.recipe", "--help"), seconds("-c", "import torch")) for _ in range(repeats)]
    return median(help_s for help_s, _ in pairs) / median(torch_s for _, torch_s in pairs)


def _print(figures: dict[str, Any]) -> None:
    for report in figures["runs"]:
        seconds = sum(condition["seconds"] for condition in report["conditions"].values())
        gib = report["peak_memory_bytes"] / 2**30
        print(f"seed {report['seed']}: {seconds / 60:.1f} min of steps and evaluation, {gib:.2f} GiB at most")
        print(f"  verification: {report['verification']:.2%} of LADDER's training time")
        for name, method in report["race"].get("methods", {}).items():
            print(f"  {name}: solved {method['solved']} of {len(report['race']['problems'])} hard problems")
    for mean in figures["means"]:
        for name, share in mean["conditions"].items():
            print(f"mean {name}: {share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})")
    print(f"--help takes {figures['help_over_import_torch']:.2f} of the time of importing torch")


if __name__ == "__main__":
    typer.run(main)
