"""The variant tree: the model writes easier and equivalent variants of each root, then variants of those.

Each request suggests 3 to 5 transformations from the library. Personas rotate and the sampling temperature cycles from
request to request (arXiv 2503.00735, section on variant generation). Level by level, variants become parents. A variant
is rejected, and recorded with the reason, if it cannot be read, is not a valid problem, or equals its parent, a root,
an earlier variant or a test problem, however written. The base model writes all of them, with the adapter switched
off.

`grow` makes the paper's tree, all of it before training. `Growth` starts from a smaller tree and extends it while
training runs: problems that the model never solves get children.

    python -m ladder_lite.variants "x**2*exp(x)" --recipe tiny        # print the tree of one problem
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, cycle
from math import ceil
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np

from ladder_lite.budget import Deadline
from ladder_lite.config import Adaptive, Mix, VariantSettings
from ladder_lite.jsonl import append_jsonl, read_jsonl, truncate_jsonl
from ladder_lite.models import Backend, Sampling
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Completion
from ladder_lite.problems.similarity import distances, tokens
from ladder_lite.runs import layout
from ladder_lite.tasks import Effect, Index, Keys, Rejected, Task, VariantRequest
from ladder_lite.terminal import Bar
from ladder_lite.variants.transformations import Library

N_TEMPERATURES = 4
"""Temperatures in a cycle, evenly spaced over the recipe's range: 0.8, 1.0, 1.2, 1.4."""

MAX_ROUNDS = 5
"""The most rounds of requests for one level: a model that only repeats itself must not be asked forever."""

PART_TOKENS = 200_000
"""The most tokens sampled at a time within a round: a kill loses one such part, and a budget can end between parts."""

_LEAST_YIELD = 0.1
"""The lowest yield assumed of a request, as a share of `per_prompt`: a round makes at most ten times as many requests
as an ideal model would need, however few variants earlier rounds brought."""


class Writer(NamedTuple):
    """What all trees of a run are written with: task, model, settings, library, seed and deadline.

    `held_out` has the test problems that no variant may equal, by the name of their set.
    """

    task: Task
    backend: Backend
    settings: VariantSettings
    library: Library
    held_out: Mapping[str, Sequence[Problem]]
    seed: int
    deadline: Deadline | None = None


def grow(writer: Writer, roots: Sequence[Problem], folder: Path, bar: Bar) -> list[Problem]:
    """Grow a tree of about `per_root` variants below each root, at most `depth` levels deep; returns the variants.

    The folder receives `problems.jsonl` (the kept variants), `rejected.jsonl`, `rounds.jsonl` (a row for each finished
    round of requests) and, while a round of several parts is unfinished, `replies.jsonl`. Called again after a kill, it
    resumes after the last finished part and ends with the same tree. Raises OutOfTime before a part that would not end
    in time.
    """
    deadline, settings = writer.deadline or Deadline.never(), writer.settings
    per_root = settings.first_per_root
    tree = _Tree(writer, roots, [], folder)
    for depth in range(1, settings.depth + 1):
        # The quota of each root down to this depth: 100 variants in 3 levels -> 34, 67, 100. If one level falls short,
        # the next one makes up for it.
        quota = ceil(per_root * depth / settings.depth)
        # Each level has its own range of round numbers, 0-4, 5-9, ..., so a round's number gives its depth and seed.
        for number in range((depth - 1) * MAX_ROUNDS, depth * MAX_ROUNDS):
            if number not in tree.rounds:
                # A new generator for each round, so that a resumed run need not replay the rounds that are done.
                rng = Random(f"{writer.seed}/variants/{number}")
                # Once the quota is met there are no wishes, and the remaining rounds of the level are empty rows.
                wishes = _missing(tree, depth, quota, settings.mix, rng)
                tree.run_round(number, depth, wishes, rng, deadline)
            bar.set(min(len(tree.variants), per_root * len(roots)))
    return tree.variants


