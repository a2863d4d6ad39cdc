"""`python -m ladder_lite.problems`: clean lists of integrals, fetch published ones. See `ladder_lite.problems`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ladder_lite.errors import UserError, nearest, run

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Clean lists of integrals, fetch published ones.")


@app.command("clean")
def clean_list(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, JSON, CSV, or one integral per line.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the problems here, not to stdout.")] = None,
    rejected: Annotated[Path | None, typer.Option(metavar="FILE", help="Write rejected entries and reasons.")] = None,
    up_to_factor: Annotated[bool, typer.Option("--up-to-factor", help="Treat multiples as duplicates.")] = False,
) -> None:
    """Turn a list into a problem set: valid integrals, each once. The last line of stdout is a JSON summary."""
    from ladder_lite.tasks.integration.lists import clean

    problems, summary = clean(file, out, rejected, up_to_factor)
    # Rows and summary are both JSON lines: `| head -n -1` gives the rows, `| tail -n 1` the summary.
    rows = problems if out is None else []
    print("\n".join(json.dumps(row) for row in [*rows, summary]))


@app.command("fetch")
def fetch_set(name: Annotated[str, typer.Argument(metavar="NAME", help="ladder-paper or mit_train.")]) -> None:
    """Download a problem set that the paper's authors published into the cache folder."""
    from ladder_lite.tasks.integration.paper_sets import NAMES, fetch

    if name not in NAMES:
        hint = nearest(name, NAMES) or f"; one of {', '.join(NAMES)}"
        raise UserError(f'no problem set "{name}" to fetch{hint}')
    path, counts = fetch(name)
    print(path)
    for split, count in counts.items():
        left_out = ", ".join(f"{n} {reason}" for reason, n in count["rejected"].items()) or "none rejected"
        # "train: 10 problems, 0 exact repeats left out, 2 unreadable"
        print(f"{split}: {count['kept']} problems, {count['repeats']} exact repeats left out, {left_out}")


if __name__ == "__main__":
    run(app)
