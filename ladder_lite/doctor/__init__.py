"""One page about this machine to paste into a bug report: versions, GPUs, caches, and the checks that runs begin with.

    python -m ladder_lite.doctor
    python -m ladder_lite.doctor --json --online

It tells of broken libraries, so it breaks over none: each is imported in a process of its own first. Tokens and other
secrets are told of as set or not set. The network is asked only with --online. Exit code 1 when a check failed.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from ladder_lite import __version__
from ladder_lite.config.load import load_recipe, recipe_names
from ladder_lite.config.schema import Recipe
from ladder_lite.doctor.checks import Check, nvidia_smi, preflight
from ladder_lite.errors import UserError
from ladder_lite.install import versions
from ladder_lite.models.memory import GIB

_IMPORTS = {
    "torch": "import torch",
    "bitsandbytes": "import bitsandbytes",
    "trl": "from trl import GRPOTrainer",  # and with it transformers, peft, accelerate and datasets
    "unsloth": "import unsloth",
}
_IMPORT_SECONDS = 180
_SHOWN_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("TORCHDYNAMO_DISABLE", "UNSLOTH_COMPILE_DISABLE", "UNSLOTH_ALLOW_CPU", "BNB_CUDA_VERSION", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME"),
    *("LADDER_LITE_CACHE", "WANDB_MODE", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"),
)
_HIDDEN_VARIABLES = (  # the proxies' and the endpoint's addresses can hold passwords
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY"),
)
_WIDTH = 80
_MAX_ENTRY = 480
"""Characters kept of an entry: a path list or an error can be pages long."""


def examine(online: bool = False) -> dict[str, Any]:
    """Everything the page says, as JSON; `checks` are rows {"name", "ok", "detail", "remedy"}."""
    environment = _environment()  # the user's: the checks add what this package sets
    imports = _try_imports()
    cards = nvidia_smi()
    has_torch = imports["torch"] is None
    seen = _seen_by_torch() if has_torch else {"cuda": None, "gpus": []}
    unsloth_works = imports.get("unsloth") is None
    recipes = _recipes()
    checks = list(_check_imports(imports, needs_unsloth=bool(seen["gpus"])))
    checks += [Check(f"recipe {name}", False, fault) for name, fault in recipes.items() if fault]
    # A recipe of any model will do: what is checked is how this machine computes, in the type that it would choose.
    overrides = [
        "model.device=auto",
        "model.dtype=auto",
        "model.load_in_4bit=true",
        f"model.backend={'auto' if unsloth_works else 'transformers'}",
    ]
    if has_torch and (recipe := _recipe_or_none(overrides)) is not None:
        checks += preflight(recipe, Path("runs"))
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
        "recipes": [name for name, fault in recipes.items() if not fault],
        "checks": [asdict(check) for check in checks],
    }


def page(found: Mapping[str, Any]) -> str:
    """The page as text of at most 80 columns; what lies below the home folder is shown from ~ on."""
    machine, caches = found["machine"], found["caches"]
    commit = f", commit {found['commit']}" if found["commit"] else ""
    packages = {name: version for name, version in found["versions"].items() if name not in ("python", "platform")}
    checks = [
        f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}"
        + (f"; {check['remedy']}" if check["remedy"] else "")
        for check in found["checks"]
    ]
    gpus = [
        f"{card['name']}, {card['memory_free_mib'] / 1024:.1f} of {card['memory_total_mib'] / 1024:.1f} GiB free, "
        f"capability {card['capability']}, driver {card['driver']}"
        for card in found["gpus"]
    ]
    of_torch = ", ".join(found["torch"]["gpus"]) or "none"
    sections = {
        f"ladder_lite {found['ladder_lite']}{commit}": [
            f"Python {found['versions']['python']}, {found['versions']['platform']}",
            ", ".join(f"{name}=={version}" for name, version in packages.items()),
        ],
        "GPUs": [*gpus, f"seen by PyTorch (CUDA {found['torch']['cuda'] or 'none'}): {of_torch}"],
        "machine": [
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_available_gib']} of "
            f"{machine['memory_total_gib']} GiB memory free, {machine['disk_free_gib']} GiB disk free here"
        ],
        "loader": [f"model.backend auto takes: {found['loader']}", f"unsloth: {found['unsloth']}"],
        "hub": [f"token {found['hub']['token']}, {found['hub']['reachable']}"],
        "environment": [f"{name}={value}" for name, value in found["environment"].items()] or ["nothing that matters"],
        "caches": [f"{name}: {path}" for name, path in caches.items()],
        "recipes": [", ".join(found["recipes"]) or "none can be read"],
        "checks": checks,
    }
    lines = []
    for heading, entries in sections.items():
        lines.append(heading)
        for entry in entries:
            text = _short(entry)
            text = text if len(text) <= _MAX_ENTRY else f"{text[:_MAX_ENTRY]}..."
            lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _try_imports() -> dict[str, str | None]:
    """Import each library in a process of its own; None where that went well, else the error's line.

    An import may end the process, and Unsloth's changes the other libraries. Without Unsloth there is no entry for it.
    """
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for name, code in _IMPORTS.items()
        if name != "unsloth" or importlib.util.find_spec(name) is not None
    }
    return {name: _import_error(process) for name, process in started.items()}


def _import_error(process: "subprocess.Popen[str]") -> str | None:
    try:
        _, text = process.communicate(timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"does not end within {_IMPORT_SECONDS} s"
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"ends the process (signal {-process.returncode})"
    # Below the last traceback's frames, which are indented, stands the error, on one line or several.
    _, _, traceback = text.rpartition("Traceback (most recent call last):\n")
    return next((line for line in traceback.splitlines() if line and not line.startswith(" ")), "fails")


def _check_imports(imports: Mapping[str, str | None], needs_unsloth: bool) -> Iterator[Check]:
    for name, fault in imports.items():
        if name != "unsloth" or needs_unsloth:  # without a GPU it refuses, as it should
            remedy = f"install {name} anew" if fault else ""
            yield Check(f"import of {name}", fault is None, fault or "works", remedy)


def _seen_by_torch() -> dict[str, Any]:
    import torch

    try:
        names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    except RuntimeError:  # a driver that does not answer; the checks say more
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
    """The commit of a checkout, and whether it was changed since; None where the package was installed."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + (" with changes" if changed else "")


