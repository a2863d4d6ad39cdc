"""The command `ladder-lite`, also `python -m ladder_lite`: all commands under one name."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from ladder_lite import __version__
from ladder_lite.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]


def ladder_lite(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ladder_lite", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_every_room_with_a_command_line_is_a_command() -> None:
    rooms = {path.parent.name for path in ROOT.glob("ladder_lite/*/__main__.py")}
    assert rooms == set(COMMANDS)
    shown = ladder_lite()
    assert shown.returncode == 0
    listed = shown.stdout.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in listed if line.strip()] == list(COMMANDS)
    assert "--install-completion" in shown.stdout


def test_a_command_is_that_of_its_room() -> None:
    graded = ladder_lite("verify", "-x", "-x**2/2")
    assert (graded.returncode, graded.stdout) == (0, "CORRECT\n")
    assert ladder_lite("verify", "x", "x").returncode == 1
    assert ladder_lite("recipe", "--list").stdout.startswith("exam ")
    assert "clean" in ladder_lite("problems", "--help").stdout
    assert ladder_lite("--version").stdout == f"ladder_lite {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["recpie"], ["recpie", "ladder_lite --help"]),
        (["report"], ["RUN", "ladder_lite report --help"]),
        (["problems", "clean"], ["ladder_lite problems clean --help"]),
        (["recipe", "tyni"], ["did you mean tiny?"]),
        (["verify", "x", "--protcol", "paper"], ["No such option: --protcol; did you mean --protocol?"]),
        (["verify", "x", "x**2/2", "--protcol", "paper"], ["No such option: --protcol", "verify --help"]),
        (["report", "pyproject.toml"], ["pyproject.toml: not a run folder"]),
        (["report", "a", "b", "--out", "pyproject.toml"], ["--out", "pyproject.toml"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_command(arguments: list[str], facts: list[str]) -> None:
    done = ladder_lite(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert all(fact in done.stderr for fact in facts)


def test_the_console_script_exists() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts["ladder-lite"].partition(":")
    assert callable(getattr(import_module(module), function))
