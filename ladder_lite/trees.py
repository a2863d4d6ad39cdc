"""Variant trees to look at: which problem came of which, and how often each is solved by now."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ladder_lite.document import Code, Node
from ladder_lite.errors import UserError
from ladder_lite.findings import Run
from ladder_lite.problems import load_problems
from ladder_lite.run_dir import read_jsonl

_N_ROOTS = 2
_N_CHILDREN = 12
_DEPTH = 6
_WIDTH = 140

Rows = Sequence[Mapping[str, Any]]


def grow_trees(run: Run) -> tuple[Node, ...]:
    """The trees of the first training problems that have variants, with pass rates where they were measured.

    At most 12 children of a problem are shown, the first ones written.
    """
    rows = read_jsonl(run.path / "variants/problems.jsonl")
    rows += read_jsonl(run.path / "conditions/ladder/train/variants/problems.jsonl")
    children: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        children[row["parent_id"]].append(row)
    rates = {row["problem_id"]: row for row in read_jsonl(run.path / "conditions/ladder/train/pass_rates.jsonl")}
    statements = _roots(run)
    roots = dict.fromkeys([*(name for name in statements if name in children), *(row["root_id"] for row in rows)])
    return tuple(
        _node(name, statements.get(name, name), "training problem", children, rates, _DEPTH)
        for name in list(roots)[:_N_ROOTS]
    )


def _roots(run: Run) -> dict[str, str]:
    chosen = run.path / "select/problems.jsonl"
    try:
        problems = load_problems(str(chosen) if chosen.exists() else run.train, "train")
    except UserError:  # the set was moved since: ids are shown then
        return {}
    return {problem.id: str(problem.data["integrand"]) for problem in problems}


def _node(
    name: str,
    statement: str,
    label: str,
    children: Mapping[str, Rows],
    rates: Mapping[str, Mapping[str, Any]],
    depth: int,
) -> Node:
    below = children.get(name, ()) if depth else ()
    rate = rates.get(name)
    return Node(
        Code(statement, _WIDTH),
        label,
        float(rate["pass_rate"]) if rate and rate["tries"] else None,
        tuple(
            _node(row["id"], str(row["data"]["integrand"]), str(row["requested"]), children, rates, depth - 1)
            for row in below[:_N_CHILDREN]
        ),
        len(below[_N_CHILDREN:]),
    )
