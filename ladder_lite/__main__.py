"""`ladder-lite COMMAND`, which is also `python -m ladder_lite COMMAND`: the commands of all rooms under one name.

`ladder-lite --install-completion` makes the shell complete commands and options.
"""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ladder_lite import __version__
from ladder_lite.errors import run

COMMANDS = ("recipe", "solve", "verify", "problems", "variants", "evaluate", "report", "export", "doctor", "tasks")


class _Rooms(TyperGroup):
    """Imports a room when its command is used, so that one command does not pay for the imports of the others."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(f"ladder_lite.{cmd_name}.__main__").app)
        command.name = cmd_name
        return command


app = typer.Typer(cls=_Rooms, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """LADDER and test-time reinforcement learning on one GPU, or none. Start with `ladder-lite recipe tiny`."""
    if version:
        typer.echo(f"ladder_lite {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; the console script `ladder-lite` calls it."""
    run(app)


if __name__ == "__main__":
    main()
