"""Answers to problems, sampled from a model and graded, in pieces that a kill does not undo."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from ladder_lite.budget import Deadline
from ladder_lite.config import EvalSettings
from ladder_lite.jsonl import append_jsonl, read_jsonl, truncate_jsonl
from ladder_lite.models import Backend, Sampling
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt
from ladder_lite.runs import layout
from ladder_lite.tasks import Task
from ladder_lite.terminal import Bar

CHUNK = 50
"""Problems sampled at a time, at most: a kill loses at most one chunk."""

CHUNK_TOKENS = 200_000
"""Tokens of a chunk, at most, where it has more than one problem: minutes of work, also for a model that thinks."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """A model that answers the problems of a task: how it samples, from which seed, and until when."""

    task: Task
    backend: Backend
    settings: EvalSettings
    seed: int
    deadline: Deadline = field(default_factory=Deadline.never)

    def greedy(self) -> Self:
        """The same model with `greedy` settings."""
        return replace(self, settings=greedy(self.settings))

    @property
    def chunk_size(self) -> int:
        """Problems of a chunk. The settings alone decide, as it decides the seeds: never what memory there is."""
        return max(1, min(CHUNK, CHUNK_TOKENS // (self.settings.samples * self.settings.max_new_tokens)))

    def sample(self, problems: Sequence[Problem], n: int, seed: int | None = None) -> list[Attempt]:
        """`n` graded attempts at each problem, all at once; from the sampler's own seed if None."""
        sampling = Sampling(
            self.settings.temperature,
            self.settings.top_p,
            self.settings.max_new_tokens,
            self.settings.batch_size,
            self.seed if seed is None else seed,
            self.task.stop,
        )
        replies = self.backend.sample([self.task.prompt(problem) for problem in problems], n, sampling)
        return [
            Attempt(problem.id, index, completion, self.task.grade(problem, completion.text))
            for problem, completions in zip(problems, replies, strict=True)
            for index, completion in enumerate(completions)
        ]

    def evaluate(self, problems: Sequence[Problem], folder: Path, bar: Bar) -> list[Attempt]:
        """`settings.samples` attempts at each problem; `attempts.jsonl` in the folder holds what is done so far.

        OutOfTime before a chunk of problems that would not be done in time.
        """
        path, n = folder / layout.ATTEMPTS, self.settings.samples
        chunks = {
            start: problems[start : start + self.chunk_size] for start in range(0, len(problems), self.chunk_size)
        }
        # A kill can leave a part of a chunk behind: sampled again as a whole, it comes out as it would have.
        n_rows = Counter(row["problem_id"] for row in read_jsonl(path))
        complete = {start for start, chunk in chunks.items() if all(n_rows[problem.id] == n for problem in chunk)}
        kept = {problem.id for start in complete for problem in chunks[start]}
        truncate_jsonl(path, lambda row: row["problem_id"] in kept)
        attempts = [Attempt.from_row(row) for row in read_jsonl(path)]
        for start, chunk in chunks.items():
            if start not in complete:
                with self.deadline.piece("evaluation", len(chunk) * n):
                    new = self.sample(chunk, n, self.seed * 1000 + start)
                    append_jsonl(path, [attempt.to_row() for attempt in new])
                attempts += new
            bar.set(start + len(chunk))
        return attempts

    def sample_tokens(self, problem: Problem, folder: Path, n: int, n_tokens: int) -> list[Attempt]:
        """Attempts at one problem, until they are `n` at least and have `n_tokens` tokens at least.

        `attempts.jsonl` in the folder holds what is done so far, in chunks of `settings.batch_size` or less, each with
        a seed of its own; called again after a kill it goes on, and ends with the same attempts. OutOfTime before a
        chunk that would not be done in time.
        """
        path = folder / layout.ATTEMPTS
        attempts = [Attempt.from_row(row) for row in read_jsonl(path)]
        done: list[Attempt] = []
        chunk = 0
        while size := _missing(done, n, n_tokens, self.settings.batch_size):
            new = attempts[len(done) : len(done) + size]
            if len(new) < size:  # sampled again as a whole, a part of a chunk comes out as it would have
                truncate_jsonl(path, lambda row: row["index"] < len(done))
                with self.deadline.piece("evaluation", size):
                    sampled = self.sample([problem], size, self.seed * 1_000 + chunk)
                    new = [replace(attempt, index=len(done) + attempt.index) for attempt in sampled]
                    append_jsonl(path, [attempt.to_row() for attempt in new])
                attempts = [*done, *new]
            done.extend(new)
            chunk += 1
        return done


def greedy(settings: EvalSettings) -> EvalSettings:
    """The settings for one answer to each problem, of the likeliest token each time."""
    return settings.model_copy(update={"samples": 1, "k": 1, "temperature": 0.0})


def _missing(attempts: Sequence[Attempt], n: int, n_tokens: int, most: int) -> int:
    """How many more attempts to sample at once: what is missing, by the tokens of those so far; 0 at the end."""
    if len(attempts) < n or not attempts:
        return min(most, max(1, n - len(attempts)))
    so_far = sum(max(1, attempt.completion.n_tokens) for attempt in attempts)  # an empty reply took one to end
    if so_far >= n_tokens:
        return 0
    return min(most, -(-(n_tokens - so_far) * len(attempts) // so_far))
