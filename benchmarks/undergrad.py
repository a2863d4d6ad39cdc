"""Check the undergraduate problem set: format, answers, repetitions, and coverage of techniques and difficulties.

    python benchmarks/undergrad.py                     # the set next to this file, in a second or two
    python benchmarks/undergrad.py --sympy             # also checks every answer with SymPy and mpmath, in ten seconds
    python benchmarks/undergrad.py changed.jsonl       # another file, such as a changed copy

benchmarks/undergrad.jsonl is a pool of exercises written for this project, similar to those of the paper's experiment
with a 3B model. Each line has the form {"id", "integrand", "variable", "answer", "technique", "steps"}. `technique` is
the title that a textbook's chapter would have, `steps` our estimate of the number of steps of a solution, from 1 to 3.
The set has no splits, because which of these integrals a model cannot solve depends on the model.

Prints a table and one line for each fault. Exits with 1 if there is any fault. The check with SymPy is independent of
the verifier, except for the parser of expressions: SymPy differentiates the answer, and mpmath compares the derivative
with the integrand at random rational points, with 30 digits, on the whole line wherever the integrand is real.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import mpmath
import numpy as np
import sympy
import typer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from rich.console import Console
from rich.table import Table
from sympy.core.function import AppliedUndef

from ladder_lite.verify import verify
from ladder_lite.verify.expressions.parse import parse

HERE = Path(__file__).parent
MIN_ROWS = 300
MIN_TECHNIQUES = 15
MIN_PER_TECHNIQUE = 12
MIN_SHARE_OF_STEPS = 0.25  # minimum share of the rows with 1, 2 and 3 steps each
# The points at which integrands are compared: half of them in [-1, 1], where asin and sqrt(1 - x**2) are real.
POINTS = (np.random.default_rng(0).uniform(-1, 1, (2, 100)) * [[1], [10]]).ravel().astype(np.complex128)
MIN_COMMON = 5  # two integrands are compared only if both are real at this many of the points
X = sympy.Symbol("x", real=True)


class Row(BaseModel):
    """One line of the set."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str
    integrand: Annotated[str, StringConstraints(min_length=1)]
    variable: Literal["x"]
    answer: Annotated[str, StringConstraints(min_length=1)]
    technique: Annotated[str, StringConstraints(pattern="^[a-z]+( [a-z]+)*$")]
    steps: Literal[1, 2, 3]


def main(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines.")] = HERE / "undergrad.jsonl",
    by_sympy: Annotated[bool, typer.Option("--sympy", help="Check answers with SymPy and mpmath as well.")] = False,
) -> None:
    """Check the undergraduate problem set: format, answers, repetitions, and coverage."""
    rows, faults = check(path, by_sympy=by_sympy)
    _print(rows)
    for fault in faults:
        print(f"{path}: {fault}")
    if faults:
        raise typer.Exit(1)


def check(path: Path, *, by_sympy: bool = False) -> tuple[list[Row], list[str]]:
    """Return the readable rows, and the faults of the set, one line each; those of a row begin with its line number."""
    rows: dict[int, Row] = {}  # by line number
    faults: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rows[number] = Row.model_validate_json(line)
        except ValidationError as error:
            faults += [f"line {number}: {_one_line(detail)}" for detail in error.errors()]
            continue
        if rows[number].id != (expected := f"undergrad-{number:03d}"):
            faults.append(f"line {number}: the id must be {expected}, and is {rows[number].id!r}")
    verified = {}
    for number, row in rows.items():
        grade = verify(row.integrand, row.answer)
        if grade.reward == 1.0:
            verified[number] = row
        else:
            faults.append(f"line {number}: the answer is {grade.reason}: {grade.detail or row.answer!r}")
    if by_sympy:
        faults += [f"line {n}: by SymPy and mpmath, {f}" for n, row in verified.items() if (f := _sympy_fault(row))]
    faults += _repetitions(verified)
    faults += _coverage_faults(list(rows.values()))
    return list(rows.values()), faults


