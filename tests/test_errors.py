"""What a user sees if a command fails."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ladder_lite.errors import UserError, nearest

PROGRAM = """
import os, sys, typer
from ladder_lite.errors import UserError, run
app = typer.Typer(add_completion=False, rich_markup_mode=None)
@app.command()
def main(count: int = 1, action: str = "print('ran')"):
    exec(action)
run(app)
"""


def program(tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("action", "code", "printed"),
    [
        (
            "raise UserError('a.yaml:3: two\\n  lines \\x1b[31m; remedy')",
            2,
            "error: a.yaml:3: two lines \\x1b[31m; remedy",
        ),
        (f"raise OSError({errno.ENOSPC}, 'full', '/runs/a')", 2, "error: /runs/a: the disk is full; free some space"),
        ("raise RuntimeError('IoError: No space left on device')", 2, "error: the disk is full; free some space"),
        ("raise RuntimeError('[enforce fail at x.cc:1] . unexpected pos 4 vs 2')", 2, "error: the disk is full; free"),
        (f"raise RuntimeError('x') from OSError({errno.EDQUOT}, 'quota')", 2, "error: the disk is full; free some"),
        (f"raise OSError({errno.EACCES}, 'no', '/runs/a')", 2, "error: /runs/a: Permission denied; choose a folder"),
        (f"raise OSError({errno.EROFS}, 'no', '/runs/a')", 2, "error: /runs/a: Read-only file system; choose a folder"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise KeyboardInterrupt('stopped; run it again to go on')", 130, "stopped; run it again to go on"),
        ("raise typer.Exit(5)", 5, ""),
        ("raise typer.Abort", 130, "interrupted"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(tmp_path: Path, action: str, code: int, printed: str) -> None:
    returned, stdout, stderr = program(tmp_path, "--action", action)
    assert (returned, stdout) == (code, "")
    assert stderr.strip().startswith(printed)
    assert len(stderr.strip().splitlines()) <= 1


@pytest.mark.parametrize("action", ["raise ValueError('a bug')", "raise OSError('a bug')", "1 / 0"])
def test_a_bug_keeps_its_traceback(tmp_path: Path, action: str) -> None:
    returned, _, stderr = program(tmp_path, "--action", action)
    assert returned == 1
    assert "Traceback" in stderr


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--cuont", "1"], "error: No such option"),
        (["--count", "many"], "error: Invalid value for '--count': "),
        (["extra"], "error: Got unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: list[str], printed: str) -> None:
    returned, stdout, stderr = program(tmp_path, *arguments)
    assert (returned, stdout) == (2, "")
    assert stderr.startswith(printed)
    assert stderr.endswith("; see program.py --help\n")
    assert len(stderr.splitlines()) == 1


def test_success_and_help(tmp_path: Path) -> None:
    assert program(tmp_path) == (0, "ran\n", "")
    returned, stdout, _ = program(tmp_path, "--help")
    assert returned == 0
    assert stdout.startswith("Usage: program.py")


def test_a_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        command = [sys.executable, str(tmp_path / "program.py"), "--action", "print('x' * 100000)"]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_nearest() -> None:
    assert nearest("tyni", ["smollm", "tiny"]) == "; did you mean tiny?"
    assert nearest("qqqq", ["smollm", "tiny"]) == ""


def test_a_user_error_is_one_printable_line() -> None:
    assert str(UserError("a\n b\u202e\x07")) == "a b\\x202e\\x07"
