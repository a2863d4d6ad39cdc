"""`python -m ladder_lite.recipe`. See `ladder_lite.recipe`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config import list_recipes, load_recipe, with_more
from ladder_lite.errors import UserError, run
from ladder_lite.recipe import dry_run, run_recipe, stages
from ladder_lite.runs import is_run, layout
from ladder_lite.terminal import Live

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    name: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A shipped recipe or a path of a YAML file.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings to change.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/RECIPE-sSEED.")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="CONDITION", help="Run one condition, with what it needs.")
    ] = None,
    redo: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Rerun a stage and those that depend on it.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="A named set of changes that the recipe holds.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Stop in time with all saved, exit code 0: 9h, 1h30m, 90m, 5400s."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All conditions, those of the paper's figures included.")
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few steps of everything, in about a minute.")] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="List the recipes; with --run-dir, the stages of a run.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Only say what memory, steps and tokens it would take.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON, for programs.")] = False,
) -> None:
    """Run a recipe: its conditions one after the other, then the report. Run it again to go on where it was."""
    deadline = Deadline.after(budget)
    if json_ and not dry:
        raise UserError("--json says how --dry-run prints; give both, or read report.json of the run folder")
    if list_ and run_dir is not None and not is_run(run_dir):
        raise UserError(f"{run_dir}: not a run folder; name one, such as runs/tiny-s0")
    if list_:
        lines = _stage_lines(run_dir) if run_dir else [f"{name:<10} {text}" for name, text in list_recipes()]
        typer.echo("\n".join(lines))
        return
    if name is None:
        raise UserError(f"name a recipe, one of {', '.join(name for name, _ in list_recipes())}, or a YAML file")
    recipe = load_recipe(name, overrides or (), smoke, profile)
    if full:
        recipe = with_more(recipe, recipe.full)
    if only is not None:
        recipe = with_more(recipe, [only])
    if only is not None and redo:
        raise UserError("--only and --redo do not go together: what is redone must be run up to its end")
    suffix = f"{f'-{profile}' if profile else ''}-s{recipe.seed}{'-smoke' if smoke else ''}"
    path = run_dir or Path("runs") / f"{recipe.name}{suffix}"
    if json_:
        typer.echo(json.dumps(dry_run.outlook(recipe, path), indent=2))
        return
    with Live() as live:
        if dry:
            live.print(dry_run.render(dry_run.outlook(recipe, path)))
            return
        try:
            result = run_recipe(recipe, path, live, only, redo or (), deadline)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; run the same command again to go on where it was") from None
        except OutOfTime as stop:
            live.say(f"report of what is there: {path / layout.REPORT_PAGE}")
            live.say(str(stop))
            return
        from ladder_lite.report import summary_table

        live.print(summary_table(result))
        live.say(f"report: {path / layout.REPORT_PAGE}")


def _stage_lines(path: Path) -> list[str]:
    recipe = load_recipe(str(path / layout.RECIPE))
    states = []
    for name in stages.stages_of(recipe, recipe.conditions):
        folder = path / name
        state = "done" if (folder / layout.DONE).exists() else "begun" if (folder / layout.BEGUN).exists() else "to do"
        states.append(f"{name:<36} {state}")
    return states


if __name__ == "__main__":
    run(app)
