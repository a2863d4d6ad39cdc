"""`python -m ladder_lite.tasks`. See `ladder_lite.tasks`."""

from typing import Annotated

import typer

from ladder_lite.errors import run
from ladder_lite.tasks import known_tasks

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="List the known tasks, check a task of your own.")


@app.command("list")
def list_tasks() -> None:
    """Print the tasks that can be named without a module: integration and those of installed packages."""
    typer.echo("\n".join(known_tasks()))
    typer.echo("or reasoning_gym:NAME, MODULE:CLASS, FILE.py:CLASS")


@app.command("check")
def check_task(
    name: Annotated[str, typer.Argument(metavar="TASK", help="As task.name of a recipe: my_task.py:MyTask.")],
    problems: Annotated[
        str | None, typer.Option(metavar="SET", help="Problems with answers to use in place of the task's examples.")
    ] = None,
) -> None:
    """Test that a task does what training relies on. Exit codes: 0 it does, 1 it does not, 2 invalid input."""
    from ladder_lite.tasks.check import check

    failed = False
    for title, fault in check(name, problems):
        failed |= fault is not None
        typer.echo(f"ok      {title}" if fault is None else f"FAILED  {title}: {fault}")
    raise typer.Exit(int(failed))


if __name__ == "__main__":
    run(app)
