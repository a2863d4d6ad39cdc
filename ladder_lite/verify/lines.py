"""Answers by the file: JSON lines -> grades."""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ladder_lite.verify import Protocol, verify

MALFORMED: Final = "MALFORMED_LINE"


def grade_lines(lines: Iterable[tuple[int, str]], protocol: Protocol, workers: int) -> Iterator[dict[str, Any]]:
    """A row for each numbered JSON line, in their order; by so many processes."""
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
        given = [name for name in ("variable", "lower", "upper") if row.get(name) is not None]
        options: dict[str, Any] = {name: _text(row, name) for name in given}
    except (ValueError, TypeError, RecursionError) as error:
        return {"id": None, "correct": None, "reason": MALFORMED, "ms": 0.0, "error": f"line {number}: {error}"}
    grade = verify(integrand, answer, protocol=protocol, **options)
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
