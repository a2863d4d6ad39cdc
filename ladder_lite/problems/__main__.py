"""`python -m ladder_lite.problems`: clean lists of problems, fetch published ones. See `ladder_lite.problems`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ladder_lite.errors import UserError, nearest, run

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Clean lists of problems, fetch published ones.")


@app.command("clean")
def clean_list(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, JSON, CSV, or an integral a line.")],
    out: Annotated[Path | None, typer.Option(help="JSON lines of the problems; else they go to stdout.")] = None,
    rejected: Annotated[Path | None, typer.Option(help="JSON lines of the others, with reasons.")] = None,
    up_to_factor: Annotated[bool, typer.Option("--up-to-factor", help="Multiples are duplicates too.")] = False,
) -> None:
    """Keep what is an integral, each once; the last line of stdout is a summary as JSON."""
    from ladder_lite.problems.clean import clean

    problems, summary = clean(file, out, rejected, up_to_factor)
    rows = problems if out is None else []
    print("\n".join(json.dumps(row) for row in [*rows, summary]))


@app.command("fetch")
def fetch_set(name: Annotated[str, typer.Argument(metavar="NAME", help="ladder-paper or mit_train.")]) -> None:
    """Download a problem set of the paper's authors into the cache folder."""
    from ladder_lite.problems.paper_sets import NAMES, fetch

    if name not in NAMES:
        hint = nearest(name, NAMES) or f"; one of {', '.join(NAMES)}"
        raise UserError(f'no problem set "{name}" to fetch{hint}')
    path, counts = fetch(name)
    print(path)
    for split, count in counts.items():
        left_out = ", ".join(f"{n} {reason}" for reason, n in count["rejected"].items()) or "none refused"
        print(f"{split}: {count['kept']} problems, {count['repeats']} exact repeats left out, {left_out}")


if __name__ == "__main__":
    run(app)
