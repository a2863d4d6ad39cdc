"""JSON and JSON lines on disk, written so that they survive a kill at any moment.

A row is appended in one write, and a torn last line is cut off; any other file is replaced as a whole or not at all.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from ladder_lite.errors import UserError


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append the rows in one write and wait until they are on the disk; a torn last line is cut off first."""
    data = "".join(f"{_to_json(row)}\n" for row in rows).encode()
    if not data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        _cut_torn_line(file)
        while data:  # a disk that fills up takes a part and then raises
            data = data[file.write(data) :]
        os.fsync(file.fileno())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the file, none where there is no file.

    What stands behind the last line end was being written when the process was killed: it is not returned, and the
    next `append_jsonl` cuts it off. Reading changes nothing, for a report may read a run that is still going on.
    Raises UserError with file:line for damage elsewhere.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: damaged ({error}); redo the stage of this file") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: damaged (not a JSON object); redo the stage of this file")
        rows.append(row)
    return rows


def truncate_jsonl(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite the file with only the rows to keep, all or nothing; a missing file stays missing."""
    if path.exists():
        rewrite_jsonl(path, [row for row in read_jsonl(path) if keep(row)])


def rewrite_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file by one of these rows, all or nothing."""
    write_atomic(path, "".join(f"{_to_json(row)}\n" for row in rows))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, all or nothing, and wait until it is on the disk; NaN and infinities become null."""
    write_atomic(path, _to_json(value, indent=1) + "\n")


def digest(value: object) -> str:
    """Return the SHA-256 of a JSON value, the same for equal values."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace a text file, all or nothing, and wait until it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # the new name too is to survive a power cut
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _cut_torn_line(file: FileIO) -> None:
    end = file.seek(0, os.SEEK_END)
    position = end
    tail = b""
    while position > 0 and b"\n" not in tail:
        position = max(0, position - 65536)
        file.seek(position)
        tail = file.read(end - position)
    keep = position + tail.rfind(b"\n") + 1
    if keep < end:
        file.truncate(keep)


def _to_json(value: object, indent: int | None = None) -> str:
    # Escaped to ASCII: model text may hold half characters, which UTF-8 cannot write.
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False, indent=indent)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
