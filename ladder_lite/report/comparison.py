"""Several runs side by side: each condition in each run, means over seeds, and differences on the same problems.

Runs with the same settings except the seed form a group. The interval of a group's mean combines two sources of
variation; each end is the wider one of two 95 % intervals:

- Student's t over the seeds, which covers how much training runs differ;
- an interval over the problems of all runs pooled (Wilson's for a share, a paired bootstrap for a difference), which
  prevents an interval of width 0 if the seeds agree by chance.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from ladder_lite.errors import UserError
from ladder_lite.evaluate import scores
from ladder_lite.jsonl import digest
from ladder_lite.report import controls, figures
from ladder_lite.report.chapters import differences
from ladder_lite.report.document import Chapter, Document, Figures, bullets, code, grid, table
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.report.findings import measure, pass_rates
from ladder_lite.report.test_time import RIVALS, compared
from ladder_lite.runs import Run, open_run
from ladder_lite.terminal import percent_interval, points_interval

_MAY_DIFFER = {"seed", "description", "smoke", "profiles", "conditions", "full"}
"""Recipe keys in which runs of one group may differ: the seed, and keys that do not affect a condition's result."""

_MAX_SETTINGS = 20

_HEADLINE_CONDITIONS = ("ladder", "base", "rl_without_variants", "ladder_ttrl")

_MEANS = (
    " For a mean over seeds, each end is the wider one of two 95 % intervals: Student's t over the seeds, and an "
    "interval over the problems of all runs pooled."
)


def compare(paths: Sequence[Path]) -> dict[str, Any]:
    """Measure the runs and return the contents of comparison.json.

    Raises UserError if a path is not a run folder or is given twice.
    """
    # Resolved paths, so that runs/a and runs/../runs/a count as the same run.
    if twice := [path for at, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:at]]]:
        raise UserError(f"{twice[0]}: named twice; name each run once")
    runs = [open_run(path) for path in paths]
    reports = [measure(run) for run in runs]
    # For each run, by condition and problem id: [{"ladder": {"1e954ee963d0df5a": 0.75}}]
    rates = [
        {name: pass_rates(run, name) for name in report["conditions"]}
        for run, report in zip(runs, reports, strict=True)
    ]
    groups = _groups(runs)
    return {
        "runs": [
            {
                "path": str(run.path),
                "name": name,
                "recipe": run.recipe.name,
                "seed": run.recipe.seed,
                "model": run.recipe.model.id,
            }
            | {"conditions": report["conditions"], "race": report["race"]}
            for run, name, report in zip(runs, _names(paths), reports, strict=True)
        ],
        "smoke": [name for name, report in zip(_names(paths), reports, strict=True) if report["experiment"] == "smoke"],
        "settings": _settings(runs),
        "means": [_means(group, runs, reports, rates) for group in groups if len(group) > 1],
        "differences": _differences(groups, rates),
    }


