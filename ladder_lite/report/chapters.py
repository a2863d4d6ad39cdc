"""The chapters of a run's report: its findings as sentences, tables and figures."""

import json
import shlex
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import yaml

from ladder_lite.config import BUILT_IN, EMBEDDED, condition_of, list_recipes, load_recipe, model_name
from ladder_lite.errors import UserError
from ladder_lite.models.memory import gib
from ladder_lite.report import controls, figures
from ladder_lite.report.document import (
    WIDTH,
    Block,
    Chapter,
    Document,
    Figures,
    Folded,
    bullets,
    code,
    escape,
    listing,
    table,
)
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.report.findings import Report, headline, known_problems, outcomes
from ladder_lite.report.paper_results import PAPER
from ladder_lite.report.test_time import test_time
from ladder_lite.report.variant_tree import variants_chapter
from ladder_lite.runs import Run, layout
from ladder_lite.tasks import latex, statement
from ladder_lite.terminal import (
    clock_time,
    counted,
    one_line,
    percent,
    percent_interval,
    points_interval,
    reason_word,
)
from ladder_lite.train import divergence

_SCALE_MODEL = (
    "> **A scale model of the experiment.** The embedded model is a few megabytes in size and was made for this kit. "
    "Its numbers show that the method works and how the conditions compare. They do not reproduce the paper's results, "
    "which are shown for reference."
)

# Keys of `shares` in report.json, and the headings that they get: "right" as in the figures of rollouts.
_SHARES = {"solved": "right", "wrong": "wrong", "unreadable": "unreadable", "truncated": "truncated"}
# Sampled answers are shown for these only: the answers of ablations look much like those of LADDER.
_SAMPLED_CONDITIONS = ("base", "rl_without_variants", "ladder", "ladder_ttrl")
_N_SAMPLED_PROBLEMS = 6
_MAX_TECHNIQUES = 40


def describe(report: Report, run: Run) -> Document:
    """Build the document of a run's report."""
    # By problem id, as the model is shown them: {"1e954ee963d0df5a": "x**2*exp(x)"}.
    tests = known_problems(run, run.recipe.task.test, "test")
    statements = {problem.id: statement(problem) for problem in tests}
    chapters = [
        _results(report, run),
        _training(report),
        test_time(report, run, statements),
        Chapter("Is it more than ...?", controls.describe(report["controls"])),
        _answers(report, run, statements),
        variants_chapter(report, run),
        _cost(report),
        _reproduce(report, run),
    ]
    formulas = {one_line(statements[problem.id], WIDTH): latex(problem) for problem in tests}
    return Document(
        f"LADDER: recipe {code(run.recipe.name)}, seed {run.recipe.seed}", headline(report), chapters, formulas
    )


