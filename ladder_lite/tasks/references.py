"""The values of definite integrals, kept in a file of the run: what a resumed run needs not compute again."""

from dataclasses import asdict
from pathlib import Path

from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.verify.numerics.definite import References
from ladder_lite.verify.numerics.quadrature import Integral


class KeptReferences(References):
    """References of which a JSON lines file keeps every one."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        for row in read_jsonl(path):
            known = row["unverifiable"] if "unverifiable" in row else Integral(**row["reference"])
            if isinstance(known, str) or known.is_known:  # (the files of older versions hold others)
                self._known[row["integral"]] = known

    def _keep(self, key: str, known: Integral | str) -> None:
        self._known[key] = known
        value = {"unverifiable": known} if isinstance(known, str) else {"reference": asdict(known)}
        append_jsonl(self._path, [{"integral": key} | value])
