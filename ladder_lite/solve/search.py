"""The search for a verified answer to one problem: sampling, then TTRL, with progress shown on the terminal.

Use it through `ladder_lite.solve`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.tree import Tree

from ladder_lite.budget import Deadline
from ladder_lite.config import Recipe, with_changes
from ladder_lite.models import Backend
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt, Outcome
from ladder_lite.tasks import Task
from ladder_lite.terminal import Live, percent, show, verdict
from ladder_lite.variants.tree_view import draw_tree

if TYPE_CHECKING:  # importing GRPO imports torch
    from ladder_lite.train.state import Step

_CHUNKS = 4
"""Portions in which the first answers are sampled; sampling stops after a portion with a verified answer.

Fewer would waste samples on easy problems; more would make the batches of generation small.
"""

_SHOWN_ANSWERS = 2
"""Answers shown from each portion."""


@dataclass(slots=True)
class Search:
    """The search for one verified answer: `sample` first, then `learn`.

    `ways` are the problem itself and its detour (see `Task.detour`), as far as the model can read their prompts.
    `answer` is the first verified answer to the problem, None so far otherwise. During `learn` this is the
    `ttrl.Observer` of the TTRL run: `tree` and `step` are called back to collect the tries and to draw the tree.
    """

    task: Task
    backend: Backend
    recipe: Recipe
    problem: Problem
    ways: Sequence[Problem]
    live: Live
    deadline: Deadline
    attempts: list[Attempt] = field(default_factory=list, init=False)
    answer: str | None = field(default=None, init=False)
    steps: int = field(default=0, init=False)
    _variants: list[Problem] = field(default_factory=list, init=False)
    # Whether each rollout of a variant was right, by the variant's id; the variant trained on last comes last.
    _results: dict[str, list[bool]] = field(default_factory=dict, init=False)

    def sample(self, n: int) -> None:
        """Sample up to `n` answers to each problem of `ways`, until one is verified."""
        for problem in self.ways:
            if problem != self.problem:
                self.live.say(f"now by way of {show(self.task.statement(problem))}")
            self._sample(problem, n)
            if self.answer is not None:
                return

    def _sample(self, problem: Problem, n: int) -> None:
        """Sample in portions; stop after the first one with a verified answer."""
        from ladder_lite.evaluate import Sampler

        recipe, live = self.recipe, self.live
        sampler = Sampler(self.task, self.backend, recipe.eval, recipe.seed)
        size = math.ceil(n / _CHUNKS)  # n = 10 -> portions of 3, 3, 3 and 1
        with live.progress("answers", n) as bar:
            for start in range(0, n, size):
                part = min(size, n - start)
                with self.deadline.piece("answers", part):
                    # Each portion has its own seed; with one for all, they would repeat the same answers.
                    new = sampler.sample([problem], part, recipe.seed * 1000 + start)
                self._record(new, problem)
                bar.set(start + part)
                # Right answers first: False sorts before True.
                for attempt in sorted(new, key=lambda attempt: not attempt.correct)[:_SHOWN_ANSWERS]:
                    live.say(f"  {verdict(attempt)}  {show(attempt.completion.text)}")
                if self.answer is not None:
                    return
        live.say(f"none of {n} answers is right: {_count_outcomes(self.attempts[-n:])}")

    def learn(self, max_steps: int | None = None) -> None:
        """Run TTRL on the first of `ways` in a temporary folder, for at most `max_steps` steps (the recipe's if None).

        The adapter is restored however this ends, Ctrl-C and OutOfTime included.
        """
        from ladder_lite import ttrl
        from ladder_lite.jsonl import read_jsonl
        from ladder_lite.runs import layout
        from ladder_lite.variants import Writer, transformations

        task, backend, live = self.task, self.backend, self.live
        # One final answer instead of the recipe's ten: no vote is taken here. `--budget` is the only time limit, and
        # one verified answer is all that is wanted.
        changes: dict[str, Any] = {"eval.samples": 1, "eval.k": 1, "ttrl.budget": None, "ttrl.stop_when_solved": True}
        if max_steps is not None:
            # `ttrl.trl` overrides `ttrl.max_steps` (see `TtrlSettings.over`), so both must be set.
            changes |= {"ttrl.max_steps": max_steps, "ttrl.trl.max_steps": max_steps}
        recipe = with_changes(self.recipe, changes, "solve")
        with TemporaryDirectory(prefix="ladder-solve-") as scratch:
            folder = Path(scratch)
            if recipe.variants.transformations == "model":
                with live.progress("transformations", None):
                    transformations.write(task, backend, recipe.variants, folder, recipe.seed)
            library = transformations.open_library(task, recipe.variants, folder)
            # The empty dict: nothing is held out. No test accuracy is measured, and the weights are thrown away.
            writer = Writer(task, backend, recipe.variants, library, {}, recipe.seed, self.deadline)
            ttrl.train_on_problem(writer, self.ways[0], recipe, folder, live, observer=self)
            # The tries of each step came in through `step`; here are the answers after training.
            attempts = read_jsonl(folder / layout.EVAL / layout.ATTEMPTS)
            self._record([Attempt.from_row(row) for row in attempts], self.ways[0])
        # On a terminal the panel disappears at the end, so the whole tree is printed once. A log (`room` is None) has
        # had a line for each variant of each step.
        if self._variants and live.panel_height is not None:
            live.print(self._tree(self._variants))

    def tree(self, variants: Sequence[Problem]) -> None:
        """Callback of TTRL: the tree has been grown."""
        self._variants = list(variants)
        if not variants:
            self.live.say("the model wrote no readable variant, so there is nothing to train on")
            return
        self.live.say(f"{len(variants)} variants to learn from")
        if self.live.panel_height is None:
            self.live.print(self._tree(variants))
        self._draw()

    def step(self, step: "Step", rollouts: list[Attempt], tries: list[Attempt]) -> None:
        """Callback of TTRL: a step is done, with its rollouts of variants and its tries at the problem itself."""
        self.steps = step.step
        for attempt in rollouts:
            # Removing the key first moves it to the end of the dict, whose order `_draw` relies on.
            results = self._results.pop(attempt.problem_id, [])
            self._results[attempt.problem_id] = [*results, attempt.correct]
        self._record(tries, self.ways[0])
        live = self.live
        live.say(
            f"step {step.step}: reward {step.reward:.2f}, zero-variance groups {percent(step.groups_without_signal)}; "
            f"tries: {_count_outcomes(tries)}"
        )
        if live.panel_height is None:
            self._list({attempt.problem_id for attempt in rollouts})
        best = max(tries, key=lambda attempt: attempt.correct)  # a right one if there is any, else the first
        live.say(f"  {verdict(best)}  {show(best.completion.text)}")
        self._draw()

    def _record(self, attempts: Sequence[Attempt], problem: Problem) -> None:
        self.attempts += attempts
        for attempt in attempts:
            if attempt.correct and self.answer is None:
                answer = str(attempt.grade.answer)
                if problem != self.problem:
                    answer = self.task.after_detour(self.problem, answer)
                    if not self.task.grade(self.problem, f"<answer>{answer}</answer>").reward:
                        continue
                self.answer = answer

    def _list(self, ids: set[str]) -> None:
        """Print a line for each of these variants, with its pass rate so far."""
        for variant in self._variants:
            if variant.id in ids:
                results = self._results[variant.id]
                right = f"{sum(results)} of {len(results)} right, {percent(fmean(results))}"
                self.live.say(f"  {right}  {show(self.task.statement(variant))}")

    def _draw(self) -> None:
        """Draw the part of the tree that fits on the terminal: the variants trained on last and their ancestors."""
        live = self.live
        if live.panel_height is None:
            return
        parents = {variant.id: variant.parent_id for variant in self._variants}
        latest = [id_ for id_ in reversed(self._results) if id_ in parents]
        shown: set[str] = set()
        # Latest first, then the rest of the tree in the order in which it was written (shallow levels first).
        for leaf in [*latest, *parents]:
            # The path from this variant up to the root, without the root, which is always drawn.
            node: str | None = leaf
            branch = set()
            while node in parents:
                branch.add(node)
                node = parents[node]
            # >= leaves one line for the root.
            if len(shown | branch) >= live.panel_height:
                break
            shown |= branch
        visible = [variant for variant in self._variants if variant.id in shown]
        live.show_panel(self._tree(visible))

    def _tree(self, variants: Sequence[Problem]) -> Tree:
        rates = {id_: fmean(results) for id_, results in self._results.items()}
        return draw_tree(self.live, self.task.statement, [self.problem, *variants], rates)


def _count_outcomes(attempts: Sequence[Attempt]) -> str:
    """The outcomes of some attempts: "1 right, 7 wrong, 2 cut off"."""
    # A refused answer (forbidden or too large) counts as unreadable: the user need not know the difference here.
    words = {Outcome.RIGHT: "right", Outcome.WRONG: "wrong", Outcome.TRUNCATED: "cut off"}
    counts = Counter(words.get(attempt.outcome, "unreadable") for attempt in attempts)
    return ", ".join(f"{counts[kind]} {kind}" for kind in ("right", "wrong", "unreadable", "cut off") if counts[kind])
