"""Lists of integrals from elsewhere -> validated problems, each once.

`python -m ladder_lite.problems clean FILE` reads JSON lines, JSON, CSV, or text with an integral or an integrand a
line; which of these decides the content, not the name. Every entry is kept, a duplicate or rejected with a reason;
blank lines, comments and the brackets around a list are no entries.
"""

import csv
import io
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from ladder_lite.errors import UserError
from ladder_lite.jsonl import write_atomic
from ladder_lite.verify.expressions.replies import TEXT_KEYS, Piece, Unread, as_text, read_fields, read_one
from ladder_lite.verify.rules.fingerprints import Index, fingerprints
from ladder_lite.verify.rules.validity import Data, fault

_MAX_ENTRY_CHARS: Final = 20_000
_MAX_SHOWN_CHARS: Final = 2_000  # of a rejected text


class Entry(NamedTuple):
    """One entry of a list and its line; in a JSON document, its number among the entries."""

    line: int
    value: Any


def clean(
    path: Path, out: Path | None = None, rejected: Path | None = None, up_to_factor: bool = False
) -> tuple[list[Data], dict[str, Any]]:
    """The problems of a list that are integrals and differ as functions, and a summary.

    The summary is {"read", "kept", "duplicates", "rejected": {reason: count}, "seconds"}, where the counts add up to
    what was read. `out` receives the problems as JSON lines, `rejected` rows {"line", "text", "reason"}, with
    "duplicate_of": line for duplicates; both are written all or nothing. Raises UserError for a file that is no list.
    """
    started = time.perf_counter()
    targets = [target.resolve() for target in (path, out, rejected) if target is not None]
    if len(set(targets)) < len(targets):
        raise UserError(f"{path}: the list, --out and --rejected must be different files")
    kept: list[Data] = []
    refused: list[dict[str, Any]] = []
    index: Index[int] = Index()
    for entry in read_entries(path):
        data, reason = read_problem(entry.value)
        row = {"line": entry.line, "text": _shown(entry.value), "reason": reason}
        if data is None:
            refused.append(row)
            continue
        keys = fingerprints(data, up_to_factor)
        if (first := index.find(keys)) is None:
            index.add(keys, entry.line)
            kept.append(data)
        else:
            refused.append(row | {"reason": "duplicate", "duplicate_of": first})
    if not kept and not refused:
        raise UserError(f"{path}: holds no problems; give a line to each, or a list as JSON")
    for target, rows in ((out, kept), (rejected, refused)):
        if target is not None:
            write_rows(target, rows)
    reasons = Counter(row["reason"] for row in refused)
    n_duplicates = reasons.pop("duplicate", 0)
    seconds = round(time.perf_counter() - started, 3)
    n_read = len(kept) + len(refused)
    counts = {"read": n_read, "kept": len(kept), "duplicates": n_duplicates, "rejected": dict(reasons)}
    return kept, counts | {"seconds": seconds}


def read_problem(value: Any) -> tuple[Data | None, str]:
    """The data of the problem that an entry is, else None and the reason."""
    if isinstance(value, str) and len(value) > _MAX_ENTRY_CHARS:
        return None, "too_large"
    piece = _piece(value)
    if isinstance(piece, Unread):
        return None, "unreadable"
    data = {"integrand": piece.integrand, "variable": piece.variable, "lower": piece.lower, "upper": piece.upper}
    reason = fault(data)
    return (data, "") if reason is None else (None, reason)


def _piece(value: Any) -> Piece:
    if isinstance(value, str):
        return read_one(value)
    if isinstance(value, dict):
        if value.get("integrand") is not None:
            return read_fields(value)
        for key in TEXT_KEYS:
            if isinstance(value.get(key), str):
                return _piece(value[key])
    return Unread("")


def write_rows(path: Path, rows: list[Any]) -> None:
    """Write JSON lines, all or nothing; raises UserError where the path names no file."""
    if path.is_dir():
        raise UserError(f"{path}: cannot be written (it is a folder); name a file")
    try:
        write_atomic(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name a file in a folder") from error


# --- Reading: which kind of list it is, and its entries --------------------------------------------------------------


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a list; raises UserError where the file cannot be read or is no text."""
    try:
        raw = path.read_bytes()
    except PermissionError:
        raise
    except OSError as error:  # none, a folder, a name too long
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a list of integrals") from error
    if b"\0" in raw:
        raise UserError(f"{path}: not text but a binary file; give JSON lines, JSON, CSV or text in UTF-8")
    # What is no UTF-8 stays in its place as half characters, which no formula has: that line is then unreadable.
    text = raw.decode("utf-8-sig", "surrogateescape")
    return _document(text) or _json_lines(text) or _csv(text) or _plain(text)


def _document(text: str) -> Iterator[Entry] | None:
    """The entries of a JSON document: of a list, of the one list that an object holds, or the object itself."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    value = _load(text)
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 and "integrand" not in value else [value]
    return (Entry(number, item) for number, item in enumerate(value, start=1)) if isinstance(value, list) else None


def _json_lines(text: str) -> Iterator[Entry] | None:
    lines = text.split("\n")
    first = [line for line in lines[:1000] if line.strip()][:20]
    if not any(line.lstrip().startswith("{") and isinstance(_load(line), dict) for line in first):
        return None
    return (Entry(number, _load(line)) for number, line in enumerate(lines, start=1) if line.strip())


def _load(text: str) -> Any:
    """The value that a text is in JSON, or the text itself where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _csv(text: str) -> Iterator[Entry] | None:
    header = text.lstrip().partition("\n")[0]
    for delimiter in ",;\t":
        names = [name.strip().lower() for name in next(csv.reader([header[:10_000]], delimiter=delimiter), [])]
        if not {"question", "integrand"}.isdisjoint(names):
            return _records(text, names, delimiter)
    return None


def _records(text: str, names: list[str], delimiter: str) -> Iterator[Entry]:
    reader = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter)
    start = 1 + text[: len(text) - len(text.lstrip())].count("\n")
    next(reader)
    while True:
        line = start + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a field without end
            yield Entry(line, None)
            continue
        if any(cell.strip() for cell in cells):
            fields = {name: cell for name, cell in zip(names, cells, strict=False) if cell.strip()}
            yield Entry(line, fields if "integrand" in fields or "question" in fields else delimiter.join(cells))


# Of lines without blanks around them. Each run of blanks belongs to one place of a pattern: no line takes long.
_NO_ENTRY: Final = re.compile(r"#.*|(?:\w+(?::[^=]*)?(?<!\s)\s*=\s*)?[\[\](){},;\s]*")
_QUOTED: Final = re.compile(r"""(?:[\[(]\s*)?[rbu]?(["'])(.*)\1\s*(?:[\])]\s*)?(?:,\s*)?(?:#.*)?""")


def _plain(text: str) -> Iterator[Entry]:
    """A line each; quotes and a comma around it are those of a list of strings in Python."""
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if len(line) > _MAX_ENTRY_CHARS:
            yield Entry(number, line)
        elif not _NO_ENTRY.fullmatch(line):
            quoted = _QUOTED.fullmatch(line)
            yield Entry(number, quoted[2] if quoted else line)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else as_text(value)
    if isinstance(value, Mapping):
        text = next((value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)), text)
    return text[:_MAX_SHOWN_CHARS]
