"""The package's commands as a user runs them, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def run_command(
    room: str, *arguments: object, cwd: Path | None = None, timeout_s: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ladder_lite.ROOM` with these arguments to its end, whatever its exit code is."""
    command = [sys.executable, "-m", f"ladder_lite.{room}", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        timeout=timeout_s,
        check=False,
    )
