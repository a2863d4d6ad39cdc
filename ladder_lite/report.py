"""What a run found: report.json, report.md and accuracy.png, from the files of the run alone.

    python -m ladder_lite.report runs/tiny-s0

A run that is not finished gives a report of what is there. What the paper found stands in `PAPER`, beside our figures
and never among them.
"""

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ladder_lite import divergence, errors, variants
from ladder_lite.config import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.figures import draw_accuracy
from ladder_lite.live import clock_time, percent, plain
from ladder_lite.memory import gib
from ladder_lite.problems import load_problems
from ladder_lite.run_dir import read_jsonl, write_json
from ladder_lite.settings import EMBEDDED, Recipe


class Published(NamedTuple):
    """pass@1 by condition in Simonds and Yoshiyama, arXiv 2503.00735 v3, and of what that is."""

    results: Mapping[str, str]
    caption: str
    notes: tuple[str, ...]


PAPER: Mapping[str, Published] = {
    "undergraduate": Published(
        {"base": "1 %", "rl_without_variants": "<= 3 %", "ladder": "82 %", "ladder_ttrl": "90 %*"},
        "paper: arXiv 2503.00735, Llama 3.2 3B (* a 7B model, MIT exam)",
        (
            "The paper's column is from Simonds and Yoshiyama, LADDER, arXiv 2503.00735 v3: Llama 3.2 3B on 100 "
            "undergraduate integrals (base: pass@10 2 %; GRPO on the ten training problems never above 3 %, 0 % within "
            "30 steps; LADDER 82 % after about 250 steps).",
            "\\* Another experiment: DeepSeek-R1-Distill-Qwen-7B on the MIT Integration Bee 2025 qualifying exam, 20 "
            "problems, 73 % with LADDER and 90 % with TTRL after it.",
        ),
    ),
    "mit": Published(
        {"base": "50 %", "ladder": "73 %", "ladder_ttrl": "90 %"},
        "paper: arXiv 2503.00735, R1-Distill-Qwen-7B, MIT exam of 2025",
        (
            "The paper's column is from Simonds and Yoshiyama, LADDER, arXiv 2503.00735 v3: "
            "DeepSeek-R1-Distill-Qwen-7B on the MIT Integration Bee 2025 qualifying exam, 20 problems, transcribed "
            "otherwise in places. For TTRL a problem counts as solved when a right answer appears at any step.",
        ),
    ),
}
"""The paper's two experiments; a recipe is set beside the one whose problems it tests."""

_MEANING = {
    "base": "the model as it came",
    "rl_without_variants": "GRPO on the training problems themselves, the paper's control",
    "ladder": "GRPO on variants of the training problems that the model wrote itself",
    "ladder_ttrl": "LADDER, then test-time RL on single problems it left unsolved",
}
_LIBRARIES = {
    "model": "It was given suggestions from a library of transformations that it wrote itself.",
    "model and default": "It was given suggestions from a library of transformations that it wrote itself, filled up "
    "with the default one, which is hand-written: its own was too short.",
    "default": "It was given suggestions from the default library of transformations, which is hand-written.",
    "recipe": "It was given suggestions from the transformations that the recipe lists.",
}
_ROWS = {"pass_rate": "by pass rate", "uniform": "uniformly"}
_FIGURE = "accuracy.png"
_N_SAMPLES = 6
_N_LISTED = 20


def write_report(run_path: Path) -> dict[str, Any]:
    """Write report.json, report.md and accuracy.png into a run folder and return the contents of report.json.

    `seconds` of a condition are those of its training (or of its single problems) and of its evaluation; `steps` of
    ladder_ttrl are those of all its problems together. The figure is left out while no curve has begun. Raises
    UserError where the folder is not a run or one of its files is damaged.
    """
    if not (run_path / "recipe.resolved.yaml").exists():
        raise UserError(f"{run_path}: not a run folder (no recipe.resolved.yaml); name one, such as runs/tiny-s0")
    recipe = load_recipe(str(run_path / "recipe.resolved.yaml"))
    report = _measure(run_path, recipe)
    write_json(run_path / "report.json", report)
    if report["curve"]:
        draw_accuracy(report, run_path / _FIGURE)
    else:
        (run_path / _FIGURE).unlink(missing_ok=True)
    (run_path / "report.md").write_text("\n".join(_describe(report, run_path, recipe)) + "\n", encoding="utf-8")
    return report


