"""The paper's task: find an antiderivative; a numerical verifier is the only teacher.

Integrands and answers are SymPy syntax, an answer stands between `<answer>` tags and has no constant of integration.
What the model is told is data of the recipe (`task.prompts`); the terse prompts of the embedded model and the full ones
of a chat model take the same path.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ladder_lite.config import TaskSettings
from ladder_lite.definite import References
from ladder_lite.expressions import MAX_CHARS, Expression, ExpressionError, parse
from ladder_lite.integrands import IntegrandError, prepare
from ladder_lite.problems import Problem, load_problems
from ladder_lite.tasks import Effect, Messages, Rejected, VariantRequest
from ladder_lite.verify import Grade, Reason, verify

_INTEGRAL = re.compile(r"\b[iI]ntegra(?:te|l)\s*\(")

# Where functions are compared: both signs and several sizes, irrational, so that no usual zero or pole is met.
_POINTS = np.array(
    [
        -5.239870,
        -2.718911,
        -1.272019,
        -0.414213,
        -0.130357,
        0.086068,
        0.366025,
        0.618033,
        1.414213,
        2.236067,
        4.123105,
        8.306623,
    ],
    dtype=np.complex128,
)
_DIGITS = 10
"""Significant digits that the values of equal functions share: far above rounding, far below any real difference."""


_MAX_REPLY_CHARS = 20_000
"""A reply is hostile text too: reading it costs at most this many characters times those of one expression."""


class IntegrationTask:
    """Integrals of one variable; `references` is the file that keeps the values of definite ones."""

    def __init__(self, settings: TaskSettings, references: Path | None = None) -> None:
        self._settings = settings
        self._references = References(references)

    def problems(self, split: Literal["train", "test"]) -> list[Problem]:
        """The problems of a split; UserError names the line of a problem that cannot be read as an integral."""
        source = self._settings.train if split == "train" else self._settings.test
        return load_problems(source, split, _fault)

    def prompt(self, problem: Problem) -> Messages:
        """Ask for the integral of the problem."""
        return self._messages(self._settings.prompts.solve, problem, {})

    def variant_prompt(self, problem: Problem, request: VariantRequest) -> Messages:
        """Ask for variants, with the paper's ingredients: a persona, 3 to 5 suggestions, several at once."""
        prompts = self._settings.prompts
        template = prompts.equivalent if request.effect == "equivalent" else prompts.easier
        fields = {
            "persona": request.persona,
            "suggestions": ", ".join(request.suggestions),
            "count": str(request.count),
        }
        return self._messages(template, problem, fields)

    def transformations_prompt(self, effect: Effect, count: int) -> Messages:
        """Ask for `count` transformations, in the words of the recipe, which has some where it asks for them."""
        template = self._settings.prompts.transformations
        assert template is not None
        return self._conversation(template.format(effect=effect, count=count))

    def parse_variants(self, text: str, parent: Problem, request: VariantRequest) -> list[Problem | Rejected]:
        """Read every `integrate(f, x)` of a reply; a reply without one is rejected as a whole."""
        found = list(_integrals(text))
        if not found:
            return [Rejected(text, "unreadable")]
        return [_read_variant(arguments, parent, request) for arguments in found]

    def grade(self, problem: Problem, text: str) -> Grade:
        """Verify the last `<answer>` of a reply."""
        before, end, _ = text.rpartition("</answer>")
        _, start, answer = before.rpartition("<answer>")
        if not (start and end):
            return Grade(0.0, Reason.NO_ANSWER, None)
        data = problem.data
        return verify(
            str(data["integrand"]),
            answer.partition("</answer>")[0].strip(),
            variable=data["variable"] or "x",
            lower=data["lower"],
            upper=data["upper"],
            protocol=self._settings.protocol,
            references=self._references,
        )

    def fingerprint(self, problem: Problem) -> str:
        """A key of the integrand as a function and of the bounds as written.

        Functions that differ by less than 1e-10 of their size at all points of comparison share it.
        """
        data = problem.data
        function = parse(str(data["integrand"]), data["variable"] or "x")
        return f"{_digest(function.values(_POINTS))}:{data['lower']}:{data['upper']}"

    def _messages(self, template: str, problem: Problem, fields: dict[str, str]) -> Messages:
        integral = f"integrate({problem.data['integrand']},{problem.data['variable']})"
        content = template.format(
            integral=integral, integrand=problem.data["integrand"], variable=problem.data["variable"], **fields
        )
        return self._conversation(content)

    def _conversation(self, content: str) -> Messages:
        system = self._settings.prompts.system
        messages = [{"role": "system", "content": system}] if system is not None else []
        return [*messages, {"role": "user", "content": content}]