@dataclass
class Growth:
    """Children for problems that are too hard for training, among `roots` and `variants`, a tree from another folder.

    What grows after a step follows from the seed, the step and the pass rates alone, so a resumed training run grows
    the same variants again.
    """

    writer: Writer
    roots: Sequence[Problem]
    variants: Sequence[Problem]
    settings: Adaptive
    folder: Path
    _tree: "_Tree" = field(init=False)  # set by `rewind`

    def rewind(self, step: int) -> list[tuple[int, Problem]]:
        """Forget the variants grown after a later step than this one; returns the others with the step of each.

        Must be called before the first `grow`.
        """
        # Training goes on from its last checkpoint, perhaps along another path, for example after a rollback: replies
        # to the requests of a forgotten round are of no use then.
        (self.folder / layout.REPLIES).unlink(missing_ok=True)
        # Here a round's number is the step it came after. Dropping the round is enough: `_Tree` drops the variants
        # and rejections of rounds that do not exist.
        truncate_jsonl(self.folder / layout.ROUNDS, lambda row: row["round"] <= step)
        self._tree = _Tree(self.writer, self.roots, self.variants, self.folder)
        return [(row["round"], Problem.from_row(row)) for row in read_jsonl(self.folder / layout.PROBLEMS)]

    def grow(self, step: int, stuck: Sequence[Problem], frontier: Sequence[Problem]) -> list[Problem]:
        """Request new variants after a step; returns those that were kept.

        Stuck problems (unlikely to be solved) get easier variants; problems at the frontier (solved now and then) get
        equivalent ones. The recipe's mix decides how often each is asked for. Problems with the fewest children come
        first.
        """
        tree, settings = self._tree, self.writer.settings
        # A limit for the tree as a whole: a root that is never stuck leaves its share to the others.
        if len(tree.variants) >= settings.per_root * len(self.roots):
            return []
        rng = Random(f"{self.writer.seed}/growth/{step}")
        children = Counter(variant.parent_id for variant in tree.variants)
        candidates: dict[Effect, Sequence[Problem]] = {"easier": stuck, "equivalent": frontier}
        turns: dict[Effect, Iterator[Problem]] = {}
        for effect, problems in candidates.items():
            # A problem at the deepest level gets no children.
            parents = [problem for problem in problems if problem.depth < settings.depth]
            if parents and getattr(settings.mix, effect):
                # Ties are broken at random, or the order of rows would decide.
                turns[effect] = cycle(sorted(parents, key=lambda parent: (children[parent.id], rng.random())))
        if not turns:
            return []
        wishes: list[_Wish] = []
        for _ in range(self.settings.requests):
            effect = _draw_effect(settings.mix, rng)
            # If no problem is in that state, the other effect takes its place.
            effect = effect if effect in turns else next(iter(turns))
            wishes.append((next(turns[effect]), effect))
        # No deadline here: before each step, training checks the time for the whole step, growth included.
        return tree.run_round(step, None, wishes, rng, Deadline.never())


def load(folder: Path) -> list[Problem]:
    """The variants of a grown tree."""
    return [Problem.from_row(row) for row in read_jsonl(folder / layout.PROBLEMS)]


def first_per_root(variants: Sequence[Problem], per_root: int) -> list[Problem]:
    """The first `per_root` variants of each root, in the order in which they were written."""
    # A parent was written before its children, so the result is again a tree.
    numbers: dict[str, Iterator[int]] = defaultdict(count)  # 0, 1, ... for the variants of each root
    return [variant for variant in variants if next(numbers[variant.root_id]) < per_root]


def third_per_root(
    variants: Sequence[Problem], roots: Sequence[Problem], third: Literal["nearest", "farthest", "longest"]
) -> list[Problem]:
    """The third of each root's variants that `variants.third` names, at least one, in the order of the tree."""
    kept: set[str] = set()
    for root in roots:
        own = [variant for variant in variants if variant.root_id == root.id]
        keys = [-len(tokens(variant)) for variant in own] if third == "longest" else distances(own, [root])[:, 0]
        order = np.argsort(keys, kind="stable")
        n = max(1, round(len(own) / 3))
        kept.update(own[place].id for place in (order[-n:] if third == "farthest" else order[:n]))
    return [variant for variant in variants if variant.id in kept]


def summarize_tree(folder: Path) -> dict[str, Any]:
    """Counts, tokens and seconds of a grown tree, for the stage's `done.json`; all zero if the folder does not exist.

    `held_out` counts the variants that equal a test problem, by the name of its set.
    """
    variants = read_jsonl(folder / layout.PROBLEMS)
    rejected = read_jsonl(folder / layout.REJECTED)
    reasons = Counter(row["reason"] for row in rejected)
    rounds = read_jsonl(folder / layout.ROUNDS)
    return {
        "kept": len(variants),
        "duplicates": reasons["duplicate"],
        "rejected": reasons.total() - reasons["duplicate"],
        "reasons": dict(reasons),
        "held_out": dict(Counter(row["equal_to"] for row in rejected if row["reason"] == "test_problem")),
        "by_depth": {str(depth): n for depth, n in sorted(Counter(row["depth"] for row in variants).items())},
        "requests": sum(row["requests"] for row in rounds),
        "tokens": sum(row["n_tokens"] for row in rounds),
        "seconds": sum(row["seconds"] for row in rounds),
    }


