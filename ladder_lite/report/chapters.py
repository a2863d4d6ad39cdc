"""The chapters of a run's report: findings put into words, tables and figures."""

import json
import shlex
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import yaml

from ladder_lite.config import BUILT_IN, EMBEDDED, list_recipes, load_recipe
from ladder_lite.errors import UserError
from ladder_lite.models.memory import gib
from ladder_lite.report import figures
from ladder_lite.report.document import (
    Block,
    Bullets,
    Chapter,
    Code,
    Document,
    Inline,
    Item,
    Listing,
    Mark,
    Paragraph,
    Row,
    Text,
    listed,
    side_by_side,
    table,
)
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.report.findings import Report, known_problems, outcomes
from ladder_lite.report.paper_results import PAPER
from ladder_lite.report.test_time import test_time
from ladder_lite.report.variant_tree import variants_chapter
from ladder_lite.runs import Run, layout
from ladder_lite.tasks import statement
from ladder_lite.terminal import clock_time, one_line, percent, percent_interval, points_interval
from ladder_lite.train import divergence

SCALE_MODEL = (
    " The embedded model has a few megabytes and was made for this kit. Its numbers show that the method works and how "
    "the conditions compare; they are no reproduction of the paper's, which stand beside them for orientation."
)

_SHARES = ("solved", "wrong", "unreadable", "truncated")
_SHOWN = ("base", "rl_without_variants", "ladder", "ladder_ttrl")  # answers before and after; ablations answer alike
_N_SAMPLES = 6
_N_LISTED = 20
_WIDTH = 160


def describe(report: Report, run: Run) -> Document:
    """The report of a run as a document."""
    statements = {problem.id: statement(problem) for problem in known_problems(run.test, "test")}
    chapters = [
        _results(report, run),
        _training(report),
        test_time(report, run, statements),
        _answers(report, run, statements),
        variants_chapter(report, run),
        _cost(report),
        _reproduce(report, run),
    ]
    return Document(
        ("LADDER: recipe ", Code(run.name), f", seed {run.seed}"),
        headline(report),
        [chapter for chapter in chapters if chapter.blocks],
    )


def headline(report: Report) -> Text:
    """What was found, in a sentence or two of what is finished."""
    shares = {name: entry["pass@1"]["value"] for name, entry in report["conditions"].items()}
    if not shares:
        return "Nothing is evaluated yet."
    if "ladder" not in shares:
        so_far = ", ".join(f"{label_of(name)} {percent(share)}" for name, share in shares.items())
        return f"LADDER is not finished yet. So far: {so_far}."
    who: Inline = "The embedded model" if report["model"] == EMBEDDED else Code(report["model"])
    said = f" solves {percent(shares['ladder'])} of the test problems after LADDER"
    words = {"base": "before", "rl_without_variants": "with RL without variants"}
    compared = {name: shares[name] for name in words if name in shares}
    if compared:
        said += ", " + " and ".join(f"{percent(share)} {words[name]}" for name, share in compared.items())
        said += ": LADDER did not help" if shares["ladder"] <= max(compared.values()) else ""
    said += "."
    if report["ttrl"]["attempted"]:
        said += (
            f" Test-time RL then solved {report['ttrl']['solved']} of {report['ttrl']['attempted']} problems that "
            "LADDER had left unsolved."
        )
    return who, said


def differences(found: Iterable[Mapping[str, Any]]) -> list[Block]:
    """A table of differences between conditions, or nothing where there are none."""
    rows: list[Row] = [
        {"points": points_interval(row), "difference": (Code(row["condition"]), " minus ", Code(row["reference"]))}
        for row in found
    ]
    return table("rl", rows)


def _results(report: Report, run: Run) -> Chapter:
    paper = PAPER[report["experiment"]]
    about = Paragraph(("Model: ", Code(report["model"]), "."))
    if report["model"] == EMBEDDED:
        about = Paragraph((Mark("A scale model of the experiment."), SCALE_MODEL), note=True)
    blocks: list[Block] = [
        about,
        *side_by_side(figures.bars(report)),
        *table("lr", [_result(report, run, name) for name in run.conditions]),
        Paragraph(
            f"pass@1 is the share of right answers among {run.samples} samples a problem; in brackets 95 % intervals "
            "(Wilson, over the problems). Times are m:ss or h:mm:ss of training steps and evaluation, without those of "
            "the training problems' variants and of the looks at the test problems in between."
        ),
        *map(Paragraph, paper.notes),
    ]
    if paper.others:
        others = ", ".join(f"{name} {quoted.words}" for name, quoted in paper.others.items())
        blocks.append(Paragraph(f"On the same exam, says the paper: {others}."))
    blocks += _printed(report)
    blocks.append(Bullets(tuple(Item((Code(name), ": ", *_meaning(run, name))) for name in run.conditions)))
    if report["differences"]:
        blocks.append(
            Paragraph(
                "Differences on the same test problems, in percentage points of pass@1, with 95 % intervals of a "
                "paired bootstrap over the problems. An interval that leaves out 0 is a difference that chance over "
                "the problems does not explain; chance between trainings is for several seeds to show."
            )
        )
    return Chapter("Results", [*blocks, *differences(report["differences"]), *_rollbacks(run)])


