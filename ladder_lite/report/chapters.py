"""The chapters of a run's report: findings put into words, tables and figures."""

import json
import shlex
from collections.abc import Mapping
from itertools import product
from typing import Any

import yaml

from ladder_lite.config.load import list_recipes, load_recipe
from ladder_lite.config.schema import EMBEDDED
from ladder_lite.errors import UserError
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models.memory import gib
from ladder_lite.problems import Problem, load_problems
from ladder_lite.report import page_figures
from ladder_lite.report.document import (
    Block,
    Bullets,
    Chapter,
    Code,
    Document,
    Figure,
    Figures,
    Item,
    Listing,
    Mark,
    Paragraph,
    Table,
    Text,
)
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.report.findings import Run, outcomes
from ladder_lite.report.paper_results import PAPER
from ladder_lite.report.test_time import test_time
from ladder_lite.report.variant_tree import variants_chapter
from ladder_lite.runs import layout
from ladder_lite.terminal import clock_time, percent, plain
from ladder_lite.train import divergence

Report = Mapping[str, Any]

SCALE_MODEL = (
    " The embedded model has a few megabytes and was made for this kit. Its numbers show that the method works and how "
    "the conditions compare; they are no reproduction of the paper's, which stand beside them for orientation."
)

_MEANING = {
    "base": "the model as it came",
    "rl_without_variants": "GRPO on the training problems themselves, the paper's control",
    "ladder": "GRPO on variants of the training problems that the model wrote itself",
    "ladder_ttrl": "LADDER, then test-time RL on single problems it left unsolved",
    "ttrl": "test-time RL on the same single problems, from the base model",
    "ladder_pass100": "LADDER's model sampled on the same problems for as many tokens as test-time RL took",
}
_SHARES = ("solved", "wrong", "unreadable", "truncated")
_SHOWN = ("base", "rl_without_variants", "ladder", "ladder_ttrl")  # answers before and after; arms answer alike
_N_SAMPLES = 6
_N_LISTED = 20
_WIDTH = 160


def describe(report: Report, run: Run) -> Document:
    """The report of a run as a document."""
    statements = statements_of(run.test, "test")
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
        tuple(chapter for chapter in chapters if chapter.blocks),
    )


def headline(report: Report) -> Text:
    """What was found, in a sentence or two of what is finished."""
    shares = {name: entry["pass@1"]["value"] for name, entry in report["conditions"].items()}
    who: Text = "The embedded model" if report["model"] == EMBEDDED else Code(report["model"])
    if "ladder" not in shares:
        if not shares:
            return "Nothing is evaluated yet."
        return "LADDER is not finished yet. So far: " + _listed(shares) + "."
    sentence: list[Any] = [who, f" solves {percent(shares['ladder'])} of the test problems after LADDER"]
    compared = {name: shares[name] for name in ("base", "rl_without_variants") if name in shares}
    words = {"base": "{} before", "rl_without_variants": "{} with RL without variants"}
    if compared:
        sentence.append(", " + " and ".join(words[name].format(percent(value)) for name, value in compared.items()))
        if shares["ladder"] <= max(compared.values()):
            sentence.append(": LADDER did not help")
    sentence.append(".")
    if report["ttrl"]["attempted"]:
        sentence.append(
            f" Test-time RL then solved {report['ttrl']['solved']} of {report['ttrl']['attempted']} problems that "
            "LADDER had left unsolved."
        )
    return tuple(sentence)


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{label_of(name)} {percent(share)}" for name, share in shares.items())


def statements_of(problem_set: str, split: str) -> dict[str, str]:
    """Return the problems' statements by id; ids are hashes of the problems, so they cannot be mistaken."""
    try:
        problems = load_problems(problem_set, split)
    except UserError:  # the set was moved since: the report shows ids then
        return {}
    return {problem.id: statement(problem) for problem in problems}


def statement(problem: Problem) -> str:
    """A problem in words of code."""
    limits = f" from {problem.data['lower']} to {problem.data['upper']}" if problem.data.get("lower") else ""
    return f"{problem.data['integrand']}{limits}"


