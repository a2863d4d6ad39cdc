"""What the stages of an experiment share: run folder, problems, model, and the rule that a stage runs only once."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from random import Random
from typing import Any, Literal

from ladder_lite.budget import Deadline
from ladder_lite.config import Recipe
from ladder_lite.doctor.checks import open_backend
from ladder_lite.errors import UserError
from ladder_lite.evaluate import Sampler
from ladder_lite.evaluate.scores import summarize
from ladder_lite.jsonl import read_jsonl, rewrite_jsonl
from ladder_lite.models import Adapter, Backend, release_memory
from ladder_lite.models.memory import peak_memory_bytes
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt
from ladder_lite.runs import RunDir, Stage, layout
from ladder_lite.tasks import Task, load_task
from ladder_lite.terminal import Live
from ladder_lite.variants import Writer
from ladder_lite.variants.transformations import Library, open_library

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


class RunContext:
    """A recipe's problems and model, and its run folder.

    Problems and model are loaded when a stage first needs them, so a run whose stages are all done loads no model.
    """

    def __init__(self, recipe: Recipe, run: RunDir, live: Live, deadline: Deadline | None = None) -> None:
        self.recipe = recipe
        self.run = run
        self.live = live
        self.deadline = deadline or Deadline.never()
        self.ran_a_stage = False
        # The adapter as loaded, set by `backend`. peft starts LoRA's B matrices at zero, so with this adapter the model
        # answers as the base model does.
        self.fresh_adapter: Adapter = {}

    def run_stage(self, name: str, inputs: object, work: Callable[[Stage], dict[str, Any]]) -> Stage:
        """Run a stage unless it is done; the summary that `work` returns marks it done.

        If `work` raises, OutOfTime included, the stage stays unfinished and the next run resumes it.
        """
        stage = self.stage(name, inputs)
        self._run(stage, work)
        return stage

    def stage(self, name: str, inputs: object) -> Stage:
        """The stage with this name and these inputs."""
        # Seed, task and model decide the result of every stage; `inputs` are what else this one depends on.
        base = [self.recipe.seed, self.recipe.task.model_dump(), self.recipe.model.model_dump()]
        return self.run.stage(name, [base, inputs])

    def run_substages(
        self, parent: Stage, title: str, problems: Sequence[Problem], work: Callable[[Problem, Stage], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Run a part of a stage for each problem, with its own folder and done.json; return the summaries.

        A kill then costs at most one part.
        """
        summaries = []
        with self.live.progress(title, len(problems)) as bar:
            for problem in problems:
                summaries.append(self.run_substage(parent, problem, work))
                bar.set(len(summaries), solved=sum(bool(summary["solved"]) for summary in summaries))
        return summaries

    def run_substage(
        self, parent: Stage, problem: Problem, work: Callable[[Problem, Stage], dict[str, Any]]
    ) -> dict[str, Any]:
        """Run the part of a stage for one problem unless it is done; return its summary."""
        stage = self.run.stage(f"{parent.name}/{problem.id}", parent.digest)  # stale exactly when its parent is
        return self._run(stage, partial(work, problem))

    def _run(self, stage: Stage, work: Callable[[Stage], dict[str, Any]]) -> dict[str, Any]:
        if (done := stage.done) is not None:
            return done
        self.deadline.check()
        self.ran_a_stage = True
        stage.begin()
        summary = work(stage)
        # The parts of a stage may have run in other processes.
        summary["peak_memory_bytes"] = max(peak_memory_bytes(), summary.get("peak_memory_bytes", 0))
        stage.finish(summary)
        # Only after done.json: a kill before it still needs the checkpoints to resume from. One right after it leaves
        # them behind, which costs disk space and nothing else. A TTRL problem has them below `train/`.
        for folder in (stage.path, stage.path / layout.TRAIN):
            shutil.rmtree(folder / layout.CHECKPOINTS, ignore_errors=True)
        return summary

    def close(self) -> None:
        """Free the model's memory; it is loaded again when a stage needs it."""
        if self.__dict__.pop("backend", None) is not None:
            self.fresh_adapter = {}
            release_memory()

    @cached_property
    def task(self) -> Task:
        """The recipe's task."""
        return load_task(self.recipe.task, self.run.path / layout.REFERENCES)

    @cached_property
    def roots(self) -> list[Problem]:
        """The training problems. Raises UserError if every test problem is among them."""
        roots = self._problems("train")
        if len(self.tests_among(roots)) == len(self.tests):
            raise UserError(
                f"task.test {self.recipe.task.test}: every test problem is a training problem too; give the rows of "
                'the set a "split", name another set, or let task.select draw both splits from it'
            )
        return roots

    @cached_property
    def tests(self) -> list[Problem]:
        """The test problems."""
        return self._problems("test")

    @cached_property
    def probe(self) -> list[Problem]:
        """The problems of `task.probe`; none if the recipe has no probe."""
        return self.task.problems("probe")

    @cached_property
    def backend(self) -> Backend:
        """The model, loaded after a check of the machine.

        Raises UserError if a check fails or a problem's prompt is too long for the model.
        """
        backend = open_backend(self.recipe, self.run.path, self.live)
        # All problems of the sets, not those that `select` will draw: selection itself needs the model. A prompt that
        # is too long then fails here, in the first minute, and not hours later in a test.
        problems = [problem for split in SPLITS for problem in self.task.problems(split)]
        backend.check([self.task.prompt(problem) for problem in (*problems, *self.probe)])
        self.fresh_adapter = backend.snapshot()
        return backend

    @property
    def sampler(self) -> Sampler:
        """The sampler for answers to test problems, by the recipe's `eval` settings."""
        return Sampler(self.task, self.backend, self.recipe.eval, self.recipe.seed, self.deadline)

    def library(self, recipe: Recipe) -> Library:
        """The transformations that variant requests suggest.

        With `variants.transformations: model`, raises UserError until that stage is done.
        """
        return open_library(self.task, recipe.variants, self.run.path / layout.TRANSFORMATIONS)

    def writer(self, recipe: Recipe) -> Writer:
        """The writer of variant trees for the recipe or one of its ablations (see `config.recipe_for`)."""
        library, settings = self.library(recipe), recipe.variants
        return Writer(self.task, self.backend, settings, library, self._held_out, recipe.seed, self.deadline)

    @cached_property
    def _held_out(self) -> dict[str, Sequence[Problem]]:
        # No variant may equal a problem of these sets. This run's tests come last and replace the set of the same
        # name: with `select` they are a part of it.
        own = {self.recipe.task.test: self.task.to_hold_out(self.tests)}
        if self.probe:
            own[f"{self.recipe.task.probe}, probe"] = self.probe
        return {**self.task.held_out(), **own}

    @property
    def evaluation_inputs(self) -> list[Any]:
        """What every evaluation on the test problems depends on: an input of the stages that evaluate."""
        return [self.recipe.eval.model_dump(), ids(self.tests), ids(self.probe)]

    def restore(self, condition: str) -> None:
        """Put the adapter that a condition trained into the backend; for "base", the fresh one."""
        if condition == "base":
            self.backend.restore(self.fresh_adapter)
        else:
            self.backend.load(self.run.path / layout.train(condition) / layout.ADAPTER)

    def attempts(self, folder: str) -> list[Attempt]:
        """The graded answers in a folder, given by its path within the run."""
        rows = read_jsonl(self.run.path / folder / layout.ATTEMPTS)
        return [Attempt.from_row(row) for row in rows]

    def summarize(self, attempts: Sequence[Attempt], greedy: Sequence[Attempt]) -> dict[str, Any]:
        """The summary of an evaluation on the test problems, from its sampled and greedy answers.

        It is repeated for each of the task's subsets, such as `printed`: problems shown in an exam's wording.
        """
        k = self.recipe.eval.k
        set_notes = self.task.notes(self.recipe.task.test)
        summary = summarize(attempts, k, greedy=greedy, task=self.task, problems=self.tests, notes=set_notes)
        for name, members in self.task.subsets(self.tests).items():
            summary[name] = summarize([attempt for attempt in attempts if attempt.problem_id in members], k)
        return summary

    def summarize_probe(self, attempts: Sequence[Attempt]) -> dict[str, Any]:
        """The summary of answers to the problems of `task.probe`, with pass rates by technique."""
        return summarize(attempts, 1, notes=self.task.notes(self.recipe.task.probe or ""))

    def tests_among(self, roots: Sequence[Problem]) -> list[Problem]:
        """The test problems that equal one of these roots."""
        # By fingerprint and not by text: two texts may state the same problem.
        known = {key for root in roots for key in self.task.fingerprints(root)}
        return [test for test in self.tests if not known.isdisjoint(self.task.fingerprints(test))]

    def _problems(self, split: Literal["train", "test"]) -> list[Problem]:
        if self.recipe.task.select is None:
            return self.task.problems(split)
        self.select()  # a stage: it runs once, and later calls only read what it wrote
        return self.task.load(str(self.run.path / layout.SELECT / layout.PROBLEMS), split, check=False)

    def select(self) -> None:
        """Run the stage that selects problems the base model fails, and write them with their split to `select/`.

        The paper selected its 110 problems in this way, which is why its base model starts near 0 %. Raises UserError
        if the base model fails too few problems of the pool.
        """
        recipe, settings = self.recipe, self.recipe.task.select
        assert settings is not None
        # Both splits of the set, each problem once: a row without a split belongs to both.
        pool = list({problem.id: problem for split in SPLITS for problem in self.task.problems(split)}.values())

        def work(stage: Stage) -> dict[str, Any]:
            self.restore("base")
            sampling = recipe.eval.model_copy(update={"samples": settings.samples, "k": 1})
            sampler = replace(self.sampler, settings=sampling)
            attempts = sampler.evaluate(pool, stage.path, self.live, layout.SELECT)
            # Solved in any try, or unverifiable: a problem that cannot be graded (reward None) is not a failed one.
            dropped = {attempt.problem_id for attempt in attempts if attempt.correct or attempt.grade.reward is None}
            failed = [problem for problem in pool if problem.id not in dropped]
            n_needed = settings.train + settings.test
            if len(failed) < n_needed:
                raise UserError(
                    f"{stage.path}: the base model fails {len(failed)} of the {len(pool)} problems in all "
                    f"{settings.samples} tries, but {n_needed} are needed; lower task.select.train, test or samples"
                )
            # Shuffled, since a set may be sorted: undergrad.jsonl is, by technique. The first rows are for training.
            Random(f"{recipe.seed}/select").shuffle(failed)
            splits = ["train"] * settings.train + ["test"] * settings.test
            rows = [{**problem.data, "split": split} for problem, split in zip(failed, splits, strict=False)]
            rewrite_jsonl(stage.path / layout.PROBLEMS, rows)
            return {"pool": len(pool), "failed": len(failed), **summarize(attempts, 1)}

        # The ids are an input: if the set changes later, the selection is stale and the run says so.
        self.run_stage(layout.SELECT, [recipe.eval.model_dump(), ids(pool)], work)


def ids(problems: Sequence[Problem]) -> list[str]:
    """The ids of the problems, which stand for them in a stage's digest: an id is a hash of task and data."""
    return [problem.id for problem in problems]