def _result(report: Report, run: Run, name: str) -> Row:
    pass_k = [f"pass@{run.k}"] if run.k > 1 else []
    row: Row = dict.fromkeys(["condition", "pass@1", *pass_k, "test problems", "steps", "time"], "")
    row["condition"] = Code(name)
    if entry := report["conditions"].get(name):
        row |= {key: percent_interval(entry[key]) for key in ("pass@1", *pass_k) if key in entry}
        row |= {"test problems": str(entry["n_problems"]), "steps": str(entry["steps"])}
        row["time"] = clock_time(entry["seconds"])
    elif tried := outcomes(run, name):
        unfinished = "" if name == "ladder_pass100" else "not finished, "  # which has no more to do than that
        row["pass@1"] = f"{unfinished}solved {sum(bool(row['solved']) for row in tried)} of {len(tried)} problems"
    else:
        steps = len(run.rows(layout.train(name), layout.METRICS))
        row["pass@1"] = f"not finished, {steps} steps done" if steps else "not finished"
    quoted = PAPER[report["experiment"]].results.get(name)
    return row | {"the paper": quoted.words.replace("<=", "≤") if quoted else ""}


def _meaning(run: Run, name: str) -> tuple[Any, ...]:
    if name in BUILT_IN:
        return (BUILT_IN[name].meaning,)
    changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in run.ablations.get(name, {}).items())
    return ("LADDER with other settings: ", Code(changes, _WIDTH)) if changes else ("LADDER with other settings",)


def _printed(report: Report) -> list[Block]:
    apart = {name: entry["printed"] for name, entry in report["conditions"].items() if "printed" in entry}
    if not apart:
        return []
    rates = [(Code(name), f" {percent(entry['pass@1']['value'])}") for name, entry in apart.items()]
    n_problems = max(entry["n_problems"] for entry in apart.values())
    words = f"Of these, {n_problems} are shown as the exam prints them and verified by a closed form: "
    return [Paragraph((words, *listed(rates), "."))]


def _rollbacks(run: Run) -> list[Block]:
    """Say which trainings diverged and went on at a lower rate: they are not quite what the recipe says."""
    folders = sorted(path.parent for path in run.path.rglob(layout.ROLLBACKS))
    items = [
        Item((Code(str(folder.relative_to(run.path))), f": {row}"))
        for folder in folders
        for row in divergence.load(folder)
    ]
    if not items:
        return []
    return [Paragraph("Trainings that diverged, each undone and gone on with once:"), Bullets(tuple(items))]


def _training(report: Report) -> Chapter:
    drawn = [figures.accuracy(report), figures.variants(report), figures.signal(report)]
    drawn += [figures.rollouts(report, name) for name in ("ladder", "rl_without_variants")]
    counted: list[Row] = [
        {"trained on": Code(name), "variants": str(entry["variants"]), "pass@1": percent_interval(entry["pass@1"])}
        for name, entry in report["conditions"].items()
        if entry.get("variants")
    ]
    return Chapter("While training", side_by_side(*drawn) + (table("lr", counted) if len(counted) > 1 else []))


def _answers(report: Report, run: Run, statements: Mapping[str, str]) -> Chapter:
    return Chapter("Answers", _kinds_of_answers(report) + _techniques(report) + _sampled_answers(run, statements))


def _kinds_of_answers(report: Report) -> list[Block]:
    """Greedy and voted accuracy, and what becomes of the sampled answers, where the evaluation tells."""
    entries = {name: entry for name, entry in report["conditions"].items() if "shares" in entry or "greedy" in entry}
    if not entries:
        return []
    official = any(entry.get("official") for entry in entries.values())
    rows: list[Row] = []
    for name, entry in entries.items():
        row: Row = {"condition": Code(name)}
        row |= {key: percent_interval(entry[key]) if entry.get(key) else "" for key in ("greedy", "majority")}
        row |= {key: percent(entry["shares"][key]) if key in entry.get("shares", {}) else "" for key in _SHARES}
        if official:
            counts = entry.get("official")
            row["as the official answer"] = f"{counts['n_agree']} of {counts['n_compared']}" if counts else ""
        rows.append(row)
    return [
        *table("lr", rows),
        Paragraph(
            "Greedy: one answer a problem, at temperature 0. Majority: the answer most samples agree on, as functions. "
            "The others are shares of the sampled answers; truncated ones were cut off by the token limit."
        ),
    ]