def describe(comparison: Mapping[str, Any]) -> Document:
    """Build the document of a comparison."""
    runs, means = comparison["runs"], comparison["means"]
    # A column for each run, then one for each group's mean; a condition that one lacks leaves an empty cell.
    results = [{name: entry["pass@1"] for name, entry in run["conditions"].items()} for run in runs]
    results += [mean["conditions"] for mean in means]
    head = ["condition", *(code(run["name"], 40) for run in runs), *(_title(mean, runs) for mean in means)]
    rows = [
        [code(name), *(percent_interval(shares[name]) if name in shares else "" for shares in results)]
        for name in dict.fromkeys(name for run in runs for name in run["conditions"])
    ]
    how = "pass@1 with 95 % intervals. For a single run, they are Wilson intervals over its problems."
    drawn = Figures(figures.seeds(mean, f"mean{index}") for index, mean in enumerate(means) if mean["conditions"])
    chapters = [
        Chapter("pass@1", [drawn, grid("lr", head, rows), how + (_MEANS if means else "")]),
        Chapter("Differences", _difference_blocks(comparison)),
        Chapter("Test-time reinforcement learning", _race_blocks(runs)),
        *(Chapter("Is it more than ...?", controls.describe(mean["controls"])) for mean in means),
        Chapter("Runs", [bullets(map(_item, runs)), *_settings_blocks(comparison["settings"], runs)]),
    ]
    return Document(f"LADDER: {len(runs)} runs compared", _headline(comparison), chapters)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a distinct name for each run: its folder's name, or the whole path if two folders share a name."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _groups(runs: Sequence[Run]) -> list[list[int]]:
    """Group the runs that differ in their seed alone; returns indices into `runs`, such as [[0, 1], [2]]."""
    # A mean counts each seed once. The second run of a seed therefore goes into another group, which collects the
    # second runs of all seeds of the same settings, and so on.
    groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    n_earlier: Counter[tuple[str, int]] = Counter()
    for index, run in enumerate(runs):
        settings = digest(run.recipe.model_dump(mode="json", exclude=_MAY_DIFFER))
        groups[settings, n_earlier[settings, run.recipe.seed]].append(index)
        n_earlier[settings, run.recipe.seed] += 1
    return list(groups.values())


def _settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings in which the runs differ, with the value in each run; None where it has no such setting."""
    flat = [dict(_flatten(run.recipe.model_dump(mode="json"))) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [settings.get(key) for settings in flat] for key in keys if key.split(".")[0] not in _MAY_DIFFER}
    return {key: own for key, own in values.items() if any(value != own[0] for value in own)}


def _flatten(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _means(
    group: Sequence[int], runs: Sequence[Run], reports: Sequence[Mapping[str, Any]], rates: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return means over the seeds of a group, of the conditions and differences that all its runs have."""
    entries = [reports[index]["conditions"] for index in group]
    shared = [name for name in entries[0] if all(name in entry for entry in entries)]
    conditions = {}
    for name in shared:
        values = [entry[name]["pass@1"]["value"] for entry in entries]
        # Pooled, 3 seeds on 100 problems are 300 problems for Wilson's interval.
        over_problems = scores.wilson_interval(fmean(values), sum(entry[name]["n_problems"] for entry in entries))
        conditions[name] = {**_wider(values, over_problems, (0.0, 1.0)), "values": values}
    by_pair = [{(row["condition"], row["reference"]): row for row in reports[index]["differences"]} for index in group]
    differences = []
    for name, reference in by_pair[0]:
        if all((name, reference) in rows for rows in by_pair):
            values = [rows[name, reference]["value"] for rows in by_pair]
            # The bootstrap pairs by key, and a key names problem and run: both rates of a pair are of the same run.
            first, second = (_pooled(group, rates, condition) for condition in (reference, name))
            difference = scores.paired_bootstrap(first, second)
            mean = _wider(values, (difference["low"], difference["high"]), (-1.0, 1.0))
            differences.append({"condition": name, "reference": reference, **mean})
    return {
        "runs": list(group),
        "seeds": [runs[index].recipe.seed for index in group],
        "conditions": conditions,
        "differences": differences,
        "controls": controls.measure(runs[group[0]].recipe.ablations, differences, [reports[index] for index in group]),
    }


def _pooled(group: Sequence[int], rates: Sequence[Mapping[str, Any]], condition: str) -> dict[str, float]:
    """Return the pass rates on all problems of all runs of a group; a problem has one key per run."""
    return {f"{index}/{problem_id}": rate for index in group for problem_id, rate in rates[index][condition].items()}


def _wider(
    values: Sequence[float], over_problems: tuple[float, float], bounds: tuple[float, float]
) -> dict[str, float]:
    """Return the mean over seeds; each end of its interval is the wider one of the two intervals."""
    n, mean = len(values), fmean(values)  # n is at least 2: a run alone in its group has no mean
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n)
    # With two seeds t is 12.7, so without these bounds an interval could leave the range of shares.
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return {"value": mean, "low": min(low, over_problems[0]), "high": max(high, over_problems[1])}


