"""Contract tests for any task: what the loop relies on, tried on the task's examples and on hostile texts.

    if __name__ == "__main__":  # the processes that `check` starts import this file
        for name, fault in check("my_task.py:MyTask"):
            print(name, fault or "ok")

The tests run in a process of their own, which is killed when one of them hangs. A second process, in which Python
hashes texts differently, must come to the same grades and keys.
"""

import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final, NamedTuple
from unittest.mock import patch

from ladder_lite.errors import UserError, first_line
from ladder_lite.jsonl import digest
from ladder_lite.tasks import Grade, Problem, Reason, Task, VariantRequest, plain_task

_LIMIT_S: Final = 20.0  # for one test; the start of the process and the imports of the task count as one
_GARBAGE: Final = ("", "no tags", "<answer></answer>", "<answer>", "</answer>", "<answer>?!</answer>")
# fmt: off
_HOSTILE: Final = {
    "digits": "9" * 100_000, "a power": "9**9**9**9", "an exponent": "1e999999999", "a division by zero": "1/0",
    "brackets": "(" * 20_000 + ")" * 20_000, "a long sum": "x+" * 20_000 + "x", "letters": "a" * 40 + "!",
    "a long word": "a" * 100_000, "blanks": "a" + " \t" * 50_000 + "a", "not a number": "nan", "infinity": "-inf",
    "a lone surrogate": "\ud800", "control characters": "\x1b[2J\0", "other digits": "\u00b2\u0663\uff17",
    "JSON": '{"a":[' * 10_000, "null": "null", "a list": "[[1], {}]", "code": "__import__('os').getcwd()",
    "a template": "{0}{a.b}%s\\", "list items": "1. x\n- y\n" * 1_000,
}
# fmt: on
_REQUEST: Final = VariantRequest("easier", "a teacher", ("a smaller number",), 2)


class _Fault(Exception):  # noqa: N818 - it is the task's
    """What is wrong with a task."""


class _Example(NamedTuple):
    problem: Problem
    gold: str
    same: str | None
    shown: str  # the statement, shortened


