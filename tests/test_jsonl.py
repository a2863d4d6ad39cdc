"""JSON files and JSON lines after a kill or damage, and the digest of a value."""

import json
from pathlib import Path
from typing import Any

import pytest

from ladder_lite.errors import UserError
from ladder_lite.jsonl import append_jsonl, digest, read_jsonl, truncate_jsonl, write_json

ROWS: list[dict[str, Any]] = [{"id": 1, "text": "∫ \ud800\n\u2028"}, {"id": 2, "text": "x" * 200_000}]


@pytest.mark.parametrize("torn", ["", '{"id": 3', '{"id": 3}', "x" * 200_000, "\x00"])
def test_a_torn_last_line_is_ignored_and_then_removed(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "below" / "rows.jsonl"
    append_jsonl(file, ROWS)
    with file.open("a") as stream:
        stream.write(torn)
    size = file.stat().st_size
    assert read_jsonl(file) == ROWS
    assert file.stat().st_size == size  # reading changes nothing: the run may be going on
    append_jsonl(file, [{"id": 4}])
    assert read_jsonl(file) == [*ROWS, {"id": 4}]


def test_a_file_that_is_one_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 3')
    assert read_jsonl(file) == []
    append_jsonl(file, [{"id": 4}])
    assert file.read_text() == '{"id": 4}\n'


@pytest.mark.parametrize("line", ["{", "", "[1]", "1", "\x00\x00"])
def test_damage_before_the_last_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"id": 1}}\n{line}\n{{"id": 2}}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:2: damaged"):
        read_jsonl(file)


def test_jsonl_without_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_jsonl(file, [])
    truncate_jsonl(file, lambda _: True)
    assert not file.exists()
    assert read_jsonl(file) == []


def test_truncate_keeps_the_chosen_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_jsonl(file, [{"step": step} for step in range(5)])
    truncate_jsonl(file, lambda row: row["step"] < 3)
    assert [row["step"] for row in read_jsonl(file)] == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "value.json"
    write_json(file, {"a": [1.5, float("inf")]})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": [1.5, None]}


def test_the_digest_ignores_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len({digest(value) for value in (1, 1.5, "1", None, [], {}, [1, 2], [2, 1])}) == 8
