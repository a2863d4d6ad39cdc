"""The paper's task: find an antiderivative, with a numerical verifier as the only source of reward.

Integrands and answers use SymPy's syntax. An answer is written between `<answer>` tags, without a constant of
integration. The prompts come from the recipe (`task.prompts`): the terse ones of the embedded model and the full ones
of a chat model go through the same code.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ladder_lite.config import Example, TaskSettings
from ladder_lite.errors import UserError, nearest
from ladder_lite.problems import Problem, load_problems
from ladder_lite.problems.clean import MAX_SHOWN_CHARS, data_of, read_problem
from ladder_lite.tasks.references import KeptReferences
from ladder_lite.tasks.task import Effect, Messages, Rejected, VariantRequest
from ladder_lite.verify import Grade, Reason, verify
from ladder_lite.verify.expressions.functions import NAMES
from ladder_lite.verify.expressions.replies import Piece, Unread, read_integrals, strip_thinking
from ladder_lite.verify.numerics.definite import References
from ladder_lite.verify.numerics.integrand import IntegrandError, prepare
from ladder_lite.verify.rules.fingerprints import Keys, fingerprints
from ladder_lite.verify.rules.same_answers import same_answers
from ladder_lite.verify.rules.validity import Data, bounds_of, fault, is_zero


class IntegrationTask:
    """Integrals of one variable. `references` is the file that keeps the values of definite integrals."""

    def __init__(self, settings: TaskSettings, references: Path | None = None) -> None:
        self._settings = settings
        self.stop = settings.stop  # for most models `</answer>`, since nothing useful follows it
        self._references = KeptReferences(references) if references else References()

    def problems(self, split: Literal["train", "test", "probe"]) -> list[Problem]:
        """The problems of a split or of the probe. Raises UserError, with the line, for one that is not an integral."""
        settings = self._settings
        source = {"train": settings.train, "test": settings.test, "probe": settings.probe}[split]
        return load_problems(source, split, _fault) if source else []

    def read(self, text: str) -> Problem:
        """A problem that a user typed: an integrand or a call. Raises UserError if it is not an integral."""
        data, reason = read_problem(text)
        problem = None if data is None else Problem.root("integration", data)
        reason = reason.replace("_", " ") if problem is None else _fault(problem) or ""
        if reason == "unreadable" and text.count("(") == text.count(")"):
            called = re.findall(r"([A-Za-z]\w+)\s*\(", text)
            unknown = [name for name in called if name not in (*NAMES, "integrate", "Integral")]
            reason = f"unknown function {unknown[0]}{nearest(unknown[0], NAMES)}" if unknown else reason
        if problem is None or reason:
            raise UserError(f'"{text[:80]}" is not an integral ({reason}); write an integrand such as "x**2*exp(x)"')
        return problem

    @staticmethod
    def statement(problem: Problem) -> str:
        """The integrand, with the bounds if it is definite: "x**2 from 0 to 1"."""
        integrand, lower, upper = (problem.data.get(key) for key in ("integrand", "lower", "upper"))
        return f"{integrand}" if lower is None else f"{integrand} from {lower} to {upper}"

    def prompt(self, problem: Problem) -> Messages:
        """The prompt that asks for the integral."""
        prompts = self._settings.prompts
        # A problem of an exam may be printed in a form that the verifier cannot read, such as an infinite radical: the
        # model sees the printed form, and its closed form is verified.
        fields = _fields(problem.data) | {"integral": problem.data.get("printed") or _call(problem.data)}
        return self._conversation(prompts.solve.format(**fields), prompts.solve_examples)

    def variant_prompt(self, problem: Problem, request: VariantRequest) -> Messages:
        """The prompt that asks for variants, as in the paper: a persona, 3 to 5 suggestions, several at once."""
        prompts = self._settings.prompts
        template = prompts.equivalent if request.effect == "equivalent" else prompts.easier
        request_fields = {
            "persona": request.persona,
            "suggestions": ", ".join(request.suggestions),
            "count": str(request.count),
        }
        # Always the verified integral, never its printed form: a variant must be a formula again.
        return self._conversation(template.format(**_fields(problem.data), **request_fields), prompts.variant_examples)

    def transformations_prompt(self, effect: Effect, count: int) -> Messages:
        """The prompt that asks for `count` transformations."""
        template = self._settings.prompts.transformations
        assert template is not None  # the recipe was refused if it asks for transformations without a prompt
        return self._conversation(template.format(effect=effect, count=count))

    def strip_thinking(self, text: str) -> str:
        """A reply without the `<think>` block of a reasoning model."""
        return strip_thinking(text, self._settings.thinking)

    def parse_variants(self, text: str, parent: Problem, request: VariantRequest) -> list[Problem | Rejected]:
        """Read every integral in a reply; a reply without any is one rejection."""
        pieces = read_integrals(self.strip_thinking(text), parent.data["variable"] or "x")
        if not pieces:
            return [Rejected(text[:MAX_SHOWN_CHARS], "unreadable")]
        return [_read_variant(piece, parent, request) for piece in pieces]

    def grade(self, problem: Problem, text: str) -> Grade:
        """Verify the last complete `<answer>` of a reply."""
        # From the right: a model may mention the tags, or correct itself with a second answer. Two splits by rpartition
        # take linear time on any text, which a regular expression with `.*` does not.
        before, end, _ = self.strip_thinking(text).rpartition("</answer>")
        _, start, answer = before.rpartition("<answer>")
        if not (start and end):
            return Grade(0.0, Reason.NO_ANSWER, None)  # also what the format reward depends on
        data = problem.data
        return verify(
            str(data["integrand"]),
            answer.partition("</answer>")[0].strip(),  # "<answer>x</answer></answer>" -> x
            variable=data["variable"] or "x",
            lower=data["lower"],
            upper=data["upper"],
            protocol=self._settings.protocol,
            references=self._references,
        )

    def same_answers(self, problem: Problem, answers: Sequence[str]) -> list[int | None]:
        """Group antiderivatives that differ by a constant, or equal values, as `Task.same_answers` asks."""
        return same_answers(problem.data, answers, self._references)

    def fingerprints(self, problem: Problem, up_to_factor: bool = False) -> Keys:
        """Two keys; equal integrals share at least one."""
        return fingerprints(problem.data, up_to_factor)

    def _conversation(self, content: str, examples: Sequence[Example] = ()) -> Messages:
        # Few-shot examples are earlier turns of the conversation, between the system prompt and the question.
        turns = [("system", system)] if (system := self._settings.prompts.system) is not None else []
        for example in examples:
            turns += [("user", example.user), ("assistant", example.assistant)]
        return [{"role": role, "content": text} for role, text in [*turns, ("user", content)]]


def _read_variant(piece: Piece, parent: Problem, request: VariantRequest) -> Problem | Rejected:
    text = piece.text[:MAX_SHOWN_CHARS]
    if isinstance(piece, Unread):
        return Rejected(text, "unreadable")
    data = data_of(piece)
    # A variant that is identically zero, such as x - x, is a valid integral that teaches nothing.
    if (reason := fault(data) or ("zero" if is_zero(data) else None)) is not None:
        return Rejected(text, reason)
    return Problem.child(parent, data, transforms=request.suggestions, requested=request.effect)


def _fields(data: Data) -> dict[str, str]:
    """The fields that every prompt template may use."""
    return {"integral": _call(data), "integrand": str(data["integrand"]), "variable": data["variable"] or "x"}


def _call(data: Data) -> str:
    """The whole integral in SymPy's syntax: integrate(x**2,x), integrate(x**2,(x,0,1))."""
    variable, lower, upper = data["variable"] or "x", data["lower"], data["upper"]
    limits = variable if lower is None else f"({variable},{lower},{upper})"
    return f"integrate({data['integrand']},{limits})"


def _fault(problem: Problem) -> str | None:
    """What is wrong with a problem of a set or of a user; None if it is an integral."""
    # `prepare` is what the verifier itself does with the integrand, and its errors say in words what is wrong.
    try:
        function = prepare(str(problem.data["integrand"]), problem.data["variable"] or "x")
        function.components  # noqa: B018 - a cached property: raises if the integrand is nowhere finite and real
        bounds_of(problem.data)
    except IntegrandError as error:
        return str(error)
    except ValueError as error:
        return f"the bounds: {error}"
    return None
