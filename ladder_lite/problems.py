"""Problems, roots and variants alike, and the problem sets they come from.

for problem in load_problems("tiny", "test"):
    print(problem.data["integrand"])
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ladder_lite.config import shipped
from ladder_lite.errors import UserError, nearest

Requested = Literal["root", "easier", "equivalent", "harder"]
_DATA_KEYS = ("integrand", "variable", "lower", "upper")
_ROW_KEYS = (*_DATA_KEYS, "split", "answer")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a task; a tree of variants is a flat list of these.

    `data` is the task's own (for integration: integrand, variable, lower, upper, all text, the bounds None for an
    antiderivative), `id` a hash of task and data, so equal texts are equal problems in whatever tree they stand.
    `requested` is what was asked of the model, which need not be what it wrote.
    """

    id: str
    task: str
    data: Mapping[str, str | None] = field(hash=False)
    root_id: str
    parent_id: str | None
    depth: int
    transforms: tuple[str, ...]
    requested: Requested

    @staticmethod
    def root(task: str, data: Mapping[str, str | None]) -> "Problem":
        """Return the problem as the root of its own tree."""
        id_ = _hash(task, data)
        return Problem(id_, task, dict(data), id_, None, 0, (), "root")

    @staticmethod
    def child(
        parent: "Problem", data: Mapping[str, str | None], transforms: tuple[str, ...], requested: Requested
    ) -> "Problem":
        """Return a variant of `parent`, one level deeper in the same tree."""
        id_ = _hash(parent.task, data)
        return Problem(
            id_, parent.task, dict(data), parent.root_id, parent.id, parent.depth + 1, tuple(transforms), requested
        )

    def to_row(self) -> dict[str, Any]:
        """Return the problem as a JSON object."""
        return asdict(self) | {"data": dict(self.data), "transforms": list(self.transforms)}

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> "Problem":
        """Return the problem that `to_row` wrote."""
        return Problem(**{**row, "transforms": tuple(row["transforms"])})


def load_problems(
    name_or_path: str, split: str, fault: Callable[[Problem], str | None] = lambda _: None
) -> list[Problem]:
    """Read the integrals of a shipped problem set by name, or of a JSON lines file by path.

    A row is {"integrand", "variable"?: "x", "lower"?, "upper"?, "split"?: "train"|"test", "answer"?}; one without
    "split" belongs to every split, "answer" is for people and tests. Raises UserError with file:line, also for a
    problem that `fault` finds something wrong with.
    """
    path = _find_set(name_or_path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such problem set") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this problem set: {error}") from error
    problems: dict[str, Problem] = {}
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _read_row(line, f"{path}:{number}")
        if row.get("split", split) != split:
            continue
        problem = Problem.root("integration", {key: row.get(key) for key in _DATA_KEYS})
        if (wrong := fault(problem)) is not None:
            raise UserError(f"{path}:{number}: {wrong}")
        if problem.id in problems:
            raise UserError(f"{path}:{number}: the same problem as in line {first_line[problem.id]}; remove one")
        problems[problem.id], first_line[problem.id] = problem, number
    if not problems:
        raise UserError(f'{path}: holds no problem for the split "{split}"')
    return list(problems.values())


def _find_set(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix or len(path.parts) > 1:
        return path
    known = sorted(file.stem for file in shipped("benchmarks").glob("*.jsonl"))
    if name_or_path not in known:
        hint = nearest(name_or_path, known) or "."
        raise UserError(f'unknown problem set "{name_or_path}"{hint} The known ones are {", ".join(known)}')
    return shipped("benchmarks") / f"{name_or_path}.jsonl"


def _read_row(line: str, place: str) -> dict[str, str | None]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not a JSON object: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object: {line[:40]}")
    for key, value in row.items():
        if key not in _ROW_KEYS:
            raise UserError(f'{place}: unknown key "{key}"{nearest(key, _ROW_KEYS)}')
        if not isinstance(value, str) and not (value is None and key in ("lower", "upper", "answer")):
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


def _hash(task: str, data: Mapping[str, str | None]) -> str:
    canonical = json.dumps([task, dict(data)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def benchmark_problems() -> dict[str, list[Problem]]:
    return {}
