"""Copy wheels without the files that the GPU machine does not need: python3 benchmarks/gpu/repack.py RAW WHEELS"""

import sys
import zipfile
from pathlib import Path


def is_transferred(wheel: str, name: str) -> bool:
    """Return whether a file of a wheel is transferred."""
    if name.endswith("entry_points.txt"):
        return False
    if wheel.startswith("bitsandbytes-") and name.endswith(".so"):  # it has one library for each version of CUDA
        return name.endswith(("_cuda130.so", "_cpu.so"))
    # Unsloth's wheel also contains a web interface and a command line.
    return not wheel.startswith("unsloth-") or name.startswith("unsloth/") or ".dist-info/" in name


def repack(source: Path, target: Path) -> None:
    """Copy the files of a wheel that are transferred. Its RECORD still lists all files, which pip accepts."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for name in old.namelist():
            if is_transferred(source.name, name):
                new.writestr(name, old.read(name))


if __name__ == "__main__":
    for path in Path(sys.argv[1]).glob("*.whl"):
        repack(path, Path(sys.argv[2], path.name))
