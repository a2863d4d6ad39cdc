"""The variant tree: the model itself writes easier and equivalent variants of each root, and variants of those.

A request draws 3 to 5 transformations from the library as suggestions and a persona; the sampling temperature cycles
from request to request (paper, section on variant generation). Level by level, variants become parents. What cannot be
read, is not a function, or equals its parent, a root, a test problem or an earlier variant as a function is rejected
and kept on record with its reason.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from ladder_lite.backends import Backend, Sampling
from ladder_lite.config import VariantSettings
from ladder_lite.equality import Index
from ladder_lite.live import Bar
from ladder_lite.problems import Problem
from ladder_lite.run_dir import append_jsonl, read_jsonl, truncate_jsonl
from ladder_lite.tasks import Effect, Rejected, Task, VariantRequest

N_TEMPERATURES = 4
"""Steps of the cycle from the lowest to the highest sampling temperature."""

MAX_ROUNDS = 5
"""Rounds of requests for one level: a model that repeats itself would otherwise be asked for ever."""


def grow(
    task: Task,
    backend: Backend,
    roots: Sequence[Problem],
    settings: VariantSettings,
    folder: Path,
    seed: int,
    test_problems: Sequence[Problem],
    bar: Bar,
) -> list[Problem]:
    """Grow a tree of about `per_root` variants below each root, at most `depth` levels deep; returns the variants.

    The folder receives `problems.jsonl` (the kept variants), `rejected.jsonl` and `rounds.jsonl` (a row for each
    finished round of requests). Called again after a kill, growing goes on after the last of these, to the same trees.
    """
    trees = _Trees(task, roots, test_problems, folder)
    for depth in range(1, settings.depth + 1):
        wanted = ceil(settings.per_root * depth / settings.depth)  # of each root, down to this depth
        for attempt in range(MAX_ROUNDS):
            number = (depth - 1) * MAX_ROUNDS + attempt
            if number < trees.n_rounds:
                continue
            requests = list(_requests(trees, depth, wanted, settings, Random(f"{seed}/{number}")))
            started = time.monotonic()
            replies = _ask(task, backend, requests, settings, seed * 1000 + number)
            trees.add_round(number, depth, requests, replies, time.monotonic() - started)
            bar.set(min(len(trees.variants), settings.per_root * len(roots)))
    return trees.variants


def load(folder: Path) -> list[Problem]:
    """The variants of a grown tree."""
    return [
        Problem.from_row({key: value for key, value in row.items() if key != "round"})
        for row in read_jsonl(folder / "problems.jsonl")
    ]


def count(folder: Path) -> dict[str, Any]:
    """What became of a grown tree's variants, for the stage's `done.json`: counts, tokens and seconds."""
    variants = read_jsonl(folder / "problems.jsonl")
    reasons = Counter(row["reason"] for row in read_jsonl(folder / "rejected.jsonl"))
    rounds = read_jsonl(folder / "rounds.jsonl")
    return {
        "kept": len(variants),
        "duplicates": reasons["duplicate"],
        "rejected": reasons.total() - reasons["duplicate"],
        "reasons": dict(reasons),
        "by_depth": {str(depth): n for depth, n in sorted(Counter(row["depth"] for row in variants).items())},
        "requests": sum(row["requests"] for row in rounds),
        "tokens": sum(row["n_tokens"] for row in rounds),
        "seconds": sum(row["seconds"] for row in rounds),
    }


class _Asked(NamedTuple):
    parent: Problem
    request: VariantRequest


class _Reply(NamedTuple):
    text: str
    n_tokens: int


class _Trees:
    """The trees so far, on disk and at hand."""

    def __init__(self, task: Task, roots: Sequence[Problem], test_problems: Sequence[Problem], folder: Path) -> None:
        rounds = read_jsonl(folder / "rounds.jsonl")
        self.n_rounds = len(rounds)
        for name in ("problems.jsonl", "rejected.jsonl"):
            truncate_jsonl(folder / name, lambda row: row["round"] < self.n_rounds)
        self.roots = roots
        self.variants = load(folder)
        self._task = task
        self._folder = folder
        self._known: Index[str] = Index()
        self._tests: Index[str] = Index()
        for problem in (*roots, *self.variants):
            self._known.add(task.fingerprints(problem), problem.id)
        for problem in test_problems:
            keys = task.fingerprints(problem)
            if self._known.find(keys) is None:
                self._tests.add(keys, problem.id)

    def level(self, depth: int) -> dict[str, list[Problem]]:
        """The problems of a depth by the id of their root."""
        level: dict[str, list[Problem]] = defaultdict(list)
        for problem in (*self.roots, *self.variants):
            if problem.depth == depth:
                level[problem.root_id].append(problem)
        return level

    def sizes(self) -> Counter[str]:
        """Number of variants by the id of their root."""
        return Counter(variant.root_id for variant in self.variants)

    def add_round(
        self, number: int, depth: int, asked: Sequence[_Asked], replies: Sequence[_Reply], seconds: float
    ) -> None:
        """Take in the replies of a round; its row in `rounds.jsonl`, written last, makes it count."""
        kept: list[Problem] = []
        rejected: list[dict[str, Any]] = []
        for (parent, request), reply in zip(asked, replies, strict=True):
            for part in self._task.parse_variants(reply.text, parent, request):
                fault = self._fault(part, parent) if isinstance(part, Problem) else part
                if isinstance(part, Problem) and fault is None:
                    kept.append(part)
                elif fault is not None:
                    rejected.append(
                        {
                            "round": number,
                            "text": fault.text,
                            "reason": fault.reason,
                            "parent_id": parent.id,
                            "depth": depth,
                        }
                    )
        self.variants += kept
        self.n_rounds += 1
        append_jsonl(self._folder / "problems.jsonl", [{"round": number, **variant.to_row()} for variant in kept])
        append_jsonl(self._folder / "rejected.jsonl", rejected)
        row = {
            "round": number,
            "depth": depth,
            "requests": len(asked),
            "n_tokens": sum(reply.n_tokens for reply in replies),
            "seconds": seconds,
        }
        append_jsonl(self._folder / "rounds.jsonl", [row])

    def _fault(self, variant: Problem, parent: Problem) -> Rejected | None:
        keys = self._task.fingerprints(variant)
        text = str(variant.data["integrand"])
        if self._tests.find(keys) is not None:
            return Rejected(text, "test_problem")
        if self._known.find(keys) is not None:
            equal = not set(keys).isdisjoint(self._task.fingerprints(parent))
            return Rejected(text, "equal_to_parent" if equal else "duplicate")
        self._known.add(keys, variant.id)
        return None


def _requests(trees: _Trees, depth: int, wanted: int, settings: VariantSettings, rng: Random) -> Iterator[_Asked]:
    """The requests that would bring every tree to `wanted` variants if each reply were kept."""
    parents = trees.level(depth - 1)
    sizes = trees.sizes()
    for root in trees.roots:
        missing = wanted - sizes[root.id]
        if missing > 0 and parents[root.id]:
            for _ in range(ceil(missing / settings.per_prompt)):
                yield _Asked(rng.choice(parents[root.id]), _draw_request(settings, rng))


def _draw_request(settings: VariantSettings, rng: Random) -> VariantRequest:
    effect: Effect = "easier" if rng.random() < settings.mix.easier else "equivalent"
    library = settings.transformations.easier if effect == "easier" else settings.transformations.equivalent
    suggestions = rng.sample(library, rng.randint(*settings.suggestions))
    return VariantRequest(effect, rng.choice(settings.personas), tuple(suggestions), settings.per_prompt)


def _ask(task: Task, backend: Backend, asked: Sequence[_Asked], settings: VariantSettings, seed: int) -> list[_Reply]:
    """One reply to each request, request number i sampled at step i of the cycle of temperatures."""
    lowest, highest = settings.temperature
    replies: dict[int, _Reply] = {}
    for step in range(N_TEMPERATURES):
        batch = range(step, len(asked), N_TEMPERATURES)
        prompts = [task.variant_prompt(asked[at].parent, asked[at].request) for at in batch]
        temperature = lowest + (highest - lowest) * step / (N_TEMPERATURES - 1)
        cycle_seed = seed * N_TEMPERATURES + step
        sampling = Sampling(temperature, 1.0, settings.max_new_tokens, settings.batch_size, cycle_seed)
        for at, (completion,) in zip(batch, backend.sample(prompts, 1, sampling), strict=True):
            replies[at] = _Reply(completion.text, completion.n_tokens)
    return [replies[at] for at in range(len(asked))]
