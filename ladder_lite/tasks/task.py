"""What a task is: a family of problems whose answers a program can verify.

`Task` is the base class. A task of your own names the fields of its problems and says whether an answer is right; the
other methods have defaults. `README.md` in this folder builds one. The loop (`variants`, `train`, `evaluate`, `ttrl`),
`solve` and the report use tasks only through this class.
"""

import json
import re
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ladder_lite.config import Example, TaskSettings
from ladder_lite.errors import UserError, nearest
from ladder_lite.tasks.problem import Problem
from ladder_lite.tasks.rows import NOTES, Notes, Row, read_rows
from ladder_lite.verify import Grade, Reason
from ladder_lite.verify.expressions.replies import strip_thinking
from ladder_lite.verify.rules.fingerprints import Keys

Messages = list[dict[str, str]]
"""A conversation in the format of chat templates: [{"role": "user", "content": "..."}]."""

Effect = Literal["easier", "equivalent", "harder"]
# Keys of the files in which problems are written beside other things, and placeholders that are not of the problem.
_OF_ROWS = {*NOTES, "split", "steps", "tries", "right", "pass_rate", "parent_id", "root_id", "depth", "requested"}
RESERVED = _OF_ROWS | {"transforms", "problem", "persona", "suggestions", "count"}
MAX_SHOWN_CHARS = 2_000  # of a rejected text: enough to see what went wrong
_MAX_REPLY_CHARS = 20_000  # the rest of a longer reply is not searched for variants
# "1. ", "(2) ", "3: ", "- ", "* ", a bullet, an en dash.
LIST_MARKER = re.compile(r"(?:\(?\d{1,2}[.):]|[-*\u2022\u2013])\s+")


class Unreadable(Exception):  # noqa: N818 - it says what the text is
    """A text that is not a problem of the task, or not an answer; the message says why in a few words.

    Reports count rejected variants by this message, so it should not quote the text.
    """


