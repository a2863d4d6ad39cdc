"""JSON and JSON lines on disk, written so that they survive a kill at any moment.

A row is appended in one write, and an incomplete last line is removed; any other file is replaced atomically.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from io import FileIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from ladder_lite.errors import UserError


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append the rows in one write and wait until they are on disk. An incomplete last line is removed first."""
    data = "".join(f"{_to_json(row)}\n" for row in rows).encode()
    if not data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered, so that the rows reach the system in one write and a kill tears at most the last line.
    with path.open("a+b", buffering=0) as file:
        # Otherwise the first new row would continue the torn line, and both would be lost.
        _cut_torn_line(file)
        while data:  # write() may take only a part: the disk is filling up, and the next call raises
            data = data[file.write(data) :]
        os.fsync(file.fileno())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the file, or an empty list if the file does not exist.

    An incomplete last line is ignored. Raises UserError with file:line for damage elsewhere.
    """
    try:
        # What follows the last line end was being written when the process was killed. It is left in the file until
        # the next `append_jsonl`: a report may be reading a run that is still writing.
        lines = path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
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
    """Keep only the rows for which `keep` is true, atomically; a missing file stays missing."""
    if path.exists():
        rewrite_jsonl(path, [row for row in read_jsonl(path) if keep(row)])


def rewrite_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file by one with these rows, atomically."""
    write_atomic(path, "".join(f"{_to_json(row)}\n" for row in rows))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically and wait until it is on disk. NaN and infinities become null."""
    write_atomic(path, _to_json(value, indent=1) + "\n")


def digest(value: object) -> str:
    """Return the SHA-256 of a JSON value; equal values have equal digests."""
    # Keys are sorted, because equal dicts can differ in the order of their keys.
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old text or all of the new. Wait until it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same report
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        # Contents before the name: otherwise a power cut could leave the new name with an empty file.
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    # The rename is a change of the folder, which has to reach the disk, too.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _cut_torn_line(file: FileIO) -> None:
    if (size := os.fstat(file.fileno()).st_size) == 0:  # an empty file cannot be mapped
        return
    # Mapped, not read: logs are long, and `rfind` looks at their end only.
    with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        keep = content.rfind(b"\n") + 1
    if keep < size:
        file.truncate(keep)


def _to_json(value: object, indent: int | None = None) -> str:
    # json.dumps escapes everything outside ASCII. Model text can contain lone surrogates, which UTF-8 cannot encode.
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except ValueError:  # NaN or an infinity, which JSON lacks; too rare to search every value beforehand
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        return json.dumps(finite, allow_nan=False, indent=indent)
