"""The paper's task: find an antiderivative, with a numerical verifier as the only source of reward.

Integrands and answers use SymPy's syntax. An answer is written between `<answer>` tags, without a constant of
integration. The prompts come from the recipe (`task.prompts`): the terse ones of the embedded model and the full ones
of a chat model go through the same code.
"""

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from ladder_lite.config import TaskSettings
from ladder_lite.errors import NotFetchedError, UserError, nearest
from ladder_lite.install import shipped
from ladder_lite.tasks.integration.lists import data_of, read_problem
from ladder_lite.tasks.integration.paper_sets import NAMES as PAPER_SETS
from ladder_lite.tasks.integration.paper_sets import fetched
from ladder_lite.tasks.integration.references import KeptReferences
from ladder_lite.tasks.problem import Problem
from ladder_lite.tasks.task import MAX_SHOWN_CHARS, Messages, Rejected, Task, Unreadable, VariantRequest
from ladder_lite.verify import Grade, Reason, verify
from ladder_lite.verify.expressions.functions import NAMES
from ladder_lite.verify.expressions.latex import bare, typeset, typeset_integral
from ladder_lite.verify.expressions.parse import parse
from ladder_lite.verify.expressions.replies import Piece, Unread, read_integrals
from ladder_lite.verify.numerics import definite
from ladder_lite.verify.numerics.bounds import bound
from ladder_lite.verify.numerics.definite import References
from ladder_lite.verify.numerics.integrand import IntegrandError, prepare
from ladder_lite.verify.rules.by_component import TOLERANCE
from ladder_lite.verify.rules.fingerprints import Keys, fingerprints
from ladder_lite.verify.rules.same_answers import same_answers
from ladder_lite.verify.rules.validity import bounds_of, fault, is_zero


