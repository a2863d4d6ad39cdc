"""Several runs side by side: each condition in each run, means over seeds, and differences on the same problems.

Runs of the same settings but for the seed are one group. An interval of its mean is the wider, at each end, of two:
Student's t over the seeds, which knows how much trainings differ, and the interval over all problems of the runs
pooled (Wilson's for a share, a paired bootstrap for a difference), which alone has something to say where the seeds
agree by chance.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from ladder_lite.errors import UserError
from ladder_lite.evaluate import scores
from ladder_lite.jsonl import digest
from ladder_lite.report import figures
from ladder_lite.report.chapters import differences
from ladder_lite.report.document import (
    Block,
    Bullets,
    Chapter,
    Code,
    Document,
    Item,
    Paragraph,
    Row,
    Table,
    Text,
    side_by_side,
    table,
)
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.report.findings import RACERS, measure, pass_rates
from ladder_lite.report.test_time import compared
from ladder_lite.runs import Run, open_run
from ladder_lite.terminal import percent_interval, points_interval

_SAME = ("seed", "description", "smoke", "profiles", "conditions", "full")
"""What runs of one group may differ in: the seed, and what decides no result."""

_BESIDE = ("base", "rl_without_variants", "ladder_ttrl")  # in the headline

_HOW = (
    "Means over seeds have the wider of two 95 % intervals at each end: Student's t over the seeds, and that over all "
    "problems of the runs pooled."
)


def compare(paths: Sequence[Path]) -> dict[str, Any]:
    """Measure the runs and return the contents of comparison.json; UserError where one is no run or named twice."""
    if twice := [path for at, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:at]]]:
        raise UserError(f"{twice[0]}: named twice; name each run once")
    runs = [open_run(path) for path in paths]
    reports = [measure(run) for run in runs]
    rates = [
        {name: pass_rates(run, name) for name in report["conditions"]}
        for run, report in zip(runs, reports, strict=True)
    ]
    groups = _groups(runs)
    return {
        "runs": [
            {"path": str(run.path), "name": name, "recipe": run.name, "seed": run.seed, "model": run.model}
            | {"conditions": report["conditions"], "race": report["race"]}
            for run, name, report in zip(runs, _names(paths), reports, strict=True)
        ],
        "means": [_means(group, runs, reports, rates) for group in groups if len(group) > 1],
        "differences": _differences(groups, rates),
    }


def describe(comparison: Mapping[str, Any]) -> Document:
    """The comparison as a document."""
    runs, means = comparison["runs"], comparison["means"]
    results = [{name: entry["pass@1"] for name, entry in run["conditions"].items()} for run in runs]
    results += [mean["conditions"] for mean in means]
    head = ("condition", *(Code(run["name"], 40) for run in runs), *(_title(mean, runs) for mean in means))
    rows: list[tuple[Text, ...]] = [
        (Code(name), *(percent_interval(shares[name]) if name in shares else "" for shares in results))
        for name in dict.fromkeys(name for run in runs for name in run["conditions"])
    ]
    how = f"pass@1 with 95 % intervals, of a single run Wilson's over its problems. {_HOW if means else ''}"
    drawn = [figures.seeds(mean, f"mean{at}") for at, mean in enumerate(means) if mean["conditions"]]
    shares = [*side_by_side(*drawn), Table("l" + "r" * len(results), head, tuple(rows)), Paragraph(how)]
    chapters = [
        Chapter("pass@1", shares),
        Chapter("Differences", _difference_blocks(comparison)),
        Chapter("Test-time reinforcement learning", _race_blocks(runs)),
        Chapter("Runs", [Bullets(tuple(map(_item, runs)))]),
    ]
    title = f"LADDER: {len(runs)} runs compared"
    return Document(title, _headline(comparison), [chapter for chapter in chapters if chapter.blocks])


def _joined(races: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """Races of several runs as one: a problem counts once for each run."""
    joined = {}
    for name in methods:
        own = [race["methods"][name] for race in races]
        lists = {key: [value for method in own for value in method[key]] for key in ("tokens_to_solve", "spent")}
        joined[name] = {"solved": sum(method["solved"] for method in own), **lists}
    return {"methods": joined}


def _names(paths: Sequence[Path]) -> list[str]:
    """Names to tell the runs apart: those of their folders, or the paths where these are alike."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _groups(runs: Sequence[Run]) -> list[list[int]]:
    """The places of runs of the same settings and different seeds; a seed that was run again stands alone."""
    groups: dict[tuple[str, int], list[int]] = {}
    for at, run in enumerate(runs):
        settings = digest({key: value for key, value in run.settings.items() if key not in _SAME})
        again = sum(
            other.seed == run.seed and settings == key[0]
            for key, own in groups.items()
            for other in (runs[i] for i in own)
        )
        groups.setdefault((settings, again), []).append(at)
    return list(groups.values())