def check(name: str, source: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Test a task; yields each test's name and what is wrong, None if nothing is.

    It is tested on its examples, or on the rows of a problem set that have an "answer". Raises UserError if the task
    cannot be imported or the set cannot be read.
    """
    task = plain_task(name)
    if source is not None:
        task.rows(source, None)
    digests: list[str] = []
    yield from _in_process(name, source, 0, digests)
    if digests:
        list(_in_process(name, source, 1, digests))  # only its digest is of interest
        same = len(digests) == 2 and digests[0] == digests[1]
        yield "reproducible", None if same else "grades or keys differ in another process: avoid hash() and clocks"


def _in_process(name: str, source: str | None, hash_seed: int, digests: list[str]) -> Iterator[tuple[str, str | None]]:
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    with patch.dict(os.environ, PYTHONHASHSEED=str(hash_seed)):
        process = context.Process(target=_run, args=(name, source, there), daemon=True)
        process.start()
    there.close()  # so that the end of the process is noticed
    running = "importing the task"
    try:
        while here.poll(_LIMIT_S):
            ended, fault, running = here.recv()
            if not running:
                digests += [fault] if fault else []
                return
            if ended:
                yield ended, fault
        yield running, f"did not end within {_LIMIT_S:.0f} s; the tests after it were not run"
    except EOFError:
        yield running, "ended the whole process; the tests after it were not run"
    finally:
        process.kill()
        process.join()


def _run(name: str, source: str | None, to_parent: Connection) -> None:
    """Run the tests; send for each (the test that ended, what is wrong, the test that begins), at last a digest."""
    tests = _Tests(plain_task(name), source)
    ended = fault = None
    for running, run_test in tests.by_name().items():
        to_parent.send((ended, fault, running))
        ended, fault = running, None
        try:
            run_test()
        except _Fault as found:
            fault = str(found)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {first_line(error)} ({frame.filename}:{frame.lineno})"
        if not tests.examples:
            break
    to_parent.send((ended, fault, "grades and keys"))
    to_parent.send((None, tests.digest(), ""))


def _expect(ok: bool, fault: str) -> None:
    if not ok:
        raise _Fault(fault)


class _Tests:
    """The tests of one task. `examples` are empty until the first of them has read them."""

    def __init__(self, task: Task, source: str | None) -> None:
        self.examples: list[_Example] = []
        self._task, self._source = task, source

    def by_name(self) -> dict[str, Callable[[], None]]:
        names = ("examples", "statements", "gold_answers", "other_answers", "keys", "garbage")
        tests: dict[str, Callable[[], None]] = {name.replace("_", " "): getattr(self, f"_{name}") for name in names}
        return tests | {f"hostile text: {kind}": partial(self._hostile, text) for kind, text in _HOSTILE.items()}

    def digest(self) -> str | None:
        """A digest of grades and keys; None without examples."""
        seen = [[e.problem.id, self._task.fingerprints(e.problem), str(self._grade(e, e.gold))] for e in self.examples]
        return digest(seen) if seen else None

    def _grade(self, example: _Example, answer: str) -> Grade:
        return self._task.grade(example.problem, f"<answer>{answer}</answer>")

    def _examples(self) -> None:
        task = self._task
        rows = [row.values for row in task.rows(self._source, None)] if self._source else map(dict, task.examples)
        for row in rows:
            if row.get("answer") is not None:
                data = task.data_of(row)
                task.validate(data)
                problem = Problem.root(task.settings.name, data)
                self.examples.append(_Example(problem, row["answer"], row.get("same"), task.statement(problem)[:60]))
        enough = len(self.examples) >= 3
        _expect(enough, 'fewer than 3 problems with an "answer": add `examples` to the task, or name --problems')

    def _statements(self) -> None:
        for problem, _, _, shown in self.examples:
            one_line = bool(shown.strip()) and len(self._task.statement(problem).splitlines()) == 1
            _expect(one_line, f"a statement is not one line of text: {shown!r}")
            _expect(_again(problem) == problem, f"a problem changes when it is written as JSON and read again: {shown}")
            placeholders = {*self._task.placeholders(problem)} == {*self._task.placeholder_names}
            _expect(placeholders, "`placeholders` does not have the keys that `placeholder_names` lists")

    def _gold_answers(self) -> None:
        for example in self.examples:
            problem, gold, _, shown = example
            before, grade = dict(problem.data), self._grade(example, gold)
            right = (grade.reward, grade.reason) == (1.0, Reason.CORRECT)
            _expect(right, f"{gold[:60]!r} is not accepted for {shown} ({grade.reason} {grade.detail})")
            unchanged = dict(problem.data) == before and self._grade(example, gold) == grade
            _expect(unchanged, f"grading an answer twice gives different results for {shown}")
            places = self._task.same_answers(problem, [gold, "?!", gold])
            _expect(places[0] == places[2] == 0, f"in a vote, the answer {gold[:60]!r} differs from itself: {places}")

    def _other_answers(self) -> None:
        for example in self.examples:
            others = {other.gold for other in self.examples} - {example.gold}
            accepted = bool(others) and all(self._grade(example, gold).reward for gold in others)
            _expect(not accepted, f"every answer of another example is accepted for {example.shown}")

    def _keys(self) -> None:
        task = self._task
        for problem, _, same, shown in self.examples:
            keys = {*task.fingerprints(problem)}
            _expect({*task.fingerprints(_again(problem))} == keys, f"the key of {shown} changes when it is read again")
            for other in self.examples:
                differs = other.problem == problem or keys.isdisjoint(task.fingerprints(other.problem))
                _expect(differs, f"{shown} has the key of {other.shown}")
            if same is None and (type(task).parse is not Task.parse or len(task.fields) == 1):
                continue  # how this task's problems are written is not known
            written = same or json.dumps({**problem.data})
            variants = task.parse_variants(f"1. {written}", problem, _REQUEST)
            for again in [*variants, *([task.read(same)] if same else [])]:
                equal = isinstance(again, Problem) and not keys.isdisjoint(task.fingerprints(again))
                _expect(equal, f"{written[:60]} is not equal to {shown}")

    def _garbage(self) -> None:
        for reply in _GARBAGE:
            reward = self._task.grade(self.examples[0].problem, reply).reward
            _expect(reward == 0.0, f"the reply {reply!r} gets a reward of {reward}")

    def _hostile(self, text: str) -> None:
        task, example = self._task, self.examples[0]
        problem, reward = example.problem, self._grade(example, text).reward
        _expect(reward == 0.0, f"as an answer it gets a reward of {reward}")
        task.same_answers(problem, [text])
        # As a reply, and in the place of each field: what is accepted as a problem must survive all that follows.
        for reply in (text, *(json.dumps({**problem.data, name: text}) for name in task.fields), "{}"):
            read = task.parse_variants(reply, problem, _REQUEST)
            _expect(bool(read), "`parse_variants` returns nothing; a reply without a variant is one rejection")
            for part in read:
                if isinstance(part, Problem):
                    task.fingerprints(part), task.statement(part), task.placeholders(part)
                    task.grade(part, f"<answer>{example.gold}</answer>")
            with suppress(UserError):
                task.read(reply)


def _again(problem: Problem) -> Problem:
    return Problem.from_row(json.loads(json.dumps(problem.to_row())))
