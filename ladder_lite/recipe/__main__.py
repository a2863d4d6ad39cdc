"""`python -m ladder_lite.recipe`. See `ladder_lite.recipe`."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config import Recipe, dump_recipe, list_recipes, load_recipe, with_more
from ladder_lite.errors import UserError, run
from ladder_lite.recipe import dry_run, run_recipes, stages
from ladder_lite.recipe.workers import Workers
from ladder_lite.runs import layout, open_run
from ladder_lite.terminal import Live, show

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    name: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or path of a YAML file.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings to change.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder; with --seeds, its parent (default: runs/).")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="CONDITION", help="Run one condition and the stages it depends on.")
    ] = None,
    redo: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Rerun a stage and the stages that depend on it.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Apply one of the recipe's profiles, a named set of changes.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Stop before the time is up and save everything: 9h, 1h30m, 90m, 5400s."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N", help="Run independent stages in N processes of Ray; auto: one per GPU, or per core."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="With --workers: HOST:PORT of a running Ray cluster, or auto.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Run the recipe with each of these seeds and compare the runs."),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also run the conditions that the recipe lists under `full`: ablations, controls."),
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Run a few steps of each stage (tiny: a minute).")] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="List the recipes; with --run-dir, the stages of that run.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Predict memory, steps and tokens, for one GPU, without a run.")
    ] = False,
    print_: Annotated[bool, typer.Option("--print", help="Print the recipe with all settings resolved.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Run the conditions of a recipe, then write the report. The same command resumes an interrupted run."""
    deadline = Deadline.after(budget)
    if json_ and not dry:
        raise UserError("--json needs --dry-run; the results of a run are in report.json of its folder")
    if list_:
        typer.echo("\n".join(_listing(name, run_dir)))
        return
    if name is None:
        raise UserError(f"name a recipe, one of {', '.join(name for name, _ in list_recipes())}, or a YAML file")
    if only is not None and redo:
        raise UserError("--only and --redo exclude each other: stages that depend on a redone one must run again too")
    settings = overrides or []
    if seeds and (dry or print_ or any(each.startswith("seed=") for each in settings)):
        raise UserError("--seeds: leave it out with seed=, and with --dry-run and --print, which are for one run")
    changes = [[*settings, f"seed={seed}"] for seed in seeds.split(",")] if seeds else [settings]
    loaded = {each.seed: each for each in (load_recipe(name, each, smoke, profile) for each in changes)}
    recipes = [with_more(each, [*(each.full if full else ()), *([only] if only else ())]) for each in loaded.values()]
    recipe = recipes[0]
    if print_:
        typer.echo(dump_recipe(recipe), nl=False)
        return
    parent = run_dir if run_dir and seeds else Path("runs")
    folder = f"{recipe.name}{f'-{profile}' if profile else ''}-{{}}{'-smoke' if smoke else ''}"
    paths = [parent / folder.format(f"s{each.seed}") for each in recipes] if seeds or not run_dir else [run_dir]
    if dry:
        # With --only, the condition and those that it needs are predicted.
        predicted = recipe.model_copy(update={"conditions": (only,)}) if only else recipe
        _dry_run(predicted, paths[0], json_, recipe.profiles.get(profile or "", {}))
        return
    with Live() as live:
        runs = dict(zip(paths, recipes, strict=True))
        results = _run(runs, live, only, redo or (), deadline, Workers.parse(workers, ray))
        if seeds:
            _show_comparison(live, paths, parent / folder.format("comparison"))
            return
        again = _again(name, settings, profile, None if smoke else recipe.seed + 1)
        _show_result(live, results[0], paths[0], again, smoke)


def _again(name: str, settings: Sequence[str], profile: str | None, seed: int | None) -> str:
    """The command with the same settings: the whole run after a smoke test, or the next seed."""
    kept = settings if seed is None else [*(each for each in settings if not each.startswith("seed=")), f"seed={seed}"]
    command = ["python", "-m", "ladder_lite.recipe", name, *kept, *(["--profile", profile] if profile else [])]
    return shlex.join(command)


def _dry_run(recipe: Recipe, path: Path, json_: bool, changes: Mapping[str, Any]) -> None:
    """Print what --dry-run predicts; `changes` are those of the profile."""
    prediction = dry_run.predict(recipe, path)
    if json_:
        typer.echo(json.dumps(prediction, indent=2))
        return
    with Live() as live:
        live.print(dry_run.render(prediction, changes))


def _run(runs: Mapping[Path, Recipe], live: Live, *options: Any) -> list[dict[str, Any]]:
    """Run the recipes and return their reports. At the end of the budget, say so and exit with code 0."""
    try:
        return run_recipes(runs, live, *options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command resumes this run") from None
    except OutOfTime as stop:
        live.say(f"report so far: {', '.join(str(path / layout.REPORT_PAGE) for path in runs)}")
        live.say(str(stop))
        raise typer.Exit from None


def _show_comparison(live: Live, paths: Sequence[Path], folder: Path) -> None:
    """Write the comparison of several runs into a folder and print its table."""
    from ladder_lite.report import comparison_table, write_comparison

    live.print(comparison_table(write_comparison(paths, folder)))
    live.say(f"comparison: {show(str(folder / 'comparison.html'), 200)}")


def _show_result(live: Live, report: Mapping[str, Any], path: Path, again: str, smoke: bool) -> None:
    """Print the result of a run, and the commands that may follow it."""
    from ladder_lite.report import headline, summary_table

    live.print(summary_table(report))
    live.print(Text(re.sub(r"[`\\]", "", headline(report))))  # without Markdown's syntax
    live.say(f"report: {show(str(path / layout.REPORT_PAGE), 200)}")
    commands = [again]
    if "ladder" in report["conditions"] and not smoke:
        commands.insert(0, f"python -m ladder_lite.solve PROBLEM --model {shlex.quote(str(path))}")
    for label, command in zip(("next:", "     "), commands, strict=False):
        live.say(f"{label} {show(command, 200)}")


def _listing(name: str | None, run_dir: Path | None) -> list[str]:
    """The lines of --list: the recipes, or the stages of a run."""
    if name is not None:
        raise UserError(f"--list: lists all recipes; leave out {name}, or use --print to see it")
    if run_dir is None:
        return [f"{recipe:<10} {text}" for recipe, text in list_recipes()]
    recipe, states = open_run(run_dir).recipe, []
    for stage in stages.stages_of(recipe, recipe.conditions):
        folder = run_dir / stage
        state = "done" if (folder / layout.DONE).exists() else "begun" if (folder / layout.BEGUN).exists() else "to do"
        states.append(f"{stage:<36} {state}")
    return states


if __name__ == "__main__":
    run(app)