@dataclass(frozen=True, slots=True)
class VariantRequest:
    """What one variant prompt asks for: `count` variants, in the role of `persona`, with suggested transformations."""

    effect: Effect
    persona: str
    suggestions: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A piece of a reply that is not a usable variant, with the reason.

    `equal_to` is the id of the problem that it repeats, or the name of the set whose test problem it equals.
    """

    text: str
    reason: str
    equal_to: str | None = None


class Task:
    """A family of problems with a verifier. Subclasses must define `fields` and `is_right`.

    Often they also define `check`, so that only valid problems enter a run, and `key`, so that a problem written in two
    ways counts as one. Texts are untrusted: `parse`, `check`, `key`, `is_right` and `answer_key` get what a model
    wrote. They must return in bounded time, and raise nothing but `Unreadable`. `python -m ladder_lite.tasks check`
    tests this.
    """

    fields: ClassVar[Mapping[str, str]]
    """The keys of a problem, each with a description: {"equation": "a linear equation in x"}. Values are text."""

    optional: ClassVar[Collection[str]] = ()
    """The fields that may be missing or null."""

    nouns: ClassVar[tuple[str, str]] = ("problem", "problems")
    """What a problem is called, singular and plural."""

    examples: ClassVar[Sequence[Mapping[str, str]]] = ()
    """Rows with an "answer", for `python -m ladder_lite.tasks check`; "same" is another way to write the problem."""

    transformations: ClassVar[Mapping[str, Sequence[str]]] = {}
    """The library of `variants.transformations: default`: {"easier": [...], "equivalent": [...], "harder": [...]}."""

    def __init__(self, settings: TaskSettings, cache: Path | None = None) -> None:
        """Make the task of a recipe. `cache` is a file in which it may keep what is costly to compute."""
        self.settings = settings
        self.cache = cache
        self.stop = settings.stop  # a reply to a problem ends with the first of these texts

    # --- What a task must define

    def is_right(self, problem: Problem, answer: str) -> bool:
        """Return whether an answer to the problem is right. Raises Unreadable if the text is not an answer."""
        raise NotImplementedError

    # --- What it may define: problems

    def check(self, data: Mapping[str, str | None]) -> None:
        """Raise Unreadable if these are not the values of a problem."""

    def parse(self, text: str) -> Mapping[str, str | None]:
        """Return the values of the problem that a text states. Raises Unreadable if it states none.

        By default the text is the only field, or a JSON object if the task has several.
        """
        if len(self.fields) == 1:
            return dict.fromkeys(self.fields, text.strip())
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unreadable("not JSON") from error
        if not isinstance(values, dict):
            raise Unreadable("not a JSON object")
        return dict.fromkeys(self.fields) | values

    def statement(self, problem: Problem) -> str:
        """Return the problem as one line of text, for people."""
        values = [value for name in self.fields if (value := problem.data.get(name)) is not None]
        return " ".join(", ".join(values).split())

    def latex(self, problem: Problem) -> str | None:  # noqa: ARG002
        """Return the problem in LaTeX, for reports; None, the default, if they show the statement."""
        return None

    def key(self, problem: Problem) -> str:
        """Return a text that equal problems share, however they are written, and different ones do not."""
        return json.dumps([problem.data.get(name) for name in self.fields])

    # --- What it may define: answers

    def answer_key(self, problem: Problem, answer: str) -> str:  # noqa: ARG002
        """Return a text that equal answers share, for the majority vote. Raises Unreadable as `is_right` does."""
        return " ".join(answer.split())

    def formulas(self, problem: Problem, answer: str) -> tuple[str, str | None]:  # noqa: ARG002
        """Return a right answer as text and in LaTeX, if it has such a form."""
        return answer, None

    def checked(self, problem: Problem) -> str:  # noqa: ARG002
        """Return in a sentence or two what the verifier checked, and what that leaves open."""
        return f"The verifier of the task {self.settings.name} accepted it."

    def answer_noun(self, problem: Problem) -> str:  # noqa: ARG002
        """Return what an answer to the problem is called."""
        return "answer"

    def detour(self, problem: Problem) -> Problem | None:  # noqa: ARG002
        """Return another problem whose answer leads to this one's, for `solve`; None, the default, without one."""
        return None

    def after_detour(self, problem: Problem, answer: str) -> str:
        """Return the answer to the problem that follows from a right answer to `detour(problem)`."""
        raise NotImplementedError

    # --- What it may define: problem sets

    def sets(self) -> Mapping[str, Path]:
        """Return the files of the built-in problem sets by name. No variant may equal one of their test problems."""
        return {}

    def data_of(self, row: Mapping[str, Any]) -> dict[str, str | None]:
        """Return the values of the problem in a row of a set. Raises Unreadable if they do not fit together."""
        return {name: row.get(name) for name in self.fields}

    def to_hold_out(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return those of these test problems that no variant may equal; all of them by default."""
        return list(problems)

    def subsets(self, problems: Sequence[Problem]) -> Mapping[str, set[str]]:  # noqa: ARG002
        """Return the ids of test problems whose results are also reported by themselves, by the name of the subset."""
        return {}

    # --- What it may define: variants, prompts

    def given_variants(self, parent: Problem, request: VariantRequest, seed: str) -> str | None:  # noqa: ARG002
        """Return a reply with variants that the task itself makes; None, the default, if the model writes them."""
        return None

    @property
    def placeholder_names(self) -> tuple[str, ...]:
        """What the prompt templates may refer to: by default {problem}, the statement, and the fields of the task."""
        return ("problem", *self.fields)

    def placeholders(self, problem: Problem) -> dict[str, str]:
        """Return the texts for these placeholders."""
        texts = {"problem": self.statement(problem), **problem.data}
        return {name: texts.get(name) or "" for name in self.placeholder_names}

    # --- What the loop uses

    def problems(self, split: Literal["train", "test", "probe"]) -> list[Problem]:
        """Return the problems of a split, or of the probe, in the order of their file. Raises UserError as `load`."""
        source = {"train": self.settings.train, "test": self.settings.test, "probe": self.settings.probe}[split]
        return self.load(source, split) if source else []

    def load(self, source: str, split: str | None, check: bool = True) -> list[Problem]:
        """Return the problems of a set, given by its name or by the path of a JSON lines file.

        Raises UserError, with the line, for a row that cannot be read, repeats an earlier one, or, with `check`, is not
        a problem of the task.
        """
        lines: dict[Problem, int] = {}  # in the order of the file
        for row in self.rows(source, split):
            problem = self._root(row, check)
            if (first := lines.setdefault(problem, row.line)) != row.line:
                raise UserError(f"{row.place}: the same problem as in line {first}; remove one")
        return list(lines)

    def notes(self, source: str) -> dict[str, Notes]:
        """Return the notes of a problem set, all splits, by problem id. Raises UserError as `load` does."""
        rows = self.rows(source, None)
        return {self._root(row).id: Notes(row.values.get("technique"), row.values.get("answer")) for row in rows}

    def rows(self, source: str, split: str | None) -> list[Row]:
        """Return the rows of a set, see `rows.read_rows`."""
        return read_rows(self.find(source), split, self.fields, self.optional)

    def find(self, source: str) -> Path:
        """Return the file of a problem set. Raises UserError for an unknown name."""
        # "tiny" is a name; "tiny.jsonl" and "sets/tiny" are paths.
        path, sets = Path(source), self.sets()
        if path.suffix or len(path.parts) > 1:
            return path
        if source not in sets:
            known = f"Known sets: {', '.join(sets)}" if sets else "Give the path of a file, such as problems.jsonl"
            raise UserError(f'unknown problem set "{source}"{nearest(source, sets) or "."} {known}')
        return sets[source]

    def held_out(self) -> dict[str, list[Problem]]:
        """Return the test problems of the built-in sets, by the name of the set: no variant may equal one of them.

        A set without splits counts as a whole.
        """
        return {name: self.to_hold_out(self.load(name, "test", check=False)) for name in self.sets()}

    def validate(self, data: Mapping[str, Any]) -> None:
        """Raise Unreadable for a field that is unknown, missing, blank or not text, and if `check` does."""
        for name in {**self.fields, **data}:
            value = data.get(name)
            if name not in self.fields:
                raise Unreadable(f"no field is called {name[:40]}")
            if value is None and name in self.optional:
                continue
            if not isinstance(value, str) or not value.strip():
                raise Unreadable(f"{name} is {'missing' if value is None or isinstance(value, str) else 'not a text'}")
            if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                raise Unreadable(f"{name} has half a character")  # a lone surrogate, which no tokenizer reads
        self.check(data)

    def read(self, text: str, **fields: str | None) -> Problem:
        """Return the problem that a user typed; `fields` are given besides. Raises UserError if it is not one."""
        try:
            data = {**self.parse(text), **{name: value for name, value in fields.items() if value is not None}}
            self.validate(data)
        except Unreadable as error:
            noun = f"{'an' if self.nouns[0][0] in 'aeiou' else 'a'} {self.nouns[0]}"
            known = [{name: row[name] for name in self.fields if name in row} for row in self.examples[:1]]
            shown = [data if len(self.fields) > len(self.optional) + 1 else next(iter(data.values())) for data in known]
            hint = f"; write one such as {json.dumps(shown[0])}" if shown else ""
            raise UserError(f'"{text[:80]}" is not {noun} ({error}){hint}') from error
        return Problem.root(self.settings.name, data)

    def prompt(self, problem: Problem) -> Messages:
        """Return the prompt that asks for a solution."""
        prompts = self.settings.prompts
        return self._conversation(prompts.solve.format(**self.placeholders(problem)), prompts.solve_examples)

    def variant_prompt(self, problem: Problem, request: VariantRequest) -> Messages:
        """Return the prompt that asks for variants, as in the paper: a persona, 3 to 5 suggestions, several at once."""
        prompts = self.settings.prompts
        template = prompts.equivalent if request.effect == "equivalent" else prompts.easier
        asked = {"persona": request.persona, "suggestions": ", ".join(request.suggestions), "count": str(request.count)}
        return self._conversation(template.format(**self.placeholders(problem) | asked), prompts.variant_examples)

    def transformations_prompt(self, effect: Effect, count: int) -> Messages:
        """Return the prompt that asks for `count` transformations with this effect."""
        template = self.settings.prompts.transformations
        assert template is not None  # the recipe was refused if it asks for transformations without a prompt
        return self._conversation(template.format(effect=effect, count=count))

    def strip_thinking(self, text: str) -> str:
        """Return a reply without the `<think>` block of a reasoning model."""
        return strip_thinking(text, self.settings.thinking)

    def parse_variants(self, text: str, parent: Problem, request: VariantRequest) -> list[Problem | Rejected]:
        """Return the variants in a reply to `request`, in order: an item of a list each, or, without one, a line.

        A reply without any is one rejection.
        """
        lines = [line.strip() for line in self.strip_thinking(text)[:_MAX_REPLY_CHARS].splitlines() if line.strip()]
        items = [LIST_MARKER.sub("", line, count=1) for line in lines if LIST_MARKER.match(line)] or lines
        return [self._variant(item, parent, request) for item in items or [text]]

    def grade(self, problem: Problem, text: str) -> Grade:
        """Grade a reply by its last complete `<answer>`. A bug in the verifier raises; it must never score 0."""
        if not (answer := self.answer_in(text)):
            return Grade(0.0, Reason.NO_ANSWER, answer)
        try:
            right = self.is_right(problem, answer)
        except Unreadable as error:
            return Grade(0.0, Reason.UNPARSEABLE, answer, str(error))
        return Grade(1.0, Reason.CORRECT, answer) if right else Grade(0.0, Reason.WRONG, answer)

    def same_answers(self, problem: Problem, answers: Sequence[str]) -> list[int | None]:
        """Return for each answer the index of the first one that is the same: [0, 1, 0, None].

        It is None for an unreadable answer. The verdicts play no part in this.
        """
        first: dict[str, int] = {}
        same: list[int | None] = []
        for number, answer in enumerate(answers):
            try:
                same.append(first.setdefault(self.answer_key(problem, answer), number))
            except Unreadable:
                same.append(None)
        return same

    def fingerprints(self, problem: Problem, up_to_factor: bool = False) -> Keys:  # noqa: ARG002
        """Return keys of a problem. Equal problems share at least one of them; different ones share none.

        With `up_to_factor`, a task may count multiples as equal.
        """
        return (self.key(problem),)

    def answer_in(self, text: str) -> str | None:
        """Return the last complete `<answer>` of a reply, None if it has none."""
        # From the right: a model may mention the tags, or correct itself with a second answer. Two splits by rpartition
        # take linear time on any text, which a regular expression with `.*` does not.
        before, end, _ = self.strip_thinking(text).rpartition("</answer>")
        _, start, answer = before.rpartition("<answer>")
        # "<answer>x</answer></answer>" -> x
        return answer.partition("</answer>")[0].strip() if start and end else None

    def check_prompts(self) -> None:
        """Raise UserError if a prompt template has unknown placeholders, or none of the problem."""
        names = self.placeholder_names
        of_variants = (*names, "persona", "suggestions", "count")
        for name, fields in (("solve", names), ("easier", of_variants), ("equivalent", of_variants)):
            template = getattr(self.settings.prompts, name)
            used = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
            if unknown := used.difference(fields):
                listing = ", ".join(f"{{{field}}}" for field in fields)
                raise UserError(f"task.prompts.{name}: no placeholder {{{min(unknown)}}}; there are {listing}")
            if used.isdisjoint(names):
                raise UserError(f"task.prompts.{name}: must contain {' or '.join(f'{{{field}}}' for field in names)}")

    def _root(self, row: Row, check: bool = False) -> Problem:
        try:
            data = self.data_of(row.values)
            if check:
                self.validate(data)
            return Problem.root(self.settings.name, data)
        except Unreadable as error:
            raise UserError(f"{row.place}: {error}") from error

    def _variant(self, text: str, parent: Problem, request: VariantRequest) -> Problem | Rejected:
        try:
            data = self.parse(text)
            self.validate(data)
        except Unreadable as error:
            return Rejected(text[:MAX_SHOWN_CHARS], str(error) or "unreadable")
        return Problem.child(parent, data, transforms=request.suggestions, requested=request.effect)

    def _conversation(self, content: str, examples: Sequence[Example] = ()) -> Messages:
        # Few-shot examples are earlier turns of the conversation, between the system prompt and the question.
        turns = [("system", system)] if (system := self.settings.prompts.system) is not None else []
        for example in examples:
            turns += [("user", example.user), ("assistant", example.assistant)]
        return [{"role": role, "content": text} for role, text in [*turns, ("user", content)]]