def _techniques(report: Report) -> list[Block]:
    entries = {name: entry["techniques"] for name, entry in report["conditions"].items() if entry.get("techniques")}
    if not entries:
        return []
    # The problems are the same in every condition.
    counts = {name: found["n_problems"] for techniques in entries.values() for name, found in techniques.items()}
    rows: list[Row] = []
    for technique, n_problems in list(counts.items())[: 2 * _N_LISTED]:
        row: Row = {"technique": Code(technique, 40), "problems": str(n_problems)}
        rows.append(row | {Code(name): _rate(techniques.get(technique)) for name, techniques in entries.items()})
    return [Paragraph("pass@1 by technique:"), *table("lr", rows)]


def _rate(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    rate = found["pass@1"]
    return percent(rate["value"] if isinstance(rate, dict) else rate)


def _sampled_answers(run: Run, statements: Mapping[str, str]) -> list[Block]:
    """Show the first answer to every n-th test problem: a rule, so that nothing is picked for its looks."""
    first: dict[str, dict[str, dict[str, Any]]] = {}
    for name in _SHOWN:
        for row in run.rows(layout.evaluation(name), layout.ATTEMPTS):
            if row["index"] == 0:
                first.setdefault(row["problem_id"], {})[name] = row
    if not first:
        return []
    items = []
    for problem_id in list(first)[:: max(1, len(first) // _N_SAMPLES)][:_N_SAMPLES]:
        answers = tuple(_answer(condition, row) for condition, row in first[problem_id].items())
        items.append(Item(Code(statements.get(problem_id, problem_id), _WIDTH), answers))
    return [Paragraph("The first answer to test problems picked at even distances:"), Bullets(tuple(items))]


def _answer(condition: str, row: Mapping[str, Any]) -> Item:
    code = Code(row["text"] if row["answer"] is None else row["answer"], _WIDTH)
    right = row["reason"] == "CORRECT"
    grade = Mark("right", "right") if right else Mark(one_line(row["reason"]).lower().replace("_", " "), "wrong")
    left_out = f" ({code.left_out})" if code.left_out else ""
    return Item((f"{label_of(condition)}: ", code, f"{left_out} ", grade))


def _cost(report: Report) -> Chapter:
    rows: list[Row] = [
        {
            "stage": Code(row["stage"]),
            "tokens": "" if row["n_tokens"] is None else f"{row['n_tokens']:,}",
            "time": "" if row["seconds"] is None else clock_time(row["seconds"]),
            "peak memory": f"{gib(row['peak_memory_bytes'])} GiB" if row["peak_memory_bytes"] else "",
        }
        for row in report["costs"]
    ]
    note = Paragraph("Tokens are those generated. Memory is the peak of the process up to the stage's end.")
    return Chapter("Cost", [*table("lr", rows), note] if rows else [])


def _reproduce(report: Report, run: Run) -> Chapter:
    versions = listed(Code(f"{name} {version}") for name, version in report["versions"].items())
    peak = f"Peak memory {gib(report['peak_memory_bytes'])} GiB. Versions: "
    # ASCII: YAML then writes everything that is not as an escape, exactly and harmlessly.
    recipe = yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=False, width=100)
    settings = Listing(recipe, f"The recipe as it ran, seed {run.seed}")
    return Chapter("Reproduce", [Listing(_command(run)), Paragraph((peak, *versions, ".")), settings])


def _command(run: Run) -> str:
    """Return the shortest command that runs the same settings."""
    is_shipped = run.name in dict(list_recipes())
    profiles = (None, *(run.settings.get("profiles") or {})) if is_shipped else ()
    for profile, smoke in product(profiles, (False, True)):
        try:
            shipped = load_recipe(run.name, [f"seed={run.seed}"], smoke, profile)
        except UserError:  # shipped without this profile since, or with another meaning of its settings
            break
        same, full = _is_same(shipped.model_dump(mode="json"), run)
        if same:
            options = f"{f' --profile {profile}' if profile else ''}{' --full' if full else ''}"
            options += " --smoke" if smoke else ""
            return f"python -m ladder_lite.recipe {run.name} seed={run.seed}{options}"
    return f"python -m ladder_lite.recipe {shlex.quote(str(run.path / layout.RECIPE))} --run-dir NEW_FOLDER"


def _is_same(shipped: Mapping[str, Any], run: Run) -> tuple[bool, bool]:
    """Whether a run is of these settings, and whether with --full."""
    full = set(run.settings["conditions"]) > set(shipped["conditions"])
    wanted = {*shipped["conditions"], *(shipped.get("full", ()) if full else ())}
    others = {**shipped, "conditions": run.settings["conditions"]} == run.settings
    return others and wanted == set(run.settings["conditions"]), full
