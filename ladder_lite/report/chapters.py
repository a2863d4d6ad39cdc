"""The chapters of a run's report: its findings as sentences, tables and figures."""

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
from ladder_lite.terminal import clock_time, counted, percent, percent_interval, points_interval, reason_word
from ladder_lite.train import divergence

# Follows the words "A scale model of the experiment.", which are set in bold.
SCALE_MODEL = (
    " The embedded model is a few megabytes in size and was made for this kit. Its numbers show that the method works "
    "and how the conditions compare. They do not reproduce the paper's results, which are shown for reference."
)

# Keys of `shares` in report.json, and the headings that they get: "right" as in the figures of rollouts.
_SHARES = {"solved": "right", "wrong": "wrong", "unreadable": "unreadable", "truncated": "truncated"}
# Sampled answers are shown for these only: the answers of ablations look much like those of LADDER.
_SAMPLED_CONDITIONS = ("base", "rl_without_variants", "ladder", "ladder_ttrl")
_N_SAMPLED_PROBLEMS = 6
_MAX_TECHNIQUES = 40
_CODE_WIDTH = 160


def describe(report: Report, run: Run) -> Document:
    """Build the document of a run's report."""
    # By problem id, as the model is shown them: {"1e954ee963d0df5a": "x**2*exp(x)"}.
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
        # A chapter without blocks is one for which the run has no data yet.
        [chapter for chapter in chapters if chapter.blocks],
    )


def headline(report: Report) -> Text:
    """Summarize the evaluated conditions in one or two sentences."""
    shares = {name: entry["pass@1"]["value"] for name, entry in report["conditions"].items()}
    if not shares:
        return "No condition has been evaluated yet."
    if "ladder" not in shares:
        so_far = ", ".join(f"{label_of(name)} {percent(share)}" for name, share in shares.items())
        return f"LADDER is not finished yet. pass@1 so far: {so_far}."
    # A model's id comes from the recipe, so it is foreign text: `Code`, never part of a sentence's string.
    subject: Inline = "The embedded model" if report["model"] == EMBEDDED else Code(report["model"])
    sentences = f" solves {percent(shares['ladder'])} of the test problems after LADDER"
    words = {"base": "before", "rl_without_variants": "with RL without variants"}
    baselines = {name: shares[name] for name in words if name in shares}
    if baselines:
        # "..., compared with 1.2 % before and 0 % with RL without variants"
        compared = " and ".join(f"{percent(share)} {words[name]}" for name, share in baselines.items())
        sentences += f", compared with {compared}"
        # The headline must not read as a success where training gained nothing.
        sentences += ": LADDER did not help" if shares["ladder"] <= max(baselines.values()) else ""
    sentences += "."
    if report["ttrl"]["attempted"]:
        sentences += (
            f" Test-time RL then solved {report['ttrl']['solved']} of {report['ttrl']['attempted']} problems that "
            "LADDER had left unsolved."
        )
    return subject, sentences


def differences(entries: Iterable[Mapping[str, Any]]) -> list[Block]:
    """Return a table of differences between conditions, or no block if there are none."""
    rows: list[Row] = [
        {"points": points_interval(row), "difference": (Code(row["condition"]), " minus ", Code(row["reference"]))}
        for row in entries
    ]
    return table("rl", rows)


def _results(report: Report, run: Run) -> Chapter:
    paper = PAPER[report["experiment"]]
    about = Paragraph(("Model: ", Code(report["model"]), "."))
    if report["model"] == EMBEDDED:
        # Set apart from the text, so that nobody takes these numbers for the paper's.
        about = Paragraph((Mark("A scale model of the experiment."), SCALE_MODEL), note=True)
    blocks: list[Block] = [
        about,
        *side_by_side(figures.bars(report)),
        *table("lr", [_result(report, run, name) for name in run.conditions]),
        Paragraph(
            f"pass@1 is the share of right answers among {run.samples} samples per problem, with 95 % Wilson intervals "
            "over the problems in parentheses. Times (m:ss or h:mm:ss) cover training and evaluation, excluding "
            "variant generation for the training problems before training, and the test evaluations during training."
        ),
        *map(Paragraph, paper.notes),
    ]
    if paper.others:
        others = ", ".join(f"{name} {quoted.words}" for name, quoted in paper.others.items())
        blocks.append(Paragraph(f"Other results that the paper reports on the same exam: {others}."))
    blocks += _printed(report)
    blocks.append(Bullets(tuple(Item((Code(name), ": ", *_meaning(run, name))) for name in run.conditions)))
    if report["differences"]:
        blocks.append(
            Paragraph(
                "Differences in pass@1 on the same test problems, in percentage points, with 95 % intervals from a "
                "paired bootstrap over the problems. If the interval excludes 0, the choice of problems alone does "
                "not explain the difference. Measuring the variation between training runs needs several seeds."
            )
        )
    return Chapter("Results", [*blocks, *differences(report["differences"]), *_rollbacks(run)])


