"""Verdicts on the bars and a table of all findings: python benchmarks/gpu/report.py results-first.json"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workload import CAP_GIB, Finding

GIB = 2**30
WITHIN, FASTER, SMALLER, OWN, SHARE, GAP = 0.10, 1.5, 0.60, 0.02, 0.25, 0.05  # the bars
OMITTED = {
    "what",
    "took",
    "trace",
    "parts",
    "nvidia_smi",
    "flags",
    "entropy",
    "learning_rate",
    "stop",
    "median",
    "step",
}
Judged = tuple[str, bool | None]


def verdicts(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (bar, figure, "met", "not met" or "not measured") for every bar."""
    found = {(stage, row["what"]): row for stage, entry in results["stages"].items() for row in entry["findings"]}
    rows: list[tuple[str, str, str]] = []

    def judge(bar: str, names: list[str], figure: Callable[..., Judged], failure: str | None = None) -> None:
        """Judge findings, named "stage/what"; an error that contains `failure` means that the bar is not met."""
        parts = [found.get((*name.split("/"),), {"skipped": f"{name} has not run"}) for name in names]  # type: ignore[call-overload]
        problem = next((part[key] for part in parts for key in ("error", "skipped") if key in part), None)
        if problem is None and not results["card"]:
            problem = "no GPU"
        text, met = figure(*parts) if problem is None else (problem, None)
        if problem and failure and failure in problem.lower():
            met = False
        rows.append((bar, text, "not measured" if met is None else "met" if met else "not met"))

    for stage, what in [key for key, row in found.items() if "ratio" in row]:
        judge(f"{stage} {what}: peak within {WITHIN:.0%} of its prediction", [f"{stage}/{what}"], _predicted)
    for recipe, cap in CAP_GIB.items():
        judge(f"{recipe} trains within {cap} GiB", [f"{recipe}-unsloth/fits"], _fits, failure="memory")
    timed = ["llama3b-unsloth/timed", "llama3b-plain/timed"]
    judge(f"at least {FASTER} times as fast as plain TRL", timed, _faster)
    judge(f"at most {SMALLER:.0%} of the memory of plain TRL", timed, _smaller)
    judge(f"own code at most {OWN:.0%} of a step", timed[:1], _own)
    judge(f"rollouts at least {SHARE:.0%} of the bandwidth limit", ["llama3b-unsloth/generation_64"], _rollouts)
    for recipe in CAP_GIB:
        other = f"{recipe}-transformers"
        names = [f"{other}/agreement", f"{recipe}-unsloth/unequal", f"{other}/unequal"]
        judge(f"{recipe}: loaders agree within {GAP:.0%}", names, _agree)
    return rows


def _predicted(row: Finding) -> Judged:
    peak, predicted = row["peaks"]["reserved"] / GIB, row["predicted"] / GIB
    return f"{row['ratio']:.2f} = {peak:.2f} of {predicted:.2f} GiB", abs(row["ratio"] - 1) <= WITHIN


def _fits(row: Finding) -> Judged:
    peak = max(each["reserved"] for each in (row["peaks"], row["peaks_before"], row["generated"]["peaks"]))
    return f"{peak / GIB:.2f} GiB beside CUDA's, micro-batch {row['micro_batch']}", peak <= row["cap"]


def _faster(ours: Finding, plain: Finding) -> Judged:
    if (ours["workload"], ours["tokens"][:2]) != (plain["workload"], plain["tokens"][:2]):
        return "the workloads differ", None
    if not (ours["median"] and plain["median"]):
        return "one step is not enough", None
    seconds = ours["median"]["seconds"], plain["median"]["seconds"]
    return f"{seconds[1] / seconds[0]:.2f} = {seconds[1]:.1f} / {seconds[0]:.1f} s", seconds[1] >= FASTER * seconds[0]


def _smaller(ours: Finding, plain: Finding) -> Judged:
    if ours["workload"] != plain["workload"]:
        return "the workloads differ", None
    peaks = ours["peaks"]["reserved"], plain["peaks"]["reserved"]
    text = f"{peaks[0] / peaks[1]:.2f} = {peaks[0] / GIB:.2f} / {peaks[1] / GIB:.2f} GiB"
    return text, peaks[0] <= SMALLER * peaks[1]


def _own(row: Finding) -> Judged:
    own, seconds = row["own_seconds"], row["median"]["seconds"]
    return f"{own / seconds:.1%} = {own:.2f} of {seconds:.1f} s", own <= OWN * seconds


def _rollouts(row: Finding) -> Judged:
    return f"{row['share']:.1%} = {row['tokens_a_second']:.0f} of {row['limit']:.0f} tokens/s", row["share"] >= SHARE


def _agree(agreement: Finding, fast: Finding, other: Finding) -> Judged:
    if "mean_gap" not in agreement:
        return "logits of one loader only", None
    norms = [row["steps"][0]["grad_norm"] for row in (fast, other)]
    apart = abs(norms[0] / norms[1] - 1)
    text = f"logits {agreement['mean_gap']:.1%} of their spread, gradient norms {apart:.1%} apart"
    return text, agreement["mean_gap"] <= GAP and apart <= GAP


def line(finding: Finding) -> str:
    """Return a finding in one line."""
    return f"{finding['what']} ({finding['took']} s): {_short(finding)[1:-1]}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and value > 2**24:
        return f"{value / GIB:.2f} Gi"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} {_short(each)}' for key, each in value.items() if key not in OMITTED)}}}"
    return f"[{', '.join(map(_short, value))}]" if isinstance(value, list) else str(value)


def summary(results: dict[str, Any]) -> str:
    """Return verdicts (of a first call) and findings as text."""
    lines = [f"{results['command']} on {results['card']}: {results['seconds']} s {results.get('error', '')}"]
    if "examine" in results["stages"]:
        lines += [f"{state:12}  {bar}: {figure[:160]}" for bar, figure, state in verdicts(results)]
    for name, entry in results["stages"].items():
        state = entry.get("skipped") or f"{entry['took']} s {entry.get('error', '')}"
        lines += [f"\n[{name}] {state}", *(f"  {line(finding)[:600]}" for finding in entry["findings"])]
        lines += [f"  {text[:160]}" for text in entry.get("unsloth", [])[:12]]
        lines += [f"  {text}" for text in entry.get("report", "").splitlines()[:30]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(summary(json.loads(Path(sys.argv[1]).read_text())))
