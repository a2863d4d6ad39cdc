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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Test whether the Hugging Face hub can be reached.")] = False,
) -> None:
    """Print what a bug report needs to know about this machine, and check whether runs can work on it."""
    page = examine(online)
    print(from_home(json.dumps(page, indent=1)) if as_json else render(page))
    if not all(check["ok"] for check in page["checks"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    run(app)
