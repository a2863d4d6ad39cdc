"""`python -m ladder_lite.verify`: grade answers from the command line. See `ladder_lite.verify`."""

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
    from ladder_lite.errors import UserError

    if source == "-":
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
        workers: int = typer.Option(1, min=1, help="Processes, for a file."),
        variable: str = typer.Option("x", help="The integrand's variable."),
        lower: str | None = typer.Option(None, help="Bound of the one integral."),
        upper: str | None = typer.Option(None, help="Bound of the one integral."),
    ) -> None:
        if protocol not in ("strict", "paper"):
            raise typer.BadParameter("strict or paper", param_hint="--protocol")
        chosen: Protocol = "strict" if protocol == "strict" else "paper"
        if answer is not None:
            grade = verify(source, answer, variable=variable, lower=lower, upper=upper, protocol=chosen)
            print(grade.reason.value + (f": {grade.detail}" if grade.detail else ""))
            return
        for row in grade_lines(_read_lines(source), chosen, workers):
            print(json.dumps(row), flush=source == "-")

    return app


if __name__ == "__main__":
    from ladder_lite.errors import run

    run(_app())
