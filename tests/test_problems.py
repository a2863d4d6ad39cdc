"""Problems and problem sets."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from ladder_lite.config import shipped
from ladder_lite.errors import UserError
from ladder_lite.problems import Problem, load_problems

DATA: dict[str, str | None] = {"integrand": "2*x", "variable": "x", "lower": None, "upper": None}
ROOT = Path(__file__).parent.parent


def test_a_tree_is_flat_rows_that_survive_json() -> None:
    root = Problem.root("integration", DATA)
    child = Problem.child(root, {**DATA, "integrand": "x"}, ("drop a factor",), "easier")
    grandchild = Problem.child(child, {**DATA, "integrand": "1"}, (), "equivalent")
    assert (root.root_id, root.parent_id, root.depth, root.requested) == (root.id, None, 0, "root")
    assert (grandchild.root_id, grandchild.parent_id, grandchild.depth) == (root.id, child.id, 2)
    for problem in (root, child, grandchild):
        assert Problem.from_row(json.loads(json.dumps(problem.to_row()))) == problem
    assert len({root, child, grandchild, Problem.root("integration", DATA)}) == 3


def test_the_id_follows_task_and_data_alone() -> None:
    root = Problem.root("integration", DATA)
    assert re.fullmatch("[0-9a-f]{16}", root.id)
    reordered = dict(reversed(DATA.items()))
    assert Problem.root("integration", reordered).id == root.id
    assert Problem.child(root, DATA, ("reorder",), "equivalent").id == root.id
    others = [Problem.root("other", DATA), *(Problem.root("integration", {**DATA, key: "3"}) for key in DATA)]
    assert len({root.id, *(other.id for other in others)}) == 6


def write(tmp_path: Path, *rows: object) -> str:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_belong_to_their_split_or_to_all(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"integrand": "1", "split": "train"},
        "",
        {"integrand": "t", "variable": "t", "lower": "0", "upper": "pi", "split": "test", "answer": "pi**2/2"},
        {"integrand": "3"},
    )
    train, test = load_problems(path, "train"), load_problems(path, "test")
    assert [problem.data["integrand"] for problem in train] == ["1", "3"]
    assert [problem.data for problem in test] == [
        {"integrand": "t", "variable": "t", "lower": "0", "upper": "pi"},
        {"integrand": "3", "variable": "x", "lower": None, "upper": None},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'integrand'", ":2: not a JSON object: "),
        ("[1]", ":2: not a JSON object: [1]"),
        ({"integrnd": "x"}, ':2: unknown key "integrnd"; did you mean integrand?'),
        ({"integrand": 3}, ':2: "integrand" must be text, and is 3'),
        ({"integrand": "2", "lower": 0, "upper": "1"}, ':2: "lower" must be text, and is 0'),
        ({"variable": "x"}, ':2: "integrand" is missing'),
        ({"integrand": " "}, ':2: "integrand" is missing'),
        ({"integrand": "2", "lower": "0"}, ':2: give both "lower" and "upper", or neither'),
        ({"integrand": "2", "split": "dev"}, ':2: "split" must be "train" or "test", and is "dev"'),
        ({"integrand": "2", "variable": "2x"}, ':2: "variable" must be a name, and is "2x"'),
        ({"integrand": "1", "answer": "x"}, ":2: the same problem as in line 1; remove one"),
    ],
)
def test_refused_row_is_named_with_its_line(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path, {"integrand": "1"}, row)
    with pytest.raises(UserError) as refused:
        load_problems(path, "train")
    assert str(refused.value).startswith(path + message)


def test_missing_and_empty_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='unknown problem set "tyni"; did you mean tiny'):
        load_problems("tyni", "test")
    with pytest.raises(UserError, match="no such problem set"):
        load_problems(str(tmp_path / "absent.jsonl"), "test")
    with pytest.raises(UserError, match="cannot read this problem set"):
        load_problems(str(tmp_path / ""), "test")
    with pytest.raises(UserError, match='holds no problem for the split "test"'):
        load_problems(write(tmp_path, {"integrand": "1", "split": "train"}), "test")


@pytest.mark.parametrize("path", sorted(shipped("benchmarks").glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_shipped_set_loads(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for split in {row.get("split", "test") for row in rows}:
        problems = load_problems(path.stem, split)
        assert len(problems) == sum(row.get("split", split) == split for row in rows)


def test_every_problem_set_and_recipe_travels_in_the_wheel() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert included["recipes"] == "ladder_lite/_recipes"
    for path in (ROOT / "benchmarks").glob("*.jsonl"):
        assert included[f"benchmarks/{path.name}"] == f"ladder_lite/_benchmarks/{path.name}"
