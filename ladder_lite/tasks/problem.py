"""A problem: what a task asks, and its place in a tree of variants."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ladder_lite.jsonl import digest

Requested = Literal["root", "easier", "equivalent", "harder"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a task. A tree of variants is a flat list of problems, linked by `parent_id`.

    `data` belongs to the task. For integration it has integrand, variable, lower and upper, all text; the bounds are
    None for an antiderivative. `id` is a hash of task and data, so the same text has the same id in every tree.
    `requested` is what the model was asked for, which need not be what it wrote.
    """

    id: str
    task: str
    data: Mapping[str, str | None] = field(hash=False)  # a dict cannot be hashed; the id stands for it
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
        """Return the problem that `to_row` wrote; further keys, such as the `round` of a tree, are ignored."""
        values = {own.name: row[own.name] for own in fields(Problem)}
        return Problem(**values | {"transforms": tuple(row["transforms"])})


def _hash(task: str, data: Mapping[str, str | None]) -> str:
    # The same data must give the same id on every machine and in every version, since ids name folders of a run and are
    # part of the digests of its stages. 16 hex digits are 64 bits.
    return digest([task, dict(data)])[:16]
