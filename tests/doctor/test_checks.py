"""Preflight checks: they pass on this machine, and each failure is one line with a remedy."""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.console import Console

from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import Recipe
from ladder_lite.doctor import checks as module
from ladder_lite.doctor.checks import Check, nvidia_smi, on_hub, open_backend, predict, require_passed
from ladder_lite.errors import UserError
from ladder_lite.terminal import Live
from tests.support.commands import run_command
from tests.support.fakes import FakeBackend

GIB = 2**30


def _recipe(*overrides: str) -> Recipe:
    return load_recipe("tiny", ["model.device=auto", *overrides])


def preflight(recipe: Recipe, path: Path, **needs: int) -> list[Check]:
    """The checks with these predicted needs, by default none."""
    with patch.object(module, "predict", lambda _: needs):
        return module.preflight(recipe, path)


def _named(checks: Sequence[Check], name: str) -> Check:
    return next(check for check in checks if check.name.startswith(name))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake GPU: PyTorch reports it, but computes on the CPU."""
    card = SimpleNamespace(capability=(7, 5), free=14 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: card.capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (card.free, 15 * GIB))
    real = torch.device
    monkeypatch.setattr(torch, "device", lambda name: real("cpu"))
    return card


def test_this_machine_passes(tmp_path: Path) -> None:
    checks = preflight(
        _recipe("model.load_in_4bit=true"), tmp_path / "runs" / "new", needed_bytes=GIB, adapter_bytes=10**6
    )
    assert [check.name for check in checks] == [
        "versions",
        "matrix product (cpu, float32)",
        "4-bit product (cpu, float32)",
        "loader",
        "disk for checkpoints",
    ]
    assert [check for check in checks if not check.ok or check.remedy] == []
    require_passed(checks)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("card")
def test_a_gpu_is_checked(tmp_path: Path) -> None:
    checks = preflight(_recipe("model.dtype=float16"), tmp_path, needed_bytes=GIB)
    assert [check.name for check in checks][:5] == [
        "versions",
        "compute capability",
        "matrix product (cpu, float16)",
        "GPU memory",
        "loader",
    ]
    require_passed(checks)


@pytest.mark.usefixtures("card")
def test_a_gpu_on_which_no_kernel_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_(*_: object) -> None:
        raise getattr(torch, "AcceleratorError", RuntimeError)(  # a class of its own from torch 2.8 on
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be ..."
        )

    # cuBLAS may have code for a card for which PyTorch has none, so the product alone would pass.
    monkeypatch.setattr(torch.Tensor, "__mul__", raise_)
    checks = preflight(_recipe(), tmp_path)
    with pytest.raises(UserError, match=r"matrix product .*no kernel image .*device\); choose another accelerator"):
        require_passed(checks)


def test_a_full_gpu_is_distinguished_from_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    monkeypatch.setattr(torch.Tensor, "__mul__", raise_)
    assert "nvidia-smi" in _named(preflight(_recipe(), tmp_path), "matrix product").remedy


@pytest.mark.parametrize("wrong", [0.0, float("nan")])
def test_a_wrong_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda left, right: real(left, right) * (1 if left.dtype == torch.float64 else wrong),
    )
    assert not _named(preflight(_recipe(), tmp_path), "matrix product").ok


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_products_pass_in_every_type(tmp_path: Path, dtype: str) -> None:
    checks = preflight(_recipe(f"model.dtype={dtype}", "model.load_in_4bit=true"), tmp_path)
    assert _named(checks, f"matrix product (cpu, {dtype})").ok
    assert _named(checks, f"4-bit product (cpu, {dtype})").ok


@pytest.mark.parametrize("error", [ImportError("libcudart.so.13: no such file"), RuntimeError("no CUDA library")])
def test_a_broken_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import bitsandbytes

    def raise_(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", raise_)
    check = _named(preflight(_recipe("model.load_in_4bit=true"), tmp_path), "4-bit product")
    assert (check.ok, str(error) in check.detail) == (False, True)
    assert "load_in_4bit=false" in check.remedy


def test_too_little_memory(card: SimpleNamespace, tmp_path: Path) -> None:
    card.free = 5 * GIB
    with pytest.raises(UserError, match=r"GPU memory: 5\.0 of 15\.0 GiB are free, the run needs at least 7\.3; close"):
        require_passed(preflight(_recipe(), tmp_path, needed_bytes=int(7.3 * GIB)))


@pytest.mark.parametrize(("capability", "ok"), [((7, 5), False), ((8, 0), True)])
def test_bfloat16_needs_a_gpu_that_supports_it(
    card: SimpleNamespace, tmp_path: Path, capability: tuple[int, int], ok: bool
) -> None:
    card.capability = capability
    check = _named(preflight(_recipe("model.dtype=bfloat16"), tmp_path), "compute capability")
    assert (check.ok, check.remedy) == (ok, "" if ok else "set model.dtype=auto")


@pytest.mark.parametrize(("capability", "why"), [((6, 0), "7.0"), ((7, 5), "not installed")])
def test_unsloth_on_a_gpu_that_it_does_not_support(
    card: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    why: str,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    card.capability = capability
    check = _named(preflight(_recipe("model.backend=unsloth"), tmp_path), "loader")
    assert (check.ok, why in check.detail) == (False, True)
    auto = _named(preflight(_recipe("model.backend=auto"), tmp_path), "loader")
    assert (auto.ok, why in auto.detail) == (True, True)


def test_the_driver_lists_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'test "$1" = --query-gpu=name,driver_version,memory.total,memory.free,compute_cap || exit 1\n'
        "echo 'Tesla T4, 550.54.15, 15360, 15095, 7.5'\n"
        "echo 'NVIDIA GB10, 580.1, [N/A], [N/A], 12.1'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    t4, shared = nvidia_smi()
    assert t4 == {
        "name": "Tesla T4",
        "driver": "550.54.15",
        "memory_total_mib": 15360,
        "memory_free_mib": 15095,
        "capability": "7.5",
    }
    assert shared["memory_total_mib"] == 0
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert nvidia_smi() == []
    program.unlink()
    assert nvidia_smi() == []


T4 = {"name": "Tesla T4", "driver": "535.1"}
OLD_DRIVER = RuntimeError("The NVIDIA driver on your system is too old (found version 12020).\nPlease update")


@pytest.mark.parametrize(
    ("device", "cards", "visible", "fault", "words"),
    [
        ("auto", [T4], None, OLD_DRIVER, ["Tesla T4", "driver on your system is too old", "model.device=cpu"]),
        ("cuda", [T4], None, OLD_DRIVER, ["Tesla T4", "driver on your system is too old", "model.device=cpu"]),
        ("auto", [T4], None, None, ["Tesla T4", "not compiled with CUDA", "model.device=cpu"]),
        ("cuda", [], None, OLD_DRIVER, ["neither PyTorch nor nvidia-smi", "model.device=cpu"]),
        ("cuda", [T4], "", OLD_DRIVER, ["CUDA_VISIBLE_DEVICES", "model.device=cpu"]),
        ("auto", [], None, OLD_DRIVER, []),
        ("auto", [T4], "-1", OLD_DRIVER, []),
        ("cpu", [T4], None, OLD_DRIVER, []),
    ],
)
def test_a_gpu_that_torch_cannot_use_fails(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    device: str,
    cards: list[dict[str, Any]],
    visible: str | None,
    fault: Exception | None,
    words: list[str],
) -> None:
    def init() -> None:
        raise fault or AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "prepare_environment", lambda: None)  # it would set that variable
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(module, "nvidia_smi", lambda: cards)
    checks = preflight(_recipe(f"model.device={device}"), tmp_path)
    assert [check.ok for check in checks if check.name == "GPU"] == [False] * bool(words)
    if words:
        with pytest.raises(UserError) as caught:
            require_passed(checks)
        assert all(word in str(caught.value) for word in words)
        assert "\n" not in str(caught.value)
    else:
        require_passed(checks)


@pytest.mark.parametrize("recipe", ["llama3b", "qwen7b"])
def test_a_recipe_for_gpus_does_not_start_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checks = preflight(load_recipe(recipe), tmp_path)
    assert not _named(checks, "GPU").ok
    on_purpose = preflight(load_recipe(recipe, ["model.device=cpu"]), tmp_path)
    assert "GPU" not in [check.name for check in on_purpose]
    rehearsal = load_recipe(recipe, (), profile="rehearsal")
    require_passed(preflight(rehearsal, tmp_path))


@pytest.mark.parametrize(
    ("versions", "named"),
    [
        ({"torch": "2.10.0+cu128"}, []),  # Kaggle's image, in late 2026
        ({"torch": "2.11.0+cu128", "datasets": "4.0.0"}, ["datasets 4.0.0"]),  # Colab's
        ({"trl": "1.15.0"}, ["trl 1.15.0"]),
        ({"trl": "1.16.0"}, []),
    ],
)
def test_packages_that_are_too_old_in_a_notebook_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, versions: dict[str, str], named: list[str]
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or real(name))
    check = _named(preflight(_recipe(), tmp_path), "versions")
    assert check.ok == (not named)
    assert all(f"{package} is not " in check.detail for package in named)
    assert all(f"'{package.split()[0]}" in check.remedy for package in named)


def test_a_broken_torch_hides_no_other_fault(tmp_path: Path) -> None:
    code = (
        "import sys, builtins\n"
        "sys.modules['torch'] = None\n"  # importing it raises ImportError
        "from pathlib import Path\n"
        "from ladder_lite.config.load import load_recipe\n"
        "from ladder_lite.doctor.checks import preflight\n"
        "for check in preflight(load_recipe('tiny'), Path(sys.argv[1])): print(check.name, check.ok)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "versions True",
        "loader False",
        "disk for checkpoints True",
    ]


def test_a_broken_torch_ends_a_run_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open\\nsecond line')")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = run_command("recipe", "tiny", "--run-dir", tmp_path / "run", PYTHONPATH=paths)
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "error: loader: PyTorch does not work here (libcudart.so.13: cannot open); reinstall torch"
    ]


@pytest.mark.parametrize(
    ("report_to", "ok", "named"),
    [
        ("trackio", False, "trackio"),
        ("[tensorboard, wandb]", False, "wandb"),
        ("tensorboard", True, "tensorboard"),
        ("wandb_", False, "wandb_"),
    ],
)
def test_trackers_that_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report_to: str, ok: bool, named: str
) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", object)  # as if it were installed
    for tracker in ("trackio", "wandb"):
        monkeypatch.setattr(integration_utils, f"is_{tracker}_available", lambda: False)
    check = _named(preflight(_recipe(f"grpo.trl.report_to={report_to}"), tmp_path), "grpo.trl.report_to")
    assert (check.ok, named in check.detail) == (ok, True)
    assert ok or "report_to=none" in check.remedy


@pytest.mark.parametrize("report_to", ["none", "null", "all", "[]", "[none]"])
def test_no_named_tracker_means_no_check(tmp_path: Path, report_to: str) -> None:
    checks = preflight(_recipe(f"grpo.trl.report_to={report_to}"), tmp_path)
    assert [check for check in checks if "report_to" in check.name] == []


@pytest.mark.parametrize("override", ["grpo.trl.optim=adamw_8bt", "ttrl.trl.lr_scheduler_type=cosin"])
def test_names_that_only_training_would_refuse(tmp_path: Path, override: str) -> None:
    name, _, value = override.partition("=")
    check = _named(preflight(_recipe(override), tmp_path), name)
    assert (check.ok, check.detail) == (False, f'"{value}" is unknown')
    assert "adamw_8bit" in check.remedy or "cosine" in check.remedy
    of_ablation = _named(
        preflight(_recipe("ablations.ladder_10={grpo.trl.optim: sdg}"), tmp_path), "ablations.ladder_10: grpo.trl.optim"
    )
    assert of_ablation.remedy == "did you mean sgd?"
    checks = preflight(_recipe("grpo.trl.optim=adamw_8bit", "ttrl.trl.lr_scheduler_type=cosine"), tmp_path)
    assert [check for check in checks if ".trl." in check.name] == []


def _requirements(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(lines))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pyyaml>=999", r"versions: pyyaml .* is not >=999; pip install 'pyyaml>=999'$"),
        ("no-such-package>=1", r"versions: no-such-package is not installed; pip install 'no-such-package>=1'$"),
    ],
)
def test_versions_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str) -> None:
    _requirements(monkeypatch, "numpy>=1", line)
    with pytest.raises(UserError, match=message):
        require_passed(preflight(_recipe(), tmp_path))


def test_a_build_of_torch_for_a_card_is_in_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _requirements(monkeypatch, "torch>=2.6,<2.14", "unsloth>=1; extra == 'gpu'", "mypy<0; extra == 'dev'")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.10.0rc1+cu128")
    check = _named(preflight(_recipe(), tmp_path), "versions")
    assert (check.ok, check.detail) == (True, "1 packages, each within its range")


def test_the_ranges_are_those_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)  # a checkout that was never installed
    plain = {requirement.name for requirement in module._requirements(False)}
    gpu = {requirement.name for requirement in module._requirements(True)}
    assert {"torch", "trl", "bitsandbytes"} <= plain
    assert gpu - plain == {"unsloth", "unsloth_zoo"}


def _free(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=n_bytes))


def test_a_disk_too_small_for_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _free(monkeypatch, GIB)
    require_passed(preflight(_recipe(), tmp_path, adapter_bytes=40 * 2**20))  # 0.25 GiB, and 14 adapters
    with pytest.raises(UserError, match=r"disk for checkpoints: 1\.0 GiB are free .* 1\.6 are needed; free some space"):
        require_passed(preflight(_recipe(), tmp_path, adapter_bytes=100 * 2**20))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; returns the folder for the model's files in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--someone--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    return repo / "snapshots" / "abc"


def test_a_model_that_must_be_downloaded_needs_disk_space(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _free(monkeypatch, 2 * GIB)
    recipe = _recipe("model.id=someone/model")
    with pytest.raises(UserError, match=r"disk for checkpoints and the model: .* 3\.2 are needed; .* or set HF_HOME"):
        require_passed(preflight(recipe, tmp_path, download_bytes=3 * GIB))
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (cache / "model.safetensors.index.json").write_text(json.dumps(shards))
    (cache / "model-1.safetensors").touch()
    assert not all(check.ok for check in preflight(recipe, tmp_path, download_bytes=3 * GIB))  # half of it is there
    (cache / "model-2.safetensors").touch()
    require_passed(preflight(recipe, tmp_path, download_bytes=3 * GIB))


def test_a_download_is_announced(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    console = Console(file=written, width=200)
    monkeypatch.setattr("ladder_lite.doctor.checks.predict", lambda recipe: {"download_bytes": 6_425_499_648})
    monkeypatch.setattr("ladder_lite.doctor.checks.preflight", lambda *_, **__: [])
    monkeypatch.setattr("ladder_lite.models.load_backend", lambda recipe: FakeBackend([]))
    recipe = _recipe("model.id=someone/model")
    for _ in range(2):  # the second time, all of it is there
        assert isinstance(open_backend(recipe, tmp_path, Live(console)), FakeBackend)
        (cache / "model.safetensors").touch()
    told = written.getvalue()
    assert told.startswith("load someone/model: downloading about 6.4 GB\nload someone/model: ...\n")
    assert told.count("downloading") == 1


def test_a_model_is_loaded_on_a_machine_that_passes_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr("ladder_lite.models.load_backend", lambda recipe: loaded.append(recipe) or FakeBackend([]))
    recipe, written = _recipe(), io.StringIO()
    live = Live(Console(file=written, width=200))
    _requirements(monkeypatch, "no-such-package>=1")
    with pytest.raises(UserError, match="no-such-package is not installed"):
        open_backend(recipe, tmp_path, live)
    assert (loaded, written.getvalue()) == ([], "")
    _requirements(monkeypatch, "numpy>=1")
    assert isinstance(open_backend(recipe, tmp_path, live), FakeBackend)
    assert loaded == [recipe]
    assert written.getvalue() == "load embedded: ...\nload embedded: done after 0:00\n"


def test_a_model_of_one_file_that_is_cached(cache: Path, tmp_path: Path) -> None:
    (cache / "model.safetensors").touch()
    names = [check.name for check in preflight(_recipe("model.id=someone/model"), tmp_path, download_bytes=GIB)]
    assert [name for name in names if "disk" in name] == ["disk for checkpoints"]


def test_predicted_needs_are_those_of_the_smallest_batches() -> None:
    from ladder_lite.models.memory import Setup, total, train_parts
    from ladder_lite.models.shape import read_shape

    recipe = load_recipe("llama3b", ["model.backend=transformers"])
    needs = predict(recipe)
    shape = read_shape(recipe.model.id)
    setup = Setup.of(shape, recipe.model, recipe.grpo.trl, "transformers", context_bytes=0)
    assert needs["needed_bytes"] >= total(train_parts(setup, 1))
    assert needs["needed_bytes"] < total(train_parts(setup, setup.largest_micro_batch))
    assert 6.4e9 < needs["download_bytes"] < 6.5e9  # 3.2 billion weights in 16 bits
    assert needs["adapter_bytes"] == 4 * shape.lora_weights(recipe.model.lora["r"], recipe.model.lora["target_modules"])


def test_a_model_of_unknown_shape_has_no_known_needs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert predict(_recipe(f"model.id={tmp_path}")) == {}


@pytest.mark.parametrize(
    ("model_id", "expected"),
    [
        ("meta-llama/Llama-3.2-3B-Instruct", True),
        ("embedded", False),
        ("gpt2", True),
        ("../llama", False),
        ("/models/llama", False),
        ("models/llama.gguf", False),
        ("./models/llama", False),
    ],
)
def test_hub_ids(model_id: str, expected: bool) -> None:
    assert on_hub(model_id) == expected


def test_a_local_folder_is_not_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert on_hub("models/mine")
    monkeypatch.chdir(tmp_path)
    assert not on_hub("models/mine")
