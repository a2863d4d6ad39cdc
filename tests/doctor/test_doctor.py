"""The page for bug reports: complete on this machine, and complete if libraries are broken."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from ladder_lite import doctor
from ladder_lite.doctor.checks import Check
from ladder_lite.doctor.page import from_home, render
from tests.support.commands import run_command

SECRETS = {"HF_TOKEN": "hf_aSecretOfMine", "HTTPS_PROXY": "http://me:aSecretOfMine@proxy:3128"}


@pytest.fixture(scope="module")
def result() -> subprocess.CompletedProcess[str]:
    return run_command("doctor", "--json", **SECRETS)


@pytest.fixture
def found(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return dict(json.loads(result.stdout))


def test_this_machine_passes(result: subprocess.CompletedProcess[str], found: dict[str, Any]) -> None:
    assert [check for check in found["checks"] if not check["ok"]] == []
    assert result.returncode == 0
    names = [check["name"] for check in found["checks"]]
    assert names[:3] == ["import of torch", "import of bitsandbytes", "import of trl"]
    assert {"versions", "loader", "disk for checkpoints"} <= set(names)
    assert {"tiny", "smollm"} <= set(found["recipes"])
    assert found["versions"]["torch"]


def test_secrets_are_not_shown(result: subprocess.CompletedProcess[str], found: dict[str, Any]) -> None:
    assert "aSecretOfMine" not in result.stdout + result.stderr
    assert found["hub"]["token"] == "present"
    assert (found["environment"]["HF_TOKEN"], found["environment"]["HTTPS_PROXY"]) == ("set", "set")


def test_the_page_fits_a_bug_report(found: dict[str, Any]) -> None:
    found["environment"]["LD_LIBRARY_PATH"] = ":".join(f"/usr/local/cuda-{n}/lib64" for n in range(100))
    found["caches"]["models"] = f"{Path.home()}/.cache/huggingface/hub"
    lines = render(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 60
    assert "  models: ~/.cache/huggingface/hub" in lines
    assert "  LD_LIBRARY_PATH=/usr/local/cuda-0" in "\n".join(lines)
    assert any(line.startswith("  ok   versions:") for line in lines)


def test_a_failed_check_is_on_the_page(found: dict[str, Any]) -> None:
    found["checks"].append({"name": "GPU memory", "ok": False, "detail": "too little", "remedy": "close something"})
    assert "  FAIL GPU memory: too little; close something" in render(found).splitlines()


def test_folders_whose_names_begin_like_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert from_home("/home/me/a:/home/menace/b /home/me") == "~/a:/home/menace/b ~"


def test_a_broken_torch_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open\\nsecond line')")
    result = run_command("doctor", PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert (result.returncode, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert "  FAIL import of torch: OSError: libcudart.so.13: cannot open; reinstall torch" in lines
    assert any("model.backend=auto" in line and "PyTorch cannot be imported" in line for line in lines)
    assert "recipes" in lines


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", None),
        ("raise NotImplementedError('You need a GPU.')", "NotImplementedError: You need a GPU."),
        ("import os; os.abort()", "ends the process (signal 6)"),
        ("raise SystemExit(3)", "fails"),
        (
            "try:\n 1/0\nexcept ZeroDivisionError:\n raise RuntimeError('no driver\\n  as it seems\\nat all')",
            "RuntimeError: no driver",
        ),
    ],
)
def test_failing_imports(monkeypatch: pytest.MonkeyPatch, code: str, expected: str | None) -> None:
    monkeypatch.setattr(doctor, "_IMPORTS", {"a library": code})
    assert doctor._try_imports() == {"a library": expected}


def test_an_import_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_IMPORTS", {"a library": "import time; time.sleep(60)"})
    monkeypatch.setattr(doctor, "_IMPORT_TIMEOUT_S", 0.2)
    assert doctor._try_imports() == {"a library": "does not end within 0.2 s"}


@pytest.mark.parametrize(("needs_unsloth", "expected"), [(False, [True]), (True, [True, False])])
def test_unsloth_may_fail_on_a_machine_without_a_gpu(needs_unsloth: bool, expected: list[bool]) -> None:
    checks = doctor._check_imports({"torch": None, "unsloth": "NotImplementedError"}, needs_unsloth)
    assert [check.ok for check in checks] == expected


def test_without_a_working_unsloth_the_other_loader_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def check(recipe: Any, _run_path: Path) -> list[Check]:
        asked.append(recipe.model.backend)
        return []

    monkeypatch.setattr(doctor, "preflight", check)
    for fault in ("RuntimeError: no driver", None):
        monkeypatch.setattr(doctor, "_try_imports", lambda fault=fault: {"torch": None, "unsloth": fault})
        doctor.examine()
    assert asked == ["transformers", "auto"]


@pytest.mark.parametrize("error", [None, httpx.ConnectError("no such host")])
def test_the_hub_is_contacted_only_with_online(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    asked = []

    class FakeHub:
        def model_info(self, repo_id: str, timeout: float) -> None:
            asked.append((repo_id, timeout))
            if error is not None:
                raise error

    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    doctor._hub(online=False)
    assert asked == []
    expected = "can be reached" if error is None else "cannot be reached (no such host)"
    assert doctor._hub(online=True)["reachable"] == expected
    assert len(asked) == 1


def test_a_missing_hub_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    assert "cannot be imported" in doctor._hub(online=True)["reachable"]
    assert list(doctor._caches()) == ["problem sets"]
