"""The search for a verified answer to one integral: sampling, then TTRL, and what both show while they are at it.

`ladder_lite.solve` is its front door.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.tree import Tree

from ladder_lite.budget import Deadline
from ladder_lite.config import Recipe
from ladder_lite.models import Backend
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt, Outcome
from ladder_lite.tasks import Task
from ladder_lite.terminal import Live, percent, show, verdict
from ladder_lite.variants.tree_view import draw_tree

if TYPE_CHECKING:  # importing GRPO imports torch
    from ladder_lite.train.state import Step

_CHUNKS = 4
"""Portions that the first answers are sampled in: the first one with a verified answer is the last."""

_SHOWN_ANSWERS = 2
"""Answers shown of each portion."""


class Search:
    """The search for one answer, and what is shown of it: first sampling, then TTRL, which it watches."""

    def __init__(
        self, task: Task, backend: Backend, recipe: Recipe, problem: Problem, live: Live, deadline: Deadline
    ) -> None:
        self.attempts: list[Attempt] = []
        self.answer: str | None = None
        self.steps = 0
        self._task = task
        self._backend = backend
        self._recipe = recipe
        self._problem = problem
        self._live = live
        self._deadline = deadline
        self._variants: list[Problem] = []
        self._tried: dict[str, list[bool]] = {}  # by the id of a variant, the latest last

    def sample(self, n: int) -> None:
        """Sample `n` answers, or fewer, up to the first portion that holds a verified one."""
        from ladder_lite.evaluate import Sampler

        recipe, live = self._recipe, self._live
        sampler = Sampler(self._task, self._backend, recipe.eval, recipe.seed)
        size = math.ceil(n / _CHUNKS)
        with live.progress("answers", n) as bar:
            for start in range(0, n, size):
                part = min(size, n - start)
                with self._deadline.piece("answers", part):
                    new = sampler.sample([self._problem], part, recipe.seed * 1000 + start)
                self._note(new)
                bar.set(len(self.attempts))
                for attempt in sorted(new, key=lambda attempt: not attempt.correct)[:_SHOWN_ANSWERS]:
                    live.say(f"  {verdict(attempt)}  {show(attempt.completion.text)}")
                if self.answer is not None:
                    return
        live.say(f"none of {len(self.attempts)} answers is right: {_kinds(self.attempts)}")

    def learn(self, max_steps: int | None = None) -> None:
        """TTRL in at most so many steps, the recipe's if None, in a folder that is gone afterwards.

        The backend takes its adapter back however it ends.
        """
        from ladder_lite import ttrl
        from ladder_lite.jsonl import read_jsonl
        from ladder_lite.runs import layout
        from ladder_lite.variants import Writer, transformations

        recipe, task, backend, live = self._recipe, self._task, self._backend, self._live
        changes = {
            "eval": recipe.eval.model_copy(update={"samples": 1, "k": 1}),  # its last answers decide nothing here
            "ttrl": recipe.ttrl.model_copy(update={"budget": None, "stop_when_solved": True}),
        }
        if max_steps is not None:  # which `ttrl.trl` may set as well, and has the last word on
            limits = {"max_steps": max_steps, "trl": recipe.ttrl.trl | {"max_steps": max_steps}}
            changes["ttrl"] = changes["ttrl"].model_copy(update=limits)
        with TemporaryDirectory(prefix="ladder-solve-") as scratch:
            folder = Path(scratch)
            if recipe.variants.transformations == "model":
                with live.progress("transformations", None):
                    transformations.write(task, backend, recipe.variants, folder, recipe.seed)
            library = transformations.open_library(recipe.variants, folder)
            # Nothing is measured here, and what is learned is forgotten: no problem has to be kept out of the tree.
            writer = Writer(task, backend, recipe.variants, library, {}, recipe.seed, self._deadline)
            ttrl.learn(writer, self._problem, recipe.model_copy(update=changes), folder, live, watch=self)
            self._note([Attempt.from_row(row) for row in read_jsonl(folder / layout.EVAL / layout.ATTEMPTS)])
        if self._variants and live.room is not None:  # a log has told it step by step
            live.print(self._tree(self._variants))

    def tree(self, variants: Sequence[Problem]) -> None:
        """The tree is grown."""
        self._variants = list(variants)
        live = self._live
        if not variants:
            live.say("the model wrote no variant that can be read, and so has nothing to learn from")
            return
        live.say(f"{len(variants)} variants to learn from")
        if live.room is None:
            live.print(self._tree(variants))
        self._draw()

    def step(self, step: "Step", rollouts: list[Attempt], tries: list[Attempt]) -> None:
        """A step is done: the variants that it trained on, and the tries at the integral itself."""
        self.steps = step.step
        for attempt in rollouts:
            own = self._tried.pop(attempt.problem_id, [])
            self._tried[attempt.problem_id] = [*own, attempt.correct]
        self._note(tries)
        live = self._live
        live.say(
            f"step {step.step}: reward {step.reward:.2f}, zero-variance groups {percent(step.groups_without_signal)}; "
            f"tries: {_kinds(tries)}"
        )
        if live.room is None:
            self._list({attempt.problem_id for attempt in rollouts})
        best = max(tries, key=lambda attempt: attempt.correct)
        live.say(f"  {verdict(best)}  {show(best.completion.text)}")
        self._draw()

    def _note(self, attempts: Sequence[Attempt]) -> None:
        self.attempts += attempts
        right = (attempt.grade.answer for attempt in attempts if attempt.correct)
        self.answer = self.answer or next(right, None)

    def _list(self, ids: set[str]) -> None:
        """A line for each variant of a step, with its pass rate so far."""
        rates = self._rates()
        for variant in self._variants:
            if variant.id in ids:
                tried = self._tried[variant.id]
                right = f"{sum(tried)} of {len(tried)} right, {percent(rates[variant.id])}"
                self._live.say(f"  {right}  {show(self._task.statement(variant))}")

    def _draw(self) -> None:
        """The part of the tree that the terminal has room for: the variants trained on last, with those above them."""
        live = self._live
        if live.room is None:
            return
        parents = {variant.id: variant.parent_id for variant in self._variants}
        latest = [id_ for id_ in reversed(self._tried) if id_ in parents]
        shown: set[str] = set()
        for leaf in [*latest, *parents]:
            at: str | None = leaf
            branch = set()
            while at in parents:
                branch.add(at)
                at = parents[at]
            if len(shown | branch) >= live.room:
                break
            shown |= branch
        visible = [variant for variant in self._variants if variant.id in shown]
        live.show_panel(self._tree(visible))

    def _tree(self, variants: Sequence[Problem]) -> Tree:
        return draw_tree(self._live, self._task.statement, [self._problem, *variants], self._rates())

    def _rates(self) -> dict[str, float]:
        return {id_: sum(tried) / len(tried) for id_, tried in self._tried.items()}


def _kinds(attempts: Sequence[Attempt]) -> str:
    """How many attempts are right, wrong, unreadable or cut off by the token limit."""
    words = {Outcome.RIGHT: "right", Outcome.WRONG: "wrong", Outcome.TRUNCATED: "cut off"}
    counts = Counter(words.get(attempt.outcome, "unreadable") for attempt in attempts)
    return ", ".join(f"{counts[kind]} {kind}" for kind in ("right", "wrong", "unreadable", "cut off") if counts[kind])
