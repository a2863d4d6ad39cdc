"""Command line of `python -m ladder_lite.verify`, which grades answers. See `ladder_lite.verify`."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ladder_lite.errors import UserError, run
from ladder_lite.verify import Protocol, verify
from ladder_lite.verify.lines import MALFORMED, grade_lines


def _read_lines(source: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines, counted from 1, of a file or of stdin ("-"); raises UserError if the file is missing."""
    if source == "-":
        # Bytes that are not UTF-8 become U+FFFD, so that one bad line is refused and the others are still graded.
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from enumerate(sys.stdin, start=1)
        return
    try:
        with Path(source).open(encoding="utf-8", errors="replace") as file:
            yield from enumerate(file, start=1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(
            f"{source}: {error.strerror}; give a JSON lines file, - for stdin, or an integrand and an answer"
        ) from None


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(context_settings={"ignore_unknown_options": True})  # an answer may begin with a minus
def main(
    source: Annotated[str, typer.Argument(metavar="FILE|-|INTEGRAND", help="JSON lines, or an integrand.")],
    answer: Annotated[str | None, typer.Argument(help="The answer to that integrand.")] = None,
    protocol: Annotated[Protocol, typer.Option(help="The rule: this package's or the paper's.")] = "strict",
    workers: Annotated[int, typer.Option(min=1, help="Number of processes that grade a file.")] = 1,
    variable: Annotated[str | None, typer.Option(help="Variable of INTEGRAND.  [default: x]")] = None,
    lower: Annotated[str | None, typer.Option(help="Lower bound, if INTEGRAND has one.")] = None,
    upper: Annotated[str | None, typer.Option(help="Upper bound, if INTEGRAND has one.")] = None,
) -> None:
    """Grade answers: FILE of JSON lines (- for stdin), or one INTEGRAND and its ANSWER.

    Exit codes: 0 if a file was graded or the one answer is right, 1 if it is not right or cannot be graded, 2 for wrong
    usage and for a file of malformed lines.
    """
    if answer is not None:
        grade = verify(source, answer, variable=variable or "x", lower=lower, upper=upper, protocol=protocol)
        print(grade.reason.value + (f": {grade.detail}" if grade.detail else ""))
        raise typer.Exit(0 if grade.reward == 1 else 1)
    if (variable, lower, upper) != (None, None, None):
        raise typer.BadParameter("--variable, --lower and --upper are for an INTEGRAND; lines have their own")
    reasons: Counter[str] = Counter()
    # On stdin another program may be waiting for each grade, so no row is held back in a buffer.
    for row in grade_lines(_read_lines(source), protocol, workers):
        print(json.dumps(row), flush=source == "-")
        reasons[row["reason"]] += 1
    counts = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    print(f"graded {reasons.total():,}{counts and f': {counts}'}", file=sys.stderr)
    if set(reasons) == {MALFORMED}:
        raise UserError("no line has an integrand and an answer")


if __name__ == "__main__":
    run(app)
