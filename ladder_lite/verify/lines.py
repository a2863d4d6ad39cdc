"""Grade the answers of a JSON lines file."""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ladder_lite.verify import Protocol, verify

MALFORMED: Final = "MALFORMED_LINE"  # a reason beside those of `Reason`, for lines without an integral and an answer


def grade_lines(lines: Iterable[tuple[int, str]], protocol: Protocol, workers: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each numbered line, in order, graded by `workers` processes. Blank lines are skipped."""
    jobs = ((number, line, protocol) for number, line in lines if line.strip())
    if workers <= 1:
        yield from map(_grade_line, jobs)
        return
    from multiprocessing import get_context

    # "spawn" works on all platforms, and after libraries have started threads. `imap` keeps the order of the lines.
    # A grade takes milliseconds, so lines are sent 64 at a time.
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_grade_line, jobs, chunksize=64)


def _grade_line(job: tuple[int, str, Protocol]) -> dict[str, Any]:
    number, line, protocol = job  # one tuple, because `imap` passes a single argument
    started = time.perf_counter()
    try:
        row = json.loads(line)
        integrand, answer = _text(row, "integrand"), _text(row, "answer")
        # null is the same as a missing key.
        given = [name for name in ("variable", "lower", "upper") if row.get(name) is not None]
        options: dict[str, Any] = {name: _text(row, name) for name in given}
    # ValueError: invalid JSON. TypeError: from `_text`. RecursionError: JSON that is nested too deeply.
    except (ValueError, TypeError, RecursionError) as error:
        return {"id": None, "correct": None, "reason": MALFORMED, "ms": 0.0, "error": f"line {number}: {error}"}
    grade = verify(integrand, answer, protocol=protocol, **options)
    correct = None if grade.reward is None else grade.reward == 1.0
    ms = round((time.perf_counter() - started) * 1e3, 3)
    # A line without an id is identified by its number.
    return {"id": row.get("id", number), "correct": correct, "reason": grade.reason.value, "ms": ms}


def _text(row: object, name: str) -> str:
    if not isinstance(row, dict):
        raise TypeError("not an object")
    value = row.get(name)
    # Bounds may be JSON numbers. The exact type is tested, because bool is a subclass of int.
    if name in ("lower", "upper") and type(value) in (int, float):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{name!r} is missing or not a string")
    return value
