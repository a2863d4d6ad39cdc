"""Problem sets: files of JSON lines, each with one problem of a task."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ladder_lite.errors import UserError, nearest

# Keys of a row for people and tests, besides the fields of the task; models see none of them.
NOTES = ("id", "answer", "technique", "source", "note")


@dataclass(frozen=True, slots=True)
class Notes:
    """Notes of a problem set about a problem: how to solve it, and an answer. Models see neither."""

    technique: str | None
    answer: str | None


class Row(NamedTuple):
    """A row of a set, with its place ("file:line") for error messages."""

    place: str
    line: int
    values: dict[str, Any]


def read_rows(path: Path, split: str | None, fields: Collection[str], optional: Collection[str]) -> list[Row]:
    """Read the rows of a split; all rows if it is None.

    A row is {FIELD: TEXT, ..., "split"?: "train"|"test"|"probe"}; one without "split" belongs to all splits. The keys
    "id", "answer", "technique", "steps", "source" and "note" are for people and tests. Raises UserError, with the
    place, for a row with another key, a value of another type, or without a field that is not optional.
    """
    try:
        # split("\n") and not splitlines(): a JSON string may contain other line breaks, such as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"{path}: cannot read this problem set ({why}); give the name of a set or the path of a file"
        ) from error
    # All rows are checked, whatever the split: a mistake in the test split shows before training starts.
    numbered = [(f"{path}:{number}", number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    read = [Row(place, number, _read(line, place, fields, optional)) for place, number, line in numbered]
    rows = [row for row in read if split is None or row.values.get("split", split) == split]
    if not rows:
        raise UserError(f"{path}: has no problem" + ("" if split is None else f' for the split "{split}"'))
    return rows


def _read(line: str, place: str, fields: Collection[str], optional: Collection[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # json raises RecursionError for "[[[[..."
        raise UserError(f"{place}: not a JSON object: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object: {line[:40]}")
    known = (*fields, *NOTES, "split", "steps")
    for key, value in row.items():
        if key not in known:
            raise UserError(f'{place}: unknown key "{key}"{nearest(key, known)}')
        if key == "steps":
            if type(value) is not int:  # not isinstance: True is an instance of int
                raise UserError(f'{place}: "steps" must be a whole number, but is {json.dumps(value)[:40]}')
        elif not isinstance(value, str) and not (value is None and (key in optional or key in NOTES)):
            raise UserError(f'{place}: "{key}" must be text, but is {json.dumps(value)[:40]}')
    for key in fields:
        if key not in optional and not (row.get(key) or "").strip():
            raise UserError(f'{place}: "{key}" is missing')
    if row.get("split", "train") not in ("train", "test", "probe"):
        raise UserError(f'{place}: "split" must be "train", "test" or "probe", but is "{row["split"]}"')
    return row