def _integrals(text: str) -> Iterator[list[str]]:
    """The arguments of every `integrate(...)` in a text, split at the commas of their top level."""
    text = text[:_MAX_REPLY_CHARS]
    for match in _INTEGRAL.finditer(text):
        arguments: list[str] = []
        depth, start = 0, match.end()
        for at in range(match.end(), min(len(text), match.end() + MAX_CHARS)):
            character = text[at]
            if character == "," and depth == 0:
                arguments.append(text[start:at].strip())
                start = at + 1
            elif character in "([{":
                depth += 1
            elif character in ")]}":
                depth -= 1
                if depth < 0:
                    yield [*arguments, text[start:at].strip()]
                    break


def _read_variant(arguments: list[str], parent: Problem, request: VariantRequest) -> Problem | Rejected:
    text = ", ".join(arguments)
    if len(arguments) != 2:
        return Rejected(text, "unreadable")
    integrand, variable = arguments
    if not variable.isidentifier():
        return Rejected(text, "unreadable")
    try:
        function = parse(integrand, variable)
    except ExpressionError as error:
        return Rejected(text, "too_large" if error.reason == "TOO_LARGE" else "unreadable")
    if variable not in function.free:
        return Rejected(text, "not_one_variable")
    if np.isnan(_real_values(function)).all() and _fault_of(integrand, variable) is not None:
        return Rejected(text, "undefined")
    data = {"integrand": integrand, "variable": variable, "lower": None, "upper": None}
    return Problem.child(parent, data, transforms=request.suggestions, requested=request.effect)


def _fault(problem: Problem) -> str | None:
    return _fault_of(str(problem.data["integrand"]), problem.data["variable"] or "x")


def _fault_of(integrand: str, variable: str) -> str | None:
    """Why an integrand is none: it cannot be read, or is nowhere finite and real."""
    try:
        function = prepare(integrand, variable)
        if not function.identically_zero:
            function.components  # noqa: B018 (the survey of the domain, which raises where there is none)
    except IntegrandError as error:
        return str(error)
    return None


def _real_values(function: Expression) -> NDArray[np.complex128]:
    """Values at the points of comparison; nan where the function is not finite, or not real without holding I."""
    values = function.values(_POINTS)
    with np.errstate(all="ignore"):
        real = np.isfinite(values) & ((np.abs(values.imag) <= 1e-9 * np.abs(values)) | function.is_complex)
    return np.where(real, values, np.nan)


def _digest(values: NDArray[np.complex128]) -> str:
    """The values to `_DIGITS` digits; conjugates count as equal, as sqrt(1/x) and 1/sqrt(x) are below zero."""
    parts: list[str] = []
    for value in values:
        if not np.isfinite(value):
            parts.append("undefined")
            continue
        noise = 1e-10 * max(1.0, abs(value))  # what cancellation leaves of a part that is zero
        parts += ["0" if abs(part) < noise else f"{part:.{_DIGITS - 1}e}" for part in (value.real, abs(value.imag))]
    return sha256(" ".join(parts).encode()).hexdigest()[:16]
