"""Command line of `python -m ladder_lite.verify`, which grades answers. See `ladder_lite.verify`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ladder_lite.verify import Protocol, verify
from ladder_lite.verify.lines import grade_lines

if TYPE_CHECKING:
    import typer


def _read_lines(source: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines, counted from 1, of a file or of stdin ("-"); raises UserError if the file is missing."""
    from ladder_lite.errors import UserError

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


# Typer and UserError are imported inside the functions: with --workers, each spawned process imports this module again.
def _app() -> "typer.Typer":
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(
        help="Grade answers: FILE of JSON lines (- for stdin), or one INTEGRAND and its ANSWER.",
        context_settings={"ignore_unknown_options": True},  # an answer may begin with a minus
    )
    def main(
        source: str = typer.Argument(..., metavar="FILE|-|INTEGRAND", help="JSON lines, or an integrand."),
        answer: str | None = typer.Argument(None, help="The answer to that integrand."),
        protocol: str = typer.Option("strict", help="strict or paper."),
        workers: int = typer.Option(1, min=1, help="Number of processes that grade a file."),
        variable: str = typer.Option("x", help="Variable of INTEGRAND; in a file, each line may have its own."),
        lower: str | None = typer.Option(None, help="Lower bound, if INTEGRAND has one."),
        upper: str | None = typer.Option(None, help="Upper bound, if INTEGRAND has one."),
    ) -> None:
        if protocol not in ("strict", "paper"):
            raise typer.BadParameter(f"{protocol!r} is neither strict nor paper", param_hint="--protocol")
        chosen: Protocol = "strict" if protocol == "strict" else "paper"
        if answer is not None:
            grade = verify(source, answer, variable=variable, lower=lower, upper=upper, protocol=chosen)
            print(grade.reason.value + (f": {grade.detail}" if grade.detail else ""))
            return
        # On stdin another program may be waiting for each grade, so no row is held back in a buffer.
        for row in grade_lines(_read_lines(source), chosen, workers):
            print(json.dumps(row), flush=source == "-")

    return app


if __name__ == "__main__":
    from ladder_lite.errors import run

    run(_app())
