"""Run a recipe with several seeds: conditions with intervals, TTRL against its rivals, techniques, time, memory.

    python benchmarks/seeds.py tiny                      # seeds 0, 1, 2; default conditions and TTRL without LADDER
    python benchmarks/seeds.py tiny --conditions full    # with the ablations
    python benchmarks/seeds.py exam --runs FOLDER        # resumes or reuses the runs in FOLDER/exam-s0, ...
    python benchmarks/seeds.py exam grpo.base_rollouts=null --runs OTHER --out OTHER.json    # with other settings
    python benchmarks/seeds.py smollm model.id=FILE.gguf --seeds 0 --conditions base,rl_without_variants,ladder \
        --out benchmarks/results/smollm.json

Writes benchmarks/results/RECIPE.json, and comparison.html and .md in FOLDER/comparison. Times depend on the machine.
The start-up time of `--help` is therefore given as a ratio to the time of importing torch.
"""

import json
import platform
import re
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from tiny_corpus import exam, integrand

from ladder_lite.config import load_recipe, model_name
from ladder_lite.evaluate.scores import mean_with_interval
from ladder_lite.jsonl import read_jsonl
from ladder_lite.problems import load_problems
from ladder_lite.report import write_comparison
from ladder_lite.report.controls import sign_test

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RIVALS = ("ladder_pass100", "ttrl")
FEW_STEPS = 10
"""A technique that LADDER has lost should be back after this many steps of TTRL."""