# A request before its prompt is drawn: which parent, and which kind of variant.
_Wish = tuple[Problem, Effect]


class _Prompted(NamedTuple):
    """A wish with the suggestions, persona and temperature drawn for it."""

    parent: Problem
    request: VariantRequest
    temperature: float


class _Tree:
    """A tree so far, in memory and in its folder. `given` are variants from another folder that it starts from."""

    def __init__(self, writer: Writer, roots: Sequence[Problem], given: Sequence[Problem], folder: Path) -> None:
        self.rounds = {row["round"]: row for row in read_jsonl(folder / layout.ROUNDS)}
        # Rows of a round without its row in rounds.jsonl were written just before a kill. The round will be repeated.
        for name in (layout.PROBLEMS, layout.REJECTED):
            truncate_jsonl(folder / name, lambda row: row["round"] in self.rounds)
        self.roots = roots
        self.variants = [*given, *load(folder)]
        self._writer = writer
        self._folder = folder
        # Fingerprint -> id of a root or variant, and fingerprint -> name of a held-out set. `_judge` asks the first one
        # first: a variant that repeats a root counts as a repeat, not as a leak, even if the root is a test problem.
        self._known: Index[str] = Index()
        self._held_out: Index[str] = Index()
        for problem in (*roots, *self.variants):
            self._known.add(self._keys(problem), problem.id)
        for name, problems in writer.held_out.items():
            for problem in problems:
                self._held_out.add(self._keys(problem), name)

    def kept_per_request(self, depth: int) -> float:
        """The mean number of variants kept per request at a depth; before the first request, `per_prompt`."""
        rows = [row for row in self.rounds.values() if row["depth"] == depth]
        requests = sum(row["requests"] for row in rows)
        per_prompt = self._writer.settings.per_prompt
        return max(sum(row["kept"] for row in rows) / requests, _LEAST_YIELD * per_prompt) if requests else per_prompt

    def run_round(
        self, number: int, depth: int | None, wishes: Sequence[_Wish], rng: Random, deadline: Deadline
    ) -> list[Problem]:
        """Make a round of requests and keep the new variants; returns them.

        `rng` must be that of the round: a round interrupted by a kill is repeated with the same requests and seeds.
        """
        started = time.monotonic()
        requests = self._draw_requests(wishes, rng)
        # A long round is sampled in parts. Without requests there is one empty part, which asks nothing of the model.
        size = max(1, PART_TOKENS // self._writer.settings.max_new_tokens)
        parts = [requests[start : start + size] for start in range(0, max(1, len(requests)), size)]
        path = self._folder / layout.REPLIES
        # Parts that were finished before a kill. Only their replies are stored; judging them again costs little.
        finished = [row for row in read_jsonl(path) if row["round"] == number]
        replies: list[Completion] = []
        for place, part in enumerate(parts):
            seed = rng.getrandbits(32)  # drawn for finished parts too, so that later parts get the same seeds
            if place < len(finished):
                replies += [Completion(**row) for row in finished[place]["replies"]]
                continue
            with deadline.piece("variants", max(1, len(part))):
                sampling_started = time.monotonic()
                new = self._sample(part, seed)
                # The last part needs no row: the rows of the whole round follow at once.
                if place < len(parts) - 1:
                    seconds = time.monotonic() - sampling_started
                    rows = [asdict(reply) for reply in new]
                    append_jsonl(path, [{"round": number, "replies": rows, "seconds": seconds}])
            replies += new
        kept, rejected = self._judge_replies(number, requests, replies)
        self.variants += kept
        # The order matters: the row in rounds.jsonl comes last and makes the rows before it count. A kill before it
        # costs the last part of the round; one after it, before the unlink, leaves replies that no round asks for.
        append_jsonl(self._folder / layout.PROBLEMS, [{"round": number, **variant.to_row()} for variant in kept])
        append_jsonl(self._folder / layout.REJECTED, rejected)
        self.rounds[number] = {
            "round": number,
            "depth": depth,
            "requests": len(requests),
            "kept": len(kept),
            "n_tokens": sum(reply.n_tokens for reply in replies),
            "seconds": time.monotonic() - started + sum(row["seconds"] for row in finished),
        }
        append_jsonl(self._folder / layout.ROUNDS, [self.rounds[number]])
        path.unlink(missing_ok=True)
        return kept

    def _sample(self, requests: Sequence[_Prompted], seed: int) -> list[Completion]:
        """Sample one reply to each request, unless the task gives its own variants."""
        settings, task = self._writer.settings, self._writer.task
        given = [task.given_variants(each.parent, each.request, f"{seed}/{i}") for i, each in enumerate(requests)]
        if given and None not in given:
            return [Completion(str(text), 0, truncated=False) for text in given]
        prompts = [task.variant_prompt(parent, request) for parent, request, _ in requests]
        # One temperature per prompt: requests at different temperatures share a batch.
        temperatures = tuple(temperature for *_, temperature in requests)
        # The base model writes: training on answers makes the model worse at writing variants (benchmarks/README.md).
        length, batch_size = settings.max_new_tokens, settings.batch_size
        sampling = Sampling(temperatures, 1.0, length, batch_size, seed, from_base=True)
        return [reply for (reply,) in self._writer.backend.sample(prompts, 1, sampling)]

    def _judge_replies(
        self, number: int, requests: Sequence[_Prompted], replies: Sequence[Completion]
    ) -> tuple[list[Problem], list[dict[str, Any]]]:
        """Parse the replies; return the new variants, and a row with the reason for each rejected one."""
        kept: list[Problem] = []
        rejected: list[dict[str, Any]] = []
        for (parent, request, _), reply in zip(requests, replies, strict=True):
            # A reply may bring several variants, or none, whatever the prompt asked for.
            for parsed in self._writer.task.parse_variants(reply.text, parent, request):
                judged = self._judge(parsed, parent) if isinstance(parsed, Problem) else parsed
                if isinstance(judged, Problem):
                    kept.append(judged)
                else:
                    place = {"parent_id": parent.id, "depth": parent.depth + 1}
                    rejected.append({"round": number, **asdict(judged), **place})
        return kept, rejected

    def _draw_requests(self, wishes: Sequence[_Wish], rng: Random) -> list[_Prompted]:
        """Draw suggestions, persona and temperature for each wish."""
        settings, library = self._writer.settings, self._writer.library
        lowest, highest = settings.temperature
        # Counted over all rounds, so that a round of few requests does not always get the low temperatures.
        n_before = sum(row["requests"] for row in self.rounds.values())
        prompted = []
        for number, (parent, effect) in enumerate(wishes, start=n_before):
            # Requests 0-3 have the first persona at the four temperatures, requests 4-7 the second, and so on.
            turn, step = divmod(number, N_TEMPERATURES)
            suggestions = tuple(rng.sample(library.of(effect), rng.randint(*settings.suggestions)))
            persona = settings.personas[turn % len(settings.personas)]
            request = VariantRequest(effect, persona, suggestions, settings.per_prompt)
            prompted.append(_Prompted(parent, request, lowest + (highest - lowest) * step / (N_TEMPERATURES - 1)))
        return prompted

    def _judge(self, variant: Problem, parent: Problem) -> Problem | Rejected:
        keys = self._keys(variant)  # not of its text: x+x repeats 2*x
        text = self._writer.task.statement(variant)
        # Training would refuse it: prompts longer than model.max_prompt_length are not truncated.
        if not self._writer.backend.fits(self._writer.task.prompt(variant)):
            return Rejected(text, "prompt_too_long")
        if (earlier := self._known.find(keys)) is not None:
            return Rejected(text, "equal_to_parent" if earlier == parent.id else "duplicate", earlier)
        if (name := self._held_out.find(keys)) is not None:
            return Rejected(text, "test_problem", name)
        self._known.add(keys, variant.id)
        return variant

    def _keys(self, problem: Problem) -> Keys:
        return self._writer.task.fingerprints(problem, self._writer.settings.equal_up_to_factor)


def _missing(tree: _Tree, depth: int, quota: int, mix: Mix, rng: Random) -> list[_Wish]:
    """The wishes that should bring every root to its quota of variants, given the yield of requests so far."""
    parents: dict[str, list[Problem]] = defaultdict(list)  # by the id of their root
    for problem in (*tree.roots, *tree.variants):
        if problem.depth == depth - 1:
            parents[problem.root_id].append(problem)
    sizes = Counter(variant.root_id for variant in tree.variants)
    per_request = tree.kept_per_request(depth)
    return [
        (rng.choice(parents[root.id]), _draw_effect(mix, rng))
        for root in tree.roots
        if parents[root.id]  # a root without variants at the level above has no parents here
        # 10 missing, and every second request brings one -> 20 requests. Negative if the root has enough: none.
        for _ in range(ceil((quota - sizes[root.id]) / per_request))
    ]


def _draw_effect(mix: Mix, rng: Random) -> Effect:
    return "easier" if rng.random() < mix.easier else "equivalent"
