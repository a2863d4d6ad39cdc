"""`python -m ladder_lite.report`: write the report of a run, or compare several. See `ladder_lite.report`."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ladder_lite.errors import UserError, run
from ladder_lite.report import comparison_table, summary_table, write_comparison, write_report
from ladder_lite.runs import layout

WATCH_S = 60
"""Seconds between two reports of `--watch`: each takes a few seconds of processor time."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, such as runs/tiny-s0.")],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for a comparison.  [default: comparison]")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Rewrite the report every minute; the page reloads itself. Ctrl-C ends it.")
    ] = False,
) -> None:
    """Write report.html, report.md and report.json for a run, finished or not, or compare several runs."""
    console = Console(highlight=False)
    if len(runs) > 1:
        if watch:
            raise UserError("--watch: takes one run; leave it out to compare several")
        folder = out or Path("comparison")
        console.print(comparison_table(write_comparison(runs, folder)))
        # A path can contain square brackets, and must stay on one line to be copied.
        console.print(f"comparison: {folder / 'comparison.html'}", markup=False, soft_wrap=True)
        return
    if out is not None:
        raise UserError(f"--out {out}: needs two or more runs; leave it out, the report goes into the run folder")
    console.print(summary_table(write_report(runs[0], WATCH_S if watch else None)))
    console.print(f"report: {runs[0] / layout.REPORT_PAGE}", markup=False, soft_wrap=True)
    if watch:
        console.print(f"rewritten every {WATCH_S} s until Ctrl-C")
    try:
        while watch:
            time.sleep(WATCH_S)
            write_report(runs[0], WATCH_S)
    except KeyboardInterrupt:
        pass
    finally:
        if watch:
            write_report(runs[0])  # a page that no longer reloads


if __name__ == "__main__":
    run(app)
