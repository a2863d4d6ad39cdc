"""Verify an antiderivative, or the value of a definite integral.

    from ladder_lite.verify import verify
    verify("x*exp(x)", "(x-1)*exp(x)").reward        # 1.0

    python -m ladder_lite.verify "x*exp(x)" "(x-1)*exp(x)"
    python -m ladder_lite.verify answers.jsonl       # {"id"?, "integrand", "answer", ...} per line; - for stdin

As a reward function for TRL, over the dataset columns `integrand` and, optionally, `variable`, `lower` and `upper`:

    GRPOTrainer(reward_funcs=[ladder_lite.verify.reward], ...)

Below, f is the integrand and F the answer. With the default protocol, 'strict', a grade means this:

Guaranteed:

- No text is ever executed.
- A verdict takes a bounded number of operations on arrays or in ball arithmetic (`expressions.parse`,
  `numerics.exact`). It needs no timeouts, signals or processes, and can be called from any thread.
- The value of a definite integral depends on the problem, not on the answer. It is computed once, under a larger limit.

Tested on samples:

- F' = f, to one part in 1e9 of f. The test uses up to 249 points, which `seed` alone decides; most lie between -10 and
  10. If they do not decide, it uses 32 or more points on each component of f's domain, some of them close to its ends.
- Between these points F grows by the integral of f.
- Where rounding could hide an error or a step, derivatives and increments are computed in ball arithmetic. Its numbers
  carry a bound on their own error. If that does not decide either, the answer is refused.

Accepted by rule:

- F' = f on one whole component of f's domain is enough. The component must reach into x > 0 if any component does. One
  on which f is larger than 1e6 does not count if F' is wrong on another.
- F may jump where f is undefined, at a branch point of a root in f, and where the argument of an inverse tangent is
  infinite (the Weierstrass substitution leaves such jumps). The limit is 8 places, plus one for each turn of f.
- Complex constants are allowed, as in log(-x) for 1/x. Where poles of two terms cancel, the imaginary part may jump.

Refused by rule:

- Functions that are not on the list. Most special functions are not: Bessel, elliptic, hypergeometric.
- An F that may break at more places than can be examined, such as floor(10**6*x).
- An F that may break where f oscillates so fast that its integral is unknown.
- An F that overflows or loses its digits at more than a tenth of the points where f can be evaluated.

Unverifiable, which gives a reward of None instead of 0:

- An integrand that is real nowhere, or whose values are only rounding noise.
- A definite integral that diverges or could not be computed.

Not detected:

- An error below one part in 1e9 at every tested point. (If the text has no decimals, the limit is one part in 1e12 at
  three quarters of the points.)
- An error where f is below 1e-90.
- A step below one part in 1e8 of the integral between two neighbouring points (1e11 where rounding could hide it), or
  below 1e-6 of f at a kink of f itself. Close to an end rounding in f raises this, to at most one part in 1e3.
- A bump between two neighbouring points.
- A step within 1e-7 of an end of the component, or within one part in 1e7 of it; two steps near an end that cancel.
- Where f overflows or far from the origin: a step at which no function in F breaks or turns, or a step beyond the 16
  far places that are examined.
- A spike of f that is too narrow for floating point.

The protocol 'paper' is the published check (`rules.paper`), which accepts errors of one part in a hundred. Rates, error
counts beside those of SymPy and Math-Verify, attacks and a million random examples: `benchmarks/verifier*.py`.

Folders: `expressions/` turns untrusted text into arrays, `numerics/` finds where an integrand is defined and computes
integrals, `rules/` decides. This package imports nothing from the rest of ladder_lite.
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
MAX_CACHED: Final = 1024  # verdicts on antiderivatives; a group of samples often contains the same answer twice


class Reason(StrEnum):
    """The reason for a reward: CORRECT gives 1, UNVERIFIABLE None, all others 0."""

    CORRECT = "CORRECT"
    WRONG = "WRONG"
    NO_ANSWER = "NO_ANSWER"
    UNPARSEABLE = "UNPARSEABLE"
    FORBIDDEN = "FORBIDDEN"
    TOO_LARGE = "TOO_LARGE"
    UNVERIFIABLE = "UNVERIFIABLE"


@dataclass(frozen=True, slots=True)
class Grade:
    """A reward of 0 or 1, or None if the problem itself cannot be verified; `detail` is a message for people."""

    reward: float | None
    reason: Reason
    answer: str | None
    detail: str = ""


def verify(
    integrand: str,
    answer: str,
    *,
    variable: str = "x",
    lower: str | float | None = None,
    upper: str | float | None = None,
    protocol: Protocol = "strict",
    seed: int = 0,
    references: References = _REFERENCES,
) -> Grade:
    """Grade `answer` to the integral of `integrand`, a definite one if both bounds are given ("oo" for infinity).

    Accepts any text, never executes it, and never raises because of it. The same arguments always give the same grade.
    `references` caches the values of definite integrals.
    """
    lower, upper = (bound if bound is None else str(bound) for bound in (lower, upper))
    if not answer.strip():
        return Grade(0.0, Reason.NO_ANSWER, answer)
    if lower is None and upper is None:
        return _antiderivative(integrand, answer, variable, protocol, seed)

    def check(problem: Integrand) -> str | None:
        if protocol == "paper":
            raise IntegrandError("the paper's protocol is for antiderivatives only")
        # Raises IntegrandError if the integral diverges, or if only one bound is given.
        value = references.get(integrand, variable, lower, upper, seed)
        # A value has no constant of integration: "1/3 + C" is refused.
        return wrong_value(problem.read(answer, constant_of_integration=False), value)

    return _grade(integrand, answer, variable, seed, check)


@lru_cache(maxsize=MAX_CACHED)
def _antiderivative(integrand: str, answer: str, variable: str, protocol: Protocol, seed: int) -> Grade:
    def check(problem: Integrand) -> str | None:
        expression = problem.read(answer, constant_of_integration=True)
        if protocol == "strict":
            return antiderivatives.is_antiderivative(expression, problem)
        return paper_protocol.is_antiderivative(expression, problem.expression, seed)

    return _grade(integrand, answer, variable, seed, check)


def _grade(integrand: str, answer: str, variable: str, seed: int, check: Callable[[Integrand], str | None]) -> Grade:
    """Grade by `check`, which returns what is wrong with the answer, or None if it is right."""
    # Any other exception is a bug in the verifier. It propagates, because a bug must never become a reward of 0.
    try:
        fault = check(prepare(integrand, variable, seed))
    except IntegrandError as error:  # the problem's fault, so the answer gets no reward at all
        return Grade(None, Reason.UNVERIFIABLE, answer, str(error))
    except ExpressionError as error:  # the answer cannot be read: UNPARSEABLE, FORBIDDEN or TOO_LARGE
        return Grade(0.0, Reason(error.reason), answer, str(error))
    return Grade(1.0, Reason.CORRECT, answer) if fault is None else Grade(0.0, Reason.WRONG, answer, fault)


def reward(completions: Sequence[Any], integrand: Sequence[str], **columns: Any) -> list[float | None]:
    """Return the reward of each completion, None if its problem is unverifiable.

    A completion is a text or a list of TRL's messages. The answer is the content of the last <answer> tags, or the
    whole text if there are none; everything up to `</think>` is ignored. `columns` may contain the lists `variable`,
    `lower` and `upper`; other columns are ignored.
    """
    # TRL passes a string for a plain prompt, and [{"role": "assistant", "content": ...}] for a conversation.
    texts = [strip_thinking(c if isinstance(c, str) else str(c[-1]["content"])) for c in completions]
    # Without the tags, rpartition and partition leave the whole text. An unclosed tag extends to the end of the text.
    answers = [text.rpartition("<answer>")[2].partition("</answer>")[0] for text in texts]
    # Columns of bounds contain None in the rows of antiderivatives.
    names = [name for name in ("variable", "lower", "upper") if columns.get(name) is not None]
    rows = [{name: columns[name][i] for name in names} for i in range(len(answers))]
    return [verify(f, a, **row).reward for f, a, row in zip(integrand, answers, rows, strict=True)]
