"""What runs found: report.html, report.md, report.json and their pictures, from the files of the runs alone.

    python -m ladder_lite.report runs/tiny-s0                  # written into the run's folder
    python -m ladder_lite.report runs/tiny-s0 runs/tiny-s1     # compared, in comparison/

A run that is not finished gives a report of what is there. What the paper found stands beside our figures and never
among them (`ladder_lite.reporting.paper_results`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ladder_lite import errors
from ladder_lite.live import clock_time, percent, plain
from ladder_lite.reporting.findings import measure, open_run, pass_keys
from ladder_lite.reporting.paper_results import PAPER
from ladder_lite.run_dir import write_json
from ladder_lite.settings import EMBEDDED

_NAME_WIDTH = 20


def write_report(run_path: Path) -> dict[str, Any]:
    """Write report.html, report.md, report.json and their pictures into a run folder; return what report.json holds.

    Pictures are left out while there is nothing to show in them. Raises UserError where the folder is not a run or one
    of its files is damaged.
    """
    from ladder_lite.reporting.chapters import describe
    from ladder_lite.reporting.figures import draw_accuracy, draw_race
    from ladder_lite.reporting.html import to_html
    from ladder_lite.reporting.markdown import to_markdown

    run = open_run(run_path)
    report = measure(run)
    document = describe(report, run)
    write_json(run_path / "report.json", report)
    for name, shown, draw in (
        ("accuracy.png", report["curve"], draw_accuracy),
        ("ttrl.png", report["race"], draw_race),
    ):
        if shown:
            draw(report, run_path / name)
        else:
            (run_path / name).unlink(missing_ok=True)
    (run_path / "report.md").write_text(to_markdown(document), encoding="utf-8")
    (run_path / "report.html").write_text(to_html(document), encoding="utf-8")
    return report


def summary_table(report: Mapping[str, Any]) -> Table:
    """Return the conditions of a report beside the paper's numbers, for a terminal of 80 columns; ASCII only."""
    paper = PAPER[report["experiment"]]
    scale_model = ": a scale model of the experiment" if report["model"] == EMBEDDED else ""
    table = Table(
        title=f"{plain(report['recipe'], 30)}, seed {report['seed']}{scale_model}",
        caption=paper.caption,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        min_width=64,  # of the caption
        title_style="bold",
    )
    entries = report["conditions"]
    pass_k = next((key for entry in entries.values() for key in pass_keys(entry)[1:]), None)
    table.add_column("condition", no_wrap=True, overflow="crop")  # rich's ellipsis is not ASCII
    for heading in ("pass@1 (95 %)", *([pass_k] if pass_k else []), "tests", "steps", "time", "paper"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="crop")
    for name, entry in entries.items():
        low, high = (percent(entry["pass@1"][end]).removesuffix(" %") for end in ("low", "high"))
        table.add_row(
            plain(name, _NAME_WIDTH),
            f"{percent(entry['pass@1']['value'])} ({low}-{high})",
            *([percent(entry[pass_k]["value"]) if pass_k in entry else ""] if pass_k else []),
            str(entry["n_problems"]),
            str(entry["steps"]),
            clock_time(entry["seconds"]),
            paper.results[name].words if name in paper.results else "",
        )
    return table


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/tiny-s0.")]) -> None:
    """Write report.html, report.md and report.json of a run, finished or not, and print its table."""
    console = Console(highlight=False)
    console.print(summary_table(write_report(run)))
    console.print(f"report: {run / 'report.html'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    errors.run(app)
