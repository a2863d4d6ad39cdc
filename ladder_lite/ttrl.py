"""TTRL: learn one test problem from its own variants, answer it, and put the weights back.

This is the method of the LADDER paper (arXiv 2503.00735), which learns from verified variants of the problem; the
method of the same name that rewards agreement with a majority vote (arXiv 2504.16084) is another one.

Two results come of it, which are easily mistaken for each other. By the paper's rule a problem is solved when a right
answer appears at any step: it is the verifier that says so, of the test problem itself. The answer voted for by the
tuned model's samples is the one that would be given without a verifier for the test problem; it is graded after the
vote. With `ttrl.stop_when_solved`, the verifier's verdict still says when training ends, and so which model votes; only
without that setting does the vote owe it nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from ladder_lite.models import Backend
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt
from ladder_lite.runs import layout
from ladder_lite.terminal import Live
from ladder_lite.train import grpo
from ladder_lite.train.state import Step, Training

Stopped = Literal["solved", "max_steps", "budget", "plateau", "no variants"]
"""What ended the training of a problem."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What TTRL made of one problem.

    `solved`, `steps_to_solve` and `answer` are by the paper's rule: the first right answer at any step. `voted_answer`
    is what most of the tuned model's answers come to, `voted_share` how many of them, and `voted_right` its grade. See
    the module's docstring for what either owes to the verifier.

    `seconds` are those of everything done for the problem (tree, training, tries, answers), but for what came after
    the last row of a log before a kill. `n_tokens` are those generated for its variants, rollouts and tries that
    stand on record: not those that a kill or a rollback undid.
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

    def to_row(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return asdict(self)


class Watch(Protocol):
    """One who looks on while a problem is learned."""

    def tree(self, variants: Sequence[Problem]) -> None:
        """The tree is grown, or read back."""

    def step(self, step: Step, rollouts: list[Attempt], tries: list[Attempt]) -> None:
        """A step is done: with its answers to the variants, and then to the problem itself."""


def choose(problems: Sequence[Problem], settings: TtrlSettings, seed: int) -> list[Problem]:
    """The problems that TTRL is tried on, of those left unsolved, in the order in which they are taken."""
    wanted = len(problems) if settings.problems == "all" else min(settings.problems, len(problems))
    return list(problems[:wanted]) if settings.order == "listed" else Random(seed).sample(problems, wanted)


def learn(
    writer: variants.Writer, problem: Problem, recipe: Recipe, folder: Path, live: Live, watch: Watch | None = None
) -> Outcome:
    """Tree, GRPO and answers for one problem, starting from the adapter the backend holds and leaving it as it was.

    After each step `samples_per_step` answers to the problem itself are sampled; with `stop_when_solved` the first
    right one ends training. The folder is laid out like a run's: `variants/`, `train/` with a `curve.jsonl`, and
    `eval/` with `eval.samples` attempts of the model as it is when training ends, and `eval/greedy/` with a greedy one.
    KL, where `beta` asks for it, is measured against the adapter that the backend held at first.

    `ttrl.budget` ends the tree and the training early, not the answers. OutOfTime where the writer's deadline comes
    first. Called again with the same adapter after that, or after a kill, it goes on where it was. However it ends, the
    adapter is put back; RuntimeError where it is then not the same bit by bit, which would be a bug.
    """
    with _rolled_back(writer.backend):
        return _TestTimeRun(writer, problem, recipe, folder, live, watch).learn()


@contextmanager
def _rolled_back(backend: Backend) -> Iterator[None]:
    """Put the adapter back when the block ends, however it does: the caller goes on with it."""
    from ladder_lite.models.adapter import is_same

    before = backend.snapshot()
    try:
        yield
    finally:
        backend.restore(before)
        if not is_same(before, backend.snapshot()):
            raise RuntimeError("TTRL's rollback failed: the adapter is not the one that the backend held at first")


class _TestTimeRun:
    """One problem being learned; what is known of it stands in its folder, for the next process as for this one."""

    def __init__(
        self, writer: variants.Writer, problem: Problem, recipe: Recipe, folder: Path, live: Live, watch: Watch | None
    ) -> None:
        self._writer = writer
        self._problem = problem
        self._recipe = recipe
        self._folder = folder
        self._live = live
        self._watch = watch
        self._curve = folder / layout.TRAIN / layout.CURVE
        before_s = self._seconds_on_record()
        self._deadline = writer.deadline or Deadline.never()
        self._began_at = self._deadline.now() - before_s
        # The deadline itself where the problem has no budget, or one that ends later.
        self._budget = self._deadline
        if text := recipe.ttrl.budget:
            self._budget = self._deadline.within(read_budget(text) - before_s, text)

    def learn(self) -> Outcome:
        """Do what there is left to do."""
        tree = self._grow()
        if self._watch:
            self._watch.tree(tree)
        steps = self._train(tree)
        vote = majority_vote(self._writer.task, self._problem, self._answer())
        rows = read_jsonl(self._curve)
        solved = next((row for row in rows if row["answer"] is not None), None)
        tokens = variants.count(self._folder / layout.VARIANTS)["tokens"]
        return Outcome(
            self._problem.id,
            solved=solved is not None,
            steps_to_solve=solved["step"] if solved else None,
            steps=len(steps),
            seconds=self._seconds,
            answer=solved["answer"] if solved else None,
            n_tokens=tokens + sum(step.n_tokens for step in steps) + sum(row["n_tokens"] for row in rows),
            n_variants=len(tree),
            stopped=_stopped(tree, steps, rows),
            voted_answer=vote.answer,
            voted_share=vote.share,
            voted_right=vote.right,
        )

    def _grow(self) -> list[Problem]:
        """The tree of a single problem is small: it is grown at once, without pauses for growth while training."""
        folder, settings = self._folder / layout.VARIANTS, self._recipe.ttrl
        if read_jsonl(self._curve):  # trained on already, as it is: the budget may have ended its growth
            return variants.load(folder)
        tree_settings = {"per_root": settings.per_root, "depth": settings.depth, "adaptive": None}
        writer = self._writer._replace(
            settings=self._recipe.variants.model_copy(update=tree_settings),
            seed=self._seed("variants"),
            deadline=self._budget,
        )
        with self._live.progress("its variants", settings.per_root) as bar:
            try:
                return variants.grow(writer, [self._problem], folder, bar)
            except OutOfTime:
                if self._budget is self._deadline:
                    raise
                return variants.load(folder)

    def _train(self, tree: Sequence[Problem]) -> list[Step]:
        """GRPO on the tree, with tries at the problem itself after each step."""
        settings = self._recipe.ttrl.over(self._recipe.grpo)
        begun = bool(read_jsonl(self._curve))  # then its weights are to be loaded, whatever time is left
        if not tree or (self._is_budget_used() and not begun):
            return []
        with self._live.progress("its GRPO", int(settings.trl["max_steps"])) as bar:
            step_began_at = self._deadline.now()

            def after_step(step: Step, rollouts: list[Attempt]) -> bool:
                nonlocal step_began_at
                tries = self._sampler(f"tries/{step.step}").sample([self._problem], self._recipe.ttrl.samples_per_step)
                now = self._deadline.now()
                self._budget.note("TTRL step", now - step_began_at)
                step_began_at = now
                is_last = step.step == int(settings.trl["max_steps"])
                stop = self._note(step.step, tries, is_last=is_last)
                bar.set(step.step, reward=step.reward, zero_variance=step.groups_without_signal)
                if self._watch:
                    self._watch.step(step, rollouts, tries)
                return stop is not None

            training = Training(
                self._writer.task,
                self._writer.backend,
                settings,
                self._folder / layout.TRAIN,
                self._seed("rollouts"),
                self._deadline,
                self._live.say,
            )
            return grpo.train(training, tree, after_step)

    def _sampler(self, use: str) -> Sampler:
        """What answers to the problem are sampled with, each use from a seed of its own."""
        return Sampler(self._writer.task, self._writer.backend, self._recipe.eval, self._seed(use), self._deadline)

    def _note(self, step: int, tries: Sequence[Attempt], *, is_last: bool) -> Stopped | None:
        """Note down what a step's tries came to, and say why training ends with them, if it does."""
        right = [attempt.grade.answer for attempt in tries if attempt.correct]
        stop: Stopped | None = None
        if right and self._recipe.ttrl.stop_when_solved:
            stop = "solved"
        elif not is_last and self._is_budget_used(self._budget.expected_s("TTRL step")):
            stop = "budget"
        row = {
            "step": step,
            "pass@1": len(right) / len(tries),
            "answer": right[0] if right else None,
            "n_tokens": sum(attempt.completion.n_tokens for attempt in tries),
            "seconds": self._seconds,
            "stop": stop,
        }
        append_jsonl(self._curve, [row])
        return stop

    def _answer(self) -> list[Attempt]:
        """The sampled answers of the model as it is when training ends; `eval/greedy` gets its greedy one."""
        folder = self._folder / layout.EVAL
        with self._live.progress("its answers", 1) as bar:
            self._sampler("greedy").greedy().evaluate([self._problem], folder / layout.GREEDY, bar)
            return self._sampler("eval").evaluate([self._problem], folder, bar)

    def _seed(self, use: str) -> int:
        """A seed for each use: small integers of different uses coincide, and the same draws would serve twice."""
        return Random(f"{self._recipe.seed}/ttrl/{self._problem.id}/{use}").getrandbits(32)

    def _is_budget_used(self, next_s: float = 0.0) -> bool:
        """Whether work of so many seconds would not end within the problem's own budget."""
        return self._budget is not self._deadline and not self._budget.allows(next_s)

    @property
    def _seconds(self) -> float:
        """Time spent on the problem, that of processes before this one included."""
        return self._deadline.now() - self._began_at

    def _seconds_on_record(self) -> float:
        rows = read_jsonl(self._curve)
        return float(rows[-1]["seconds"] if rows else variants.count(self._folder / layout.VARIANTS)["seconds"])


def _stopped(tree: Sequence[Problem], steps: Sequence[Step], rows: Sequence[dict[str, Any]]) -> Stopped:
    if not tree:
        return "no variants"
    if not steps:
        return "budget"
    if steps[-1].stop == "plateau":
        return "plateau"
    stop: Stopped | None = rows[-1]["stop"]
    return stop or "max_steps"
