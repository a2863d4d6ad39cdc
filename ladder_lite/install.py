"""The installation: package versions, the shipped recipes and problem sets, and the folder for downloads."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Literal

from ladder_lite.errors import UserError

# What can change a run's numbers. Each is recorded in versions.json if it is installed.
_PACKAGES = (
    *("ladder_lite", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets"),
    *("unsloth", "unsloth_zoo", "numpy", "scipy", "sympy", "mpmath", "python-flint"),
)


def versions() -> dict[str, str]:
    """Return the installed version of each package that affects a run's numbers, without importing any of them."""
    installed = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # Unsloth on a machine without a GPU, for example
            continue
    return installed


def shipped(folder: Literal["recipes", "benchmarks"]) -> Path:
    """Return the folder of the shipped recipes or problem sets. Raises UserError if it is missing."""
    package = Path(__file__).parent
    # A wheel contains them as ladder_lite/_recipes; in a checkout they are beside the package.
    for candidate in (package / f"_{folder}", package.parent / folder):
        if candidate.is_dir():
            return candidate
    raise UserError(f"{package}: the shipped {folder} are missing from this installation; reinstall ladder_lite")


def cache_folder() -> Path:
    """Return the folder for downloaded and converted files: LADDER_LITE_CACHE, or one in the user's cache folder."""
    if folder := os.environ.get("LADDER_LITE_CACHE"):
        return Path(folder)
    import pooch  # here, because few commands need the cache

    return Path(pooch.os_cache("ladder_lite"))