class IntegrationTask(Task):
    """Integrals of one variable. The cache keeps the values of definite integrals."""

    fields: ClassVar[Mapping[str, str]] = {
        "integrand": "the function to integrate, in SymPy's syntax",
        "variable": "its variable, x by default",
        "lower": "the lower bound, null for an antiderivative",
        "upper": "the upper bound, null for an antiderivative",
        "printed": "the statement that a model is shown in place of the integrand, if it differs",
    }
    optional = ("variable", "lower", "upper", "printed")
    nouns = ("integral", "integrals")
    examples: ClassVar[Sequence[Mapping[str, str]]] = (
        {"integrand": "x*sin(x)", "answer": "sin(x)-x*cos(x)", "same": "integrate(sin(x)*x,x)"},
        {"integrand": "2*t", "variable": "t", "answer": "t**2", "same": "integrate(x+x,x)"},
        {"integrand": "x", "lower": "0", "upper": "2", "answer": "2", "same": "integrate(t,(t,0,4/2))"},
    )
    # "harder" is for completeness only: the paper dropped harder variants, and no request asks for them.
    transformations = json.loads(Path(__file__).with_name("transformations.json").read_text(encoding="utf-8"))
    placeholder_names = ("integral", "integrand", "variable")

    def __init__(self, settings: TaskSettings, cache: Path | None = None) -> None:
        super().__init__(settings, cache)
        self._references = KeptReferences(cache) if cache else References()

    def sets(self) -> dict[str, Path]:
        """Return the shipped sets and those that were fetched."""
        files = {file.stem: file for file in sorted(shipped("benchmarks").glob("*.jsonl"))}
        return files | {name: fetched(name) for name in PAPER_SETS if fetched(name).exists()}

    def find(self, source: str) -> Path:
        """Return the file of a problem set. Raises UserError for an unknown name and for a set not fetched yet."""
        if source in PAPER_SETS and source not in self.sets():
            raise NotFetchedError(f"{source}: not fetched yet; run python -m ladder_lite.problems fetch {source}")
        return super().find(source)

    def data_of(self, row: Mapping[str, Any]) -> dict[str, str | None]:
        """Return the integral in a row of a set. Raises Unreadable if variable or bounds are wrong."""
        data = {name: row.get(name) for name in ("integrand", "variable", "lower", "upper")}
        data["variable"] = variable = data["variable"] or "x"
        if (data["lower"] is None) != (data["upper"] is None):
            raise Unreadable('give both "lower" and "upper", or neither')
        if not variable.isidentifier():
            raise Unreadable(f'"variable" must be a name, but is "{variable}"')
        # Only if there is one: the id is a hash of the data, so a key with None would change the ids of all other
        # problems.
        return data if row.get("printed") is None else data | {"printed": row["printed"]}

    def check(self, data: Mapping[str, str | None]) -> None:
        """Raise Unreadable if the integral cannot be verified; an answer to it is not needed to see that."""
        # `prepare` is what the verifier itself does with the integrand, and its errors say in words what is wrong.
        try:
            function = prepare(str(data["integrand"]), data.get("variable") or "x")
            function.components  # noqa: B018 - a cached property: raises if the integrand is nowhere finite and real
            bounds_of(data)
        except IntegrandError as error:
            raise Unreadable(str(error)) from error
        except ValueError as error:
            raise Unreadable(f"the bounds: {error}") from error

    def parse(self, text: str) -> dict[str, str | None]:
        """Return the integral that a text states: an integrand or a call."""
        data, reason = read_problem(text)
        if data is not None:
            return dict(data)
        if reason == "unreadable" and text.count("(") == text.count(")"):
            called = re.findall(r"([A-Za-z]\w+)\s*\(", text)
            if unknown := [name for name in called if name not in (*NAMES, "integrate", "Integral")]:
                raise Unreadable(f"unknown function {unknown[0]}{nearest(unknown[0], NAMES)}")
            letters = {*re.findall(r"\b[A-Za-z]\b", text)} - {"x"}
            if len(letters) == 1 and read_problem(f"integrate({text}, {min(letters)})")[0] is not None:
                raise Unreadable(f"its variable is not x: write integrate({text[:40]}, {min(letters)})")
        raise Unreadable(reason.replace("_", " "))

    def read(self, text: str, **fields: str | None) -> Problem:
        """Return the integral that a user typed, `lower` and `upper` given besides."""
        problem = super().read(text)
        if bounds := {name: bound for name in ("lower", "upper") if (bound := fields.get(name)) is not None}:
            if len(bounds) < 2:
                raise UserError("--lower and --upper: give both, or neither for an antiderivative")
            if problem.data["lower"] is not None:
                raise UserError(f'"{text[:80]}" already has bounds; leave out --lower and --upper')
            problem = super().read(_call({**problem.data, **bounds}))
        return problem

    def statement(self, problem: Problem) -> str:
        """Return the integrand, with the bounds if it is definite: "x**2 from 0 to 1"."""
        integrand, lower, upper = (problem.data.get(key) for key in ("integrand", "lower", "upper"))
        return f"{integrand}" if lower is None else f"{integrand} from {lower} to {upper}"

    def latex(self, problem: Problem) -> str:
        """Return the integral in LaTeX."""
        data = problem.data
        limits = [_limit(limit) for limit in (data.get("lower"), data.get("upper")) if limit is not None]
        return typeset_integral(parse(str(data["integrand"]), data.get("variable") or "x"), *limits)

    def placeholders(self, problem: Problem) -> dict[str, str]:
        """Return the texts of the placeholders; {integral} is a call of `integrate`."""
        data = problem.data
        return {"integral": _call(data), "integrand": str(data["integrand"]), "variable": data["variable"] or "x"}

    def prompt(self, problem: Problem) -> Messages:
        """Return the prompt that asks for the integral."""
        # A problem of an exam may be printed in a form that the verifier cannot read, such as an infinite radical: the
        # model sees the printed form, and its closed form is verified. Prompts for variants have the verified integral,
        # for a variant must be a formula again.
        fields = self.placeholders(problem)
        fields["integral"] = problem.data.get("printed") or fields["integral"]
        prompts = self.settings.prompts
        return self._conversation(prompts.solve.format(**fields), prompts.solve_examples)

    def parse_variants(self, text: str, parent: Problem, request: VariantRequest) -> list[Problem | Rejected]:
        """Return every integral in a reply; a reply without any is one rejection."""
        pieces = read_integrals(self.strip_thinking(text), parent.data["variable"] or "x")
        return [_read_variant(piece, parent, request) for piece in pieces or [Unread(text)]]

    def grade(self, problem: Problem, text: str) -> Grade:
        """Verify the last complete `<answer>` of a reply."""
        answer, data = self.answer_in(text), problem.data
        if answer is None:
            return Grade(0.0, Reason.NO_ANSWER, None)  # also what the format reward depends on
        return verify(
            str(data["integrand"]),
            answer,
            variable=data["variable"] or "x",
            lower=data["lower"],
            upper=data["upper"],
            protocol=self.settings.protocol,
            references=self._references,
        )

    def same_answers(self, problem: Problem, answers: Sequence[str]) -> list[int | None]:
        """Group antiderivatives that differ by a constant, or equal values, as `Task.same_answers` asks."""
        return same_answers(problem.data, answers, self._references)

    def fingerprints(self, problem: Problem, up_to_factor: bool = False) -> Keys:
        """Return two keys; equal integrals share at least one."""
        return fingerprints(problem.data, up_to_factor)

    def to_hold_out(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return the problems without a `printed` statement."""
        # A printed problem may be verified by a trivial closed form: x, for an infinite nested radical. A variant that
        # equals the closed form gives nothing of the printed problem away, so it need not be held out.
        return [problem for problem in problems if "printed" not in problem.data]

    def subsets(self, problems: Sequence[Problem]) -> dict[str, set[str]]:
        """Return the problems whose prompt is an exam's wording and not the verified integrand, as "printed"."""
        printed = {problem.id for problem in problems if "printed" in problem.data}
        return {"printed": printed} if printed else {}

    def formulas(self, problem: Problem, answer: str) -> tuple[str, str]:
        """Return a verified answer in Python's notation and in LaTeX, parsed as the verifier parsed it."""
        # Options of the parser change what a text means, so these must be the verifier's: "+ C" is dropped from an
        # antiderivative only, and a cbrt in the integrand makes x**(1/3) in the answer the real cube root.
        variable = problem.data["variable"] or "x"
        expression = parse(
            answer,
            variable,
            constant_of_integration=problem.data["lower"] is None,
            real_cube_roots="cbrt" in parse(str(problem.data["integrand"]), variable).functions,
        )
        return bare(expression), typeset(expression)

    def checked(self, problem: Problem) -> str:
        """Return in a sentence or two what the verifier checked, and what that leaves open."""
        if problem.data["lower"] is not None:
            return (
                f"It equals the integral's value by numerical quadrature, to {definite.EXACT_TOLERANCE:g} of the "
                f"integral of the integrand's size ({definite.TOLERANCE:g} if it has a decimal point). Any other "
                "number that close would have passed as well."
            )
        return (
            f"Its derivative equals the integrand, to {TOLERANCE:g} of its size, at up to 249 points, most of them "
            "between -10 and 10, on the whole of at least one connected part of the domain, and it does not jump "
            "between them. It is a test, not a proof: a wrong derivative that is as close, or wrong only between the "
            "points, would pass."
        )

    def detour(self, problem: Problem) -> Problem | None:
        """Return the antiderivative of a definite integral with finite bounds."""
        bounds = bounds_of(problem.data)
        if bounds is None or not all(map(isfinite, bounds)):
            return None
        return Problem.root(self.settings.name, {**problem.data, "lower": None, "upper": None})

    def after_detour(self, problem: Problem, answer: str) -> str:
        """Return F(b)-F(a). It is a right answer only if F is continuous between the bounds, so it is graded, too."""
        variable = problem.data["variable"] or "x"
        formula = bare(parse(answer, variable, constant_of_integration=True))
        upper, lower = (
            re.sub(rf"\b{variable}\b", f"({parse(str(problem.data[end]), variable).source})", formula)
            for end in ("upper", "lower")
        )
        return f"{upper}-({lower})"

    def answer_noun(self, problem: Problem) -> str:
        """Return "antiderivative" or "value"."""
        return "antiderivative" if problem.data["lower"] is None else "value"


def _read_variant(piece: Piece, parent: Problem, request: VariantRequest) -> Problem | Rejected:
    text = piece.text[:MAX_SHOWN_CHARS]
    if isinstance(piece, Unread):
        return Rejected(text, "unreadable")
    data = data_of(piece)
    # A variant that is identically zero, such as x - x, is a valid integral that teaches nothing.
    if (reason := fault(data) or ("zero" if is_zero(data) else None)) is not None:
        return Rejected(text, reason)
    return Problem.child(parent, data, transforms=request.suggestions, requested=request.effect)


def _limit(text: str) -> str:
    """A bound in LaTeX."""
    number = bound(text).number
    return typeset(parse(text)) if isfinite(number) else r"\infty" if number > 0 else r"-\infty"


def _call(data: Mapping[str, str | None]) -> str:
    """The whole integral in SymPy's syntax: integrate(x**2,x), integrate(x**2,(x,0,1))."""
    variable, lower, upper = data["variable"] or "x", data["lower"], data["upper"]
    limits = variable if lower is None else f"({variable},{lower},{upper})"
    return f"integrate({data['integrand']},{limits})"