def _result(report: Report, run: Run, name: str) -> Row:
    pass_k = [f"pass@{run.k}"] if run.k > 1 else []
    # All columns, in their order: the table takes it from its rows, and the first condition may not be finished.
    row: Row = dict.fromkeys(["condition", "pass@1", *pass_k, "test problems", "steps", "time"], "")
    row["condition"] = Code(name)
    if entry := report["conditions"].get(name):
        row |= {key: percent_interval(entry[key]) for key in ("pass@1", *pass_k) if key in entry}
        row |= {"test problems": str(entry["n_problems"]), "steps": str(entry["steps"])}
        row["time"] = clock_time(entry["seconds"])
    elif tried := outcomes(run, name):
        # LADDER resampled only tries single problems: it has no evaluation of its own to wait for.
        unfinished = "" if name == "ladder_pass100" else "not finished, "
        row["pass@1"] = f"{unfinished}solved {sum(bool(row['solved']) for row in tried)} of {len(tried)} problems"
    else:
        # metrics.jsonl has one row per training step, also while training is still running.
        steps = len(run.rows(layout.train(name), layout.METRICS))
        row["pass@1"] = f"not finished, {counted(steps, 'step')} done" if steps else "not finished"
    quoted = PAPER[report["experiment"]].results.get(name)
    # The paper's results are ASCII for the terminal's table; the page can show the sign itself.
    return row | {"the paper": quoted.words.replace("<=", "≤") if quoted else ""}


def _meaning(run: Run, name: str) -> tuple[Any, ...]:
    if name in BUILT_IN:
        return (BUILT_IN[name].meaning,)
    # share=0.1, grpo.rows="uniform"
    changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in run.ablations.get(name, {}).items())
    return ("LADDER with other settings: ", Code(changes, _CODE_WIDTH)) if changes else ("LADDER with other settings",)


def _printed(report: Report) -> list[Block]:
    """Report pass@1 on the problems whose statement the model sees as the exam prints it."""
    subsets = {name: entry["printed"] for name, entry in report["conditions"].items() if "printed" in entry}
    if not subsets:
        return []
    rates = [(Code(name), f" {percent(entry['pass@1']['value'])}") for name, entry in subsets.items()]
    # A problem that turned out to be unverifiable is not counted, so the numbers of two conditions can differ.
    n_problems = max(entry["n_problems"] for entry in subsets.values())
    words = f"pass@1 on {counted(n_problems, 'problem')} shown as printed in the exam and verified by a closed form: "
    return [Paragraph((words, *listed(rates), "."))]


def _rollbacks(run: Run) -> list[Block]:
    """List the training runs that diverged: they went on at half the learning rate, unlike the recipe says."""
    # Every training run is looked for, also those of TTRL, which has one per problem.
    folders = sorted(path.parent for path in run.path.rglob(layout.ROLLBACKS))
    items = [
        Item((Code(str(folder.relative_to(run.path))), f": {row}"))
        for folder in folders
        for row in divergence.load(folder)
    ]
    if not items:
        return []
    return [Paragraph("Training runs that diverged, each rolled back once:"), Bullets(tuple(items))]


def _training(report: Report) -> Chapter:
    drawn = [figures.accuracy(report), figures.variants(report), figures.signal(report)]
    drawn += [figures.rollouts(report, name) for name in ("ladder", "rl_without_variants")]
    rows: list[Row] = [
        {"condition": Code(name), "variants": str(entry["variants"]), "pass@1": percent_interval(entry["pass@1"])}
        for name, entry in report["conditions"].items()
        if entry.get("variants")
    ]
    # With a single row there is nothing to compare, and the table of results has its numbers.
    return Chapter("While training", side_by_side(*drawn) + (table("lr", rows) if len(rows) > 1 else []))


def _answers(report: Report, run: Run, statements: Mapping[str, str]) -> Chapter:
    return Chapter("Answers", _kinds_of_answers(report) + _techniques(report) + _sampled_answers(run, statements))


def _kinds_of_answers(report: Report) -> list[Block]:
    """Show greedy and majority accuracy and the shares of right, wrong, unreadable and truncated answers."""
    # Runs of earlier versions have neither key.
    entries = {name: entry for name, entry in report["conditions"].items() if "shares" in entry or "greedy" in entry}
    if not entries:
        return []
    official = any(entry.get("official") for entry in entries.values())
    rows: list[Row] = []
    for name, entry in entries.items():
        row: Row = {"condition": Code(name)}
        row |= {key: percent_interval(entry[key]) if entry.get(key) else "" for key in ("greedy", "majority")}
        shares = entry.get("shares", {})
        row |= {heading: percent(shares[key]) if key in shares else "" for key, heading in _SHARES.items()}
        if official:
            counts = entry.get("official")
            row["equal to official answer"] = f"{counts['n_agree']} of {counts['n_compared']}" if counts else ""
        rows.append(row)
    words = (
        "Greedy: one answer per problem at temperature 0. Majority: the answer that most samples agree on, compared as "
        "functions. Right, wrong, unreadable and truncated are shares of the sampled answers: unreadable ones have no "
        "answer, or one that the verifier cannot parse or refuses; truncated ones were cut off by the token limit."
    )
    # A verified answer differs from the official one where the problem set's own answer is wrong.
    words += " The last column compares verified answers with the problem set's own." if official else ""
    return [*table("lr", rows), Paragraph(words)]


