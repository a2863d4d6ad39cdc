"""Is an answer an antiderivative of the integrand, or the value of the definite integral?

    from ladder_lite.verify import verify
    verify("x*exp(x)", "(x-1)*exp(x)").reward        # 1.0

    python -m ladder_lite.verify "x*exp(x)" "(x-1)*exp(x)"
    python -m ladder_lite.verify answers.jsonl       # or - for stdin: {"id"?, "integrand", "answer", ...} a line

As a reward function for TRL, over the columns `integrand` and, where wanted, `variable`, `lower` and `upper`:

    GRPOTrainer(reward_funcs=[ladder_lite.verify.reward], ...)

What a grade means ('strict'):

- Proved: no text is ever run, and a verdict takes a bounded number of operations, on arrays or in ball arithmetic
  (`ladder_lite.expressions`, `ladder_lite.exact`): no timeouts, signals or processes, from any thread. The value of a
  definite integral depends on the problem and not on the answer; it is computed once, within a larger bound.
- Sampled: that F' = f, to one part in 1e9 of f, at up to 249 points that `seed` alone decides, most of them between
  -10 and 10, or at 32 and more on each component of f's domain, some of them close to its ends; and that F grows
  between them by the integral of f. Where rounding could hide an error or a step, derivatives and increments are worked
  out in numbers that carry a bound of their own error, and an answer is refused if that does not decide.
- Right by rule: F' = f on one whole component of f's domain, one that reaches into x > 0 if any does. F may jump where
  f is undefined, at a branch point of a root of f's, and where the argument of an inverse tangent is infinite, as the
  Weierstrass substitution leaves it, at no more than 8 places and one more for each turn of f. Complex constants are
  allowed: log(-x); and jumps of the imaginary part alone where poles of two terms cancel.
- Refused by rule: functions that are not on the list, most special ones among them (Bessel, elliptic, hypergeometric);
  an F that may break at more places than can be looked at, such as floor(10**6*x); one that loses its digits, or
  overflows, at more than a tenth of the points at which f can be evaluated.
- Unverifiable, which is no reward at all: an integrand that is nowhere real, or lost in its own rounding noise; a
  definite integral that diverges or could not be computed.
- Not seen: an error below one part in 1e9 wherever it is tested (in 1e12, unless there are decimals in the text); a
  step below one part in 1e8 of the integral between two neighbouring points (in 1e11, where rounding could hide one); a
  bump between two neighbouring points; a step within about 1e-8 of an end of the component; where f overflows, or far
  from the origin, a step at which no function of F breaks or turns, or beyond the 16 far places that are looked at; a
  spike of f that is narrower than floating point can follow.

'paper' is the published protocol (`ladder_lite.paper_protocol`), which accepts errors of one part in a hundred. Rates,
error counts beside SymPy's and Math-Verify's, attacks and a million random examples: `benchmarks/verifier*.py`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ladder_lite import antiderivatives, paper_protocol
from ladder_lite.definite import References, wrong_value
from ladder_lite.expressions import Expression, ExpressionError, parse
from ladder_lite.integrands import Integrand, IntegrandError, prepare
from ladder_lite.quadrature import Integral
from ladder_lite.thinking import said

if TYPE_CHECKING:
    import typer

Protocol = Literal["strict", "paper"]
_REFERENCES: Final = References()
MAX_REMEMBERED: Final = 1024  # verdicts on antiderivatives: groups of samples hold many answers twice


class Reason(StrEnum):
    """Why a reward is what it is."""

    CORRECT = "CORRECT"
    WRONG = "WRONG"
    NO_ANSWER = "NO_ANSWER"
    UNPARSEABLE = "UNPARSEABLE"
    FORBIDDEN = "FORBIDDEN"
    TOO_LARGE = "TOO_LARGE"
    UNVERIFIABLE = "UNVERIFIABLE"


@dataclass(frozen=True, slots=True)
class Grade:
    """A reward of 0 or 1, None where the problem itself cannot be verified; `detail` says more for people."""

    reward: float | None
    reason: Reason
    answer: str | None
    detail: str = ""


def verify(
    integrand: str,
    answer: str,
    *,
    variable: str = "x",
    lower: str | None = None,
    upper: str | None = None,
    protocol: Protocol = "strict",
    seed: int = 0,
    references: References = _REFERENCES,
) -> Grade:
    """Grade `answer` to the integral of `integrand`, definite if both bounds are given ("oo" for infinity).

    Takes any text, runs none of it, and never raises because of it. The same arguments always give the same grade.
    `references` remembers the values of definite integrals; one with a file of its own remembers them for good.
    """
    if not answer.strip():
        return Grade(0.0, Reason.NO_ANSWER, answer)
    if lower is None and upper is None:
        return _antiderivative(integrand, answer, variable, protocol, seed)

    def fault(problem: Integrand) -> str | None:
        value = _reference(references, integrand, variable, lower, upper, seed, protocol)
        return wrong_value(_read(answer, problem, constant_of_integration=False), value)

    return _grade(integrand, answer, variable, seed, fault)


@lru_cache(maxsize=MAX_REMEMBERED)
def _antiderivative(integrand: str, answer: str, variable: str, protocol: Protocol, seed: int) -> Grade:
    def fault(problem: Integrand) -> str | None:
        read = _read(answer, problem, constant_of_integration=True)
        if protocol == "strict":
            return antiderivatives.is_antiderivative(read, problem)
        return paper_protocol.is_antiderivative(read, problem.expression, seed)

    return _grade(integrand, answer, variable, seed, fault)


def _read(answer: str, problem: Integrand, *, constant_of_integration: bool) -> Expression:
    # To an integral of cbrt(x) people answer x**(4/3), and mean real roots.
    real = "cbrt" in problem.expression.functions
    return parse(
        answer,
        problem.expression.variable,
        constant_of_integration=constant_of_integration,
        real_cube_roots=real,
    )


def _grade(integrand: str, answer: str, variable: str, seed: int, fault: Callable[[Integrand], str | None]) -> Grade:
    try:
        found = fault(prepare(integrand, variable, seed))
    except IntegrandError as error:
        return Grade(None, Reason.UNVERIFIABLE, answer, str(error))
    except ExpressionError as error:
        return Grade(0.0, Reason(error.reason), answer, str(error))
    return Grade(1.0, Reason.CORRECT, answer) if found is None else Grade(0.0, Reason.WRONG, answer, found)


def _reference(
    references: References,
    integrand: str,
    variable: str,
    lower: str | None,
    upper: str | None,
    seed: int,
    protocol: Protocol,
) -> Integral:
    if lower is None or upper is None:
        raise IntegrandError("one bound is missing")
    if protocol == "paper":
        raise IntegrandError("the paper's protocol is for antiderivatives only")
    return references.get(integrand, variable, lower, upper, seed)


def reward(completions: Sequence[Any], integrand: Sequence[str], **columns: Any) -> list[float | None]:
    """Rewards of completions (texts, or TRL's messages); the answer is what the last <answer> tags hold, or all of it.

    Thoughts up to a `</think>` are not read. `columns` may hold lists `variable`, `lower` and `upper`; others are
    ignored. None: the problem is unverifiable.
    """
    texts = [said(c if isinstance(c, str) else str(c[-1]["content"])) for c in completions]
    answers = [text.rpartition("<answer>")[2].partition("</answer>")[0] for text in texts]
    names = [name for name in ("variable", "lower", "upper") if columns.get(name) is not None]
    rows = [{name: columns[name][i] for name in names} for i in range(len(answers))]
    return [verify(f, a, **row).reward for f, a, row in zip(integrand, answers, rows, strict=True)]


# --- command line ---------------------------------------------------------------------------------------------------

MALFORMED: Final = "MALFORMED_LINE"


def _grade_lines(lines: Iterable[tuple[int, str]], protocol: Protocol, workers: int) -> Iterator[dict[str, Any]]:
    jobs = ((number, line, protocol) for number, line in lines if line.strip())
    if workers <= 1:
        yield from map(_grade_line, jobs)
        return
    from multiprocessing import get_context

    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_grade_line, jobs, chunksize=64)


def _grade_line(job: tuple[int, str, Protocol]) -> dict[str, Any]:
    number, line, protocol = job
    started = time.perf_counter()
    try:
        row = json.loads(line)
        integrand, answer = _text(row, "integrand"), _text(row, "answer")
        options = {name: _text(row, name) for name in ("variable", "lower", "upper") if row.get(name) is not None}
    except (ValueError, TypeError, RecursionError) as error:
        return {"id": None, "correct": None, "reason": MALFORMED, "ms": 0.0, "error": f"line {number}: {error}"}
    grade = verify(
        integrand,
        answer,
        variable=options.get("variable", "x"),
        lower=options.get("lower"),
        upper=options.get("upper"),
        protocol=protocol,
    )
    correct = None if grade.reward is None else grade.reward == 1.0
    ms = round((time.perf_counter() - started) * 1e3, 3)
    return {"id": row.get("id", number), "correct": correct, "reason": grade.reason.value, "ms": ms}


def _text(row: object, name: str) -> str:
    if not isinstance(row, dict):
        raise TypeError("not an object")
    value = row.get(name)
    if name in ("lower", "upper") and type(value) in (int, float):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{name!r} is missing or not a string")
    return value


def _read_lines(source: str) -> Iterator[tuple[int, str]]:
    from ladder_lite.errors import UserError

    if source == "-":
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from enumerate(sys.stdin, start=1)
        return
    try:
        with Path(source).open(encoding="utf-8", errors="replace") as file:
            yield from enumerate(file, start=1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(
            f"{source}: {error.strerror}; give a JSON lines file, - for stdin, or an integrand and an answer"
        ) from None


def _app() -> typer.Typer:
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(help="Grade answers: FILE of JSON lines (- for stdin), or one INTEGRAND and its ANSWER.")
    def main(
        source: str = typer.Argument(..., metavar="FILE|-|INTEGRAND", help="JSON lines, or an integrand."),
        answer: str | None = typer.Argument(None, help="The answer to that integrand."),
        protocol: str = typer.Option("strict", help="strict or paper."),
        workers: int = typer.Option(1, min=1, help="Processes, for a file."),
        variable: str = typer.Option("x", help="The integrand's variable."),
        lower: str | None = typer.Option(None, help="Bound of the one integral."),
        upper: str | None = typer.Option(None, help="Bound of the one integral."),
    ) -> None:
        if protocol not in ("strict", "paper"):
            raise typer.BadParameter("strict or paper", param_hint="--protocol")
        chosen: Protocol = "strict" if protocol == "strict" else "paper"
        if answer is not None:
            grade = verify(source, answer, variable=variable, lower=lower, upper=upper, protocol=chosen)
            print(grade.reason.value + (f": {grade.detail}" if grade.detail else ""))
            return
        for row in _grade_lines(_read_lines(source), chosen, workers):
            print(json.dumps(row), flush=source == "-")

    return app


if __name__ == "__main__":
    from ladder_lite.errors import run

    run(_app())
