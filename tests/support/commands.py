"""Run the package's commands as a user does, each in a new process."""

import os
import subprocess
import sys
from pathlib import Path


def run_command(
    room: str, *arguments: object, cwd: Path | None = None, timeout_s: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ladder_lite.ROOM` with these arguments; return the finished process, whatever its exit code."""
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
