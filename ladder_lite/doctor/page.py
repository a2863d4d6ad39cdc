"""What `ladder_lite.doctor` found, as text for a bug report."""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladder_lite.doctor.checks import Check

_WIDTH = 80
_MAX_ENTRY = 480
"""Characters kept of an entry: a path list or an error can be pages long."""


def render(found: Mapping[str, Any]) -> str:
    """The page as text of at most 80 columns; what lies below the home folder is shown from ~ on."""
    machine, caches = found["machine"], found["caches"]
    commit = f", commit {found['commit']}" if found["commit"] else ""
    packages = {name: version for name, version in found["versions"].items() if name not in ("python", "platform")}
    checks = [f"{'ok  ' if row['ok'] else 'FAIL'} {Check(**row)}" for row in found["checks"]]
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
            text = from_home(entry)
            text = text if len(text) <= _MAX_ENTRY else f"{text[:_MAX_ENTRY]}..."
            lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def from_home(text: str) -> str:
    """The text with paths below the home folder written from ~ on."""
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?!\w)", "~", text) if home != "/" else text