def summary_table(report: Mapping[str, Any]) -> Table:
    """Return the conditions of a report beside the paper's numbers, for a terminal of 80 columns; ASCII only."""
    paper = PAPER[report["experiment"]]
    table = Table(
        title=f"{plain(report['recipe'], 30)}, seed {report['seed']}{_scale_model(report['model'])}",
        caption=paper.caption,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        min_width=64,  # of the caption
        title_style="bold",
    )
    entries = report["conditions"]
    pass_k = next((key for entry in entries.values() for key in _pass_keys(entry)[1:]), None)
    table.add_column("condition", no_wrap=True, overflow="crop")  # rich's ellipsis is not ASCII
    for heading in ("pass@1 (95 %)", *([pass_k] if pass_k else []), "tests", "steps", "time", "paper"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="crop")
    for name, entry in entries.items():
        table.add_row(
            name,
            _interval(entry["pass@1"]),
            *([percent(entry[pass_k]["value"])] if pass_k else []),
            str(entry["n_problems"]),
            str(entry["steps"]),
            clock_time(entry["seconds"]),
            paper.results.get(name, ""),
        )
    return table


def _measure(run: Path, recipe: Recipe) -> dict[str, Any]:
    """Return report.json: everything in it is read from the files of the run."""
    conditions, curve = {}, []
    for name in recipe.conditions:
        folder = run / "conditions" / name
        rows = read_jsonl(folder / "train" / "curve.jsonl")
        curve += [{"condition": name, **{key: row[key] for key in ("step", "pass@1", "seconds")}} for row in rows]
        work = [_read_json(folder / stage / "done.json") for stage in ("train", "problems", "eval")]
        if evaluated := work[-1]:
            conditions[name] = {
                **{key: evaluated[key] for key in (*_pass_keys(evaluated), "n_problems")},
                **({"printed": evaluated["printed"]} if "printed" in evaluated else {}),
                "steps": sum(summary.get("steps", 0) for summary in work),
                "seconds": sum(summary.get("seconds", 0.0) for summary in work),
            }
    tree = variants.count(run / "variants")
    markers = (_read_json(path) for path in sorted(run.rglob("done.json")))
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "model": recipe.model.id,
        "experiment": "mit" if recipe.task.test.startswith("mit") else "undergraduate",
        "conditions": conditions,
        "variants": {key: tree[key] for key in ("kept", "rejected", "duplicates", "by_depth")},
        "curve": curve,
        "ttrl": _count_ttrl(run),
        "peak_memory_bytes": max((marker.get("peak_memory_bytes") or 0 for marker in markers), default=0),
        "versions": _read_json(run / "versions.json"),
    }


def _count_ttrl(run: Path) -> dict[str, Any]:
    outcomes = _outcomes(run)
    # How many LADDER left is known when the stage ends.
    summary = _read_json(run / "conditions/ladder_ttrl/problems/done.json")
    solved = [outcome["steps_to_solve"] for outcome in outcomes if outcome["solved"]]
    return {
        "n_left": summary.get("n_left"),
        "attempted": len(outcomes),
        "solved": len(solved),
        "steps_to_solve": solved,
    }


def _outcomes(run: Path) -> list[dict[str, Any]]:
    """Return the done.json of every problem that TTRL is done with."""
    markers = sorted((run / "conditions/ladder_ttrl/problems").glob("*/done.json"))
    return [outcome for marker in markers if (outcome := _read_json(marker))]