def _recipes() -> dict[str, str]:
    """The shipped recipes, each with what is wrong with it, or nothing."""
    found = {}
    for name in recipe_names():
        try:
            load_recipe(name)
            found[name] = ""
        except UserError as error:
            found[name] = str(error)
    return found


def _recipe_or_none(overrides: list[str]) -> Recipe | None:
    try:
        return load_recipe("tiny", overrides)
    except UserError:  # told among the recipes
        return None


def _hub(online: bool) -> dict[str, str]:
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        return {"token": "unknown", "reachable": f"huggingface_hub cannot be imported ({error})"}
    token = "present" if get_token() else "absent"
    return {"token": token, "reachable": _ask_hub() if online else "not asked whether it can be reached (--online)"}


def _ask_hub() -> str:
    import httpx
    from huggingface_hub import HfApi

    try:
        HfApi().model_info("HuggingFaceTB/SmolLM2-135M-Instruct", timeout=10)
    except (httpx.HTTPError, OSError) as error:
        return f"cannot be reached ({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
    return "can be reached"


def _environment() -> dict[str, str]:
    shown = {name: os.environ[name] for name in _SHOWN_VARIABLES if name in os.environ}
    hidden = {name: "set" for name in _HIDDEN_VARIABLES if os.environ.get(name) or os.environ.get(name.lower())}
    return shown | hidden


def _caches() -> dict[str, str]:
    from ladder_lite.problems.paper_sets import fetched

    caches = {"problem sets": str(fetched("any").parent)}
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:  # told with the token
        return caches
    return {"models": HF_HUB_CACHE, **caches}


def _short(text: str) -> str:
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?!\w)", "~", text) if home != "/" else text


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the Hugging Face hub whether it can be reached.")
    ] = False,
) -> None:
    """Print what a bug report needs to say about this machine, and check that runs can work here."""
    found = examine(online)
    print(_short(json.dumps(found, indent=1)) if as_json else page(found))
    if not all(check["ok"] for check in found["checks"]):
        raise typer.Exit(1)
