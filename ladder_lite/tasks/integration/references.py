"""Values of definite integrals kept in a file of the run, so that a resumed run does not compute them again."""

from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.verify.numerics.definite import References
from ladder_lite.verify.numerics.quadrature import Integral


class KeptReferences(References):
    """Reference values in memory and in a JSON lines file, which is read at the start."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        for row in read_jsonl(path):
            # A failure is kept too, as the text of its reason: trying again would take as long and fail again.
            known = row["unverifiable"] if "unverifiable" in row else Integral(**row["reference"])
            self._known[row["integral"]] = known

    def _keep(self, key: str, known: Integral | str) -> None:
        # Unlike the base class this forgets none: a run has a bounded number of problems.
        self._known[key] = known
        value = {"unverifiable": known} if isinstance(known, str) else {"reference": asdict(known)}
        with FileLock(f"{self._path}.lock"):  # the workers of a run share the file
            append_jsonl(self._path, [{"integral": key} | value])