def interval(result: Mapping[str, float]) -> str:
    """A share with its interval: '64 % (32-82)'."""
    low, high = (percent(result[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{percent(result['value'])} ({low}-{high})"


def points(result: Mapping[str, float]) -> str:
    """A difference of shares in percentage points: '+12.0 (+3.5 to +20.1)'."""
    value, low, high = (100 * result[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _results(report: Report, run: Run) -> Chapter:
    pass_k = f"pass@{run.k}" if run.k > 1 else None
    paper = PAPER[report["experiment"]]
    head = ("condition", "pass@1", *([pass_k] if pass_k else []), "test problems", "steps", "time", "the paper")
    rows = [_result(report, run, name, pass_k) for name in run.conditions]
    blocks: list[Block] = []
    if report["model"] == EMBEDDED:
        blocks.append(Paragraph((Mark("A scale model of the experiment."), SCALE_MODEL), note=True))
    else:
        blocks.append(Paragraph(("Model: ", Code(report["model"]), ".")))
    blocks += _figures(page_figures.bars(report))
    blocks.append(Table("l" + "r" * (len(head) - 1), head, tuple(rows)))
    blocks.append(
        Paragraph(
            f"pass@1 is the share of right answers among {run.samples} samples a problem; in brackets 95 % intervals "
            "(Wilson, over the problems). Times are m:ss or h:mm:ss of training steps and evaluation, without those of "
            "the training problems' variants and of the looks at the test problems in between."
        )
    )
    blocks += [Paragraph(note) for note in paper.notes]
    if paper.others:
        others = ", ".join(f"{name} {quoted.words}" for name, quoted in paper.others.items())
        blocks.append(Paragraph(f"On the same exam, says the paper: {others}."))
    blocks += _printed(report)
    blocks.append(Bullets(tuple(Item((Code(name), ": ", *_meaning(run, name))) for name in run.conditions)))
    return Chapter("Results", (*blocks, *_differences(report), *_rollbacks(run)))


def _result(report: Report, run: Run, name: str, pass_k: str | None) -> tuple[Text, ...]:
    cells = ["not finished", *[""] * (4 if pass_k else 3)]
    if entry := report["conditions"].get(name):
        cells = [interval(entry["pass@1"])]
        cells += [interval(entry[pass_k]) if pass_k in entry else ""] if pass_k else []
        cells += [str(entry["n_problems"]), str(entry["steps"]), clock_time(entry["seconds"])]
    elif tried := outcomes(run, name):
        unfinished = "" if name == "ladder_pass100" else "not finished, "  # which has no more to do than that
        cells[0] = f"{unfinished}solved {sum(bool(row['solved']) for row in tried)} of {len(tried)} problems"
    elif steps := len(read_jsonl(run.path / "conditions" / name / "train/metrics.jsonl")):
        cells[0] = f"not finished, {steps} steps done"
    quoted = PAPER[report["experiment"]].results.get(name)
    return (Code(name), *cells, quoted.words.replace("<=", "≤") if quoted else "")


def _meaning(run: Run, name: str) -> tuple[Any, ...]:
    if name in _MEANING:
        return (_MEANING[name],)
    changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in run.arms.get(name, {}).items())
    return ("LADDER with other settings: ", Code(changes, _WIDTH)) if changes else ("LADDER with other settings",)


def _printed(report: Report) -> list[Block]:
    apart = {name: entry["printed"] for name, entry in report["conditions"].items() if "printed" in entry}
    if not apart:
        return []
    rates: list[Any] = []
    for name, entry in apart.items():
        rates += [", " if rates else "", Code(name), f" {percent(entry['pass@1']['value'])}"]
    n_problems = max(entry["n_problems"] for entry in apart.values())
    words = f"Of these, {n_problems} are shown as the exam prints them and verified by a closed form: "
    return [Paragraph((words, *rates, "."))]


def _differences(report: Report) -> list[Block]:
    if not report.get("differences"):
        return []
    rows = tuple(
        (points(row), (Code(row["condition"]), " minus ", Code(row["reference"]))) for row in report["differences"]
    )
    return [
        Paragraph(
            "Differences on the same test problems, in percentage points of pass@1, with 95 % intervals of a paired "
            "bootstrap over the problems. An interval that leaves out 0 is a difference that chance over the problems "
            "does not explain; chance between trainings is for several seeds to show."
        ),
        Table("rl", ("points", "difference"), rows),
    ]


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
    found = [page_figures.accuracy(report), page_figures.variants(report), page_figures.signal(report)]
    found += [page_figures.rollouts(report, name) for name in ("ladder", "rl_without_variants")]
    counted = [
        (Code(name), str(entry["variants"]), interval(entry["pass@1"]))
        for name, entry in report["conditions"].items()
        if entry.get("variants")
    ]
    blocks = _figures(*found)
    if len(counted) > 1:
        blocks.append(Table("lrr", ("trained on", "variants", "pass@1"), tuple(counted)))
    return Chapter("While training", tuple(blocks))


def _figures(*found: Figure | None) -> list[Block]:
    figures = tuple(figure for figure in found if figure)
    return [Figures(figures)] if figures else []


def _answers(report: Report, run: Run, statements: Mapping[str, str]) -> Chapter:
    return Chapter("Answers", (*_kinds_of_answers(report), *_techniques(report), *_sampled_answers(run, statements)))


def _kinds_of_answers(report: Report) -> list[Block]:
    """Greedy and voted accuracy, and what becomes of the sampled answers, where the evaluation tells."""
    entries = {name: entry for name, entry in report["conditions"].items() if "shares" in entry or "greedy" in entry}
    if not entries:
        return []
    official = any(entry.get("official") for entry in entries.values())
    head = ("condition", "greedy", "majority", *_SHARES, *(["as the official answer"] if official else []))
    rows = [
        _cells(
            Code(name),
            *(interval(entry[key]) if entry.get(key) else "" for key in ("greedy", "majority")),
            *(percent(entry["shares"][key]) if key in entry.get("shares", {}) else "" for key in _SHARES),
            *([_official(entry)] if official else []),
        )
        for name, entry in entries.items()
    ]
    return [
        Table("l" + "r" * (len(head) - 1), head, tuple(rows)),
        Paragraph(
            "Greedy: one answer a problem, at temperature 0. Majority: the answer most samples agree on, as functions. "
            "The others are shares of the sampled answers; truncated ones were cut off by the token limit."
        ),
    ]


def _official(entry: Mapping[str, Any]) -> str:
    official = entry.get("official")
    return f"{official['n_agree']} of {official['n_compared']}" if official else ""


def _techniques(report: Report) -> list[Block]:
    entries = {name: entry["techniques"] for name, entry in report["conditions"].items() if entry.get("techniques")}
    if not entries:
        return []
    counts = {
        name: found["n_problems"] for techniques in entries.values() for name, found in techniques.items()
    }  # of the same problems in every condition
    rows = [
        _cells(Code(name, 40), str(n), *(_rate(techniques.get(name)) for techniques in entries.values()))
        for name, n in list(counts.items())[: 2 * _N_LISTED]
    ]
    head = _cells("technique", "problems", *(Code(name) for name in entries))
    return [Paragraph("pass@1 by technique:"), Table("l" + "r" * (len(head) - 1), head, tuple(rows))]


def _cells(*cells: Text) -> tuple[Text, ...]:
    return cells


def _rate(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    rate = found["pass@1"]
    return percent(rate["value"] if isinstance(rate, dict) else rate)


def _sampled_answers(run: Run, statements: Mapping[str, str]) -> list[Block]:
    """Show the first answer to every n-th test problem: a rule, so that nothing is picked for its looks."""
    first: dict[str, dict[str, dict[str, Any]]] = {}
    for name in _SHOWN:
        for row in read_jsonl(run.path / "conditions" / name / "eval/attempts.jsonl"):
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
    grade = Mark("right", "right") if right else Mark(plain(row["reason"]).lower().replace("_", " "), "wrong")
    left_out = f" ({code.left_out})" if code.left_out else ""
    return Item((f"{label_of(condition)}: ", code, f"{left_out} ", grade))


def _cost(report: Report) -> Chapter:
    rows = tuple(
        (
            Code(row["stage"]),
            "" if row["n_tokens"] is None else f"{row['n_tokens']:,}",
            "" if row["seconds"] is None else clock_time(row["seconds"]),
            f"{gib(row['peak_memory_bytes'])} GiB" if row["peak_memory_bytes"] else "",
        )
        for row in report["costs"]
    )
    if not rows:
        return Chapter("Cost", ())
    note = "Tokens are those generated. Memory is the peak of the process up to the stage's end."
    return Chapter("Cost", (Table("lrrr", ("stage", "tokens", "time", "peak memory"), rows), Paragraph(note)))


def _reproduce(report: Report, run: Run) -> Chapter:
    versions: list[Any] = []
    for name, version in report["versions"].items():
        versions += [", " if versions else "", Code(f"{name} {version}")]
    peak = f"Peak memory {gib(report['peak_memory_bytes'])} GiB. Versions: "
    # ASCII: YAML then writes everything that is not as an escape, exactly and harmlessly.
    recipe = yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=False, width=100)
    blocks = (
        Listing(_command(run)),
        Paragraph((peak, *versions, ".")),
        Listing(recipe, f"The recipe as it ran, seed {run.seed}"),
    )
    return Chapter("Reproduce", blocks)


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
    return f"python -m ladder_lite.recipe {shlex.quote(str(run.path / 'recipe.resolved.yaml'))} --run-dir NEW_FOLDER"


def _is_same(shipped: Mapping[str, Any], run: Run) -> tuple[bool, bool]:
    """Whether a run is of these settings, and whether with --full."""
    full = set(run.settings["conditions"]) > set(shipped["conditions"])
    wanted = {*shipped["conditions"], *(shipped.get("full", ()) if full else ())}
    others = {**shipped, "conditions": run.settings["conditions"]} == run.settings
    return others and wanted == set(run.settings["conditions"]), full
