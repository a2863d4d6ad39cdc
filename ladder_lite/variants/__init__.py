"""The variant tree: the model itself writes easier and equivalent variants of each root, and variants of those.

A request draws 3 to 5 transformations from the library as suggestions; personas rotate and the sampling temperature
cycles from request to request (paper, section on variant generation). Level by level, variants become parents. What
cannot be read, is not a function, or equals its parent, a root, a benchmark's test problem or an earlier variant as a
function is rejected and kept on record with its reason.

`grow` makes the paper's tree, all of it before training. `Growth` goes on with a smaller one while training runs:
problems that the model never solves get children.

    python -m ladder_lite.variants "x**2*exp(x)" --recipe tiny        # looks at the tree of one integral
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from math import ceil
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from ladder_lite.budget import Deadline
from ladder_lite.config import Adaptive, Mix, VariantSettings
from ladder_lite.jsonl import append_jsonl, read_jsonl, truncate_jsonl
from ladder_lite.models import Backend, Sampling
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Completion
from ladder_lite.runs import layout
from ladder_lite.tasks import Effect, Rejected, Task, VariantRequest
from ladder_lite.terminal import Bar
from ladder_lite.variants.transformations import Library
from ladder_lite.verify.rules.fingerprints import Index, Keys

N_TEMPERATURES = 4
"""Steps of the cycle from the lowest to the highest sampling temperature."""

MAX_ROUNDS = 5
"""Rounds of requests for one level: a model that repeats itself would otherwise be asked for ever."""

PART_TOKENS = 200_000
"""Tokens sampled at a time within a round, at most: a kill loses one part, and a budget is kept by parts."""

_LEAST_YIELD = 0.1
"""Share of `per_prompt`: a round asks for at most ten times what is missing, however little earlier ones brought."""


class Writer(NamedTuple):
    """What every tree of a run is written with, and until when. `held_out` are test problems by their set's name."""

    task: Task
    backend: Backend
    settings: VariantSettings
    library: Library
    held_out: Mapping[str, Sequence[Problem]]
    seed: int
    deadline: Deadline | None = None


def grow(writer: Writer, roots: Sequence[Problem], folder: Path, bar: Bar) -> list[Problem]:
    """Grow a tree of about `per_root` variants below each root, at most `depth` levels deep; returns the variants.

    The folder receives `problems.jsonl` (the kept variants), `rejected.jsonl` and `rounds.jsonl` (a row for each
    finished round of requests). Called again after a kill, growing goes on after the last of these, to the same trees;
    `replies.jsonl` holds what an unfinished round of several parts has brought so far.
    OutOfTime before a part of a round that would not be done in time.
    """
    deadline, settings = writer.deadline or Deadline.never(), writer.settings
    per_root = settings.first_per_root
    tree = _Tree(writer, roots, [], folder)
    for depth in range(1, settings.depth + 1):
        wanted = ceil(per_root * depth / settings.depth)  # of each root, down to this depth
        for number in range((depth - 1) * MAX_ROUNDS, depth * MAX_ROUNDS):
            if number not in tree.rounds:
                rng = Random(f"{writer.seed}/variants/{number}")
                wishes = _missing(tree, depth, wanted, settings.mix, rng)
                tree.ask(number, depth, wishes, rng, deadline)
            bar.set(min(len(tree.variants), per_root * len(roots)))
    return tree.variants


