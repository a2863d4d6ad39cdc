"""Turn lists of integrals from elsewhere into validated problems, each once.

`python -m ladder_lite.problems clean FILE` reads JSON lines, JSON, CSV, or text with one integral or integrand per
line. The content decides the format, not the file's name. Every entry is either kept, a duplicate, or rejected with a
reason; blank lines, comments and the brackets around a list do not count as entries.
"""

import csv
import io
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from ladder_lite.errors import UserError
from ladder_lite.jsonl import write_atomic
from ladder_lite.tasks.rows import NOTES
from ladder_lite.tasks.task import MAX_SHOWN_CHARS
from ladder_lite.verify.expressions.replies import TEXT_KEYS, Piece, Unread, Written, as_text, read_fields, read_one
from ladder_lite.verify.rules.fingerprints import Index, fingerprints
from ladder_lite.verify.rules.validity import Data, fault

_MAX_ENTRY_CHARS: Final = 20_000  # what is longer is not parsed


class Entry(NamedTuple):
    """An entry of a list with its line number; in a JSON document, with its position, counted from 1."""

    line: int
    value: Any


def clean(
    path: Path, out: Path | None = None, rejected: Path | None = None, up_to_factor: bool = False
) -> tuple[list[Data], dict[str, Any]]:
    """The valid problems of a list, without those equal as functions to an earlier one, and a summary.

    The summary is {"read", "kept", "duplicates", "rejected": {reason: count}, "seconds"}; the counts add up to "read".
    A problem keeps the id, answer, technique, source and note of its entry. `out` receives the problems as JSON lines,
    `rejected` rows {"line", "text", "reason"}, duplicates also with {"duplicate_of": line}. Each file is written as a
    whole or not at all. Raises UserError if `path` is not a list.
    """
    started = time.perf_counter()
    # resolve(): the same file may be given by two paths. Writing --out over the list would destroy it.
    targets = [target.resolve() for target in (path, out, rejected) if target is not None]
    if len(set(targets)) < len(targets):
        raise UserError(f"{path}: the list, --out and --rejected must be different files")
    kept: list[Data] = []
    refused: list[dict[str, Any]] = []  # rejected entries and duplicates
    index: Index[int] = Index()  # fingerprint -> line of the first entry with it
    for entry in read_entries(path):
        data, reason = read_problem(entry.value)
        row = {"line": entry.line, "text": _shown(entry.value), "reason": reason}
        if data is None:
            refused.append(row)
            continue
        keys = fingerprints(data, up_to_factor)
        if (first := index.find(keys)) is None:
            index.add(keys, entry.line)
            written = entry.value if isinstance(entry.value, dict) else {}
            kept.append({**data, **{key: written[key] for key in NOTES if isinstance(written.get(key), str)}})
        else:
            refused.append(row | {"reason": "duplicate", "duplicate_of": first})
    if not kept and not refused:
        raise UserError(f"{path}: has no problems; write one per line, or a JSON list")
    for target, rows in ((out, kept), (rejected, refused)):
        if target is not None:
            write_rows(target, rows)
    reasons = Counter(row["reason"] for row in refused)
    n_duplicates = reasons.pop("duplicate", 0)
    counts = {"read": len(kept) + len(refused), "kept": len(kept), "duplicates": n_duplicates}
    return kept, counts | {"rejected": dict(reasons), "seconds": round(time.perf_counter() - started, 3)}


def read_problem(value: Any) -> tuple[Data | None, str]:
    """The problem data of an entry and "", or None and the reason for its rejection."""
    if isinstance(value, str) and len(value) > _MAX_ENTRY_CHARS:
        return None, "too_large"
    piece = _piece(value)  # the parts of the integral as text: nothing says yet that they are formulas
    if isinstance(piece, Unread):
        return None, "unreadable"
    data = data_of(piece)
    reason = fault(data)
    return (data, "") if reason is None else (None, reason)


def data_of(integral: Written) -> Data:
    """The problem data of an integral in a text."""
    return {key: getattr(integral, key) for key in ("integrand", "variable", "lower", "upper")}


def _piece(value: Any) -> Piece:
    if isinstance(value, dict) and value.get("integrand") is not None:
        return read_fields(value)  # {"integrand": "x**2", "variable": "x", ...}
    text = _text_of(value)
    return Unread("") if text is None else read_one(text)


def _text_of(value: Any) -> str | None:
    """The text of an entry in which the integral must be found, None if it has none."""
    if isinstance(value, dict):  # {"question": "Evaluate $\\int x^2 dx$."}
        value = next((value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)), None)
    return value if isinstance(value, str) else None


