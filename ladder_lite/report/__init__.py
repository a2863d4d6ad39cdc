"""What runs found: report.html, report.md, report.json and their pictures, from the files of the runs alone.

    python -m ladder_lite.report runs/tiny-s0                  # written into the run's folder
    python -m ladder_lite.report runs/tiny-s0 runs/tiny-s1     # compared, in comparison/

A run that is not finished gives a report of what is there. What the paper found stands beside our figures and never
among them (`ladder_lite.report.paper_results`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ladder_lite.config.schema import EMBEDDED
from ladder_lite.errors import UserError
from ladder_lite.jsonl import write_json
from ladder_lite.report.findings import measure, open_run, pass_keys
from ladder_lite.report.paper_results import PAPER
from ladder_lite.terminal import clock_time, percent, plain

_NAME_WIDTH = 20


def write_report(run_path: Path) -> dict[str, Any]:
    """Write report.html, report.md, report.json and their pictures into a run folder; return what report.json holds.

    Pictures are left out while there is nothing to show in them. Raises UserError where the folder is not a run or one
    of its files is damaged.
    """
    from ladder_lite.report.chapters import describe
    from ladder_lite.report.drawing.pictures import draw_accuracy, draw_race
    from ladder_lite.report.html import to_html
    from ladder_lite.report.markdown import to_markdown

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
        table.add_row(
            plain(name, _NAME_WIDTH),
            _interval(entry["pass@1"]),
            *([percent(entry[pass_k]["value"]) if pass_k in entry else ""] if pass_k else []),
            str(entry["n_problems"]),
            str(entry["steps"]),
            clock_time(entry["seconds"]),
            paper.results[name].words if name in paper.results else "",
        )
    return table


def write_comparison(run_paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Write comparison.html, .md and .json of several runs into a folder; return what comparison.json holds."""
    from ladder_lite.report.comparison import compare, describe
    from ladder_lite.report.html import to_html
    from ladder_lite.report.markdown import to_markdown

    comparison = compare(run_paths)
    document = describe(comparison)
    write_json(folder / "comparison.json", comparison)
    (folder / "comparison.md").write_text(to_markdown(document), encoding="utf-8")
    (folder / "comparison.html").write_text(to_html(document), encoding="utf-8")
    return comparison


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """Return condition by run with intervals, and the means over seeds, for a terminal; ASCII only."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    runs, means = comparison["runs"], comparison["means"]
    table.add_column("pass@1 (95 %)", no_wrap=True, overflow="crop")
    for heading in [*(plain(run["name"], _NAME_WIDTH) for run in runs), *(f"mean of {len(m['runs'])}" for m in means)]:
        table.add_column(heading, justify="right", overflow="fold")
    for name in dict.fromkeys(name for run in runs for name in run["conditions"]):
        shares = [run["conditions"].get(name, {}).get("pass@1") for run in runs]
        shares += [mean["conditions"].get(name) for mean in means]
        table.add_row(plain(name, _NAME_WIDTH), *(_interval(share) if share else "" for share in shares))
    return table


def _interval(share: Mapping[str, float]) -> str:
    low, high = (percent(share[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{percent(share['value'])} ({low}-{high})"


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, such as runs/tiny-s0.")],
    out: Annotated[Path | None, typer.Option(help="Where a comparison goes.  [default: comparison]")] = None,
) -> None:
    """Write report.html, report.md and report.json of a run, finished or not, or compare several runs."""
    console = Console(highlight=False)
    if len(runs) > 1:
        folder = out or Path("comparison")
        console.print(comparison_table(write_comparison(runs, folder)))
        console.print(f"comparison: {folder / 'comparison.html'}", markup=False, soft_wrap=True)
        return
    if out is not None:
        raise UserError(f"--out {out}: is for comparing several runs; the report of one goes into its folder")
    console.print(summary_table(write_report(runs[0])))
    console.print(f"report: {runs[0] / 'report.html'}", markup=False, soft_wrap=True)
