"""What the stages of an experiment share: the run's folder, the problems, the model, and how a stage is done once."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from ladder_lite.budget import Deadline
from ladder_lite.config import Recipe, recipe_for
from ladder_lite.errors import UserError
from ladder_lite.jsonl import read_jsonl, rewrite_jsonl
from ladder_lite.models.memory import peak_memory_bytes
from ladder_lite.problems import Problem, held_out_problems, load_problems, notes, without_printed
from ladder_lite.runs import RunDir, Stage, layout
from ladder_lite.terminal import Live

if TYPE_CHECKING:
    from ladder_lite.evaluate import Sampler
    from ladder_lite.models import Adapter, Backend
    from ladder_lite.problems.attempts import Attempt
    from ladder_lite.tasks import Task
    from ladder_lite.variants import Writer
    from ladder_lite.variants.transformations import Library

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


class RunContext:
    """A recipe's problems and model, in its run folder; each is loaded when a stage first needs it."""

    def __init__(self, recipe: Recipe, run: RunDir, live: Live, deadline: Deadline | None = None) -> None:
        self.recipe = recipe
        self.run = run
        self.live = live
        self.deadline = deadline or Deadline.never()
        self.worked = False
        self.fresh_adapter: Adapter = {}  # as the seed makes it: the model then answers as the base model does

    def do(self, name: str, inputs: object, work: Callable[[Stage], dict[str, Any]]) -> Stage:
        """Do a stage unless it is done, and mark it done with its summary; what raises, as OutOfTime, does not."""
        base = [self.recipe.seed, self.recipe.task.model_dump(), self.recipe.model.model_dump()]
        stage = self.run.stage(name, [base, inputs])
        if stage.done is None:
            self.deadline.check()
            self.worked = True
            stage.begin()
            stage.finish(work(stage) | {"peak_memory_bytes": peak_memory_bytes()})
            remove_checkpoints(stage)
        return stage

    def do_below(self, above: Stage, name: str, work: Callable[[Stage], dict[str, Any]]) -> dict[str, Any]:
        """Do a part of a stage, a stage of its own with the same inputs, unless it is done; returns its summary."""
        stage = self.run.stage(f"{above.name}/{name}", above.digest)
        if (done := stage.done) is not None:
            return done
        self.deadline.check()
        stage.begin()
        summary = work(stage)
        stage.finish(summary)
        remove_checkpoints(stage)
        return summary

    @cached_property
    def task(self) -> "Task":
        """The recipe's task."""
        from ladder_lite.tasks import load_task

        return load_task(self.recipe.task, self.run.path / layout.REFERENCES)

    @cached_property
    def roots(self) -> list[Problem]:
        """The training problems; UserError where the test holds no others."""
        roots = self._problems("train")
        if len(self.in_both(roots)) == len(self.tests):
            raise UserError(
                f"task.test {self.recipe.task.test}: every test problem is a training problem too; give the set "
                "splits, name another one, or let task.select draw from it"
            )
        return roots

    @cached_property
    def tests(self) -> list[Problem]:
        """The test problems."""
        return self._problems("test")

    @cached_property
    def backend(self) -> "Backend":
        """The model, loaded when a stage first needs it, on a machine that was looked at first."""
        from ladder_lite.doctor.checks import open_backend

        backend = open_backend(self.recipe, self.run.path, self.live)
        backend.check([self.task.prompt(problem) for split in SPLITS for problem in self.task.problems(split)])
        self.fresh_adapter = backend.snapshot()
        return backend

    @property
    def sampler(self) -> "Sampler":
        """What answers to test problems are sampled with."""
        from ladder_lite.evaluate import Sampler

        return Sampler(self.task, self.backend, self.recipe.eval, self.recipe.seed, self.deadline)

    def recipe_for(self, condition: str) -> Recipe:
        """The recipe with the settings of a condition: an ablation's, and its own for all others."""
        return recipe_for(self.recipe, condition)

    def library(self, recipe: Recipe) -> "Library":
        """The transformations that requests for variants suggest; those of the model once it wrote them."""
        from ladder_lite.variants.transformations import open_library

        return open_library(recipe.variants, self.run.path / layout.TRANSFORMATIONS)

    def writer(self, recipe: Recipe) -> "Writer":
        """What trees of variants are written with, by the settings of the recipe or of one of its ablations."""
        from ladder_lite.variants import Writer

        library, settings = self.library(recipe), recipe.variants
        return Writer(self.task, self.backend, settings, library, self._held_out, recipe.seed, self.deadline)

    @cached_property
    def _held_out(self) -> dict[str, Sequence[Problem]]:
        return {**held_out_problems(), self.recipe.task.test: without_printed(self.tests)}

    @property
    def evaluation_inputs(self) -> list[Any]:
        """What every look at the test problems depends on."""
        return [self.recipe.eval.model_dump(), ids(self.tests)]

    def restore(self, condition: str) -> None:
        """Put the adapter that a condition trained into the backend; a fresh one for the base model."""
        if condition == "base":
            self.backend.restore(self.fresh_adapter)
        else:
            self.backend.load(self.run.path / layout.train(condition) / layout.ADAPTER)

    def attempts(self, folder: str) -> "list[Attempt]":
        """The answers in a folder below the run's."""
        from ladder_lite.problems.attempts import Attempt

        rows = read_jsonl(self.run.path / folder / layout.ATTEMPTS)
        return [Attempt.from_row(row) for row in rows]

    def summarize(self, attempts: "Sequence[Attempt]", greedy: "Sequence[Attempt]") -> dict[str, Any]:
        """Accuracy of sampled and greedy answers to the tests; apart, of those shown otherwise than verified."""
        from ladder_lite.evaluate.scores import summarize

        k = self.recipe.eval.k
        set_notes = notes(self.recipe.task.test)
        summary = summarize(attempts, k, greedy=greedy, task=self.task, problems=self.tests, notes=set_notes)
        if printed := {problem.id for problem in self.tests if "printed" in problem.data}:
            summary["printed"] = summarize([attempt for attempt in attempts if attempt.problem_id in printed], k)
        return summary

    def in_both(self, roots: Sequence[Problem]) -> list[Problem]:
        """The test problems that equal a training problem."""
        from ladder_lite.verify.rules.fingerprints import Index

        index: Index[str] = Index()
        for root in roots:
            index.add(self.task.fingerprints(root), root.id)
        return [test for test in self.tests if index.find(self.task.fingerprints(test)) is not None]

    def _problems(self, split: Literal["train", "test"]) -> list[Problem]:
        if self.recipe.task.select is None:
            return self.task.problems(split)
        _select(self)
        return load_problems(str(self.run.path / layout.SELECT / layout.PROBLEMS), split)


