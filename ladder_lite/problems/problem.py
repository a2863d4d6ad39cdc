"""A problem: what a task asks, and where it stands in a tree of variants."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Requested = Literal["root", "easier", "equivalent", "harder"]


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


def _hash(task: str, data: Mapping[str, str | None]) -> str:
    canonical = json.dumps([task, dict(data)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
