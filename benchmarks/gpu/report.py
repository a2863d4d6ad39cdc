"""Print verdicts on the targets, called bars, and all findings: python benchmarks/gpu/report.py results-first.json"""

import json
import sys
from collections.abc import Callable
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

from workload import CAP_GIB, Finding

OMITTED = {"what", "took", "trace", "parts", "entropy", "learning_rate", "stop", "median", "step"}


def verdicts(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (bar, figure, "met", "not met" or "not measured") for every bar."""
    findings = {f"{name}/{row['what']}": row for name, entry in results["stages"].items() for row in entry["findings"]}
    rows = []

    def judge(bar: str, figure: Callable[..., float], *names: str, low: float = -inf, high: float = inf) -> None:
        """Add a bar: it is met if `figure`, computed from the named findings, is from `low` to `high`."""
        parts = [findings.get(name, {"skipped": f"{name} has not run"}) for name in names]
        problem = next((part[key] for part in parts for key in ("error", "skipped") if key in part), "")
        if not problem and results["card"] and not isnan(value := figure(*parts)):
            rows.append((bar, f"{value:.3f}", "met" if low <= value <= high else "not met"))
        else:
            # A model that does not fit has missed its bar; any other error means that nothing was measured.
            out_of_memory = "memory" in problem.lower() and names[0].endswith("fits")
            reason = problem or ("nothing to compare with" if results["card"] else "no GPU")
            rows.append((bar, reason, "not met" if out_of_memory else "not measured"))

    for name in [name for name, row in findings.items() if "ratio" in row]:
        judge(f"{name}: peak / prediction from 0.90 to 1.10", lambda row: row["ratio"], name, low=0.9, high=1.1)
    for recipe, cap in CAP_GIB.items():
        judge(f"{recipe}: peak / {cap} GiB at most 1", _peak_share, f"{recipe}-unsloth/fits", high=1)
    ours, plain = "llama3b-unsloth/timed", "llama3b-plain/timed"
    judge("speed / plain TRL's at least 1.5", lambda a, b: _ratio(b, a, "median", "seconds"), ours, plain, low=1.5)
    judge("peak / plain TRL's at most 0.6", lambda a, b: _ratio(a, b, "peaks", "reserved"), ours, plain, high=0.6)
    judge("own code at most 0.02 of a step", lambda row: row["own_seconds"] / row["median"]["seconds"], ours, high=0.02)
    many = "llama3b-unsloth/generation_64"
    judge("rollouts at least 0.25 of the bandwidth limit", lambda row: row["share"], many, low=0.25)
    for recipe in CAP_GIB:
        names = [f"{recipe}-{name}" for name in ("transformers/agreement", "unsloth/unequal", "transformers/unequal")]
        judge(f"{recipe}: loaders differ by at most 0.05", _difference, *names, high=0.05)
    return rows


def _ratio(one: Finding, other: Finding, part: str, key: str) -> float:
    """Return the ratio of a figure in two findings, nan if their workloads differ."""
    return one[part][key] / other[part][key] if one["workload"] == other["workload"] else nan


def _peak_share(row: Finding) -> float:
    return max(each["reserved"] for each in (row["peaks"], row["peaks_before"], row["generated"]["peaks"])) / row["cap"]


def _difference(agreement: Finding, one: Finding, other: Finding) -> float:
    """Return the larger one of the logits' mean difference (in standard deviations) and that of the gradient norms.

    It is nan if the loaders have not been compared.
    """
    norms = [row["steps"][0]["grad_norm"] or nan for row in (one, other)]
    return max(abs(norms[0] / norms[1] - 1), agreement["mean_gap"]) if "mean_gap" in agreement else nan


def line(value: Any) -> str:
    """Return a finding, or a part of it, as one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and value > 2**24:
        return f"{value / 2**30:.2f}Gi"
    if isinstance(value, dict):
        head = f"{value['what']} ({value['took']} s): " if "what" in value else ""
        return head + ", ".join(f"{key} {line(each)}" for key, each in value.items() if key not in OMITTED)
    return f"[{'; '.join(map(line, value))}]" if isinstance(value, list) else str(value)


def summary(results: dict[str, Any]) -> str:
    """Return the findings as text, and for a first call also the verdicts."""
    lines = [f"{results['command']} on {results['card']}: {results['seconds']} s {results.get('error', '')}"]
    if "examine" in results["stages"]:
        lines += [f"{state:12}  {bar}: {figure[:160]}" for bar, figure, state in verdicts(results)]
    for name, entry in results["stages"].items():
        state = entry.get("skipped") or f"{entry.get('took')} s {entry.get('error', '')}"
        lines += [f"\n[{name}] {state}", *(f"  {line(finding)[:600]}" for finding in entry["findings"])]
        lines += [f"  {text}" for text in [*entry.get("unsloth", [])[:12], *entry.get("report", "").splitlines()[:30]]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(summary(json.loads(Path(sys.argv[1]).read_text())))
