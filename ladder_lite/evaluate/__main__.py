"""`python -m ladder_lite.evaluate`. See `ladder_lite.evaluate`."""

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ladder_lite.errors import UserError
from ladder_lite.errors import run as run_app
from ladder_lite.evaluate.of_run import Request, Split, evaluate_run
from ladder_lite.terminal import Live, one_line, percent, percent_interval, plain_table

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/tiny-s0.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings to change.")] = None,
    *,
    problems: Annotated[str, typer.Option(metavar="SET", help="A problem set: its name, or a file of JSON lines.")],
    condition: Annotated[str | None, typer.Option(help="Only this adapter and the base model (default: all).")] = None,
    split: Annotated[Split, typer.Option(help="The split of the problem set.")] = "test",
    samples: Annotated[int | None, typer.Option(min=1, help="Answers to each problem (default: the recipe's).")] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="The k of pass@k (default: the recipe's).")] = None,
    greedy_only: Annotated[bool, typer.Option("--greedy-only", help="One greedy answer to each problem.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Sampling seed (default: the recipe's).")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for answers; reused on a rerun.")] = None,
) -> None:
    """Evaluate the base model and the adapters of a run on any problems."""
    if greedy_only and (samples or k):
        raise UserError("--greedy-only takes one answer to each problem; leave out --samples and --k")
    request = Request(problems, split, condition, samples, k, greedy_only, seed, out, tuple(overrides or ()))
    # With --json, progress and whatever libraries print go to stderr.
    console = Console(highlight=False, stderr=True) if json_ else None
    with redirect_stdout(sys.stderr) if json_ else nullcontext(), Live(console) as live:
        result = evaluate_run(run, request, live)
    if json_:
        print(json.dumps(result))
    else:
        Console(highlight=False).print(summary_table(result))


def summary_table(result: Mapping[str, Any]) -> Table:
    """The result of `evaluate_run` as a table for a terminal of 80 columns."""
    summaries = result["conditions"]
    base = summaries["base"]
    pass_k = [key for key in base if key.startswith("pass@") and key != "pass@1"]
    # With one answer to each problem, pass@k, greedy and majority would all repeat pass@1.
    others = [*pass_k, "greedy", "majority"] if result["samples"] > 1 else []
    table = plain_table("condition")
    table.title = f"{base['n_problems']} problems of {one_line(result['problems'], 40)}, seed {result['seed']}"
    table.caption = f"answers to each problem: {result['samples']}; 95 % intervals in parentheses; over base: points"
    for heading in ("pass@1", *others, "over base"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="crop")
    for name, summary in summaries.items():
        table.add_row(
            one_line(name, 22),
            percent_interval(summary["pass@1"]),
            *(percent(summary[key]["value"]) for key in others),
            _signed(summary["over_base"]) if "over_base" in summary else "",
        )
    return table


def _signed(difference: Mapping[str, float]) -> str:
    """A difference in percentage points, with its interval: "+81 (73 to 88)"."""
    return "{value:+.0f} ({low:.0f} to {high:.0f})".format(**{key: 100 * difference[key] for key in difference})


if __name__ == "__main__":
    run_app(app)
