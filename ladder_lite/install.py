"""What this installation has: versions, the shipped recipes and problem sets, and the folder for downloads."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Literal

from ladder_lite.errors import UserError

_PACKAGES = (
    "ladder_lite",
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "unsloth",
    "unsloth_zoo",
    "numpy",
    "scipy",
    "sympy",
    "mpmath",
    "python-flint",
)


def versions() -> dict[str, str]:
    """Return the installed versions of what decides a run's numbers, by package, without importing any."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def shipped(folder: Literal["recipes", "benchmarks"]) -> Path:
    """Return the folder with the package's recipes or problem sets: in the wheel or beside the package's source."""
    package = Path(__file__).parent
    for candidate in (package / f"_{folder}", package.parent / folder):
        if candidate.is_dir():
            return candidate
    raise UserError(f"{package}: the shipped {folder} are missing from this installation; reinstall ladder_lite")


def cache_folder() -> Path:
    """Return the folder for what is fetched or converted once: LADDER_LITE_CACHE, or the user's cache folder."""
    if folder := os.environ.get("LADDER_LITE_CACHE"):
        return Path(folder)
    import pooch

    return Path(pooch.os_cache("ladder_lite"))
