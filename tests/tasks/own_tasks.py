"""Tasks of one's own for the tests: one that is nothing like integrals, and others that break one rule each."""

# ruff: noqa: ARG002, RUF012

import itertools
import os
import time
from collections.abc import Mapping

from ladder_lite.problems import Problem
from ladder_lite.tasks import Grade, Reason, Rejected, Task, Unreadable, VariantRequest

WORDS = (
    {"word": "apple", "answer": "elppa", "same": '{"word": "Apple"}'},
    {"word": "tree", "ending": "s", "answer": "eerts"},
    {"word": "house", "answer": "esuoh"},
)


class Backwards(Task):
    """Words to be written backwards, some with an ending."""

    fields = {"word": "a word", "ending": "letters that follow the answer"}
    optional = ("ending",)
    nouns = ("word", "words")
    examples = WORDS

    def parse(self, text: str) -> Mapping[str, str | None]:
        return super().parse(text) if text.startswith("{") else {"word": text.strip(), "ending": None}

    def check(self, data: Mapping[str, str | None]) -> None:
        if not 0 < len(data["word"] or "") <= 40 or not str(data["word"]).isprintable():
            raise Unreadable("not a word")

    def key(self, problem: Problem) -> str:
        return f"{str(problem.data['word']).lower()} {problem.data['ending'] or ''}"

    def is_right(self, problem: Problem, answer: str) -> bool:
        return answer.lower() == str(problem.data["word"]).lower()[::-1] + (problem.data["ending"] or "")


class RejectsGold(Backwards):
    def is_right(self, problem: Problem, answer: str) -> bool:
        return answer == problem.data["word"]


class AcceptsAnything(Backwards):
    def is_right(self, problem: Problem, answer: str) -> bool:
        return True


class IgnoresTheProblem(Backwards):
    def is_right(self, problem: Problem, answer: str) -> bool:
        return answer.isalpha()


class Hangs(Backwards):
    def is_right(self, problem: Problem, answer: str) -> bool:
        while len(answer) > 1_000:
            time.sleep(0.1)
        return super().is_right(problem, answer)


class CrashesOnHostileText(Backwards):
    def is_right(self, problem: Problem, answer: str) -> bool:
        answer.encode()  # a lone surrogate cannot be encoded
        return super().is_right(problem, answer)


class EndsTheProcess(Backwards):
    def is_right(self, problem: Problem, answer: str) -> bool:
        if "(" in answer:
            os._exit(0)
        return super().is_right(problem, answer)


class UnequalKeys(Backwards):
    def key(self, problem: Problem) -> str:
        return str(problem.data["word"])


class HashedKeys(Backwards):
    def key(self, problem: Problem) -> str:
        return str(hash(super().key(problem)))


class OneKeyForAll(Backwards):
    def key(self, problem: Problem) -> str:
        return "word"


class GradesChange(Backwards):
    calls = itertools.count()

    def grade(self, problem: Problem, text: str) -> Grade:
        grade = super().grade(problem, text)
        return Grade(grade.reward, grade.reason, grade.answer, f"call {next(self.calls)}")


class RewardsGarbage(Backwards):
    def grade(self, problem: Problem, text: str) -> Grade:
        grade = super().grade(problem, text)
        return grade if grade.reward else Grade(0.01, Reason.WRONG, grade.answer)


class DropsReplies(Backwards):
    def parse_variants(self, text: str, parent: Problem, request: VariantRequest) -> list[Problem | Rejected]:
        return [part for part in super().parse_variants(text, parent, request) if isinstance(part, Problem)]


class UnnamedValues(Backwards):
    def data_of(self, row: Mapping[str, object]) -> dict[str, str | None]:
        return {**super().data_of(row), "length": 5}  # type: ignore[dict-item]


class WritesTwoLines(Backwards):
    def statement(self, problem: Problem) -> str:
        return f"{problem.data['word']}\nbackwards"


class NoExamples(Backwards):
    examples = WORDS[:1]


class CrashesOnHostileProblem(Backwards):
    def key(self, problem: Problem) -> str:
        if "**" in str(problem.data["word"]):
            raise RecursionError("too deep")
        return super().key(problem)


class MisnamedFields(Backwards):
    fields = {"word": "a word", "answer": "how it ends"}


class MisnamedOptional(Backwards):
    optional = ("endign",)


class NoFields(Task):
    pass
