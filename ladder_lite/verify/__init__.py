"""Is an answer an antiderivative of the integrand, or the value of the definite integral?

    from ladder_lite.verify import verify
    verify("x*exp(x)", "(x-1)*exp(x)").reward        # 1.0

    python -m ladder_lite.verify "x*exp(x)" "(x-1)*exp(x)"
    python -m ladder_lite.verify answers.jsonl       # or - for stdin: {"id"?, "integrand", "answer", ...} a line

As a reward function for TRL, over the columns `integrand` and, where wanted, `variable`, `lower` and `upper`:

    GRPOTrainer(reward_funcs=[ladder_lite.verify.reward], ...)

What a grade means ('strict'):

- Proved: no text is ever run, and a verdict takes a bounded number of operations, on arrays or in ball arithmetic
  (`expressions.parse`, `numerics.exact`): no timeouts, signals or processes, from any thread. The value of a definite
  integral depends on the problem and not on the answer; it is computed once, within a larger bound.
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
- Not seen: an error below one part in 1e9 wherever it is tested (below one in 1e12 at more than a quarter of the
  points, where the text has no decimals), or where f is below 1e-90; a step below one part in 1e8 of the integral
  between two neighbouring points (in 1e11, where rounding could hide one), or below 1e-6 of f at a kink of f's own; a
  bump between two neighbouring points; a step within about one part in 1e7 of an end of the component, or two near an
  end that cancel; where f overflows, or far from the origin, a step at which no function of F breaks or turns, or
  beyond the 16 far places that are looked at; a spike of f that is narrower than floating point can follow.

'paper' is the published protocol (`rules.paper`), which accepts errors of one part in a hundred. Rates, error counts
beside SymPy's and Math-Verify's, attacks and a million random examples: `benchmarks/verifier*.py`.

In this room: `expressions/`, untrusted text -> arrays; `numerics/`, where an integrand lives, and integrals; `rules/`,
verdicts. It imports nothing of the rest of the package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Literal

from ladder_lite.verify.expressions.parse import ExpressionError
from ladder_lite.verify.expressions.replies import strip_thinking
from ladder_lite.verify.numerics.definite import References, wrong_value
from ladder_lite.verify.numerics.integrand import Integrand, IntegrandError, prepare
from ladder_lite.verify.rules import paper as paper_protocol
from ladder_lite.verify.rules import strict as antiderivatives

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
    `references` remembers the values of definite integrals.
    """
    if not answer.strip():
        return Grade(0.0, Reason.NO_ANSWER, answer)
    if lower is None and upper is None:
        return _antiderivative(integrand, answer, variable, protocol, seed)

    def fault(problem: Integrand) -> str | None:
        if protocol == "paper":
            raise IntegrandError("the paper's protocol is for antiderivatives only")
        value = references.get(integrand, variable, lower, upper, seed)
        return wrong_value(problem.read(answer, constant_of_integration=False), value)

    return _grade(integrand, answer, variable, seed, fault)


@lru_cache(maxsize=MAX_REMEMBERED)
def _antiderivative(integrand: str, answer: str, variable: str, protocol: Protocol, seed: int) -> Grade:
    def fault(problem: Integrand) -> str | None:
        read = problem.read(answer, constant_of_integration=True)
        if protocol == "strict":
            return antiderivatives.is_antiderivative(read, problem)
        return paper_protocol.is_antiderivative(read, problem.expression, seed)

    return _grade(integrand, answer, variable, seed, fault)


def _grade(integrand: str, answer: str, variable: str, seed: int, fault: Callable[[Integrand], str | None]) -> Grade:
    try:
        found = fault(prepare(integrand, variable, seed))
    except IntegrandError as error:
        return Grade(None, Reason.UNVERIFIABLE, answer, str(error))
    except ExpressionError as error:
        return Grade(0.0, Reason(error.reason), answer, str(error))
    return Grade(1.0, Reason.CORRECT, answer) if found is None else Grade(0.0, Reason.WRONG, answer, found)


def reward(completions: Sequence[Any], integrand: Sequence[str], **columns: Any) -> list[float | None]:
    """Rewards of completions (texts, or TRL's messages); the answer is what the last <answer> tags hold, or all of it.

    Thoughts up to a `</think>` are not read. `columns` may hold lists `variable`, `lower` and `upper`; others are
    ignored. None: the problem is unverifiable.
    """
    texts = [strip_thinking(c if isinstance(c, str) else str(c[-1]["content"])) for c in completions]
    answers = [text.rpartition("<answer>")[2].partition("</answer>")[0] for text in texts]
    names = [name for name in ("variable", "lower", "upper") if columns.get(name) is not None]
    rows = [{name: columns[name][i] for name in names} for i in range(len(answers))]
    return [verify(f, a, **row).reward for f, a, row in zip(integrand, answers, rows, strict=True)]
