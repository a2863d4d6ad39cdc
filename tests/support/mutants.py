"""Mutation testing: change one operator, constant or condition at a time, and see whether the tests notice.

    python -m tests.support.mutants ladder_lite/train/curriculum.py --n 20 --seed 1 -- tests/train/test_curriculum.py

Draws N mutants of the given modules and runs pytest with the arguments after `--` for each, on a temporary copy of the
checkout. Prints one line for each mutant: killed, if the tests fail or take too long, or survived. A survivor is a
missing test, a line without effect, or a change that only costs time. The same seed draws the same mutants.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_FLIPPED = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn}
_FLIPPED |= {new: old for old, new in _FLIPPED.items()}
_SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}


class Mutant(NamedTuple):
    """A module with one node replaced."""

    module: Path
    line: int
    old: str
    new: str
    source: bytes


def mutants(module: Path) -> Iterator[Mutant]:
    """Yield all mutants of a module."""
    source = (ROOT / module).read_bytes()
    starts = [0]  # of the lines, in bytes, as the columns of `ast` are
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    # Python 3.11 has no positions of nodes within f-strings.
    skipped = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        for old, new in _replacements(node) if id(node) not in skipped else ():
            if id(old) in skipped:
                continue
            start, end = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
            text = new if old is node and isinstance(node, ast.Return) else f"({new})"
            changed = source[:start] + text.encode() + source[end:]
            yield Mutant(module, old.lineno, ast.unparse(old), new, changed)


def _replacements(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield each node to be replaced, `node` or its condition, and the text that replaces it."""

    def changed(**fields: object) -> tuple[ast.AST, str]:
        new = copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return node, ast.unparse(new)

    match node:
        case ast.Compare(ops=ops):
            for place, op in enumerate(ops):
                yield changed(ops=[*ops[:place], _FLIPPED[type(op)](), *ops[place + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in _SWAPPED:
            yield changed(op=_SWAPPED[type(op)]())
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            yield from (changed(value=new) for new in {value * 2, value + 1} - {value})
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield node, ast.unparse(operand)
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield node, "return None"
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield from ((test, forced) for forced in ("True", "False"))


def copy_checkout(folder: Path) -> None:
    """Copy all files of the checkout that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def run_tests(checkout: Path, arguments: list[str], timeout_s: float | None = None) -> bool:
    """Run pytest in a copy of the checkout and return whether all tests passed in time."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *arguments]
    # A mutant can have the size and the time of the source before it, so compiled files must not be reused.
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1, 2):  # 1: a test failed, 2: a module could not be imported
        sys.exit(done.stdout.decode() + done.stderr.decode())
    return done.returncode == 0


def main() -> None:
    """Draw mutants, run the tests on each, and print the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="+", type=Path, help="files, relative to the checkout")
    parser.add_argument("--n", type=int, default=10, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, pytest_arguments = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    everything = [mutant for module in options.modules for mutant in mutants(module)]
    drawn = random.Random(options.seed).sample(everything, min(options.n, len(everything)))
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        copy_checkout(checkout)
        started = time.monotonic()
        if not run_tests(checkout, pytest_arguments):
            sys.exit("the tests fail without a mutant too")
        limit_s = 60 + 5 * (time.monotonic() - started)
        survived = 0
        for mutant in sorted(drawn, key=lambda mutant: mutant[:2]):
            file = checkout / mutant.module
            file.write_bytes(mutant.source)
            passed = run_tests(checkout, pytest_arguments, limit_s)
            file.write_bytes((ROOT / mutant.module).read_bytes())
            survived += passed
            verdict = "survived" if passed else "killed  "
            print(f"{verdict} {mutant.module}:{mutant.line}: {mutant.old} -> {mutant.new}", flush=True)
    print(f"{survived} of {len(drawn)} survived (seed {options.seed}, {len(everything)} possible mutants)")


if __name__ == "__main__":
    main()