def _describe(report: Mapping[str, Any], run: Path, recipe: Recipe) -> list[str]:
    """Return the lines of report.md."""
    statements = _statements(recipe)
    lines = [f"# LADDER: recipe `{recipe.name}`, seed {recipe.seed}", ""]
    if recipe.model.id == EMBEDDED:
        lines += [
            "> **A scale model of the experiment.** The embedded model has a few megabytes and was made for this kit. "
            "Its numbers show that the method works and how the conditions compare; they are no reproduction of the "
            "paper's, which stand beside them for orientation.",
            "",
        ]
    else:
        lines += [f"Model: {_code(recipe.model.id)}.", ""]
    lines += _describe_conditions(report, run, recipe)
    lines += _describe_rollbacks(run)
    lines += _describe_variants(report, run, recipe)
    lines += _describe_ttrl(report, run, recipe, statements)
    lines += _describe_samples(run, recipe, statements)
    versions = ", ".join(f"{plain(name)} {plain(str(version))}" for name, version in report["versions"].items())
    return [
        *lines,
        "## Reproduce",
        "",
        "```",
        _command(run, recipe),
        "```",
        "",
        f"Peak memory {gib(report['peak_memory_bytes'])} GiB. Versions: {versions}.",
    ]


def _describe_conditions(report: Mapping[str, Any], run: Path, recipe: Recipe) -> list[str]:
    pass_k = f"pass@{recipe.eval.k}" if recipe.eval.k > 1 else None
    paper = PAPER[report["experiment"]]
    lines = ["## Results", ""]
    lines += _row("condition", "pass@1", *([pass_k] if pass_k else []), "test problems", "steps", "time", "the paper")
    lines += _row("---", *["---:"] * (6 if pass_k else 5))
    for name in recipe.conditions:
        cells = ["not finished", *[""] * (4 if pass_k else 3)]
        if entry := report["conditions"].get(name):
            cells = [_interval(entry[key]) for key in ("pass@1", *([pass_k] if pass_k else []))]
            cells += [str(entry["n_problems"]), str(entry["steps"]), clock_time(entry["seconds"])]
        elif steps := len(read_jsonl(run / "conditions" / name / "train/metrics.jsonl")):
            cells[0] = f"not finished, {steps} steps done"
        lines += _row(f"`{name}`", *cells, paper.results.get(name, "").replace("<=", "≤").replace("*", "\\*"))
    lines += [
        "",
        f"pass@1 is the share of right answers among {recipe.eval.samples} samples a problem; in brackets 95 % "
        "intervals (Wilson, over the problems). Times are m:ss or h:mm:ss of training steps and evaluation, without "
        "those of the training problems' variants and of the looks at the test problems in between.",
        "",
        *paper.notes,
        "",
        *_describe_printed(report),
        *(f"- `{name}`: {_MEANING[name]}" for name in recipe.conditions if name in _MEANING),
        "",
    ]
    if report["curve"]:
        lines += [
            f"![Test accuracy against GRPO step]({_FIGURE})",
            "",
            "Lines: one answer a problem, sampled while training. Dots and the dashed line: the evaluation at the end. "
            "Dotted: no step was trained beyond this one.",
            "",
        ]
    return lines


def _describe_rollbacks(run: Path) -> list[str]:
    """Say which trainings diverged and went on at a lower rate: they are not quite what the recipe says."""
    folders = sorted(path.parent for path in run.rglob(divergence.FILE))
    lines = [f"- `{folder.relative_to(run)}`: {row}" for folder in folders for row in divergence.load(folder)]
    return ["Trainings that diverged, each undone and gone on with once:", "", *lines, ""] if lines else []


def _describe_printed(report: Mapping[str, Any]) -> list[str]:
    apart = {name: entry["printed"] for name, entry in report["conditions"].items() if "printed" in entry}
    if not apart:
        return []
    rates = ", ".join(f"`{name}` {percent(entry['pass@1']['value'])}" for name, entry in apart.items())
    n_problems = max(entry["n_problems"] for entry in apart.values())
    return [f"Of these, {n_problems} are shown as the exam prints them and verified by a closed form: {rates}.", ""]


