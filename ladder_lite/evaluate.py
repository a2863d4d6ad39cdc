"""How many problems a model solves: pass@1, pass@k and their intervals, from sampled and verified answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ladder_lite.attempts import Attempt
from ladder_lite.backends import Backend, Sampling
from ladder_lite.deadline import Deadline
from ladder_lite.live import Bar
from ladder_lite.problems import Problem
from ladder_lite.run_dir import append_jsonl, read_jsonl, truncate_jsonl
from ladder_lite.scores import (
    Vote,
    majority_vote,
    paired_bootstrap,
    pass_at_k,
    pass_rates_by_depth,
    summarize,
    wilson_interval,
)
from ladder_lite.settings import EvalSettings
from ladder_lite.tasks import Task

__all__ = ["CHUNK", "CHUNK_TOKENS", "chunk_size", "evaluate", "greedy", "sample", "sample_tokens"]
__all__ += ["Vote", "majority_vote", "paired_bootstrap", "pass_at_k", "pass_rates_by_depth", "summarize"]
__all__ += ["wilson_interval"]

CHUNK = 50
"""Problems sampled at a time, at most: a kill loses at most one chunk."""

CHUNK_TOKENS = 200_000
"""Tokens of a chunk, at most, where it has more than one problem: minutes of work, also for a model that thinks."""


def evaluate(
    task: Task,
    backend: Backend,
    problems: Sequence[Problem],
    settings: EvalSettings,
    folder: Path,
    seed: int,
    bar: Bar,
    deadline: Deadline | None = None,
) -> list[Attempt]:
    """Sample `settings.samples` answers to each problem and grade them; `attempts.jsonl` holds what is done so far.

    OutOfTime before a chunk of problems that would not be done in time.
    """
    deadline = deadline or Deadline.never()
    path = folder / "attempts.jsonl"
    size = chunk_size(settings)
    chunks = {start: problems[start : start + size] for start in range(0, len(problems), size)}
    # A kill can leave a part of a chunk behind: sampled anew as a whole, it comes out as it would have.
    n_rows = Counter(row["problem_id"] for row in read_jsonl(path))
    complete = {
        start for start, chunk in chunks.items() if all(n_rows[problem.id] == settings.samples for problem in chunk)
    }
    kept = {problem.id for start in complete for problem in chunks[start]}
    truncate_jsonl(path, lambda row: row["problem_id"] in kept)
    attempts = [Attempt.from_row(row) for row in read_jsonl(path)]
    for start, chunk in chunks.items():
        if start not in complete:
            with deadline.piece("evaluation", len(chunk) * settings.samples):
                new = sample(task, backend, chunk, settings, settings.samples, seed * 1000 + start)
                append_jsonl(path, [attempt.to_row() for attempt in new])
            attempts += new
        bar.set(start + len(chunk))
    return attempts


def chunk_size(settings: EvalSettings) -> int:
    """Problems of a chunk. The settings alone decide, as it decides the seeds: never what memory there is."""
    return max(1, min(CHUNK, CHUNK_TOKENS // (settings.samples * settings.max_new_tokens)))


def sample(
    task: Task, backend: Backend, problems: Sequence[Problem], settings: EvalSettings, n: int, seed: int
) -> list[Attempt]:
    """`n` graded attempts at each problem, sampled as the settings say."""
    sampling = Sampling(
        settings.temperature, settings.top_p, settings.max_new_tokens, settings.batch_size, seed, task.stop
    )
    replies = backend.sample([task.prompt(problem) for problem in problems], n, sampling)
    return [
        Attempt(problem.id, index, completion, task.grade(problem, completion.text))
        for problem, completions in zip(problems, replies, strict=True)
        for index, completion in enumerate(completions)
    ]


def greedy(settings: EvalSettings) -> EvalSettings:
    """The settings for one answer to each problem, of the likeliest token each time."""
    return settings.model_copy(update={"samples": 1, "k": 1, "temperature": 0.0})


def sample_tokens(
    task: Task,
    backend: Backend,
    problem: Problem,
    settings: EvalSettings,
    folder: Path,
    seed: int,
    n: int,
    n_tokens: int,
    deadline: Deadline | None = None,
) -> list[Attempt]:
    """Graded attempts at one problem, until they are `n` at least and have `n_tokens` tokens at least.

    `attempts.jsonl` in the folder holds what is done so far, in chunks of `settings.batch_size` or less, each with a
    seed of its own; called again after a kill it goes on, and ends with the same attempts. OutOfTime before a chunk
    that would not be done in time.
    """
    deadline = deadline or Deadline.never()
    path = folder / "attempts.jsonl"
    attempts = [Attempt.from_row(row) for row in read_jsonl(path)]
    done: list[Attempt] = []
    chunk = 0
    while size := _missing(done, n, n_tokens, settings.batch_size):
        new = attempts[len(done) : len(done) + size]
        if len(new) < size:  # sampled anew as a whole, a part of a chunk comes out as it would have
            truncate_jsonl(path, lambda row: row["index"] < len(done))
            with deadline.piece("evaluation", size):
                sampled = sample(task, backend, [problem], settings, size, seed * 1_000 + chunk)
                new = [replace(attempt, index=len(done) + attempt.index) for attempt in sampled]
                append_jsonl(path, [attempt.to_row() for attempt in new])
            attempts = [*done, *new]
        done.extend(new)
        chunk += 1
    return done


def _missing(attempts: Sequence[Attempt], n: int, n_tokens: int, most: int) -> int:
    """How many more attempts to sample at once: what is missing, by the tokens of those so far; 0 at the end."""
    if len(attempts) < n or not attempts:
        return min(most, max(1, n - len(attempts)))
    so_far = sum(max(1, attempt.completion.n_tokens) for attempt in attempts)  # an empty reply took one to end
    if so_far >= n_tokens:
        return 0
    return min(most, -(-(n_tokens - so_far) * len(attempts) // so_far))
