"""The paper's task: find an antiderivative; a numerical verifier is the only teacher.

Integrands and answers are SymPy syntax, an answer stands between `<answer>` tags and has no constant of integration.
What the model is told is data of the recipe (`task.prompts`); the terse prompts of the embedded model and the full ones
of a chat model take the same path.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ladder_lite.config import Example, TaskSettings
from ladder_lite.errors import UserError
from ladder_lite.problems import Problem, load_problems
from ladder_lite.problems.clean import read_problem
from ladder_lite.tasks.references import KeptReferences
from ladder_lite.tasks.task import Effect, Messages, Rejected, VariantRequest
from ladder_lite.verify import Grade, Reason, verify
from ladder_lite.verify.expressions.replies import Piece, Unread, read_integrals, strip_thinking
from ladder_lite.verify.numerics.definite import References
from ladder_lite.verify.numerics.integrand import IntegrandError, prepare
from ladder_lite.verify.rules.fingerprints import Keys, fingerprints
from ladder_lite.verify.rules.same_answers import same_answers
from ladder_lite.verify.rules.validity import Data, bounds_of, fault, is_zero

_MAX_REJECTED_CHARS = 2_000
"""Of a rejected text this much is kept, for people to see what models write."""


class IntegrationTask:
    """Integrals of one variable; `references` is the file that keeps the values of definite ones."""

    def __init__(self, settings: TaskSettings, references: Path | None = None) -> None:
        self._settings = settings
        self._references = KeptReferences(references) if references else References()

    @property
    def stop(self) -> tuple[str, ...]:
        """As the recipe has them, `</answer>` for most models."""
        return self._settings.stop

    def problems(self, split: Literal["train", "test"]) -> list[Problem]:
        """The problems of a split; UserError names the line of a problem that cannot be read as an integral."""
        source = self._settings.train if split == "train" else self._settings.test
        return load_problems(source, split, _wrong)

    def read(self, text: str) -> Problem:
        """A problem that a user typed, an integrand or a call; UserError where it is no integral."""
        data, reason = read_problem(text)
        problem = None if data is None else Problem.root("integration", data)
        wrong = reason.replace("_", " ") if problem is None else _wrong(problem)
        if problem is None or wrong:
            raise UserError(f'"{text[:80]}" is no integral ({wrong}); write an integrand such as "x**2*exp(x)"')
        return problem

    @staticmethod
    def statement(problem: Problem) -> str:
        """The integrand, with the bounds of a definite integral."""
        integrand, lower, upper = (problem.data.get(key) for key in ("integrand", "lower", "upper"))
        return f"{integrand}" if lower is None else f"{integrand} from {lower} to {upper}"

    def prompt(self, problem: Problem) -> Messages:
        """Ask for the integral of the problem, as its exam prints it where that differs from what is verified."""
        prompts = self._settings.prompts
        fields = _fields(problem.data) | {"integral": problem.data.get("printed") or _call(problem.data)}
        return self._conversation(prompts.solve.format(**fields), prompts.solve_examples)

    def variant_prompt(self, problem: Problem, request: VariantRequest) -> Messages:
        """Ask for variants, with the paper's ingredients: a persona, 3 to 5 suggestions, several at once."""
        prompts = self._settings.prompts
        template = prompts.equivalent if request.effect == "equivalent" else prompts.easier
        wish = {
            "persona": request.persona,
            "suggestions": ", ".join(request.suggestions),
            "count": str(request.count),
        }
        return self._conversation(template.format(**_fields(problem.data), **wish), prompts.variant_examples)

    def transformations_prompt(self, effect: Effect, count: int) -> Messages:
        """Ask for `count` transformations, in the words of the recipe, which has some where it asks for them."""
        template = self._settings.prompts.transformations
        assert template is not None
        return self._conversation(template.format(effect=effect, count=count))

    def strip_thinking(self, text: str) -> str:
        """A reply without the thoughts that a reasoning model begins with."""
        return strip_thinking(text, self._settings.thinking)

    def parse_variants(self, text: str, parent: Problem, request: VariantRequest) -> list[Problem | Rejected]:
        """Read every integral of a reply; one without any is rejected as a whole."""
        pieces = read_integrals(self.strip_thinking(text), parent.data["variable"] or "x")
        if not pieces:
            return [Rejected(text[:_MAX_REJECTED_CHARS], "unreadable")]
        return [_read_variant(piece, parent, request) for piece in pieces]

    def grade(self, problem: Problem, text: str) -> Grade:
        """Verify the last `<answer>` of a reply."""
        before, end, _ = self.strip_thinking(text).rpartition("</answer>")
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

    def same_answers(self, problem: Problem, answers: Sequence[str]) -> list[int | None]:
        """Antiderivatives that differ by a constant, or equal values."""
        return same_answers(problem.data, answers, self._references)

    def fingerprints(self, problem: Problem, up_to_factor: bool = False) -> Keys:
        """Two keys, of which equal integrals share at least one."""
        return fingerprints(problem.data, up_to_factor)

    def _conversation(self, content: str, examples: Sequence[Example] = ()) -> Messages:
        turns = [("system", system)] if (system := self._settings.prompts.system) is not None else []
        for example in examples:
            turns += [("user", example.user), ("assistant", example.assistant)]
        return [{"role": role, "content": text} for role, text in [*turns, ("user", content)]]


def _read_variant(piece: Piece, parent: Problem, request: VariantRequest) -> Problem | Rejected:
    text = piece.text[:_MAX_REJECTED_CHARS]
    if isinstance(piece, Unread):
        return Rejected(text, "unreadable")
    data = {
        "integrand": piece.integrand,
        "variable": piece.variable,
        "lower": piece.lower,
        "upper": piece.upper,
    }
    if (reason := fault(data) or ("zero" if is_zero(data) else None)) is not None:
        return Rejected(text, reason)
    return Problem.child(parent, data, transforms=request.suggestions, requested=request.effect)


def _fields(data: Data) -> dict[str, str]:
    """What every prompt may tell of an integral."""
    return {"integral": _call(data), "integrand": str(data["integrand"]), "variable": data["variable"] or "x"}


def _call(data: Data) -> str:
    """The whole integral as SymPy writes it."""
    variable, lower, upper = data["variable"] or "x", data["lower"], data["upper"]
    limits = variable if lower is None else f"({variable},{lower},{upper})"
    return f"integrate({data['integrand']},{limits})"


def _wrong(problem: Problem) -> str | None:
    """Why a problem of a set is none: it cannot be read, or is nowhere finite and real."""
    try:
        function = prepare(str(problem.data["integrand"]), problem.data["variable"] or "x")
        if not function.identically_zero:
            function.components  # noqa: B018 (the survey of the domain, which raises where there is none)
        bounds_of(problem.data)
    except IntegrandError as error:
        return str(error)
    except ValueError as error:
        return f"the bounds: {error}"
    return None
