"""The Kaggle notebooks, run from the first cell to the last with the embedded model in place of the large ones.

The recipes `llama3b` and `qwen7b` run in full, in 4 bits, with their profile `rehearsal`. The notebook of `smollm` is
compared with that of `tiny`.
"""

import ast
import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from ladder_lite.config.load import load_recipe
from ladder_lite.install import shipped
from tests.support.commands import run_command

FOLDER = shipped("recipes") / "kaggle"
FEW_PROBLEMS = "conditions=[base,ladder] task.select.samples=1 task.select.train=2 task.select.test=8"
NAMES = ("tiny", "smollm", "llama3b", "qwen7b")
ARGUMENTS = {"tiny": f"--smoke {FEW_PROBLEMS}", "llama3b": "--profile rehearsal", "qwen7b": "--profile rehearsal"}


def run(name: str, folder: Path, attached: Path, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    """Run a whole notebook in `folder`, with the folder `attached` as its input."""
    monkeypatch.setenv("LADDER_LITE_NOTEBOOK_ARGS", ARGUMENTS[name])
    monkeypatch.setenv("LADDER_LITE_NOTEBOOK_INPUT", str(attached))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=580, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def displayed(notebook: nbformat.NotebookNode) -> list[str]:
    """The MIME types that the last cell displays."""
    return [kind for output in notebook.cells[-1].outputs for kind in output.data if kind != "text/plain"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_notebook_runs_and_shows_the_report(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    notebook = run(name, first, tmp_path / "nothing", monkeypatch)
    report = json.loads((first / "runs" / name / "report.json").read_text())
    conditions = ["base", "ladder"] if name == "tiny" else list(load_recipe(name).conditions)
    assert list(report["conditions"]) == conditions
    assert report["conditions"]["ladder"]["steps"] == 2
    assert report["variants"]["kept"] > 0
    assert "evaluate ladder: 8/8" in printed(notebook)
    assert "steps: at most" in printed(notebook).lower()  # the dry run
    assert displayed(notebook) == ["text/markdown", "image/png", "text/markdown"]  # figures stand in the text

    second.mkdir()
    resumed = run(name, second, first, monkeypatch)  # a new session, with the output of the first one attached
    assert f"{first}/runs/{name}" in printed(resumed)
    assert "evaluate ladder" not in printed(resumed)  # no stage is rerun
    assert displayed(resumed) == displayed(notebook)


def test_the_notebook_of_smollm_is_that_of_tiny_with_other_settings() -> None:
    """It is not run: it would need the model."""
    tiny, smollm = (nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells for name in ("tiny", "smollm"))
    assert smollm[1].source == tiny[1].source.replace("tiny", "smollm").replace('ARGS = ""', 'ARGS = "--budget 9h"')
    assert [cell.source for cell in smollm[2:]] == [cell.source for cell in tiny[2:]]


def test_the_notebook_of_tiny_is_stored_with_the_outputs_of_a_whole_run() -> None:
    """It can be looked at before anything is installed."""
    text = (FOLDER / "tiny.ipynb").read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert all(f"\n{condition} " in printed(notebook) for condition in load_recipe("tiny").conditions)
    assert {"text/markdown", "image/png"} <= set(displayed(notebook))
    assert [cell.execution_count for cell in notebook.cells[1:]] == [*range(1, len(notebook.cells))]
    assert len(text) < 1_000_000


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tiny"])
def test_other_notebooks_are_stored_without_outputs(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    for cell in notebook.cells[1:]:
        assert (cell.cell_type, cell.outputs, cell.execution_count) == ("code", [], None)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebooks_arguments_are_valid(name: str, tmp_path: Path) -> None:
    """The other tests replace the notebook's `ARGS`; this one uses them, for a dry run."""
    settings = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells[1].source
    assigned = {
        node.targets[0].id: node.value.value
        for node in ast.parse(settings).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    assert assigned["RECIPE"] == name
    budget = "--budget 9h" if name == "smollm" else "--profile kaggle --budget 9h"
    assert assigned["ARGS"].startswith("" if name == "tiny" else budget)
    result = run_command("recipe", name, *assigned["ARGS"].split(), "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{name}: " in result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_installing_keeps_the_installed_torch(name: str, tmp_path: Path) -> None:
    """Run the install cell with names that pretend that the project is not installed."""
    commands: list[list[str]] = []
    wheel = tmp_path / "input" / "some-dataset" / "ladder_lite-0.1-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    names: dict[str, Any] = {
        "find_spec": lambda module: None if module == "ladder_lite" else importlib.util.find_spec(module),
        "subprocess": SimpleNamespace(run=lambda command, check: commands.append(command)),
        "sys": sys,
        "INPUT": tmp_path / "input",
        "CACHE": tmp_path,
        "SOURCE": None,
    }
    cell = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells[2].source
    exec(compile(cell, name, "exec"), names)
    (command,) = commands
    extra = "" if name in ("tiny", "smollm") else "[gpu,ray]"
    assert command[-1] == f"ladder_lite{extra} @ {wheel.as_uri()}"
    constraints = Path(command[command.index("--constraint") + 1])
    assert f"torch=={version('torch')}" in constraints.read_text().splitlines()

    commands.clear()
    exec(compile(cell, name, "exec"), names | {"find_spec": importlib.util.find_spec})
    assert commands == []  # the project is installed
    exec(compile(cell, name, "exec"), names | {"INPUT": tmp_path / "absent", "SOURCE": None})
    assert commands[0][-1] == f"ladder_lite{extra}"  # from the package index


@pytest.mark.parametrize("name", ["llama3b", "qwen7b"])
@pytest.mark.parametrize("n_gpus", [0, 1, 2])
def test_two_gpus_get_a_worker_each(name: str, n_gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # the cell sets what is not set
    monkeypatch.setenv("LADDER_LITE_CACHE", str(tmp_path))
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = "".join(f"echo 'GPU {number}: Tesla T4 (UUID: GPU-{number})'\n" for number in range(n_gpus))
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
    (tmp_path / "nvidia-smi").chmod(0o755)
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    names: dict[str, Any] = {}
    exec(compile(cells[1].source, name, "exec"), names)
    shown: list[tuple[str, ...]] = []
    (run_cell,) = (cell.source for cell in cells if "# Run the recipe" in cell.source)
    exec(
        compile(run_cell, name, "exec"),
        names | {"show": lambda *words: shown.append(words), "args": ["--budget", "9h"]},
    )
    assert ("--workers" in shown[0]) == (n_gpus == 2)


def test_notebooks_are_not_listed_as_recipes() -> None:
    listed = run_command("recipe", "--list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["exam", "llama3b", "qwen7b", "smollm", "tiny"]