def _select(context: RunContext) -> None:
    """The stage that samples the pool with the base model and writes `select/problems.jsonl`, a split to each row.

    They are those that it fails: that is how the paper's 110 came about, and why its base model starts near 0 %.

    UserError where the base model fails too few problems.
    """
    from ladder_lite.evaluate.scores import summarize

    recipe, settings = context.recipe, context.recipe.task.select
    assert settings is not None
    pool = list({problem.id: problem for split in SPLITS for problem in context.task.problems(split)}.values())

    def work(stage: Stage) -> dict[str, Any]:
        context.restore("base")
        sampler = replace(
            context.sampler, settings=recipe.eval.model_copy(update={"samples": settings.samples, "k": 1})
        )
        with context.live.progress(layout.SELECT, len(pool)) as bar:
            attempts = sampler.evaluate(pool, stage.path, bar)
        dropped = {attempt.problem_id for attempt in attempts if attempt.correct or attempt.grade.reward is None}
        failed = [problem for problem in pool if problem.id not in dropped]
        wanted = settings.train + settings.test
        if len(failed) < wanted:
            raise UserError(
                f"{stage.path}: the base model fails {len(failed)} of the {len(pool)} problems in all of "
                f"{settings.samples} tries, and {wanted} are wanted; lower task.select.train, test or samples"
            )
        Random(f"{recipe.seed}/select").shuffle(failed)
        rows = [
            {**problem.data, "split": "train" if at < settings.train else "test"}
            for at, problem in enumerate(failed[:wanted])
        ]
        rewrite_jsonl(stage.path / layout.PROBLEMS, rows)
        return {"pool": len(pool), "failed": len(failed), **summarize(attempts, 1)}

    context.do(layout.SELECT, [recipe.eval.model_dump(), ids(pool)], work)


def remove_checkpoints(stage: Stage) -> None:
    """Training that is done needs its adapter only; checkpoints are larger, and there are two."""
    for folder in (stage.path, stage.path / layout.TRAIN):
        shutil.rmtree(folder / layout.CHECKPOINTS, ignore_errors=True)


def ids(problems: Sequence[Problem]) -> list[str]:
    """The problems' ids: what a stage's digest holds of them."""
    return [problem.id for problem in problems]