def _techniques(report: Report) -> list[Block]:
    entries = {name: entry["techniques"] for name, entry in report["conditions"].items() if entry.get("techniques")}
    if not entries:
        return []
    # All conditions answer the same problems, so whichever comes last gives the same counts.
    counts = {name: entry["n_problems"] for techniques in entries.values() for name, entry in techniques.items()}
    rows: list[Row] = []
    for technique, n_problems in list(counts.items())[:_MAX_TECHNIQUES]:
        row: Row = {"technique": Code(technique, 40), "problems": str(n_problems)}
        rates = {name: own[technique]["pass@1"]["value"] for name, own in entries.items() if technique in own}
        rows.append(row | {Code(name): percent(rate) for name, rate in rates.items()})
    return [Paragraph("pass@1 by technique:"), *table("lr", rows)]


def _sampled_answers(run: Run, statements: Mapping[str, str]) -> list[Block]:
    """Show the first answer to every n-th test problem: a fixed rule, so that no answer is cherry-picked."""
    # Rows of attempts.jsonl by problem id and condition.
    first: dict[str, dict[str, dict[str, Any]]] = {}
    for name in _SAMPLED_CONDITIONS:
        for row in run.rows(layout.evaluation(name), layout.ATTEMPTS):
            if row["index"] == 0:
                first.setdefault(row["problem_id"], {})[name] = row
    if not first:
        return []
    items = []
    # Of 100 problems every 16th, which would be seven, so the last one is left out.
    for problem_id in list(first)[:: max(1, len(first) // _N_SAMPLED_PROBLEMS)][:_N_SAMPLED_PROBLEMS]:
        answers = tuple(_answer(condition, row) for condition, row in first[problem_id].items())
        items.append(Item(Code(statements.get(problem_id, problem_id), _CODE_WIDTH), answers))
    return [Paragraph("The first sampled answers to evenly spaced test problems:"), Bullets(tuple(items))]


def _answer(condition: str, row: Mapping[str, Any]) -> Item:
    # Without an <answer>, the reply itself is shown.
    code = Code(row["text"] if row["answer"] is None else row["answer"], _CODE_WIDTH)
    grade = Mark(reason_word(row["reason"]), "right" if row["reason"] == "CORRECT" else "wrong")
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
    note = Paragraph("Tokens are generated tokens. Peak memory is that of the process up to the end of the stage.")
    return Chapter("Cost", [*table("lr", rows), note] if rows else [])


def _reproduce(report: Report, run: Run) -> Chapter:
    versions = listed(Code(f"{name} {version}") for name, version in report["versions"].items())
    peak = f"Peak memory {gib(report['peak_memory_bytes'])} GiB. Versions: "
    # With ASCII only, YAML escapes all other characters: a listing keeps its line breaks, so `Code` cannot clean it.
    recipe = yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=False, width=100)
    settings = Listing(recipe, f"The recipe as it ran, seed {run.seed}")
    return Chapter("Reproduce", [Listing(_command(run)), Paragraph((peak, *versions, ".")), settings])


def _command(run: Run) -> str:
    """Return the shortest command that runs the same settings."""
    # A shipped recipe's name with a few options may be enough: try all profiles, without and with --smoke.
    is_shipped = run.name in dict(list_recipes())
    profiles = (None, *(run.settings.get("profiles") or {})) if is_shipped else ()
    for profile, smoke in product(profiles, (False, True)):
        try:
            shipped = load_recipe(run.name, [f"seed={run.seed}"], smoke, profile)
        except UserError:  # this version of the recipe lacks the profile, or its settings have changed
            break
        same, full = _is_same(shipped.model_dump(mode="json"), run)
        if same:
            options = f"{f' --profile {profile}' if profile else ''}{' --full' if full else ''}"
            options += " --smoke" if smoke else ""
            return f"python -m ladder_lite.recipe {run.name} seed={run.seed}{options}"
    # The settings were changed, so only the run's own recipe has them all.
    return f"python -m ladder_lite.recipe {shlex.quote(str(run.path / layout.RECIPE))} --run-dir NEW_FOLDER"


def _is_same(shipped: Mapping[str, Any], run: Run) -> tuple[bool, bool]:
    """Return whether a run has the settings of a shipped recipe, and whether it ran with --full."""
    full = set(run.settings["conditions"]) > set(shipped["conditions"])
    # --full adds conditions to the recipe's list; their order does not matter.
    expected = {*shipped["conditions"], *(shipped.get("full", ()) if full else ())}
    other_settings_equal = {**shipped, "conditions": run.settings["conditions"]} == run.settings
    return other_settings_equal and expected == set(run.settings["conditions"]), full
