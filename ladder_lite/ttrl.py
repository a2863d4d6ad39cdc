"""TTRL: train on variants of one test problem, answer the problem, and roll the weights back.

This is the method of the LADDER paper (arXiv 2503.00735), which trains on verified variants of the problem. Another
method of the same name rewards agreement with a majority vote (arXiv 2504.16084).

There are two results for each problem, which must not be confused:

- `solved`, the paper's rule: a right answer has appeared at any step. This needs a verifier for the test problem.
- `voted_answer`: the majority answer of the trained model. It needs no verifier for the test problem, and is graded
  after the vote. But with `ttrl.stop_when_solved`, the verifier decides when training ends, and so which model votes.
  The vote is independent of the verifier only without that setting.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

from ladder_lite import variants
from ladder_lite.budget import Deadline, OutOfTime, read_budget
from ladder_lite.config import Recipe, TtrlSettings
from ladder_lite.evaluate import Sampler
from ladder_lite.evaluate.scores import majority_vote
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt
from ladder_lite.runs import layout
from ladder_lite.terminal import Live
from ladder_lite.train import grpo
from ladder_lite.train.state import Step, Training
from ladder_lite.variants import Growth, Writer

Stopped = Literal["solved", "max_steps", "budget", "plateau", "no variants"]
"""Why training on a problem ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of TTRL on one problem.

    `solved`, `steps_to_solve` and `answer` follow the paper's rule: the first right answer at any step. `voted_answer`
    is the majority answer of the trained model, `voted_share` its share of the votes, and `voted_right` its grade. The
    module's docstring explains how each depends on the verifier.

    `seconds` counts all work on the problem (tree, training, tries, answers), except what a kill cut off after the last
    row of a log. `n_tokens` counts the tokens generated for variants, rollouts and tries, and `n_verifier_calls` the
    graded rollouts and tries, except those of work that a kill or a rollback undid. `root_id` is the problem whose
    variants were trained on: another one with `ttrl.train_on: other`.
    """

    problem_id: str
    solved: bool
    steps_to_solve: int | None
    steps: int
    seconds: float
    answer: str | None
    n_tokens: int
    n_variants: int
    stopped: Stopped
    voted_answer: str | None
    voted_share: float
    voted_right: bool
    root_id: str
    n_verifier_calls: int

    def to_row(self) -> dict[str, Any]:
        """Return the outcome as a JSON object."""
        return asdict(self)


class Observer(Protocol):
    """An observer of TTRL on one problem."""

    def tree(self, variants: Sequence[Problem]) -> None:
        """Called when the tree has been grown, or read back after a kill."""

    def step(self, step: Step, rollouts: list[Attempt], tries: list[Attempt]) -> None:
        """Called after each step, with its answers to the variants and the tries at the problem itself."""


def choose_problems(problems: Sequence[Problem], settings: TtrlSettings, seed: int) -> list[Problem]:
    """Choose the problems for TTRL from those left unsolved, in the order in which they will be tried."""
    n = len(problems) if settings.problems == "all" else min(settings.problems, len(problems))
    return list(problems[:n]) if settings.order == "listed" else Random(seed).sample(problems, n)


def train_on_problem(
    writer: Writer,
    problem: Problem,
    recipe: Recipe,
    folder: Path,
    live: Live,
    observer: Observer | None = None,
    *,
    root: Problem | None = None,
) -> Outcome:
    """Grow a tree for one problem, train on it from the backend's current adapter, answer the problem, and roll back.

    As a control, the tree may have another problem as its `root`; or, with `ttrl.train_on: problem`, there is none, and
    the problem itself is trained on.

    After each step, `samples_per_step` answers to the problem itself are sampled; with `stop_when_solved`, the first
    right one ends training. With `beta` above 0, KL is measured against the adapter that the backend has at first.

    The folder has the layout of a run: `variants/`; `train/`, with a `curve.jsonl` of the tries; `eval/`, with
    `eval.samples` answers of the trained model; and `eval/greedy/`, with one greedy answer.

    `ttrl.budget` limits the tree and the training, not the answers. Raises OutOfTime if the writer's deadline comes
    first. Called again with the same adapter, after that or after a kill, it resumes. The adapter is always restored,
    also after an exception. Raises RuntimeError if it then differs in any bit, which would be a bug.
    """
    # Imported here because it imports torch, which is slow.
    from ladder_lite.models.adapter import is_same

    before = writer.backend.snapshot()
    try:
        return _ProblemRun(writer, problem, recipe, folder, live, observer, root or problem).run()
    finally:
        # The next problem must start from the same weights, and results of one problem must not leak into another.
        writer.backend.restore(before)
        if not is_same(before, writer.backend.snapshot()):
            raise RuntimeError("TTRL's rollback failed: the adapter is not the one that the backend had at first")


@dataclass
class _ProblemRun:
    """TTRL on one problem. All results are in its folder, from which another process can resume."""

    _writer: Writer
    _problem: Problem
    _recipe: Recipe
    _folder: Path
    _live: Live
    _observer: Observer | None
    _root: Problem

    def __post_init__(self) -> None:
        writer, recipe, folder = self._writer, self._recipe, self._folder
        self._curve = folder / layout.TRAIN / layout.CURVE
        self._grown = folder / layout.TRAIN / layout.VARIANTS  # what the tree gains during training
        # Earlier processes may have spent time on this problem, up to the last step or else on the tree: count it as if
        # this one had begun earlier.
        rows = read_jsonl(self._curve)
        self._has_trained = bool(rows)
        earlier_s = float((rows or [variants.summarize_tree(folder / layout.VARIANTS)])[-1]["seconds"])
        self._deadline = writer.deadline or Deadline.never()
        self._began_at = self._deadline.now() - earlier_s
        # The problem's own budget, or the deadline itself if there is none or the deadline comes first.
        self._budget = self._deadline
        if text := recipe.ttrl.budget:
            self._budget = self._deadline.within(read_budget(text) - earlier_s, text)

    def run(self) -> Outcome:
        """Do the work that is not yet done, and return the outcome."""
        tree = self._grow_tree()
        if self._observer:
            self._observer.tree(tree)
        steps = self._train(tree)
        # The backend has the trained adapter from here until `train_on_problem` restores the first one.
        vote = majority_vote(self._writer.task, self._problem, self._sample_answers())
        rows = read_jsonl(self._curve)  # one for each step, those of earlier processes included
        solved = next((row for row in rows if row["answer"] is not None), None)
        trees = [variants.summarize_tree(path) for path in (self._folder / layout.VARIANTS, self._grown)]
        return Outcome(
            self._problem.id,
            solved=solved is not None,
            steps_to_solve=solved["step"] if solved else None,
            steps=len(steps),
            seconds=self._seconds,
            answer=solved["answer"] if solved else None,
            n_tokens=sum(tree["tokens"] for tree in trees)
            + sum(step.n_tokens for step in steps)
            + sum(row["n_tokens"] for row in rows),
            n_variants=sum(tree["kept"] for tree in trees),
            stopped=_why_stopped(tree, steps, rows),
            voted_answer=vote.answer,
            voted_share=vote.share,
            voted_right=vote.right,
            root_id=self._root.id,
            n_verifier_calls=sum(step.n_rollouts or 0 for step in steps)
            + len(rows) * self._recipe.ttrl.samples_per_step,
        )

    def _grow_tree(self) -> list[Problem]:
        """Grow the tree of the root, or resume growing it, and return its variants: the problems to train on."""
        if self._recipe.ttrl.train_on == "problem":
            return [self._problem]
        folder = self._folder / layout.VARIANTS
        # If training has started, the tree must stay as it is, even if the budget ended its growth early.
        if self._has_trained:
            return variants.load(folder)
        with self._live.progress("its variants", self._tree_writer.settings.first_per_root) as bar:
            try:
                return variants.grow(self._tree_writer, [self._root], folder, bar)
            except OutOfTime:
                # If the deadline of the whole run is reached, stop. If only the problem's budget is used up, continue
                # with the variants it has.
                if self._budget is self._deadline:
                    raise
                return variants.load(folder)

    @property
    def _tree_writer(self) -> Writer:
        """The writer of the problem's tree."""
        ttrl = self._recipe.ttrl
        changes = {"per_root": ttrl.per_root, "depth": ttrl.depth, "adaptive": ttrl.adaptive}
        settings = self._recipe.variants.model_copy(update=changes)
        return self._writer._replace(settings=settings, seed=self._seed("variants"), deadline=self._budget)

    def _train(self, tree: Sequence[Problem]) -> list[Step]:
        """Train on the tree with GRPO, and sample tries at the problem itself after each step."""
        ttrl = self._recipe.ttrl
        settings, adaptive = ttrl.over(self._recipe.grpo), ttrl.adaptive
        # If training has started, `grpo.train` must load its weights for the answers, even if no time is left.
        if not tree or (self._is_budget_used() and not self._has_trained):
            return []
        with self._live.progress("its GRPO", int(settings.trl["max_steps"])) as bar:
            step_began_at = self._deadline.now()

            def after_step(step: Step, rollouts: list[Attempt]) -> bool:
                nonlocal step_began_at
                # The tries only measure: nothing is trained on them.
                tries = self._sampler(f"tries/{step.step}").sample([self._problem], ttrl.samples_per_step)
                now = self._deadline.now()
                self._budget.record("TTRL step", now - step_began_at)
                step_began_at = now
                is_last = step.step == int(settings.trl["max_steps"])
                # With `train_on: problem`, a rollout may solve it, too.
                rights = [each for each in (*rollouts, *tries) if each.problem_id == self._problem.id and each.correct]
                stop = self._record_tries(step.step, tries, rights, is_last=is_last)
                bar.set(step.step, reward=step.reward, zero_variance=step.groups_without_signal)
                if self._observer:
                    self._observer.step(step, rollouts, tries)
                    step_began_at = self._deadline.now()
                return stop is not None

            writer, folder, seed = self._writer, self._folder / layout.TRAIN, self._seed("rollouts")
            training = Training(writer.task, writer.backend, settings, folder, seed, self._deadline, self._live.say)
            growth = None
            if adaptive and ttrl.train_on != "problem":
                growth = Growth(self._tree_writer, [self._root], tree, adaptive, self._grown)
            return grpo.train(training, tree, after_step, growth)

    def _sampler(self, use: str) -> Sampler:
        """Return a sampler of answers to the problem, with its own seed for each use."""
        return Sampler(self._writer.task, self._writer.backend, self._recipe.eval, self._seed(use), self._deadline)

    def _record_tries(
        self, step: int, tries: Sequence[Attempt], rights: Sequence[Attempt], *, is_last: bool
    ) -> Stopped | None:
        """Write a step's row of `curve.jsonl`. Return why training ends with this step, None if it continues."""
        stop: Stopped | None = None
        if rights and self._recipe.ttrl.stop_when_solved:
            stop = "solved"
        # Would the next step exceed the budget? After the last step there is none.
        elif not is_last and self._is_budget_used(self._budget.expected_s("TTRL step")):
            stop = "budget"
        row = {
            "step": step,
            "pass@1": sum(attempt.correct for attempt in tries) / len(tries),
            "answer": rights[0].grade.answer if rights else None,
            "n_tokens": sum(attempt.completion.n_tokens for attempt in tries),
            "seconds": self._seconds,  # on the problem in total, which a resumed run continues from
            "stop": stop,
        }
        append_jsonl(self._curve, [row])
        return stop

    def _sample_answers(self) -> list[Attempt]:
        """Sample the trained model's answers for the vote; a greedy one is only written to `eval/greedy`."""
        folder = self._folder / layout.EVAL
        greedy = self._sampler("greedy").greedy()
        greedy.evaluate([self._problem], folder / layout.GREEDY, self._live, "its greedy answer")
        return self._sampler("eval").evaluate([self._problem], folder, self._live, "its answers")

    def _seed(self, use: str) -> int:
        """Return a seed that differs for each use, such as "rollouts" or "tries/3"."""
        # Hashing the use into the seed avoids coincidences. With seed + step and the like, two uses could get the same
        # seed, and with it the same random draws.
        return Random(f"{self._recipe.seed}/ttrl/{self._problem.id}/{use}").getrandbits(32)

    def _is_budget_used(self, next_s: float = 0.0) -> bool:
        """Return whether work of `next_s` seconds would exceed the problem's own budget; False if it has none."""
        return self._budget is not self._deadline and not self._budget.allows(next_s)

    @property
    def _seconds(self) -> float:
        """Time spent on the problem, including that of earlier processes."""
        return self._deadline.now() - self._began_at


def _why_stopped(tree: Sequence[Problem], steps: Sequence[Step], rows: Sequence[dict[str, Any]]) -> Stopped:
    if not tree:
        return "no variants"
    if not steps:  # the budget was used up before training began
        return "budget"
    if steps[-1].stop == "plateau":
        return "plateau"
    # The reason recorded by the last step, if it ended training.
    stop: Stopped | None = rows[-1]["stop"]
    return stop or "max_steps"
