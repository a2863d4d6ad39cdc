"""One page about this machine for bug reports: versions, GPUs, caches, and the checks that every run begins with.

    python -m ladder_lite.doctor
    python -m ladder_lite.doctor --json --online

The page must also work when a library is broken, so each one is first imported in a separate process. Of tokens and
other secrets, it shows only whether they are set. The network is used only with --online. The exit code is 1 if a check
failed.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from ladder_lite import __version__
from ladder_lite.config import load_recipe, recipe_names
from ladder_lite.doctor.checks import Check, nvidia_smi, preflight
from ladder_lite.errors import first_line
from ladder_lite.install import cache_folder, versions
from ladder_lite.models.memory import GIB

_IMPORTS = {
    "torch": "import torch",
    "bitsandbytes": "import bitsandbytes",
    "trl": "from trl import GRPOTrainer",  # also imports transformers, peft, accelerate and datasets
    "unsloth": "import unsloth",
}
_IMPORT_TIMEOUT_S = 180
# Environment variables that change how a run behaves.
_SHOWN_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("TORCHDYNAMO_DISABLE", "UNSLOTH_COMPILE_DISABLE", "UNSLOTH_ALLOW_CPU", "BNB_CUDA_VERSION", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME"),
    *("LADDER_LITE_CACHE", "WANDB_MODE", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"),
)
_HIDDEN_VARIABLES = (  # the addresses of proxies and of the endpoint can contain passwords
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY"),
)


def examine(online: bool = False) -> dict[str, Any]:
    """Return the contents of the page as JSON; `checks` are rows {"name", "ok", "detail", "remedy"}."""
    # First, because `preflight` sets variables itself, and the page is to show the user's.
    environment = _environment()
    imports = _try_imports()
    cards = nvidia_smi()
    has_torch = imports["torch"] is None  # None: imported without an error
    seen = _seen_by_torch() if has_torch else {"cuda": None, "gpus": []}
    checks = list(_check_imports(imports, needs_unsloth=bool(seen["gpus"])))
    if has_torch:
        # The recipe's own model does not matter: what is checked is how this machine computes, in the type that it
        # would choose. A broken Unsloth has already failed its own check and must not hide the others.
        backend = "auto" if imports.get("unsloth") is None else "transformers"
        overrides = ["model.device=auto", "model.dtype=auto", "model.load_in_4bit=true", f"model.backend={backend}"]
        checks += preflight(load_recipe("tiny", overrides), Path("runs"))
    loaders = [check.detail for check in checks if check.name == "loader"]
    return {
        "ladder_lite": __version__,
        "commit": _commit(),
        "versions": versions(),
        "gpus": cards,
        "torch": seen,
        "machine": _machine(),
        "loader": loaders[0] if loaders else "none: PyTorch cannot be imported",
        "unsloth": imports.get("unsloth", "not installed") or "can be imported",
        "hub": _hub(online),
        "environment": environment,
        "caches": _caches(),
        "recipes": recipe_names(),
        "checks": [asdict(check) for check in checks],
    }


def _try_imports() -> dict[str, str | None]:
    """Import each library in a separate process; return its error's line, or None if the import worked.

    There is no entry for Unsloth if it is not installed.
    """
    # Separate processes, because a broken library can end its process, and Unsloth patches the others.
    names = [name for name in _IMPORTS if name != "unsloth" or importlib.util.find_spec(name) is not None]
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(_import_error, names), strict=True))


def _import_error(name: str) -> str | None:
    command = [sys.executable, "-c", _IMPORTS[name]]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"does not end within {_IMPORT_TIMEOUT_S} s"
    if process.returncode == 0:
        return None
    if process.returncode < 0:  # killed by a signal, for example by a segmentation fault
        return f"ends the process (signal {-process.returncode})"
    # The last traceback is that of the error that was raised. Its frames are indented; the first line that is not
    # is the error: "ImportError: libcudart.so.13: cannot open".
    _, _, traceback = process.stderr.rpartition("Traceback (most recent call last):\n")
    return next((line for line in traceback.splitlines() if line and not line.startswith(" ")), "fails")


def _check_imports(imports: Mapping[str, str | None], needs_unsloth: bool) -> Iterator[Check]:
    for name, fault in imports.items():
        # Unsloth raises an error on a machine without a GPU, where it is not needed.
        if name != "unsloth" or needs_unsloth:
            yield Check(f"import of {name}", fault is None, fault or "works", f"reinstall {name}")


def _seen_by_torch() -> dict[str, Any]:
    import torch

    try:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except RuntimeError:  # the driver does not respond; the checks report why
        names = []
    return {"cuda": torch.version.cuda or getattr(torch.version, "hip", None), "gpus": names}


def _machine() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_total_gib": round(memory.total / GIB, 1),
        "memory_available_gib": round(memory.available / GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
    }


def _commit() -> str | None:
    """Return the commit of a checkout and whether files were changed since; None for an installed package."""
    checkout = Path(__file__).parents[2]
    # Without this check, git would find a repository of the user's that contains the virtual environment.
    if not (checkout / ".git").exists():
        return None
    # "f7b59c3 with changes"; --exclude=* ignores all tags
    describe = ["git", "-C", str(checkout), "describe", "--always", "--exclude=*", "--dirty= with changes"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _hub(online: bool) -> dict[str, str]:
    import httpx

    try:
        from huggingface_hub import HfApi, get_token
    except ImportError as error:
        return {"token": "unknown", "reachable": f"huggingface_hub cannot be imported ({error})"}
    reachable = "connection not tested (use --online)"
    if online:
        try:
            HfApi().model_info("HuggingFaceTB/SmolLM2-135M-Instruct", timeout=10)
            reachable = "can be reached"
        except (httpx.HTTPError, OSError) as error:
            reachable = f"cannot be reached ({first_line(error)})"
    return {"token": "present" if get_token() else "absent", "reachable": reachable}


def _environment() -> dict[str, str]:
    shown = {name: os.environ[name] for name in _SHOWN_VARIABLES if name in os.environ}
    # Proxies are commonly set in lower case, as https_proxy.
    hidden = {name: "set" for name in _HIDDEN_VARIABLES if os.environ.get(name) or os.environ.get(name.lower())}
    return shown | hidden


def _caches() -> dict[str, str]:
    caches = {"problem sets": str(cache_folder())}
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:  # `_hub` reports the error
        return caches
    return {"models": HF_HUB_CACHE, **caches}
