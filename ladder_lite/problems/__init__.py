"""Problems, roots and variants alike, and the problem sets they come from.

    for problem in load_problems("tiny", "test"):
        print(problem.data["integrand"])

`python -m ladder_lite.problems clean FILE` makes a set of a list from elsewhere: read, checked, each problem once.
`python -m ladder_lite.problems fetch ladder-paper` gets the lists that the paper's authors published.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ladder_lite.errors import UserError, nearest
from ladder_lite.install import shipped

if TYPE_CHECKING:
    import typer
    from datasets import Dataset

Requested = Literal["root", "easier", "equivalent", "harder"]
_DATA_KEYS = ("integrand", "variable", "lower", "upper")
_NOTES = ("answer", "id", "technique", "source", "printed", "note")
_ROW_KEYS = (*_DATA_KEYS, "split", "steps", *_NOTES)
_COLUMNS = ("id", *_DATA_KEYS, "answer", "technique", "printed", "source")


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
    """What no training problem may equal: the test problems of every set at hand, shipped or fetched, by its name.

    A set without splits counts as a whole. Problems that are printed otherwise than they are verified are left out:
    the closed form alone (x, for an infinite nested radical) gives nothing of them away.
    """
    return {name: without_printed(load_problems(name, "test")) for name in _sets_at_hand()}


def without_printed(problems: Sequence[Problem]) -> list[Problem]:
    """Those of the problems that a model is shown as they are verified."""
    return [problem for problem in problems if "printed" not in problem.data]


def _sets_at_hand() -> list[str]:
    from ladder_lite.problems.paper_sets import NAMES, fetched

    return [*_shipped_sets(), *(name for name in NAMES if fetched(name).exists())]


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
    read = (
        (f"{path}:{number}", number, _read_row(line, f"{path}:{number}"))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
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
    from ladder_lite.problems.paper_sets import NAMES, fetched  # which reads problems, as this module's callers do

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


def _hash(task: str, data: Mapping[str, str | None]) -> str:
    canonical = json.dumps([task, dict(data)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


# --- Command line ----------------------------------------------------------------------------------------------------


def _app() -> "typer.Typer":
    import typer

    app = typer.Typer(
        add_completion=False, rich_markup_mode=None, help="Clean lists of problems, fetch published ones."
    )

    @app.command("clean", help="Keep what is an integral, each once; the last line of stdout is a summary as JSON.")
    def clean_list(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, JSON, CSV, or an integral a line.")],
        out: Annotated[Path | None, typer.Option(help="JSON lines of the problems; else they go to stdout.")] = None,
        rejected: Annotated[Path | None, typer.Option(help="JSON lines of the others, with reasons.")] = None,
        up_to_factor: Annotated[bool, typer.Option("--up-to-factor", help="Multiples are duplicates too.")] = False,
    ) -> None:
        from ladder_lite.problems.clean import clean

        problems, summary = clean(file, out, rejected, up_to_factor)
        rows = problems if out is None else []
        print("\n".join(json.dumps(row) for row in [*rows, summary]))

    @app.command("fetch", help="Download a problem set of the paper's authors into the cache folder.")
    def fetch_set(name: str = typer.Argument(..., metavar="NAME", help="ladder-paper or mit_train.")) -> None:
        from ladder_lite.problems.paper_sets import NAMES, fetch

        if name not in NAMES:
            hint = nearest(name, NAMES) or f"; one of {', '.join(NAMES)}"
            raise UserError(f'no problem set "{name}" to fetch{hint}')
        path, counts = fetch(name)
        print(path)
        for split, count in counts.items():
            left_out = ", ".join(f"{n} {reason}" for reason, n in count["rejected"].items()) or "none refused"
            print(f"{split}: {count['kept']} problems, {count['repeats']} exact repeats left out, {left_out}")

    return app