class Growth:
    """Children for problems that training finds too hard, written by the model as it then is.

    A growth after a step follows from the seed, the step and the pass rates alone, so a resumed training repeats it.
    """

    def __init__(
        self, writer: Writer, roots: Sequence[Problem], variants: Sequence[Problem], settings: Adaptive, folder: Path
    ) -> None:
        self.every = settings.every
        self._writer = writer
        self._roots = roots
        self._variants = variants
        self._n_requests = settings.requests
        self._folder = folder
        self._tree: _Tree

    def rewind(self, step: int) -> list[tuple[int, Problem]]:
        """Forget what was grown after a step; returns what is left, each with the step it was grown after.

        Comes before the first `grow`, which goes on from there.
        """
        (self._folder / layout.REPLIES).unlink(missing_ok=True)  # training may come to other wishes than it did
        truncate_jsonl(self._folder / layout.ROUNDS, lambda row: row["round"] <= step)
        self._tree = _Tree(self._writer, self._roots, self._variants, self._folder)
        return [(row["round"], _problem(row)) for row in read_jsonl(self._folder / layout.PROBLEMS)]

    def grow(self, step: int, stuck: Sequence[Problem], frontier: Sequence[Problem]) -> list[Problem]:
        """Ask for new variants after a step; returns those that were kept.

        By the recipe's mix, a request asks for an easier variant of a stuck problem or for an equivalent one of a
        problem at the frontier. Those with the fewest children come first.
        """
        tree, settings = self._tree, self._writer.settings
        if len(tree.variants) >= settings.per_root * len(self._roots):
            return []
        rng = Random(f"{self._writer.seed}/growth/{step}")
        children = Counter(variant.parent_id for variant in tree.variants)
        turns: dict[Effect, Iterator[Problem]] = {
            "easier": self._in_turn(stuck if settings.mix.easier else (), children, rng),
            "equivalent": self._in_turn(frontier if settings.mix.equivalent else (), children, rng),
        }
        wishes: list[_Wish] = []
        for _ in range(self._n_requests):
            effects: list[Effect] = ["easier", "equivalent"]
            if rng.random() >= settings.mix.easier:
                effects.reverse()
            for effect in effects:
                if (parent := next(turns[effect], None)) is not None:
                    wishes.append((parent, effect))
                    break
        # Training asks for the time of a whole step, this included.
        return tree.ask(step, None, wishes, rng, Deadline.never()) if wishes else []

    def _in_turn(
        self, problems: Sequence[Problem], children: Mapping[str | None, int], rng: Random
    ) -> Iterator[Problem]:
        """Those that may be parents, for ever, the ones with the fewest children first."""
        parents = [problem for problem in problems if problem.depth < self._writer.settings.depth]
        return cycle(sorted(parents, key=lambda parent: (children[parent.id], rng.random())))


def load(folder: Path) -> list[Problem]:
    """The variants of a grown tree."""
    return [_problem(row) for row in read_jsonl(folder / layout.PROBLEMS)]


def first(variants: Sequence[Problem], per_root: int) -> list[Problem]:
    """The first variants of each root, in the order in which they were written: parents come before their children."""
    taken: Counter[str] = Counter()
    chosen = []
    for variant in variants:
        if taken[variant.root_id] < per_root:
            chosen.append(variant)
            taken[variant.root_id] += 1
    return chosen


