"""`python -m ladder_lite.doctor`: print the page, or its JSON. See `ladder_lite.doctor`."""

import json
from typing import Annotated

import typer

from ladder_lite.doctor import examine
from ladder_lite.doctor.page import from_home, render
from ladder_lite.errors import run

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the Hugging Face hub whether it can be reached.")
    ] = False,
) -> None:
    """Print what a bug report needs to say about this machine, and check that runs can work here."""
    found = examine(online)
    print(from_home(json.dumps(found, indent=1)) if as_json else render(found))
    if not all(check["ok"] for check in found["checks"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    run(app)
