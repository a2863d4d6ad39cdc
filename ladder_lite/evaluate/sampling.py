"""Sample and grade answers to problems, chunk by chunk, so that a kill loses at most one chunk."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from ladder_lite.budget import Deadline
from ladder_lite.config import EvalSettings
from ladder_lite.jsonl import append_jsonl, read_jsonl, rewrite_jsonl
from ladder_lite.models import Backend, Sampling
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt
from ladder_lite.runs import layout
from ladder_lite.tasks import Task
from ladder_lite.terminal import Live, show

CHUNK = 50
"""The most problems in a chunk."""

CHUNK_TOKENS = 200_000
"""The most tokens in a chunk of more than one problem: minutes of work, even for a reasoning model's long replies."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """A model that answers problems of a task, with its sampling settings, seed and deadline."""

    task: Task
    backend: Backend
    settings: EvalSettings
    seed: int
    deadline: Deadline = field(default_factory=Deadline.never)

    def greedy(self) -> Self:
        """The same sampler with the settings of `greedy`."""
        return replace(self, settings=greedy(self.settings))

    @property
    def chunk_size(self) -> int:
        """The number of problems in a chunk."""
        # It must follow from the settings alone, never from free memory: seeds are given by chunk, so another chunk
        # size would sample other answers, and a run resumed on another card would mix the two.
        return max(1, min(CHUNK, CHUNK_TOKENS // (self.settings.samples * self.settings.max_new_tokens)))

    def sample(self, problems: Sequence[Problem], n: int, seed: int | None = None) -> list[Attempt]:
        """Sample and grade `n` attempts at each problem in one call of the backend, problem by problem.

        `seed` defaults to the sampler's own.
        """
        settings, seed = self.settings, self.seed if seed is None else seed
        length, batch_size = settings.max_new_tokens, settings.batch_size
        sampling = Sampling(settings.temperature, settings.top_p, length, batch_size, seed, self.task.stop)
        # (n_problems, n) completions, in the order of the prompts.
        replies = self.backend.sample([self.task.prompt(problem) for problem in problems], n, sampling)
        return [
            Attempt(problem.id, index, completion, self.task.grade(problem, completion.text))
            for problem, completions in zip(problems, replies, strict=True)
            for index, completion in enumerate(completions)
        ]

    def evaluate(self, problems: Sequence[Problem], folder: Path, live: Live, title: str) -> list[Attempt]:
        """Sample `settings.samples` attempts at each problem, resuming from `attempts.jsonl` in the folder.

        `title` is that of the bar which shows the progress. Raises OutOfTime before a chunk that would not end in time.
        """
        done: list[Attempt] = []
        with live.progress(title, len(problems)) as bar:
            for start in range(0, len(problems), self.chunk_size):
                chunk = problems[start : start + self.chunk_size]
                # No two chunks share a seed, also in runs with neighbouring seeds (up to 1,000 problems).
                seed = self.seed * 1000 + start
                done = self._add_chunk(done, folder / layout.ATTEMPTS, chunk, self.settings.samples, seed)
                bar.set(start + len(chunk))
        why = {attempt.problem_id: attempt.grade.detail for attempt in done if attempt.grade.reward is None}
        if why:
            first = next(problem for problem in problems if problem.id in why)
            example = f"{show(self.task.statement(first))} ({why[first.id]})"
            live.say(f"{title}: {len(why)} of {len(problems)} cannot be verified and do not count, such as {example}")
        return done

    def sample_tokens(self, problem: Problem, folder: Path, n: int, n_tokens: int) -> list[Attempt]:
        """Sample attempts at one problem until there are at least `n`, with at least `n_tokens` tokens in total.

        Chunks have at most `settings.batch_size` attempts. Called again after a kill, it resumes from `attempts.jsonl`
        in the folder and ends with the same attempts. Raises OutOfTime before a chunk that would not end in time.
        """
        done: list[Attempt] = []
        chunk = 0
        # The size of each chunk follows from the attempts before it, so a resumed process finds the same boundaries as
        # the one that was killed, and the same chunk number, which gives the seed.
        while size := _next_size(done, n, n_tokens, self.settings.batch_size):
            done = self._add_chunk(done, folder / layout.ATTEMPTS, [problem], size, self.seed * 1000 + chunk)
            chunk += 1
        return done

    def _add_chunk(
        self, done: list[Attempt], path: Path, problems: Sequence[Problem], n: int, seed: int
    ) -> list[Attempt]:
        """Return `done` with the next chunk of attempts: the one in the file if it is complete, else a new one."""
        stored = [Attempt.from_row(row) for row in read_jsonl(path)]
        end = len(done) + len(problems) * n
        if len(stored) >= end:
            return stored[:end]
        # A chunk is appended in one write, but a kill or a full disk can cut it short. Such a chunk is dropped and
        # sampled again as a whole, from the same seed, so the rows come out as they would have without the kill.
        if len(stored) > len(done):
            rewrite_jsonl(path, [attempt.to_row() for attempt in done])
        n_earlier = Counter(attempt.problem_id for attempt in done)
        with self.deadline.piece("evaluation", end - len(done)):
            # `sample` counts attempts from 0 in each call; here they are counted through all chunks.
            new = [
                replace(attempt, index=n_earlier[attempt.problem_id] + attempt.index)
                for attempt in self.sample(problems, n, seed)
            ]
            append_jsonl(path, [attempt.to_row() for attempt in new])
        return [*done, *new]


def greedy(settings: EvalSettings) -> EvalSettings:
    """The settings for one greedy answer to each problem: temperature 0 takes the likeliest token each time."""
    return settings.model_copy(update={"samples": 1, "k": 1, "temperature": 0.0})


def _next_size(attempts: Sequence[Attempt], n: int, n_tokens: int, at_most: int) -> int:
    """The number of attempts to sample next, 0 if there are enough."""
    if len(attempts) < n or not attempts:
        return min(at_most, max(1, n - len(attempts)))
    # An empty reply counts one token, its end-of-turn token: without it, a model of empty replies would never end.
    so_far = sum(max(1, attempt.completion.n_tokens) for attempt in attempts)
    if so_far >= n_tokens:
        return 0
    # Missing tokens over the mean length so far, rounded up (-(-a // b) is the ceiling of a / b): 31 tokens wanted,
    # 3 attempts of 10 tokens -> 1 more.
    return min(at_most, -(-(n_tokens - so_far) * len(attempts) // so_far))
