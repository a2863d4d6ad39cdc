"""Reports of runs: report.html, report.md, report.json and their pictures, from the files of the runs alone.

    python -m ladder_lite.report runs/tiny-s0                  # written into the run's folder
    python -m ladder_lite.report runs/tiny-s0 --watch          # and kept current while the run trains
    python -m ladder_lite.report runs/tiny-s0 runs/tiny-s1     # a comparison, written into comparison/

The report of an unfinished run shows what is available. The paper's results are always kept apart from those of the
runs (`ladder_lite.report.paper_results`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder_lite.config import EMBEDDED, model_name
from ladder_lite.jsonl import write_atomic, write_json
from ladder_lite.report.findings import headline, measure
from ladder_lite.report.paper_results import PAPER
from ladder_lite.runs import open_run
from ladder_lite.terminal import clock_time, one_line, percent, percent_interval, plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from ladder_lite.report.document import Document

__all__ = ["comparison_table", "headline", "summary_table", "write_comparison", "write_report"]

_PICTURES = ("accuracy.png", "ttrl.png", "techniques.png")
_NAME_WIDTH = 20  # columns for a condition or a run; "rl_without_variants" has 19


def write_report(run_path: Path, reload_s: int | None = None) -> dict[str, Any]:
    """Write report.html, report.md, report.json and their pictures into a run folder; return the JSON contents.

    With `reload_s`, the page reloads itself after that many seconds. A picture without data is not written. Raises
    UserError if the folder is not a run folder or one of its files is damaged.
    """
    # Not at the top: it loads matplotlib and jinja2, and commands import this room for the terminal tables alone.
    from ladder_lite.report.chapters import describe

    run = open_run(run_path)
    report = measure(run)
    document = describe(report, run)
    _write(run_path, "report", report, document, reload_s)
    for name in _PICTURES:
        (run_path / name).unlink(missing_ok=True)  # of an earlier report, before the stage was redone
    for name, content in document.pictures.items():
        (run_path / name).write_bytes(content)
    return report


def write_comparison(run_paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Write comparison.html, .md and .json of several runs into a folder; return the JSON contents."""
    from ladder_lite.report.comparison import compare, describe

    comparison = compare(run_paths)
    _write(folder, "comparison", comparison, describe(comparison))
    return comparison


def _write(
    folder: Path, name: str, contents: Mapping[str, Any], document: Document, reload_s: int | None = None
) -> None:
    from ladder_lite.report.render import to_html, to_markdown

    write_json(folder / f"{name}.json", contents)
    write_atomic(folder / f"{name}.md", to_markdown(document))
    write_atomic(folder / f"{name}.html", to_html(document, reload_s))  # a browser must not load half of it


def summary_table(report: Mapping[str, Any]) -> Table:
    """Return a table of the conditions beside the paper's results, for a terminal of 80 columns; ASCII only."""
    paper, entries = PAPER[report["experiment"]], report["conditions"]
    # One column besides pass@1, such as ["pass@10"]: a run has one k. Empty if k is 1.
    pass_k = [key for entry in entries.values() for key in entry if key.startswith("pass@") and key != "pass@1"][:1]
    table = plain_table("condition")
    about = "a scale model of the experiment" if report["model"] == EMBEDDED else model_name(report["model"])
    table.title = f"{one_line(report['recipe'], 30)}, seed {report['seed']}: {one_line(about, 36)}"
    table.caption = paper.caption
    table.min_width = 64  # of the caption
    for heading in ("pass@1 (95 %)", *pass_k, "tests", "steps", "time", *(["paper"] if paper.results else [])):
        table.add_column(heading, justify="right", no_wrap=True, overflow="crop")
    for name, entry in entries.items():
        table.add_row(
            one_line(name, _NAME_WIDTH),
            percent_interval(entry["pass@1"]),
            *(percent(entry[key]["value"]) if key in entry else "" for key in pass_k),
            str(entry["n_problems"]),
            str(entry["steps"]),
            clock_time(entry["seconds"]),
            *([paper.results[name].words if name in paper.results else ""] if paper.results else []),
        )
    for name, method in report["race"].get("methods", {}).items():
        if name not in entries:  # LADDER resampled only tries single problems
            table.add_row(name, f"solved {method['solved']} of {len(report['race']['problems'])}")
    return table


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """Return a table of pass@1 with intervals by condition and run, with means over seeds; ASCII only."""
    table = plain_table("pass@1 (95 %)")
    runs, means = comparison["runs"], comparison["means"]
    headings = [one_line(run["name"], _NAME_WIDTH) for run in runs]
    for heading in [*headings, *(f"mean of {len(mean['runs'])}" for mean in means)]:
        table.add_column(heading, justify="right", overflow="fold")
    # The conditions of all runs, each once, in the order in which they first appear.
    for name in dict.fromkeys(name for run in runs for name in run["conditions"]):
        shares = [run["conditions"].get(name, {}).get("pass@1") for run in runs]
        shares += [mean["conditions"].get(name) for mean in means]
        table.add_row(one_line(name, _NAME_WIDTH), *(percent_interval(share) if share else "" for share in shares))
    return table