def _describe_variants(report: Mapping[str, Any], run: Path, recipe: Recipe) -> list[str]:
    tree = variants.count(run / "variants")
    if not tree["requests"]:
        return []
    grown = variants.count(run / "conditions/ladder/train/variants")
    written = tree["kept"] + tree["rejected"] + tree["duplicates"]
    done = _read_json(run / "variants/done.json")
    library = str(done.get("library", "recipe"))
    suggested = _LIBRARIES.get(library, f"The suggestions come from {_code(library)}.")
    lines = ["## Variants", ""]
    lines += [
        f"The model wrote {written} ({tree['tokens']} tokens, {clock_time(tree['seconds'])}), of which {tree['kept']} "
        f"were kept. {suggested}",
        "",
    ]
    if grown["requests"]:
        lines += [
            f"While training ran, {grown['kept']} more were kept: easier ones of problems that were too hard, and "
            f"equivalent ones of problems at the frontier ({grown['tokens']} tokens).",
            "",
        ]
    lines += [*_row("depth in the tree", "kept"), *_row("---", "---:")]
    lines += [line for depth, n in report["variants"]["by_depth"].items() for line in _row(depth, str(n))]
    lines += ["", *_row("rejected because", "variants"), *_row("---", "---:")]
    reasons = Counter(tree["reasons"]) + Counter(grown["reasons"])
    for reason, n in sorted(reasons.items(), key=lambda item: -item[1]):
        lines += _row(plain(reason).replace("_", " "), str(n))
    return [*lines, "", *_describe_held_out(run, done), *_describe_pass_rates(run, recipe)]


def _describe_held_out(run: Path, done: Mapping[str, Any]) -> list[str]:
    """Say which benchmark problems the variants were compared with, and list those that were equal to one."""
    sets = done.get("held_out_sets")
    if not sets:
        return []
    places = (run / "variants", run / "conditions/ladder/train/variants")
    found = [row for place in places for row in read_jsonl(place / "rejected.jsonl") if row["reason"] == "test_problem"]
    names = ", ".join(f"{_code(name)} ({n})" for name, n in sets.items())
    lines = [
        f"Every variant was compared, as a function, with the problems of these sets: {names}. Equal to one of them, "
        f"and left out for that: {len(found)}{'.' if not found else ':'}",
        "",
    ]
    if shared := done.get("tests_among_roots"):
        listed = ", ".join(_code(text) for text in shared[:_N_LISTED])
        lines[:0] = [
            f"Test problems that are training problems too, by the sets themselves: {listed}.",
            "",
        ]
    lines += [f"- {_code(row['text'], 120)} ({_code(row['equal_to'])})" for row in found[:_N_LISTED]]
    if len(found) > _N_LISTED:
        lines.append(f"- and {len(found) - _N_LISTED} more, in `variants/rejected.jsonl`")
    return [*lines, ""] if found else lines


def _describe_pass_rates(run: Path, recipe: Recipe) -> list[str]:
    """Say how hard the variants have turned out to be, by the rollouts of LADDER's training."""
    rates = read_jsonl(run / "conditions/ladder/train/pass_rates.jsonl")
    if not rates:
        return []
    states = Counter(row["state"] for row in rates)
    steps = read_jsonl(run / "conditions/ladder/train/metrics.jsonl")
    without = sum(step["groups_without_signal"] for step in steps) / len(steps)
    kind = "adaptive" if recipe.variants.adaptive else "grown before training"
    return [
        f"Measured difficulty after training (tree {kind}, rows drawn {_ROWS[recipe.grpo.rows]}): of {len(rates)} "
        f"problems, {states['retired']} are always solved and retired, {states['stuck']} are never solved, "
        f"{states['unverifiable']} cannot be verified, {sum(row['tries'] == 0 for row in rates)} were never tried. "
        f"Groups without signal: {percent(without)}.",
        "",
    ]


def _describe_ttrl(report: Mapping[str, Any], run: Path, recipe: Recipe, statements: Mapping[str, str]) -> list[str]:
    outcomes = _outcomes(run)
    if not outcomes:
        return []
    counts = report["ttrl"]
    left = "" if counts["n_left"] is None else f" of the {counts['n_left']} that LADDER left unsolved"
    lines = [
        "## Test-time reinforcement learning",
        "",
        f"Tried on {counts['attempted']} problems{left}; solved {counts['solved']}. A problem is solved when a right "
        f"answer appears at any step, and each step brings {recipe.ttrl.samples_per_step} verified tries: what is "
        "solved at the first may owe more to the tries than to the training. These problems were chosen for having "
        "failed and are sampled anew in `ladder_ttrl`, so chance alone lifts that row a little. After each problem the "
        "weights are put back.",
        "",
        *_row("problem", "variants", "solved at step", "steps", "time", "right answer"),
        *_row("---", *["---:"] * 4, "---"),
    ]
    for outcome in outcomes:
        folder = run / "conditions/ladder_ttrl/problems" / outcome["problem_id"]
        lines += _row(
            _code(statements.get(outcome["problem_id"], outcome["problem_id"]), 120),
            str(variants.count(folder / "variants")["kept"]),
            str(outcome["steps_to_solve"]) if outcome["solved"] else "not solved",
            str(outcome["steps"]),
            clock_time(outcome["seconds"]),
            _code(outcome["answer"], 120) if outcome["answer"] else "",
        )
    return [*lines, ""]