def _one_line(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    return f'"{place}": {detail["msg"]}' if place else detail["msg"]


def _repetitions(rows: dict[int, Row]) -> Iterator[str]:
    """Yield a fault for each pair of integrands that are equal as functions, up to a constant factor."""
    values = {number: _real_values(row.integrand) for number, row in rows.items()}
    for number, f in values.items():
        for earlier, g in values.items():
            if earlier == number:
                break
            if _proportional(f, g):
                texts = f"{rows[number].integrand} and {rows[earlier].integrand}"
                yield f"line {number}: the same as in line {earlier} except for a constant factor: {texts}"


def _real_values(integrand: str) -> NDArray[np.float64]:
    """Return the values at POINTS, nan where a value is not finite, not real, or zero."""
    values = parse(integrand).values(POINTS)
    with np.errstate(all="ignore"):
        usable = np.isfinite(values) & (np.abs(values.imag) <= 1e-9 * np.abs(values)) & (values != 0)
    return np.where(usable, values.real, np.nan)


def _proportional(f: NDArray[np.float64], g: NDArray[np.float64]) -> bool:
    with np.errstate(all="ignore"):
        ratio = (f / g)[np.isfinite(f) & np.isfinite(g)]
        return len(ratio) >= MIN_COMMON and bool(np.ptp(ratio) <= 1e-9 * abs(ratio[0]))


def _coverage_faults(rows: Sequence[Row]) -> Iterator[str]:
    if len(rows) < MIN_ROWS:
        yield f"{len(rows)} rows; there must be {MIN_ROWS}"
    techniques, steps = Counter(row.technique for row in rows), Counter(row.steps for row in rows)
    if len(techniques) < MIN_TECHNIQUES:
        yield f"{len(techniques)} techniques; there must be {MIN_TECHNIQUES}"
    for technique, count in techniques.items():
        if count < MIN_PER_TECHNIQUE:
            yield f"{count} rows of the technique {technique!r}; there must be {MIN_PER_TECHNIQUE}"
    for n in (1, 2, 3):
        if steps[n] < MIN_SHARE_OF_STEPS * len(rows):
            yield f"{steps[n]} of {len(rows)} rows take {n} steps; it must be {MIN_SHARE_OF_STEPS:.0%} of them"


# --- check with SymPy and mpmath ------------------------------------------------------------------------------------


def _sympy_fault(row: Row) -> str | None:
    """Compare the answer's derivative with the integrand at rational points; return the fault, or None."""
    # SymPy's parser executes its input. Texts that our parser accepts are safe to give to it.
    f, F = (sympy.sympify(parse(text).text, locals={"x": X}) for text in (row.integrand, row.answer))
    if (f.free_symbols | F.free_symbols) - {X} or f.atoms(AppliedUndef) | F.atoms(AppliedUndef):
        return "the integrand or the answer is not in SymPy's syntax"
    integrand, derivative = (sympy.lambdify(X, expression, "mpmath") for expression in (f, sympy.diff(F, X)))
    rng, compared = Random(row.integrand), 0
    with mpmath.workdps(30):
        for scale in [97, 970] * 30:
            x = mpmath.mpf(rng.randint(-900, 900)) / scale
            try:
                expected = mpmath.mpmathify(integrand(x))
                if mpmath.im(expected) != 0 or not mpmath.isfinite(expected):
                    continue
                slope = mpmath.mpmathify(derivative(x))
            except (ZeroDivisionError, OverflowError):  # a pole, or exp(exp(9))
                continue
            if abs(slope - expected) > 1e-15 * abs(expected):
                return (
                    f"the derivative at {mpmath.nstr(x, 6)} is {mpmath.nstr(slope, 8)}, not {mpmath.nstr(expected, 8)}"
                )
            compared += 1
    return None if compared >= 5 else f"the integrand is real at only {compared} points"


def _print(rows: Sequence[Row]) -> None:
    table = Table("technique", "1 step", "2 steps", "3 steps", "rows")
    counts = Counter((row.technique, row.steps) for row in rows)
    for technique in dict.fromkeys(row.technique for row in rows):
        by_steps = [counts[technique, n] for n in (1, 2, 3)]
        table.add_row(technique, *map(str, by_steps), str(sum(by_steps)))
    by_steps = [sum(row.steps == n for row in rows) for n in (1, 2, 3)]
    table.add_section()
    table.add_row(f"{len({row.technique for row in rows})} techniques", *map(str, by_steps), str(len(rows)))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