def count(folder: Path) -> dict[str, Any]:
    """What became of a grown tree's variants, for the stage's `done.json`: counts, tokens and seconds.

    `held_out` counts those equal to a test problem, by the problem's set.
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


_Wish = tuple[Problem, Effect]


class _Asked(NamedTuple):
    parent: Problem
    request: VariantRequest
    temperature: float


class _Tree:
    """A tree so far, on disk and at hand; `given` are variants it starts from, which stand in another folder."""

    def __init__(self, writer: Writer, roots: Sequence[Problem], given: Sequence[Problem], folder: Path) -> None:
        rounds = read_jsonl(folder / layout.ROUNDS)
        self.rounds = {row["round"]: row for row in rounds}
        for name in (layout.PROBLEMS, layout.REJECTED):
            truncate_jsonl(folder / name, lambda row: row["round"] in self.rounds)
        self.roots = roots
        self.variants = [*given, *load(folder)]
        self._writer = writer
        self._folder = folder
        self._known: Index[str] = Index()
        self._held_out: Index[str] = Index()
        for problem in (*roots, *self.variants):
            self._known.add(self._keys(problem), problem.id)
        for name, problems in writer.held_out.items():
            for problem in problems:
                self._held_out.add(self._keys(problem), name)

    def level(self, depth: int) -> dict[str, list[Problem]]:
        """The problems of a depth by the id of their root."""
        level: dict[str, list[Problem]] = defaultdict(list)
        for problem in (*self.roots, *self.variants):
            if problem.depth == depth:
                level[problem.root_id].append(problem)
        return level

    def kept_per_request(self, depth: int) -> float:
        """What a request at a depth has brought so far; before the first one, what it asks for."""
        rows = [row for row in self.rounds.values() if row["depth"] == depth]
        requests = sum(row["requests"] for row in rows)
        per_prompt = self._writer.settings.per_prompt
        return max(sum(row["kept"] for row in rows) / requests, _LEAST_YIELD * per_prompt) if requests else per_prompt

    def ask(
        self, number: int, depth: int | None, wishes: Sequence[_Wish], rng: Random, deadline: Deadline
    ) -> list[Problem]:
        """Do a round of requests and keep what it brings; its row in `rounds.jsonl`, written last, makes it count.

        A long round is sampled in parts. Of one that is gone on with, only the replies of finished parts are taken
        over: requests and seeds follow from the rounds before it, and judging is repeated.
        """
        started = time.monotonic()
        asked = self._draw_requests(wishes, rng)
        size = max(1, PART_TOKENS // self._writer.settings.max_new_tokens)
        parts = [asked[start : start + size] for start in range(0, max(1, len(asked)), size)]
        path = self._folder / layout.REPLIES
        before = [row for row in read_jsonl(path) if row["round"] == number]
        kept: list[Problem] = []
        rejected: list[dict[str, Any]] = []
        n_tokens = 0
        for place, part in enumerate(parts):
            seed = rng.getrandbits(32)  # of finished parts too, for those after them
            if place < len(before):
                replies = [Completion(**row) for row in before[place]["replies"]]
                self._sort(number, part, replies, kept, rejected)
            else:
                with deadline.piece("variants", max(1, len(part))):
                    sampled = time.monotonic()
                    replies = self._sample(part, seed)
                    if place < len(parts) - 1:
                        seconds = time.monotonic() - sampled
                        rows = [asdict(reply) for reply in replies]
                        append_jsonl(path, [{"round": number, "replies": rows, "seconds": seconds}])
                    self._sort(number, part, replies, kept, rejected)
            n_tokens += sum(reply.n_tokens for reply in replies)
        self.variants += kept
        append_jsonl(self._folder / layout.PROBLEMS, [{"round": number, **variant.to_row()} for variant in kept])
        append_jsonl(self._folder / layout.REJECTED, rejected)
        self.rounds[number] = {
            "round": number,
            "depth": depth,
            "requests": len(asked),
            "kept": len(kept),
            "n_tokens": n_tokens,
            "seconds": time.monotonic() - started + sum(row["seconds"] for row in before),
        }
        append_jsonl(self._folder / layout.ROUNDS, [self.rounds[number]])
        path.unlink(missing_ok=True)
        return kept

    def _sample(self, asked: Sequence[_Asked], seed: int) -> list[Completion]:
        """A reply to each request."""
        settings = self._writer.settings
        prompts = [self._writer.task.variant_prompt(parent, request) for parent, request, _ in asked]
        temperatures = tuple(temperature for *_, temperature in asked)
        sampling = Sampling(temperatures, 1.0, settings.max_new_tokens, settings.batch_size, seed)
        return [reply for (reply,) in self._writer.backend.sample(prompts, 1, sampling)]

    def _sort(
        self,
        number: int,
        asked: Sequence[_Asked],
        replies: Sequence[Completion],
        kept: list[Problem],
        rejected: list[dict[str, Any]],
    ) -> None:
        """Add what replies bring to the variants that are kept and to the rows of those that are rejected."""
        for (parent, request, _), reply in zip(asked, replies, strict=True):
            for part in self._writer.task.parse_variants(reply.text, parent, request):
                judged = self._judge(part, parent) if isinstance(part, Problem) else part
                if isinstance(judged, Problem):
                    kept.append(judged)
                else:
                    place = {"parent_id": parent.id, "depth": parent.depth + 1}
                    rejected.append({"round": number, **asdict(judged), **place})

    def _draw_requests(self, wishes: Sequence[_Wish], rng: Random) -> list[_Asked]:
        """A request for each wish; the persona rotates when the temperatures have gone round."""
        settings, library = self._writer.settings, self._writer.library
        lowest, highest = settings.temperature
        n_before = sum(row["requests"] for row in self.rounds.values())
        asked = []
        for number, (parent, effect) in enumerate(wishes, start=n_before):
            turn, step = divmod(number, N_TEMPERATURES)
            n_suggestions = min(len(library.of(effect)), rng.randint(*settings.suggestions))
            suggestions = tuple(rng.sample(library.of(effect), n_suggestions))
            persona = settings.personas[turn % len(settings.personas)]
            request = VariantRequest(effect, persona, suggestions, settings.per_prompt)
            asked.append(_Asked(parent, request, lowest + (highest - lowest) * step / (N_TEMPERATURES - 1)))
        return asked

    def _judge(self, variant: Problem, parent: Problem) -> Problem | Rejected:
        keys = self._keys(variant)
        text = self._writer.task.statement(variant)
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


def _missing(tree: _Tree, depth: int, wanted: int, mix: Mix, rng: Random) -> list[_Wish]:
    """A parent and an effect for each request that should bring every root to `wanted` variants."""
    parents = tree.level(depth - 1)
    sizes = Counter(variant.root_id for variant in tree.variants)
    per_request = tree.kept_per_request(depth)
    return [
        (rng.choice(parents[root.id]), "easier" if rng.random() < mix.easier else "equivalent")
        for root in tree.roots
        if parents[root.id]
        for _ in range(ceil((wanted - sizes[root.id]) / per_request))
    ]


def _problem(row: Mapping[str, Any]) -> Problem:
    return Problem.from_row({key: value for key, value in row.items() if key != "round"})
