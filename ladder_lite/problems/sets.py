"""Problem sets: files of JSON lines, shipped, fetched or given by path, that are checked and read as problems."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder_lite.errors import UserError, nearest
from ladder_lite.install import shipped
from ladder_lite.problems.problem import Problem

if TYPE_CHECKING:
    from datasets import Dataset

# Keys of a row: what the task verifies; what people and tests may note ("printed" is shown to the model, see below).
_DATA_KEYS = ("integrand", "variable", "lower", "upper")
_NOTES = ("answer", "id", "technique", "source", "printed", "note")
_ROW_KEYS = (*_DATA_KEYS, "split", "steps", *_NOTES)
_COLUMNS = ("id", *_DATA_KEYS, "answer", "technique", "printed", "source")


@dataclass(frozen=True, slots=True)
class Notes:
    """Notes of a problem set about a problem: how to solve it, and an answer. Models see neither."""

    technique: str | None
    answer: str | None


def load_problems(
    name_or_path: str, split: str, fault: Callable[[Problem], str | None] = lambda _: None
) -> list[Problem]:
    """Read a split of a problem set, given by its name (shipped or fetched) or by the path of a JSON lines file.

    A row is {"integrand", "variable"?: "x", "lower"?, "upper"?, "split"?: "train"|"test"|"probe"}; one without "split"
    belongs to all splits. "printed" is the statement that a model is shown in place of the integrand. The keys
    "answer", "id", "technique", "steps", "source" and "note" are for people and tests. Raises UserError with file:line
    for a row that cannot be read, repeats an earlier one, or has something wrong according to `fault`.
    """
    lines: dict[Problem, int] = {}  # in the order of the file
    for place, number, row in _read_rows(name_or_path, split):
        problem = _problem(row)
        if (wrong := fault(problem)) is not None:
            raise UserError(f"{place}: {wrong}")
        if (first := lines.setdefault(problem, number)) != number:
            raise UserError(f"{place}: the same problem as in line {first}; remove one")
    return list(lines)


def notes(name_or_path: str) -> dict[str, Notes]:
    """The notes of a problem set, all splits, by problem id. Raises UserError as `load_problems` does."""
    rows = (row for _, _, row in _read_rows(name_or_path, None))
    return {_problem(row).id: Notes(row.get("technique"), row.get("answer")) for row in rows}


def dataset(name_or_path: str, split: str) -> "Dataset":
    """A split of a problem set as a `datasets.Dataset`, which TRL's trainers take.

    The columns are text: id, integrand, variable, lower, upper, answer, technique, printed, source. Missing values are
    None. Raises UserError as `load_problems` does.
    """
    from datasets import Dataset, Features, Value

    # Explicit features: a column that has only None in it would otherwise get the type "null".
    rows = [{key: row.get(key) for key in _COLUMNS} for _, _, row in _read_rows(name_or_path, split)]
    return Dataset.from_list(rows, features=Features(dict.fromkeys(_COLUMNS, Value("string"))))


def held_out_problems() -> dict[str, list[Problem]]:
    """The test problems of all shipped and fetched sets, by the name of the set: no variant may equal one of them.

    A set without splits counts as a whole. Problems with a `printed` statement are left out, see `without_printed`.
    """
    from ladder_lite.problems.paper_sets import NAMES, fetched  # here, since it imports the parser

    names = [*_shipped_sets(), *(name for name in NAMES if fetched(name).exists())]
    return {name: without_printed(load_problems(name, "test")) for name in names}


def without_printed(problems: Sequence[Problem]) -> list[Problem]:
    """The problems without a `printed` statement."""
    # A printed problem may be verified by a trivial closed form: x, for an infinite nested radical. A variant that
    # equals the closed form gives nothing of the printed problem away, so it need not be held out.
    return [problem for problem in problems if "printed" not in problem.data]


def _shipped_sets() -> list[str]:
    return sorted(file.stem for file in shipped("benchmarks").glob("*.jsonl"))


def _problem(row: Mapping[str, Any]) -> Problem:
    data = {key: row.get(key) for key in _DATA_KEYS}
    # Only if there is one: the id is a hash of the data, so a key with None would change the ids of all other problems.
    if row.get("printed") is not None:
        data["printed"] = row["printed"]
    return Problem.root("integration", data)


def _read_rows(name_or_path: str, split: str | None) -> list[tuple[str, int, dict[str, Any]]]:
    """The rows of a split (all rows if None), each with its place ("file:line") and line number."""
    path = _find_set(name_or_path)
    try:
        # split("\n") and not splitlines(): a JSON string may contain other line breaks, such as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot read this problem set ({error}); give the name of a set or the path of a file"
        ) from error
    # All rows are checked, whatever the split: a mistake in the test split shows before training starts.
    numbered = [(f"{path}:{number}", number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    read = [(place, number, _read_row(line, place)) for place, number, line in numbered]
    rows = [item for item in read if split is None or item[2].get("split", split) == split]
    if not rows:
        raise UserError(f"{path}: has no problem" + ("" if split is None else f' for the split "{split}"'))
    return rows


def _find_set(name_or_path: str) -> Path:
    # "tiny" is a name; "tiny.jsonl" and "sets/tiny" are paths.
    path = Path(name_or_path)
    if path.suffix or len(path.parts) > 1:
        return path
    known = _shipped_sets()
    if name_or_path in known:
        return shipped("benchmarks") / f"{name_or_path}.jsonl"
    from ladder_lite.problems.paper_sets import NAMES, fetched

    if name_or_path not in NAMES:
        known = [*known, *NAMES]
        hint = nearest(name_or_path, known) or "."
        raise UserError(f'unknown problem set "{name_or_path}"{hint} Known sets: {", ".join(known)}')
    path = fetched(name_or_path)
    if not path.exists():
        raise UserError(f"{name_or_path}: not fetched yet; run python -m ladder_lite.problems fetch {name_or_path}")
    return path


def _read_row(line: str, place: str) -> dict[str, Any]:
    """Read and check a row; raises UserError with its place. Whether the integrand is a formula is checked later."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # json raises RecursionError for "[[[[..."
        raise UserError(f"{place}: not a JSON object: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object: {line[:40]}")
    for key, value in row.items():
        if key not in _ROW_KEYS:
            raise UserError(f'{place}: unknown key "{key}"{nearest(key, _ROW_KEYS)}')
        if key == "steps":
            if type(value) is not int:  # not isinstance: True is an instance of int
                raise UserError(f'{place}: "steps" must be a whole number, but is {json.dumps(value)[:40]}')
        elif not isinstance(value, str) and not (value is None and key in ("lower", "upper", *_NOTES)):
            raise UserError(f'{place}: "{key}" must be text, but is {json.dumps(value)[:40]}')
    if not (row.get("integrand") or "").strip():
        raise UserError(f'{place}: "integrand" is missing')
    if (row.get("lower") is None) != (row.get("upper") is None):
        raise UserError(f'{place}: give both "lower" and "upper", or neither')
    if row.get("split", "train") not in ("train", "test", "probe"):
        raise UserError(f'{place}: "split" must be "train", "test" or "probe", but is "{row["split"]}"')
    if not row.setdefault("variable", "x").isidentifier():
        raise UserError(f'{place}: "variable" must be a name, but is "{row["variable"]}"')
    return row
