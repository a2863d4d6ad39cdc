"""How many problems a model solves: pass@1, pass@k and their intervals, from sampled and verified answers."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import comb, sqrt
from pathlib import Path
from typing import Any

from ladder_lite.attempts import Attempt
from ladder_lite.backends import Backend, Sampling
from ladder_lite.deadline import Deadline
from ladder_lite.live import Bar
from ladder_lite.problems import Problem
from ladder_lite.run_dir import append_jsonl, read_jsonl, truncate_jsonl
from ladder_lite.settings import EvalSettings
from ladder_lite.tasks import Task

CHUNK = 50
"""Problems sampled at a time, at most: a kill loses at most one chunk."""

CHUNK_TOKENS = 200_000
"""Tokens of a chunk, at most, where it has more than one problem: minutes of work, also for a model that thinks."""

_Z_95 = 1.959963984540054


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


def summarize(attempts: Iterable[Attempt], k: int) -> dict[str, Any]:
    """pass@1 and pass@k over the problems, each {"value", "low", "high"} with a 95 % interval, and `n_problems`.

    A problem that the verifier cannot judge (any grade without reward) is left out.
    """
    tries: dict[str, list[bool]] = defaultdict(list)
    unverifiable = set()
    for attempt in attempts:
        tries[attempt.problem_id].append(attempt.correct)
        if attempt.grade.reward is None:
            unverifiable.add(attempt.problem_id)
    for problem_id in unverifiable:
        del tries[problem_id]
    summary: dict[str, Any] = {"n_problems": len(tries)}
    for size in dict.fromkeys((1, k)):
        rates = [pass_at_k(len(right), sum(right), size) for right in tries.values() if len(right) >= size]
        value = sum(rates) / len(rates) if rates else 0.0
        low, high = wilson_interval(value, len(rates))
        summary[f"pass@{size}"] = {"value": value, "low": low, "high": high}
    return summary


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """Unbiased chance that one of k attempts is right, from n attempts (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    return 1 - comb(n - n_right, k) / comb(n, k)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share of n problems (Wilson 1927); the mean of pass rates takes it as a cautious one."""
    if n == 0:
        return 0.0, 1.0
    z2 = _Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (max(0.0, centre - half) if share else 0.0), (min(1.0, centre + half) if share < 1 else 1.0)
