"""Fetch the question lists that the paper's authors published. They have no licence that would let us ship them.

`python -m ladder_lite.problems fetch ladder-paper` downloads those of the Llama experiment, `fetch mit_train` those of
the MIT Integration Bee, to the folder that LADDER_LITE_CACHE names or to the user's cache folder. Entries that are not
integrals and exact repeats are left out; all others stay as they are, mistakes included.
"""

import ast
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from ladder_lite.errors import UserError
from ladder_lite.install import cache_folder
from ladder_lite.tasks.integration.lists import read_problem, write_rows

# A fixed commit and the hashes of its files: a problem set must never change under a name that results were given for.
_COMMIT: Final = "ed0bf9a092984dba0b49133b7732835c15df6b5a"
_URL: Final = f"https://raw.githubusercontent.com/Tufalabs/GeneralGenerateVariants/{_COMMIT}/questions/"
_SETS: Final = {  # name -> split -> file
    "ladder-paper": {"train": "train_questions.py", "test": "test_questions.py"},
    "mit_train": {"train": "mit_bee_qualifiying_questions.py", "test": "mit_bee_qualifiying_questions_2025test.py"},
}
_SHA256: Final = {
    "train_questions.py": "2667d0120f1097947194d7a7f231dde7a26deeb83ae115f05c30a0b15634da01",
    "test_questions.py": "ee2568bd972f7c320c7362dbb3fcfe1a738ba1a08c45cdd567bb111efbb082ea",
    "mit_bee_qualifiying_questions.py": "8539dd60e0351a0953221c658945cd9c4a4b29db81be64fcbf5e701d34931214",
    "mit_bee_qualifiying_questions_2025test.py": "7dc0793d9e698b64c448c59c8e522143fec0c0c5a36bb0655cd33dd4dc476921",
}
NAMES: Final = tuple(_SETS)


def fetched(name: str) -> Path:
    """The path of a fetched set, whether it has been fetched or not."""
    return cache_folder() / f"{name}.jsonl"


def fetch(name: str) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Download, check and convert the files of a set; returns its path and the counts of each split.

    The counts are {"kept", "repeats", "rejected": {reason: count}}. Raises UserError if a file cannot be downloaded or
    is not the published one.
    """
    path = fetched(name)
    rows: list[dict[str, Any]] = []
    counts = {}
    for split, file in _SETS[name].items():
        problems, counts[split] = _convert(_download(file, path.parent))
        rows += [{**problem, "split": split} for problem in problems]
    # Written once all files are there and converted: the set exists as a whole or not at all.
    write_rows(path, rows)
    return path, counts


def _download(file: str, folder: Path) -> str:
    import pooch

    url = f"{_URL}{file}"
    pooch.get_logger().setLevel("CRITICAL")  # it logs each download; the command prints its own summary
    try:
        # pooch checks the SHA-256, keeps the file in the folder, and does not download it again.
        path: str = pooch.create(folder, _URL, registry=_SHA256).fetch(file)
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{url}: cannot be downloaded to {folder} ({reason}); check the connection, or set LADDER_LITE_CACHE to a "
            "writable folder"
        ) from error
    except ValueError as error:  # pooch's for a hash that differs
        raise UserError(f"{url}: not the file that was published (its SHA-256 differs); nothing was kept") from error


def _convert(source: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The problems among the strings in the lists of a Python file, and the counts of the split."""
    # Every string that is an element of a list or tuple, at any depth. The file is parsed and never run: it is somebody
    # else's code.
    texts = [
        item.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.List | ast.Tuple)
        for item in node.elts
        if isinstance(item, ast.Constant) and isinstance(item.value, str)
    ]
    read = [read_problem(text) for text in texts]
    valid = [dict(data) for data, _ in read if data is not None]
    # Exact repeats only: problems that are equal as functions stay, as the authors have them.
    problems = {json.dumps(data): data for data in valid}
    rejected = Counter(reason for data, reason in read if data is None)
    counts = {"kept": len(problems), "repeats": len(valid) - len(problems), "rejected": dict(rejected)}
    return list(problems.values()), counts