def _differences(groups: Sequence[Sequence[int]], rates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, by condition, each run of another group minus the first run, if both answered the same problems."""
    first = groups[0][0]
    return [
        {
            "condition": name,
            "run": index,
            "reference": first,
            **scores.paired_bootstrap(rates[first][name], rates[index][name]),
        }
        for group in groups[1:]  # runs of the first group differ from the first run in the seed alone
        for index in group
        for name in rates[index]
        if rates[index][name] and rates[index][name].keys() == rates[first].get(name, {}).keys()
    ]


def _item(run: Mapping[str, Any]) -> str:
    return f"{code(run['name'], 40)}: recipe {code(run['recipe'])}, seed {run['seed']}, model {code(run['model'])}"


def _title(mean: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    return f"mean of {code(runs[mean['runs'][0]]['recipe'], 40)} over {len(mean['seeds'])} seeds"


def _settings_blocks(settings: Mapping[str, Sequence[Any]], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not settings:
        return ["Their settings differ in nothing but the seed and what runs."]
    head = ["setting", *(code(run["name"], 40) for run in runs)]
    shown = list(settings.items())[:_MAX_SETTINGS]
    rows = [[code(key), *(code(json.dumps(value), 40) for value in values)] for key, values in shown]
    left = f" (the first {_MAX_SETTINGS} of {len(settings)})" if len(settings) > _MAX_SETTINGS else ""
    return [f"Settings in which they differ{left}:", grid("l", head, rows)]


def _headline(comparison: Mapping[str, Any]) -> str:
    if comparison["smoke"]:
        return f"Smoke tests are among these runs ({', '.join(comparison['smoke'])}): their numbers mean nothing."
    # The first group with a mean of LADDER: it is that of the runs that were named first.
    for mean in comparison["means"]:
        shares = mean["conditions"]
        if "ladder" in shares:
            named = [name for name in _HEADLINE_CONDITIONS if name in shares]
            results = ", ".join(f"{label_of(name)} {percent_interval(shares[name])}" for name in named)
            return f"Mean pass@1 over {len(mean['seeds'])} seeds: {results}."
    return f"pass@1 of {len(comparison['runs'])} runs on their test problems."


def _difference_blocks(comparison: Mapping[str, Any]) -> list[str]:
    blocks = []
    names = [code(run["name"], 40) for run in comparison["runs"]]
    for mean in comparison["means"]:
        if rows := differences(mean["differences"]):
            seeds = ", ".join(map(str, mean["seeds"]))
            how = f"Between conditions, in percentage points of pass@1 (means over seeds {seeds}):"
            blocks += [how, rows]
    between = [
        {
            "condition": code(row["condition"]),
            "difference": f"{names[row['run']]} minus {names[row['reference']]}",
            "points": points_interval(row),
            "beyond chance": "yes" if row["low"] > 0 or row["high"] < 0 else "not shown",
        }
        for row in comparison["differences"]
    ]
    if between:
        how = "in percentage points of pass@1 (paired bootstrap over the problems):"
        blocks += [f"Between runs, on the same test problems, {how}", table("llrl", between)]
    return blocks


def _race_blocks(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Compare the methods for single problems, over all runs together and by run."""
    races_by_run = [run for run in runs if run["race"]]
    if not races_by_run:
        return []
    blocks = [compared([run["race"] for run in races_by_run], other) for other in RIVALS]
    if len(races_by_run) > 1:
        blocks.append("A problem counts once per run, and the sign test treats these as independent.")
    present = dict.fromkeys(name for run in races_by_run for name in run["race"]["methods"])
    rows = []
    for run in races_by_run:
        solved = {name: str(method["solved"]) for name, method in run["race"]["methods"].items()}
        row = {"run": code(run["name"], 40), "problems": str(len(run["race"]["problems"]))}
        rows.append(row | {f"solved by {label_of(name)}": solved.get(name, "") for name in present})
    return [*blocks, table("lr", rows)]