def main(
    recipe: Annotated[str, typer.Argument(help="tiny, exam, smollm.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Other settings.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    conditions: Annotated[str, typer.Option(help="Conditions, separated by commas, or full.")] = "",
    out: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Run a recipe with several seeds and summarize the results."""
    if out is None and (settings or conditions or seeds != "0,1,2"):
        raise typer.BadParameter("give --out FILE: the default file is for the default seeds, conditions and settings")
    # By default, its own conditions, and TTRL without LADDER.
    conditions = conditions or ",".join(dict.fromkeys([*load_recipe(recipe).conditions, "ttrl"]))
    folders = [runs / f"{recipe}-s{seed}" for seed in seeds.split(",")]
    for seed, folder in zip(seeds.split(","), folders, strict=True):
        command = [sys.executable, "-m", "ladder_lite.recipe", recipe, f"seed={seed}", *(settings or ())]
        command += ["--full"] if conditions == "full" else [f"conditions=[{conditions}]"]
        subprocess.run([*command, "--run-dir", str(folder)], check=True)
    comparison = write_comparison(folders, runs / "comparison")
    figures = {
        # Without the folders of this machine.
        "command": re.sub(r"(?<=[=\s])/\S*/", "", shlex.join(["python", *sys.argv])),
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "help_over_import_torch": _startup_ratio(),
        "means": comparison["means"],
        "at_equal_tokens": _at_equal_tokens(folders),
        "sign_tests": [test for rival in RIVALS if (test := _sign_test(folders, rival))],
        "runs": [_measure(folder) for folder in folders],
    }
    if len(folders) == 1:
        figures |= {key: figures["runs"][0][key] for key in ("conditions", "differences", "seconds", "versions")}
    out = out or HERE / "results" / f"{recipe}.json"
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
    kept["model"] = model_name(report["model"])
    kept["seconds"] = sum(row["seconds"] or 0.0 for row in report["costs"])
    singles = {
        done.parent.parent.name: [
            {key: row[key] for key in ("problem_id", "root_id", "solved", "steps", "n_verifier_calls")}
            for path in sorted(done.parent.glob("*/done.json"))
            if "root_id" in (row := json.loads(path.read_text()))
        ]
        for done in sorted(run.glob("conditions/*/problems/done.json"))
    }
    return kept | {"verification": share, "techniques": _techniques(run, report), "single_problems": singles}


def _at_equal_tokens(runs: list[Path]) -> dict[str, Any]:
    """Compare LADDER with each trained control after as many tokens as the one of them with fewer tokens generated.

    The accuracies are those of interim evaluations (one answer per problem), interpolated; one entry for each run.
    """

    def curve(run: Path, condition: str) -> tuple[list[int], list[float]]:
        train = run / "conditions" / condition / "train"
        tokens = [0, *accumulate(row["n_tokens"] for row in read_jsonl(train / "metrics.jsonl"))]
        rows = read_jsonl(train / "curve.jsonl")
        return [tokens[row["step"]] for row in rows], [row["pass@1"] for row in rows]

    found: dict[str, Any] = {}
    for run in runs:
        ladder = curve(run, "ladder")
        for train in sorted(run.glob("conditions/*/train")):
            control = curve(run, train.parent.name)
            if train.parent.name != "ladder" and control[0]:
                budget = min(ladder[0][-1], control[0][-1])
                first, second = (float(np.interp(budget, *each)) for each in (ladder, control))
                row = {"tokens": budget, "ladder": first, "control": second}
                found.setdefault(train.parent.name, []).append(row)
    return found


def _sign_test(runs: list[Path], rival: str) -> dict[str, Any]:
    """Compare TTRL after LADDER with a rival on the problems of all runs: solved, tokens, and a sign test."""
    races = [json.loads((run / "report.json").read_text())["race"] for run in runs]
    test = sign_test(races, "ladder_ttrl", rival)
    if not test:
        return {}
    both = [race["methods"] for race in races if {"ladder_ttrl", rival} <= race.get("methods", {}).keys()]
    spent = ([tokens for methods in both for tokens in methods[name]["spent"]] for name in ("ladder_ttrl", rival))
    return {
        "rival": rival,
        "problems": test["n_problems"],
        "ladder_ttrl": test["solved"][0],
        "solved_by_rival": test["solved"][1],
        "only_ladder_ttrl": test["wins"],
        "only_rival": test["losses"],
        "p": test["p"],
        "median_tokens": [median(tokens) for tokens in spent],
    }


def _techniques(run: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Return the pass rates of single terms by technique in the exam: base, LADDER, and TTRL after few steps.

    TTRL's are means over the problems that have the technique, each with its last probe within `FEW_STEPS` steps.
    """
    if report["recipe"] != "exam":
        return {}
    texts = {problem.id: str(problem.data["integrand"]) for problem in load_problems("exam", "test")}
    names = {integrand(terms): {term.technique for term in terms} for _, terms in exam()}
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for folder in (run / "conditions/ladder_ttrl/problems").glob("*/"):
        early = [row for row in read_jsonl(folder / "train/probes.jsonl") if row["step"] <= FEW_STEPS]
        for technique in names[texts[folder.name]] if early else ():
            rates[technique].append(early[-1]["techniques"][technique]["pass@1"]["value"])
    return {
        technique: {
            "base": base,
            "ladder": report["probes"]["ladder"][technique],
            "ladder_ttrl": mean_with_interval(rates[technique]) if rates[technique] else None,
            "problems": len(rates[technique]),
        }
        for technique, base in report["probes"]["base"].items()
    }


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
    for test in figures["sign_tests"]:
        print(
            f"of {test['problems']} problems, ladder_ttrl solved {test['ladder_ttrl']}, {test['rival']} "
            f"{test['solved_by_rival']} (sign test, p = {test['p']:.2g}); median tokens {test['median_tokens']}"
        )
    for mean in figures["means"]:
        for name, share in mean["conditions"].items():
            print(f"mean {name}: {share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})")
        for row in mean["controls"]:
            print(f"is it more than {row['more_than']}? {row['answer']}: {row.get('points') or row['test']}")
    for name, rows in figures["at_equal_tokens"].items():
        values = "; ".join(f"{row['tokens']:,}: {row['ladder']:.0%} and {row['control']:.0%}" for row in rows)
        print(f"LADDER and {name} at equal tokens: {values}")
    print(f"--help takes {figures['help_over_import_torch']:.2f} of the time of importing torch")


if __name__ == "__main__":
    typer.run(main)
