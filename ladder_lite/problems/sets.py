"""Problem sets: JSON lines that are shipped, fetched or named by path, read into problems and checked."""

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

_DATA_KEYS = ("integrand", "variable", "lower", "upper")
_NOTES = ("answer", "id", "technique", "source", "printed", "note")
_ROW_KEYS = (*_DATA_KEYS, "split", "steps", *_NOTES)
_COLUMNS = ("id", *_DATA_KEYS, "answer", "technique", "printed", "source")


@dataclass(frozen=True, slots=True)
class Notes:
    """What a problem set says of a problem to people: how it is solved, and an answer; models see neither."""

    technique: str | None
    answer: str | None


def load_problems(
    name_or_path: str, split: str, fault: Callable[[Problem], str | None] = lambda _: None
) -> list[Problem]:
    """Read the integrals of a problem set by name, shipped or fetched, or of a JSON lines file by path.

    A row is {"integrand", "variable"?: "x", "lower"?, "upper"?, "split"?: "train"|"test"}; one without "split" belongs
    to every split. Further keys are for people and tests ("answer", "id", "technique", "steps", "source", "note"), but
    "printed", the statement that a model is shown, is the problem's. Raises UserError with file:line, also for a
    problem that `fault` finds something wrong with.
    """
    problems: dict[str, Problem] = {}
    first_line: dict[str, int] = {}
    for place, number, row in _read_rows(name_or_path, split):
        problem = _problem(row)
        if (wrong := fault(problem)) is not None:
            raise UserError(f"{place}: {wrong}")
        if problem.id in problems:
            raise UserError(f"{place}: the same problem as in line {first_line[problem.id]}; remove one")
        problems[problem.id], first_line[problem.id] = problem, number
    return list(problems.values())


def notes(name_or_path: str) -> dict[str, Notes]:
    """What a problem set, of any split, notes of its problems, by the problem's id; UserError as `load_problems`."""
    rows = (row for _, _, row in _read_rows(name_or_path, None))
    return {_problem(row).id: Notes(row.get("technique"), row.get("answer")) for row in rows}


def dataset(name_or_path: str, split: str) -> "Dataset":
    """A problem set as `datasets.Dataset`, a row each, for trainers that take one (TRL's).

    Columns, all of text: id, integrand, variable, lower, upper, answer, technique, printed, source; None where a row
    has no such key. Raises UserError as `load_problems` does.
    """
    from datasets import Dataset, Features, Value

    rows = [{key: row.get(key) for key in _COLUMNS} for _, _, row in _read_rows(name_or_path, split)]
    return Dataset.from_list(rows, features=Features(dict.fromkeys(_COLUMNS, Value("string"))))


def held_out_problems() -> dict[str, list[Problem]]:
    """Test problems that no training problem may equal, by the name of their set: of all shipped and fetched sets.

    A set without splits counts as a whole. Problems that are printed otherwise than they are verified are left out:
    the closed form alone (x, for an infinite nested radical) gives nothing of them away.
    """
    from ladder_lite.problems.paper_sets import NAMES, fetched  # which reads formulas, as most callers do not

    names = [*_shipped_sets(), *(name for name in NAMES if fetched(name).exists())]
    return {name: without_printed(load_problems(name, "test")) for name in names}


def without_printed(problems: Sequence[Problem]) -> list[Problem]:
    """Those of the problems that a model is shown as they are verified."""
    return [problem for problem in problems if "printed" not in problem.data]


def _shipped_sets() -> list[str]:
    return sorted(file.stem for file in shipped("benchmarks").glob("*.jsonl"))


def _problem(row: Mapping[str, Any]) -> Problem:
    data = {key: row.get(key) for key in _DATA_KEYS}
    if row.get("printed") is not None:  # only then: the ids of the others depend on their data's keys
        data["printed"] = row["printed"]
    return Problem.root("integration", data)


def _read_rows(name_or_path: str, split: str | None) -> list[tuple[str, int, dict[str, Any]]]:
    """The rows of a split, or of all, with their place (file:line) and line."""
    path = _find_set(name_or_path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such problem set") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this problem set: {error}") from error
    numbered = [(f"{path}:{number}", number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    read = [(place, number, _read_row(line, place)) for place, number, line in numbered]
    rows = [part for part in read if split is None or part[2].get("split", split) == split]
    if not rows:
        raise UserError(f"{path}: holds no problem" + ("" if split is None else f' for the split "{split}"'))
    return rows


def _find_set(name_or_path: str) -> Path:
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
        raise UserError(f'unknown problem set "{name_or_path}"{hint} The known ones are {", ".join(known)}')
    path = fetched(name_or_path)
    if not path.exists():
        raise UserError(f"{name_or_path}: not fetched yet; python -m ladder_lite.problems fetch {name_or_path}")
    return path


def _read_row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not a JSON object: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object: {line[:40]}")
    for key, value in row.items():
        if key not in _ROW_KEYS:
            raise UserError(f'{place}: unknown key "{key}"{nearest(key, _ROW_KEYS)}')
        if key == "steps":
            if type(value) is not int:
                raise UserError(f'{place}: "steps" must be a whole number, and is {json.dumps(value)[:40]}')
        elif not isinstance(value, str) and not (value is None and key in ("lower", "upper", *_NOTES)):
            raise UserError(f'{place}: "{key}" must be text, and is {json.dumps(value)[:40]}')
    if not (row.get("integrand") or "").strip():
        raise UserError(f'{place}: "integrand" is missing')
    if (row.get("lower") is None) != (row.get("upper") is None):
        raise UserError(f'{place}: give both "lower" and "upper", or neither')
    if row.get("split", "train") not in ("train", "test"):
        raise UserError(f'{place}: "split" must be "train" or "test", and is "{row["split"]}"')
    if not row.setdefault("variable", "x").isidentifier():
        raise UserError(f'{place}: "variable" must be a name, and is "{row["variable"]}"')
    return row
