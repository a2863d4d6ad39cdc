"""The undergraduate problem set passes its check, and the check finds every kind of fault."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "undergrad.py"
SET = SCRIPT.with_suffix(".jsonl")
ROWS = [json.loads(line) for line in SET.read_text(encoding="utf-8").splitlines()]

_spec = spec_from_file_location("undergrad", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
undergrad = module_from_spec(_spec)
_spec.loader.exec_module(undergrad)

Row = dict[str, Any]


def written(tmp_path: Path, rows: list[Row | str]) -> Path:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def renumbered(rows: list[Row]) -> list[Row]:
    return [row | {"id": f"undergrad-{number:03d}"} for number, row in enumerate(rows, start=1)]


def test_the_set_has_no_fault() -> None:
    rows, faults = undergrad.check(SET, by_sympy=True)
    assert faults == []
    assert [row.model_dump() for row in rows] == ROWS


FIRST: list[Row] = ROWS[:3]


def test_the_first_rows_have_no_fault_of_their_own(tmp_path: Path) -> None:
    _, faults = undergrad.check(written(tmp_path, [*FIRST]), by_sympy=True)
    assert not [fault for fault in faults if fault.startswith("line")]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{'id': 1}", "Invalid JSON"),
        ("", "Invalid JSON"),
        ("[1]", "Input should be an object"),
        ({key: ROWS[3][key] for key in ROWS[3] if key != "technique"}, '"technique": Field required'),
        (ROWS[3] | {"split": "test"}, '"split": Extra inputs are not permitted'),
        (ROWS[3] | {"integrand": 2}, '"integrand": Input should be a valid string'),
        (ROWS[3] | {"integrand": ""}, '"integrand": String should have at least 1 character'),
        (ROWS[3] | {"answer": None}, '"answer": Input should be a valid string'),
        (ROWS[3] | {"variable": "t"}, "\"variable\": Input should be 'x'"),
        (ROWS[3] | {"technique": "Parts, again"}, '"technique": String should match pattern'),
        (ROWS[3] | {"steps": "2"}, '"steps": Input should be 1, 2 or 3'),
        (ROWS[3] | {"steps": 4}, '"steps": Input should be 1, 2 or 3'),
        (ROWS[4], "the id must be undergrad-004, and is 'undergrad-005'"),
        (ROWS[3] | {"id": "undergrad-003"}, "the id must be undergrad-004, and is 'undergrad-003'"),
        (ROWS[3] | {"answer": f"{ROWS[3]['answer']} + x/1000"}, "the answer is WRONG"),
        (ROWS[3] | {"answer": "eval(x)"}, "the answer is FORBIDDEN"),
        (ROWS[3] | {"integrand": "sqrt(-1 - x**2)"}, "the answer is UNVERIFIABLE"),
        (
            ROWS[3] | {"integrand": "1/(7*x*x*x)", "answer": "-1/(14*x**2)"},
            "the same as in line 2 except for",
        ),
    ],
)
def test_a_faulty_row_is_refused_with_its_line(tmp_path: Path, row: Row | str, fault: str) -> None:
    _, faults = undergrad.check(written(tmp_path, [*FIRST, row]))
    [found] = [fault for fault in faults if fault.startswith("line")]
    assert found.startswith(f"line 4: {fault}")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("integrand", "answer", "fault"),
    [
        # Right for x > 4 and wrong for x < -4, which the verifier's rule allows.
        ("1/(x*sqrt(x**2 - 16))", "acos(4/x)/4", "the derivative at -"),
        ("1/sqrt(1 - 10**6*x**2)", "asin(1000*x)/1000", "the integrand is real at only "),
        ("1/sqrt(1 - x**2)", "arcsin(x)", "the integrand or the answer is not in SymPy's syntax"),
    ],
)
def test_the_check_by_sympy_is_stricter(tmp_path: Path, integrand: str, answer: str, fault: str) -> None:
    path = written(tmp_path, [*FIRST, ROWS[3] | {"integrand": integrand, "answer": answer}])
    assert not [fault for fault in undergrad.check(path)[1] if fault.startswith("line")]
    [found] = [fault for fault in undergrad.check(path, by_sympy=True)[1] if fault.startswith("line")]
    assert found.startswith(f"line 4: by SymPy and mpmath, {fault}")


@pytest.mark.parametrize(
    ("keeps", "fault"),
    [
        (lambda rows: rows[:299], "299 rows; there must be 300"),
        (lambda rows: [row | {"technique": "calculus"} for row in rows], "1 techniques; there must be 15"),
        (lambda rows: [rows[0] | {"technique": "luck"}, *rows[1:]], "1 rows of the technique 'luck'; there must be 12"),
        (lambda rows: [row | {"steps": max(row["steps"], 2)} for row in rows], "take 1 steps; it must be 25%"),
    ],
)
def test_a_set_must_cover_all_techniques_and_steps(
    tmp_path: Path, keeps: Callable[[list[Row]], list[Row]], fault: str
) -> None:
    _, faults = undergrad.check(written(tmp_path, [*renumbered(keeps(ROWS))]))
    assert faults
    assert not [found for found in faults if found.startswith("line")]
    assert any(fault in found for found in faults)


def test_the_command_line_prints_a_line_for_each_fault(tmp_path: Path) -> None:
    path = written(tmp_path, [FIRST[0] | {"answer": "x"}, *FIRST[1:]])
    done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = [line.removeprefix(f"{path}: ") for line in done.stdout.splitlines() if line.startswith(str(path))]
    assert found == undergrad.check(path)[1]
    assert found[0].startswith("line 1: the answer is WRONG")


def test_the_command_line_prints_a_summary_and_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    undergrad.main()
    assert f" {len(ROWS)} " in capsys.readouterr().out.splitlines()[-2]
