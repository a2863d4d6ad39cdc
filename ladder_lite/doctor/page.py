"""The page of `ladder_lite.doctor` as text."""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladder_lite.doctor.checks import Check

_WIDTH = 80
_MAX_ENTRY = 480
"""Characters kept of an entry: a list of paths or an error can be pages long."""


def render(page: Mapping[str, Any]) -> str:
    """Return the page as text of at most 80 columns, with ~ for the home folder."""
    machine, versions = page["machine"], page["versions"]
    commit = f", commit {page['commit']}" if page["commit"] else ""
    packages = {name: version for name, version in versions.items() if name not in ("python", "platform")}
    # "ok   versions: 21 packages, each within its range"
    checks = [f"{'ok  ' if row['ok'] else 'FAIL'} {Check(**row)}" for row in page["checks"]]
    # Two lists of GPUs, the driver's and PyTorch's: where they differ, PyTorch's build does not suit the driver.
    gpus = [
        f"{card['name']}, {card['memory_free_mib'] / 1024:.1f} of {card['memory_total_mib'] / 1024:.1f} GiB free, "
        f"capability {card['capability']}, driver {card['driver']}"
        for card in page["gpus"]
    ]
    seen_by_torch = ", ".join(page["torch"]["gpus"]) or "none"
    sections = {
        f"ladder_lite {page['ladder_lite']}{commit}": [
            f"Python {versions['python']}, {versions['platform']}",
            ", ".join(f"{name}=={version}" for name, version in packages.items()),
        ],
        "GPUs": [*gpus, f"seen by PyTorch (CUDA {page['torch']['cuda'] or 'none'}): {seen_by_torch}"],
        "machine": [
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_available_gib']} of "
            f"{machine['memory_total_gib']} GiB memory free, {machine['disk_free_gib']} GiB free on this disk"
        ],
        "loader": [f"model.backend=auto selects: {page['loader']}", f"unsloth: {page['unsloth']}"],
        "hub": [f"token {page['hub']['token']}, {page['hub']['reachable']}"],
        "environment": [f"{name}={value}" for name, value in page["environment"].items()] or ["nothing relevant set"],
        "caches": [f"{name}: {path}" for name, path in page["caches"].items()],
        "recipes": [", ".join(page["recipes"])],
        "checks": checks,
    }
    lines = []
    for heading, entries in sections.items():
        lines.append(heading)
        for entry in entries:
            text = from_home(entry)
            text = text if len(text) <= _MAX_ENTRY else f"{text[:_MAX_ENTRY]}..."
            # Names such as python-flint stay in one piece.
            lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def from_home(text: str) -> str:
    """Return the text with ~ for the home folder, which contains the user's name."""
    home = str(Path.home())
    # /home/me must not match in /home/menace. In containers the home folder can be /, which would match every path.
    return re.sub(rf"{re.escape(home)}(?!\w)", "~", text) if home != "/" else text
