"""`python -m ladder_lite.verify`: grade answers from the command line. See `ladder_lite.verify`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ladder_lite.verify import Protocol, verify

if TYPE_CHECKING:
    import typer

MALFORMED: Final = "MALFORMED_LINE"


def _grade_lines(lines: Iterable[tuple[int, str]], protocol: Protocol, workers: int) -> Iterator[dict[str, Any]]:
    jobs = ((number, line, protocol) for number, line in lines if line.strip())
    if workers <= 1:
        yield from map(_grade_line, jobs)
        return
    from multiprocessing import get_context

    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_grade_line, jobs, chunksize=64)


def _grade_line(job: tuple[int, str, Protocol]) -> dict[str, Any]:
    number, line, protocol = job
    started = time.perf_counter()
    try:
        row = json.loads(line)
        integrand, answer = _text(row, "integrand"), _text(row, "answer")
        options = {name: _text(row, name) for name in ("variable", "lower", "upper") if row.get(name) is not None}
    except (ValueError, TypeError, RecursionError) as error:
        return {"id": None, "correct": None, "reason": MALFORMED, "ms": 0.0, "error": f"line {number}: {error}"}
    grade = verify(
        integrand,
        answer,
        variable=options.get("variable", "x"),
        lower=options.get("lower"),
        upper=options.get("upper"),
        protocol=protocol,
    )
    correct = None if grade.reward is None else grade.reward == 1.0
    ms = round((time.perf_counter() - started) * 1e3, 3)
    return {"id": row.get("id", number), "correct": correct, "reason": grade.reason.value, "ms": ms}


def _text(row: object, name: str) -> str:
    if not isinstance(row, dict):
        raise TypeError("not an object")
    value = row.get(name)
    if name in ("lower", "upper") and type(value) in (int, float):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{name!r} is missing or not a string")
    return value


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


def _app() -> typer.Typer:
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(help="Grade answers: FILE of JSON lines (- for stdin), or one INTEGRAND and its ANSWER.")
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
        for row in _grade_lines(_read_lines(source), chosen, workers):
            print(json.dumps(row), flush=source == "-")

    return app


if __name__ == "__main__":
    from ladder_lite.errors import run

    run(_app())
