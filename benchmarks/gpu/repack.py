"""Make wheels small enough to travel to a GPU machine.

python3 benchmarks/gpu/repack.py RAW WHEELS     # copies of RAW/*.whl without files that are of no use there
python3 benchmarks/gpu/repack.py --split WHEEL KIT    # KIT/part0, KIT/part1 and the wheel's digest
"""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

FIRST_PART_BYTES = 38 * 2**20  # beside the other wheels; what is left fits into a transfer of its own


def travels(wheel: str, name: str) -> bool:
    """Return whether a file of a wheel travels."""
    if name.endswith(("/", "RECORD", "entry_points.txt")):
        return False
    if wheel.startswith("bitsandbytes-") and name.endswith(".so"):  # one library for each version of CUDA
        return name.endswith(("_cuda130.so", "_cpu.so"))
    # Unsloth's wheel also has a web interface and a command line.
    return not wheel.startswith("unsloth-") or name.startswith("unsloth/") or ".dist-info/" in name


def repack(source: Path, target: Path) -> None:
    """Copy a wheel without what does not travel, with a RECORD of what does."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        lines = [f"{record},,"]
        for name in filter(lambda name: travels(source.name, name), old.namelist()):
            data = old.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(data)}")
            new.writestr(name, data)
        new.writestr(record, "\n".join(lines) + "\n")


def split(wheel: Path, kit: Path) -> None:
    """Write the halves of a wheel, and its digest."""
    data = wheel.read_bytes()
    cut, digest = min(FIRST_PART_BYTES, len(data) // 2), hashlib.sha256(data).hexdigest().encode()
    for name, part in (("part0", data[:cut]), ("part1", data[cut:]), ("kit", digest)):
        (kit / name).mkdir(parents=True, exist_ok=True)
        (kit / name / ("smollm.sha256" if name == "kit" else "smollm.bin")).write_bytes(part)


if __name__ == "__main__":
    if sys.argv[1] == "--split":
        split(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        for path in Path(sys.argv[1]).glob("*.whl"):
            repack(path, Path(sys.argv[2], path.name))