def write_rows(path: Path, rows: list[Any]) -> None:
    """Write JSON lines as a whole or not at all. Raises UserError if the path cannot be a file."""
    if path.is_dir():
        raise UserError(f"{path}: cannot be written (it is a folder); name a file")
    try:
        write_atomic(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name a file in a folder") from error


# --- Reading: the format of a list, and its entries ------------------------------------------------------------------


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a list. Raises UserError if the file cannot be read or is not text."""
    try:
        raw = path.read_bytes()
    except OSError as error:  # no such file, a folder, a name too long, no permission
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a list of integrals") from error
    if b"\0" in raw:
        raise UserError(f"{path}: a binary file (or UTF-16); give JSON lines, JSON, CSV or text in UTF-8")
    # Bytes that are not UTF-8 become lone surrogates, which no formula contains: only that entry is unreadable then,
    # not the whole file. "-sig" drops a byte order mark.
    text = raw.decode("utf-8-sig", "surrogateescape")
    # The strictest format first; each reader returns None if the text is not of its format. Plain text always is.
    return _document(text) or _json_lines(text) or _csv(text) or _plain(text)


def _document(text: str) -> Iterator[Entry] | None:
    """The entries of a JSON document: those of a list, of the only list in an object, or the object itself."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    value = _load(text)
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 and "integrand" not in value else [value]
    return (Entry(number, item) for number, item in enumerate(value, start=1)) if isinstance(value, list) else None


def _json_lines(text: str) -> Iterator[Entry] | None:
    lines = text.split("\n")
    # One object among the first 20 lines is enough: a list with a broken first line is still JSON lines.
    first = [line for line in lines[:1000] if line.strip()][:20]
    if not any(line.lstrip().startswith("{") and isinstance(_load(line), dict) for line in first):
        return None
    return (Entry(number, _load(line)) for number, line in enumerate(lines, start=1) if line.strip())


def _load(text: str) -> Any:
    """The value of a JSON text, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _csv(text: str) -> Iterator[Entry] | None:
    # It is a CSV file if its first line, split at one of these delimiters, names a column for the integral.
    header = text.lstrip().partition("\n")[0]
    for delimiter in ",;\t":
        names = [name.strip().lower() for name in next(csv.reader([header[:10_000]], delimiter=delimiter), [])]
        if not {"question", "integrand"}.isdisjoint(names):
            return _records(text, names, delimiter)
    return None


def _records(text: str, names: list[str], delimiter: str) -> Iterator[Entry]:
    reader = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter)  # newline="", as csv requires
    # A quoted field may span lines: the line of an entry is that of its first one, counted from the blank lines on top.
    start = 1 + text[: len(text) - len(text.lstrip())].count("\n")
    next(reader)  # the header
    while True:
        line = start + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a quote that never closes: the field exceeds csv's size limit
            yield Entry(line, None)
            continue
        if any(cell.strip() for cell in cells):
            # A row without the wanted column is passed on as text, since it may be an integral with commas in it.
            fields = {name: cell for name, cell in zip(names, cells, strict=False) if cell.strip()}
            yield Entry(line, fields if "integrand" in fields or "question" in fields else delimiter.join(cells))


# Both are matched against stripped lines. Each run of blanks can match in one place of a pattern only, so there is no
# catastrophic backtracking, whatever the line.
# "# a comment", "QUESTIONS: list[str] = [", "],"
_NO_ENTRY: Final = re.compile(r"#.*|(?:\w+(?::[^=]*)?(?<!\s)\s*=\s*)?[\[\](){},;\s]*")
# '"integrate(x, x)",  # easy' -> integrate(x, x)
_QUOTED: Final = re.compile(r"""(?:[\[(]\s*)?[rbu]?(["'])(.*)\1\s*(?:[\])]\s*)?(?:,\s*)?(?:#.*)?""")


def _plain(text: str) -> Iterator[Entry]:
    """An entry per line. Quotes and a comma around it, as in a Python list of strings, are removed."""
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if len(line) > _MAX_ENTRY_CHARS:
            yield Entry(number, line)  # `read_problem` rejects it as too large
        elif not _NO_ENTRY.fullmatch(line):
            quoted = _QUOTED.fullmatch(line)
            yield Entry(number, quoted[2] if quoted else line)


def _shown(value: Any) -> str:
    """The text of an entry for the file of rejected ones."""
    text = _text_of(value)
    return (as_text(value) if text is None else text)[:MAX_SHOWN_CHARS]