def _describe_samples(run: Path, recipe: Recipe, statements: Mapping[str, str]) -> list[str]:
    """Show the first answer to every n-th test problem: a rule, so that nothing is picked for its looks."""
    first: dict[str, dict[str, dict[str, Any]]] = {}
    for name in recipe.conditions:
        for row in read_jsonl(run / "conditions" / name / "eval/attempts.jsonl"):
            if row["index"] == 0:
                first.setdefault(row["problem_id"], {})[name] = row
    if not first:
        return []
    lines = ["## Sampled answers", "", "The first answer to test problems picked at even distances:", ""]
    for problem_id in list(first)[:: max(1, len(first) // _N_SAMPLES)][:_N_SAMPLES]:
        lines.append(f"- {_code(statements.get(problem_id, problem_id), 160)}")
        for condition, row in first[problem_id].items():
            answer = row["text"] if row["answer"] is None else row["answer"]
            grade = "**right**" if row["reason"] == "CORRECT" else plain(row["reason"]).lower().replace("_", " ")
            lines.append(f"  - {condition}: {_code(answer, 160)} {grade}")
    return [*lines, ""]


def _statements(recipe: Recipe) -> dict[str, str]:
    """Return the test problems' statements by id; ids are hashes of the problems, so they cannot be mistaken."""
    try:
        problems = load_problems(recipe.task.test, "test")
    except UserError:  # the set was moved since: the report shows ids then
        return {}
    return {
        problem.id: f"{problem.data['integrand']}"
        + (f" from {problem.data['lower']} to {problem.data['upper']}" if problem.data["lower"] is not None else "")
        for problem in problems
    }


def _command(run: Path, recipe: Recipe) -> str:
    """Return the shortest command that runs the same settings."""
    for profile, smoke in product((None, *recipe.profiles), (False, True)):
        try:
            same = load_recipe(recipe.name, [f"seed={recipe.seed}"], smoke, profile) == recipe
        except UserError:  # not one of the shipped recipes
            break
        if same:
            options = f"{f' --profile {profile}' if profile else ''}{' --smoke' if smoke else ''}"
            return f"python -m ladder_lite.recipe {recipe.name} seed={recipe.seed}{options}"
    return f"python -m ladder_lite.recipe {shlex.quote(str(run / 'recipe.resolved.yaml'))} --run-dir NEW_FOLDER"


def _row(*cells: str) -> list[str]:
    escaped = "\\|"
    return [f"| {' | '.join(cell.replace('|', escaped) for cell in cells)} |"]


def _code(text: str, width: int = 80) -> str:
    """Return foreign text as Markdown code that nothing in it can end."""
    line = plain(text, width)
    fence = "`"
    while fence in line:
        fence += "`"
    pad = " " if fence != "`" or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _pass_keys(entry: Mapping[str, Any]) -> list[str]:
    return sorted((key for key in entry if key.startswith("pass@")), key=lambda key: int(key.removeprefix("pass@")))


def _interval(result: Mapping[str, float]) -> str:
    low, high = (percent(result[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{percent(result['value'])} ({low}-{high})"


def _scale_model(model: str) -> str:
    return ": a scale model of the experiment" if model == EMBEDDED else ""


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of the run, an empty one where there is no such file yet."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); redo the stage of this file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (not a JSON object); redo the stage of this file")
    return value


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/tiny-s0.")]) -> None:
    """Write report.json, report.md and accuracy.png of a run, finished or not, and print its table."""
    console = Console(highlight=False)
    console.print(summary_table(write_report(run)))
    console.print(f"report: {run / 'report.md'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    errors.run(app)