def differences(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of differences between conditions, "" if there are none."""
    rows = [
        {"points": points_interval(row), "difference": f"{code(row['condition'])} minus {code(row['reference'])}"}
        for row in entries
    ]
    return table("rl", rows)


def _results(report: Report, run: Run) -> Chapter:
    paper = PAPER[report["experiment"]]
    others = ", ".join(f"{name} {quoted.words}" for name, quoted in paper.others.items())
    about_differences = (
        "Differences in pass@1 on the same test problems, in percentage points, with 95 % intervals from a paired "
        "bootstrap over the problems. If the interval excludes 0, the choice of problems alone does not explain the "
        "difference. Measuring the variation between training runs needs several seeds."
    )
    blocks: list[Block] = [
        # Set apart from the text, so that nobody takes these numbers for the paper's.
        _SCALE_MODEL if report["model"] == EMBEDDED else f"Model: {code(model_name(report['model']))}.",
        Figures(filter(None, [figures.bars(report)])),
        table("lr", [_result(report, run, name) for name in run.conditions]),
        f"pass@1 is the share of right answers among {run.recipe.eval.samples} samples per problem, with 95 % Wilson "
        "intervals over the problems in parentheses. Times (m:ss or h:mm:ss) cover training and evaluation, excluding "
        "variant generation for the training problems before training, and the test evaluations during training.",
        *paper.notes,
        f"Other results that the paper reports on the same exam: {others}." if others else "",
        bullets(f"{code(name)}: {_meaning(report, run, name)}" for name in run.conditions),
        about_differences if report["differences"] else "",
        differences(report["differences"]),
        *_rollbacks(run),
    ]
    return Chapter("Results", blocks)


def _result(report: Report, run: Run, name: str) -> dict[str, str]:
    pass_k = [f"pass@{run.recipe.eval.k}"] if run.recipe.eval.k > 1 else []
    # All columns, in their order: the table takes it from its rows, and the first condition may not be finished.
    row = dict.fromkeys(["condition", "pass@1", *pass_k, "test problems", "variants", "steps", "time"], "")
    row["condition"] = code(name)
    if entry := report["conditions"].get(name):
        row |= {key: percent_interval(entry[key]) for key in ("pass@1", *pass_k) if key in entry}
        row |= {"test problems": str(entry["n_problems"]), "steps": str(entry["steps"])}
        row["variants"] = str(entry.get("variants", ""))
        row["time"] = clock_time(entry["seconds"])
    elif tried := outcomes(run, name):
        # LADDER resampled only tries single problems: it has no evaluation of its own to wait for.
        unfinished = "" if name == "ladder_pass100" else "not finished, "
        row["pass@1"] = f"{unfinished}solved {sum(bool(row['solved']) for row in tried)} of {len(tried)} problems"
    elif run.done(layout.problems(name)):
        row["pass@1"] = "no problem left"
    else:
        # metrics.jsonl has one row per training step, also while training is still running.
        steps = len(run.rows(layout.train(name), layout.METRICS))
        row["pass@1"] = f"not finished, {counted(steps, 'step')} done" if steps else "not finished"
    if not (paper := PAPER[report["experiment"]].results):
        return row
    # The paper's results are ASCII for the terminal's table; the page can show the sign itself.
    return row | {"the paper": escape(paper[name].words.replace("<=", "≤")) if name in paper else ""}


def _meaning(report: Report, run: Run, name: str) -> str:
    # share=0.1, grpo.rows="uniform"
    changes = ", ".join(f"{key}={json.dumps(value)}" for key, value in run.recipe.ablations.get(name, {}).items())
    meaning = condition_of(name, run.recipe.ablations).meaning + (f": {code(changes)}" if changes else "")
    by_task = report["variants"].get("kept") and not report["variants"].get("tokens")  # see `Task.given_variants`
    return meaning.replace("written by the model itself", "given by the task") if by_task else meaning


def _rollbacks(run: Run) -> list[str]:
    """List the training runs that diverged: they went on at half the learning rate, unlike the recipe says."""
    # Every training run is looked for, also those of TTRL, which has one per problem.
    folders = sorted(path.parent for path in run.path.rglob(layout.ROLLBACKS))
    rollbacks = [
        (code(str(folder.relative_to(run.path))), row) for folder in folders for row in divergence.load(folder)
    ]
    if not rollbacks:
        return []
    items = bullets(f"{folder}: {escape(str(row))}" for folder, row in rollbacks)
    return ["Training runs that diverged, each rolled back once:", items]


def _training(report: Report) -> Chapter:
    drawn = [figures.accuracy(report), figures.variants(report), *figures.against_steps(report), figures.probes(report)]
    drawn += [*(figures.rollouts(report, name) for name in ("ladder", "rl_without_variants")), figures.distance(report)]
    return Chapter("While training", [Figures(filter(None, drawn)), *_lost_techniques(report)])


def _lost_techniques(report: Report) -> list[str]:
    """Say which techniques of the probe a condition answers worse than the base model."""
    sentences = []
    for name, techniques in report["lost"].items():
        if name not in BUILT_IN:  # the controls can lose all of them; report.json has the list
            continue
        base, rates = report["probes"]["base"], report["probes"][name]
        lost = [
            f"{code(technique, 40)} ({percent(base[technique]['value'])} to {percent(rates[technique]['value'])})"
            for technique in techniques
        ]
        words = f"answers these techniques worse than the base model: {', '.join(lost)}"
        if not lost:
            words = "answers no technique significantly worse than the base model"
        sentences.append(f"{escape(label_of(name))} {words}.")
    return [" ".join(sentences)]


def _answers(report: Report, run: Run, statements: Mapping[str, str]) -> Chapter:
    blocks = [*_kinds_of_answers(report), *_techniques(report), *_sampled_answers(run, statements)]
    return Chapter("Answers", blocks)


def _kinds_of_answers(report: Report) -> list[str]:
    """Show greedy and majority accuracy and the shares of right, wrong, unreadable and truncated answers."""
    entries = report["conditions"]
    if not entries:
        return []
    rows = []
    for name, entry in entries.items():
        row = {"condition": code(name)}
        row |= {key: percent_interval(entry[key]) for key in ("greedy", "majority") if key in entry}
        shares = entry.get("shares", {})
        row |= {heading: percent(shares[key]) for key, heading in _SHARES.items() if key in shares}
        if counts := entry.get("official"):
            row["equal to official answer"] = f"{counts['n_agree']} of {counts['n_compared']}"
        rows.append(row)
    words = (
        "Greedy: one answer per problem at temperature 0. Majority: the answer that most samples agree on, compared as "
        "functions. Right, wrong, unreadable and truncated are shares of the sampled answers: unreadable ones have no "
        "answer, or one that the verifier cannot parse or refuses; truncated ones were cut off by the token limit."
    )
    # A verified answer differs from the official one where the problem set's own answer is wrong.
    if any("official" in entry for entry in entries.values()):
        words += " The last column compares verified answers with the problem set's own."
    return [table("lr", rows), words]


def _techniques(report: Report) -> list[str]:
    entries = {name: entry["techniques"] for name, entry in report["conditions"].items() if entry.get("techniques")}
    if not entries:
        return []
    # All conditions answer the same problems, so whichever comes last gives the same counts.
    counts = {name: entry["n_problems"] for techniques in entries.values() for name, entry in techniques.items()}
    rows = []
    for technique, n_problems in list(counts.items())[:_MAX_TECHNIQUES]:
        row = {"technique": code(technique, 40), "problems": str(n_problems)}
        rates = {name: own[technique]["pass@1"]["value"] for name, own in entries.items() if technique in own}
        rows.append(row | {code(name): percent(rate) for name, rate in rates.items()})
    return ["pass@1 by technique:", table("lr", rows)]


def _sampled_answers(run: Run, statements: Mapping[str, str]) -> list[str]:
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
        answers = bullets((_answer(condition, row) for condition, row in first[problem_id].items()), "  ")
        items.append(f"{code(statements.get(problem_id, problem_id))}\n{answers}")
    return ["The first sampled answers to evenly spaced test problems:", bullets(items)]


def _answer(condition: str, row: Mapping[str, Any]) -> str:
    # Without an <answer>, the reply itself is shown.
    text = row["text"] if row["answer"] is None else row["answer"]
    # A short text can end in "..." by itself, and a long one can be all spaces, of which none is shown.
    is_cut = len(text) > WIDTH and one_line(text, WIDTH).endswith("...")
    left_out = f" (cut, of {len(text):,} characters)" if is_cut else ""
    # The page shows bold grades in green, and emphasized ones in red.
    look = "**" if row["reason"] == "CORRECT" else "*"
    return f"{label_of(condition)}: {code(text)}{left_out} {look}{escape(reason_word(row['reason']))}{look}"


def _cost(report: Report) -> Chapter:
    rows = [
        {
            "stage": code(row["stage"]),
            "tokens": "" if row["n_tokens"] is None else f"{row['n_tokens']:,}",
            "time": "" if row["seconds"] is None else clock_time(row["seconds"]),
            "peak memory": f"{gib(row['peak_memory_bytes'])} GiB" if row["peak_memory_bytes"] else "",
        }
        for row in report["costs"]
    ]
    note = "Tokens are generated tokens. Peak memory is that of the process up to the end of the stage."
    drawn = Figures(filter(None, [figures.timeline(report)]))
    return Chapter("Cost", [table("lr", rows), note, drawn] if rows else [])


def _reproduce(report: Report, run: Run) -> Chapter:
    versions = ", ".join(code(f"{name} {version}") for name, version in report["versions"].items())
    about = f"Peak memory {gib(report['peak_memory_bytes'])} GiB. Versions: {versions}."
    # With ASCII only, YAML escapes all other characters: the text keeps its line breaks, so `code` cannot clean it.
    recipe = yaml.safe_dump(run.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=False, width=100)
    settings = Folded(f"The recipe as it ran, seed {run.recipe.seed}", recipe)
    return Chapter("Reproduce", [listing(_command(run)), about, settings])


def _command(run: Run) -> str:
    """Return the shortest command that runs the same settings."""
    # A shipped recipe's name with a few options may be enough: try all profiles, without and with --smoke.
    name, seed, conditions = run.recipe.name, run.recipe.seed, list(run.recipe.conditions)
    settings = run.recipe.model_dump(mode="json")
    profiles = (None, *run.recipe.profiles) if name in dict(list_recipes()) else ()
    for profile, smoke, full in product(profiles, (False, True), (False, True)):
        try:
            shipped = load_recipe(name, [f"seed={seed}"], smoke, profile).model_dump(mode="json")
        except UserError:  # this version of the recipe lacks the profile, or its settings have changed
            break
        # --full adds conditions to the recipe's list; their order does not matter.
        expected = {*shipped["conditions"], *(shipped["full"] if full else ())}
        if {**shipped, "conditions": conditions} == settings and expected == set(conditions):
            options = f"{f' --profile {profile}' if profile else ''}{' --full' if full else ''}"
            options += " --smoke" if smoke else ""
            return f"python -m ladder_lite.recipe {name} seed={seed}{options}"
    # The settings were changed, so only the run's own recipe has them all.
    return f"python -m ladder_lite.recipe {shlex.quote(str(run.path / layout.RECIPE))} --run-dir NEW_FOLDER"