def _means(
    group: Sequence[int], runs: Sequence[Run], reports: Sequence[Mapping[str, Any]], rates: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Means over the seeds of a group: pass@1 of the conditions that all have, and the differences that all have."""
    entries = [reports[at]["conditions"] for at in group]
    shared = [name for name in entries[0] if all(name in own for own in entries)]
    conditions = {}
    for name in shared:
        values = [own[name]["pass@1"]["value"] for own in entries]
        value, n_problems = sum(values) / len(values), sum(own[name]["n_problems"] for own in entries)
        conditions[name] = {**_wider(values, scores.wilson_interval(value, n_problems), (0.0, 1.0)), "values": values}
    found = [{(row["condition"], row["reference"]): row for row in reports[at]["differences"]} for at in group]
    differences = []
    for name, other in found[0]:
        if all((name, other) in own for own in found):
            values = [own[name, other]["value"] for own in found]
            first, second = (_pooled(group, rates, which) for which in (other, name))
            over_problems = scores.paired_bootstrap(first, second)
            mean = _wider(values, (over_problems["low"], over_problems["high"]), (-1.0, 1.0))
            differences.append({"condition": name, "reference": other, **mean})
    return {
        "runs": list(group),
        "seeds": [runs[at].seed for at in group],
        "conditions": conditions,
        "differences": differences,
    }


def _pooled(group: Sequence[int], rates: Sequence[Mapping[str, Any]], condition: str) -> dict[str, float]:
    """The pass rates of all problems of all runs of a group."""
    return {f"{at}/{problem_id}": rate for at in group for problem_id, rate in rates[at][condition].items()}


def _wider(
    values: Sequence[float], over_problems: tuple[float, float], bounds: tuple[float, float]
) -> dict[str, float]:
    """The mean over seeds with the wider interval at each end."""
    n = len(values)
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return {"value": mean, "low": min(low, over_problems[0]), "high": max(high, over_problems[1])}


def _differences(groups: Sequence[Sequence[int]], rates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each run minus the first, by condition, where both were asked the same problems; seeds are not set apart."""
    first = groups[0][0]
    return [
        {
            "condition": name,
            "run": at,
            "reference": first,
            **scores.paired_bootstrap(rates[first][name], rates[at][name]),
        }
        for group in groups[1:]
        for at in group
        for name in rates[at]
        if rates[at][name] and rates[at][name].keys() == rates[first].get(name, {}).keys()
    ]


def _item(run: Mapping[str, Any]) -> Item:
    about = (": recipe ", Code(run["recipe"]), f", seed {run['seed']}, model ", Code(run["model"]))
    return Item((Code(run["name"], 40), *about))


def _title(mean: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Text:
    return ("mean of ", Code(runs[mean["runs"][0]]["recipe"], 40), f" over {len(mean['seeds'])} seeds")


def _headline(comparison: Mapping[str, Any]) -> Text:
    for mean in comparison["means"]:
        shares = mean["conditions"]
        if "ladder" in shares:
            solved = percent_interval(shares["ladder"])
            said = f"Over {len(mean['seeds'])} seeds, LADDER solves {solved} of the test problems"
            others = [f"{label_of(name)} {percent_interval(shares[name])}" for name in _BESIDE if name in shares]
            return f"{said}; {', '.join(others)}." if others else f"{said}."
    return f"{len(comparison['runs'])} runs, and what their conditions solve of the test problems."


def _difference_blocks(comparison: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    names = [Code(run["name"], 40) for run in comparison["runs"]]
    for mean in comparison["means"]:
        if found := differences(mean["differences"]):
            seeds = ", ".join(map(str, mean["seeds"]))
            blocks += [Paragraph(f"Between conditions, means over the seeds {seeds}, in points:"), *found]
    between: list[Row] = [
        {
            "condition": Code(row["condition"]),
            "difference": (names[row["run"]], " minus ", names[row["reference"]]),
            "points": points_interval(row),
        }
        for row in comparison["differences"]
    ]
    if between:
        how = "in points of pass@1 (paired bootstrap over the problems):"
        blocks += [Paragraph(f"Between runs, on the same test problems, {how}"), *table("llr", between)]
    return blocks


def _race_blocks(runs: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Who solved more single problems, by run and over all of them."""
    found = [run for run in runs if run["race"]]
    if not found:
        return []
    blocks: list[Block] = []
    for other in ("ladder_pass100", "ttrl"):
        methods = ("ladder_ttrl", other)
        if races := [run["race"] for run in found if run["race"]["methods"].keys() >= set(methods)]:
            blocks.append(Paragraph(compared(_joined(races, methods), other)))
    if len(found) > 1:
        blocks.append(Paragraph("A problem counts once for each run here: the sign test takes them as independent."))
    present = [name for name in RACERS if any(name in run["race"]["methods"] for run in found)]
    rows: list[Row] = []
    for run in found:
        solved = {name: str(method["solved"]) for name, method in run["race"]["methods"].items()}
        row: Row = {"run": Code(run["name"], 40), "problems": str(len(run["race"]["problems"]))}
        rows.append(row | {f"solved by {label_of(name)}": solved.get(name, "") for name in present})
    return [*blocks, *table("lr", rows)]
