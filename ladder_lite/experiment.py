"""An experiment: its conditions and the stages that they are made of, each done once and resumed where it was.

The loop of the paper is `Experiment.ladder` (variants -> GRPO -> evaluation) and `Experiment.ladder_ttrl` (the same for
single test problems). `ladder_lite.recipe` runs the conditions of a recipe one after the other.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from ladder_lite import divergence
from ladder_lite.deadline import Deadline
from ladder_lite.errors import UserError
from ladder_lite.live import Bar, Live, show
from ladder_lite.memory import peak_memory_bytes
from ladder_lite.problems import Problem, held_out_problems, load_problems, without_printed
from ladder_lite.run_dir import RunDir, Stage, append_jsonl, read_jsonl, truncate_jsonl
from ladder_lite.settings import Condition, Recipe

if TYPE_CHECKING:
    from ladder_lite.attempts import Attempt
    from ladder_lite.backends import Adapter, Backend
    from ladder_lite.grpo import Step
    from ladder_lite.tasks import Task
    from ladder_lite.transformations import Library
    from ladder_lite.variants import Writer

NEEDS: dict[str, tuple[str, ...]] = {
    "select": (),
    "transformations": (),
    "variants": ("select", "transformations"),
    "conditions/base/eval": ("select",),
    "conditions/rl_without_variants/train": ("select",),
    "conditions/rl_without_variants/eval": ("conditions/rl_without_variants/train",),
    "conditions/ladder/train": ("variants",),
    "conditions/ladder/eval": ("conditions/ladder/train",),
    "conditions/ladder_ttrl/problems": ("conditions/ladder/eval",),
    "conditions/ladder_ttrl/eval": ("conditions/ladder_ttrl/problems",),
}
"""The stages of a run, each with those whose results it starts from."""

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")

SHOWN_ANSWERS = 2
"""Sampled answers printed each time the test problems are looked at."""


class Experiment:
    """A recipe at work in its run folder. Every method is a condition or a stage; a stage that is done is skipped."""

    def __init__(self, recipe: Recipe, run: RunDir, live: Live, deadline: Deadline | None = None) -> None:
        self.recipe = recipe
        self.run = run
        self.live = live
        self.deadline = deadline or Deadline.never()
        self.worked = False
        self.fresh_adapter: Adapter = {}  # as the seed makes it: the model then answers as the base model does

    # The conditions, as the paper has them.

    def base(self) -> None:
        """The untrained model on the test problems."""
        self.evaluate("base")

    def rl_without_variants(self) -> None:
        """The paper's control: GRPO on the training problems themselves."""
        self.train("rl_without_variants", self.roots)
        self.evaluate("rl_without_variants")

    def ladder(self) -> None:
        """LADDER: GRPO on the variants that the model wrote of the training problems."""
        variants = self.grow_variants()
        if self.recipe.variants.adaptive:  # the roots too are tried now and then, and get children while they are stuck
            variants = [*self.roots, *variants]
        self.train("ladder", variants)
        self.evaluate("ladder")

    def ladder_ttrl(self) -> None:
        """TTRL, from LADDER's weights, for test problems that LADDER leaves unsolved."""
        self.ladder()
        self.learn_test_problems()
        self.answer_after_ttrl()

    # The stages.

    def select_problems(self) -> None:
        """The training and test problems, drawn from those of the pool that the base model fails.

        That is how the paper's 110 problems came about, and why its base model starts near 0 %.
        """
        from ladder_lite import evaluate

        settings = self.recipe.task.select
        assert settings is not None
        pool = list({problem.id: problem for split in SPLITS for problem in self.task.problems(split)}.values())

        def work(stage: Stage) -> dict[str, Any]:
            self.backend.restore(self.fresh_adapter)
            sampling = self.recipe.eval.model_copy(update={"samples": settings.samples, "k": 1})
            with self.live.stage("select", len(pool)) as bar:
                attempts = evaluate.evaluate(
                    self.task, self.backend, pool, sampling, stage.path, self.recipe.seed, bar, self.deadline
                )
            dropped = {attempt.problem_id for attempt in attempts if attempt.correct or attempt.grade.reward is None}
            failed = [problem for problem in pool if problem.id not in dropped]
            wanted = settings.train + settings.test
            if len(failed) < wanted:
                raise UserError(
                    f"{stage.path}: the base model fails {len(failed)} of the {len(pool)} problems in all of "
                    f"{settings.samples} tries, and {wanted} are wanted; lower task.select.train, test or samples"
                )
            Random(f"{self.recipe.seed}/select").shuffle(failed)
            rows = [
                {**problem.data, "split": "train" if at < settings.train else "test"}
                for at, problem in enumerate(failed[:wanted])
            ]
            truncate_jsonl(stage.path / "problems.jsonl", lambda row: False)
            append_jsonl(stage.path / "problems.jsonl", rows)
            return {"pool": len(pool), "failed": len(failed), **evaluate.summarize(attempts, 1)}

        self._do("select", [self.recipe.eval.model_dump(), _ids(pool)], work)

    def write_transformations(self) -> None:
        """The library of transformations, written by the model where the recipe says so."""
        from ladder_lite import transformations

        def work(stage: Stage) -> dict[str, Any]:
            with self.live.stage("transformations", None):
                self.backend.restore(self.fresh_adapter)
                return transformations.write(
                    self.task, self.backend, self.recipe.variants, stage.path, self.recipe.seed
                )

        if self.recipe.variants.transformations == "model":
            self._do("transformations", [self.recipe.variants.model_dump()], work)

    def grow_variants(self) -> list[Problem]:
        """The variant tree of the training problems."""
        from ladder_lite import variants

        def work(stage: Stage) -> dict[str, Any]:
            settings = self.recipe.variants
            per_root = settings.adaptive.start if settings.adaptive else settings.per_root
            with self.live.stage("variants", per_root * len(self.roots)) as bar:
                self.backend.restore(self.fresh_adapter)
                variants.grow(self.writer, self.roots, stage.path, bar)
            held_out = {name: len(problems) for name, problems in self.writer.held_out.items()}
            return {
                **variants.count(stage.path),
                "library": self.library.source,
                "held_out_sets": held_out,
                "tests_among_roots": [str(test.data["integrand"]) for test in self._in_both(self.roots)],
            }

        self.write_transformations()
        # Fetching another benchmark later does not make a tree stale, so only this run's tests are inputs.
        inputs = [self.recipe.variants.model_dump(), asdict(self.library), _ids(self.roots), _ids(self.tests)]
        stage = self._do("variants", inputs, work)
        tree = variants.load(stage.path)
        if not tree:
            raise UserError(f"{stage.path}: the model wrote no usable variant; rejected.jsonl says what was wrong")
        return tree

    def train(self, condition: Condition, problems: Sequence[Problem]) -> None:
        """GRPO on the problems, from a fresh adapter to `train/adapter`; LADDER's tree may grow meanwhile."""
        from ladder_lite import grpo, variants

        adaptive = self.recipe.variants.adaptive if condition == "ladder" else None

        def work(stage: Stage) -> dict[str, Any]:
            settings = self.recipe.grpo
            self.backend.restore(self.fresh_adapter)
            growth = None
            if adaptive:
                tree = [problem for problem in problems if problem.parent_id is not None]
                growth = variants.Growth(self.writer, self.roots, tree, adaptive, stage.path / "variants")
            with self.live.stage(f"train {condition}", int(settings.trl["max_steps"])) as bar:
                after_step = self._watch(stage.path, bar)
                steps = grpo.train(
                    self.task,
                    self.backend,
                    problems,
                    settings,
                    stage.path,
                    self.recipe.seed,
                    after_step,
                    growth,
                    self.deadline,
                    self.live.say,
                )
            self.backend.save(stage.path / "adapter")
            grown = variants.count(stage.path / "variants")
            return {
                "steps": len(steps),
                "seconds": sum(step.seconds for step in steps) + grown["seconds"],
                "stopped": steps[-1].stop or "max_steps",
                "grown": grown["kept"],
                "rollbacks": len(divergence.load(stage.path)),
            }

        growing = [self.recipe.variants.model_dump()] if adaptive else []
        inputs = [self.recipe.grpo.model_dump(), _ids(problems), *growing, *self._looks]
        self._do(f"conditions/{condition}/train", inputs, work)

    def evaluate(self, condition: Condition) -> None:
        """Sampled answers of the condition's model to all test problems."""
        from ladder_lite import evaluate

        def work(stage: Stage) -> dict[str, Any]:
            self._restore(condition)
            started = time.monotonic()
            with self.live.stage(f"evaluate {condition}", len(self.tests)) as bar:
                attempts = evaluate.evaluate(
                    self.task,
                    self.backend,
                    self.tests,
                    self.recipe.eval,
                    stage.path,
                    self.recipe.seed,
                    bar,
                    self.deadline,
                )
            return self._summarize(attempts) | {"seconds": time.monotonic() - started}

        self._do(f"conditions/{condition}/eval", [self.recipe.eval.model_dump(), _ids(self.tests)], work)

    def learn_test_problems(self) -> None:
        """TTRL for a seeded sample of the test problems that no answer of LADDER's model solves."""

        def work(stage: Stage) -> dict[str, Any]:
            left = self._unsolved("ladder")
            wanted = len(left) if self.recipe.ttrl.problems == "all" else min(self.recipe.ttrl.problems, len(left))
            chosen = Random(self.recipe.seed).sample(left, wanted)
            outcomes: list[dict[str, Any]] = []
            with self.live.stage("TTRL", wanted) as bar:
                for problem in chosen:
                    outcomes.append(self._learn(problem, stage))
                    bar.advance(1)
            solved = [outcome for outcome in outcomes if outcome["solved"]]
            return {
                "n_left": len(left),
                "attempted": len(chosen),
                "solved": len(solved),
                "steps_to_solve": [outcome["steps_to_solve"] for outcome in solved],
                "problems": [problem.id for problem in chosen],
                "steps": sum(outcome["steps"] for outcome in outcomes),
                "seconds": sum(outcome["seconds"] for outcome in outcomes),
                "rollbacks": sum(len(divergence.load(stage.path / problem.id / "train")) for problem in chosen),
            }

        inputs = [self.recipe.ttrl.model_dump(), self.recipe.variants.model_dump(), self.recipe.grpo.model_dump()]
        self._do("conditions/ladder_ttrl/problems", [*inputs, *self._looks], work)

    def answer_after_ttrl(self) -> None:
        """Accuracy after TTRL: its own answers to the problems it tried, LADDER's to all others."""
        from ladder_lite.attempts import Attempt

        def work(stage: Stage) -> dict[str, Any]:
            tried = self.run.path / "conditions/ladder_ttrl/problems"
            rows = read_jsonl(self.run.path / "conditions/ladder/eval/attempts.jsonl")
            own = {path.parent.parent.name: read_jsonl(path) for path in tried.glob("*/eval/attempts.jsonl")}
            rows = [row for row in rows if row["problem_id"] not in own] + [
                row for part in own.values() for row in part
            ]
            truncate_jsonl(stage.path / "attempts.jsonl", lambda row: False)
            append_jsonl(stage.path / "attempts.jsonl", rows)
            return self._summarize([Attempt.from_row(row) for row in rows]) | {"seconds": 0.0}

        self._do("conditions/ladder_ttrl/eval", [self.recipe.eval.model_dump()], work)

    # What the stages share.

    @cached_property
    def task(self) -> "Task":
        """The recipe's task."""
        from ladder_lite.tasks import load_task

        return load_task(self.recipe.task, self.run.path / "references.jsonl")

    @cached_property
    def roots(self) -> list[Problem]:
        """The training problems; UserError where the test holds no others."""
        roots = self._problems("train")
        if len(self._in_both(roots)) == len(self.tests):
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
        from ladder_lite.backends import load_backend
        from ladder_lite.preflight import demand, predict, preflight, to_download

        needs = predict(self.recipe)
        demand(preflight(self.recipe, self.run.path, **needs))
        if n_bytes := to_download(self.recipe.model, needs.get("download_bytes")):
            self.live.say(f"load {show(self.recipe.model.id)}: downloading about {n_bytes / 1e9:.1f} GB")
        with self.live.stage(f"load {self.recipe.model.id}", None):
            backend = load_backend(self.recipe)
        backend.check([self.task.prompt(problem) for split in SPLITS for problem in self.task.problems(split)])
        self.fresh_adapter = backend.snapshot()
        return backend

    @cached_property
    def library(self) -> "Library":
        """The transformations that requests for variants suggest; those of the model once it wrote them."""
        from ladder_lite.transformations import open_library

        return open_library(self.recipe.variants, self.run.path / "transformations")

    @cached_property
    def writer(self) -> "Writer":
        """What trees of variants are written with."""
        from ladder_lite.variants import Writer

        held_out = {**held_out_problems(), self.recipe.task.test: without_printed(self.tests)}
        return Writer(
            self.task, self.backend, self.recipe.variants, self.library, held_out, self.recipe.seed, self.deadline
        )

    @property
    def _looks(self) -> list[Any]:
        """What every look at the test problems depends on."""
        return [self.recipe.eval.model_dump(), _ids(self.tests)]

    def _do(self, name: str, inputs: object, work: Callable[[Stage], dict[str, Any]]) -> Stage:
        """Do a stage unless it is done, and mark it done with its summary; what raises, as OutOfTime, does not."""
        base = [self.recipe.seed, self.recipe.task.model_dump(), self.recipe.model.model_dump()]
        stage = self.run.stage(name, [base, inputs])
        if stage.done is None:
            self.deadline.check()
            self.worked = True
            stage.begin()
            stage.finish(work(stage) | {"peak_memory_bytes": peak_memory_bytes()})
            _remove_checkpoints(stage)
        return stage

    def _in_both(self, roots: Sequence[Problem]) -> list[Problem]:
        """The test problems that equal a training problem."""
        from ladder_lite.equality import Index

        index: Index[str] = Index()
        for root in roots:
            index.add(self.task.fingerprints(root), root.id)
        return [test for test in self.tests if index.find(self.task.fingerprints(test)) is not None]

    def _problems(self, split: Literal["train", "test"]) -> list[Problem]:
        if self.recipe.task.select is None:
            return self.task.problems(split)
        self.select_problems()
        return load_problems(str(self.run.path / "select/problems.jsonl"), split)

    def _restore(self, condition: Condition) -> None:
        if condition == "base":
            self.backend.restore(self.fresh_adapter)
        else:
            self.backend.load(self.run.path / f"conditions/{condition}/train/adapter")

    def _learn(self, problem: Problem, above: Stage) -> dict[str, Any]:
        """TTRL for one problem, a stage of its own below that of all."""
        from ladder_lite import ttrl

        stage = self.run.stage(f"{above.name}/{problem.id}", above.digest)
        if (done := stage.done) is not None:
            return done
        self.deadline.check()
        stage.begin()
        self._restore("ladder")
        outcome = ttrl.learn(self.writer, problem, self.recipe, stage.path, self.live)
        stage.finish(outcome.to_row())
        _remove_checkpoints(stage)
        verdict = f"solved at step {outcome.steps_to_solve}" if outcome.solved else "not solved"
        self.live.say(f"{verdict}: {show(str(problem.data['integrand']))}")
        return outcome.to_row()

    def _summarize(self, attempts: "Sequence[Attempt]") -> dict[str, Any]:
        """Accuracy of all attempts; and apart, that on problems shown otherwise than they are verified."""
        from ladder_lite import evaluate

        summary = evaluate.summarize(attempts, self.recipe.eval.k)
        printed = {problem.id for problem in self.tests if "printed" in problem.data}
        if printed:
            shown = [attempt for attempt in attempts if attempt.problem_id in printed]
            summary["printed"] = evaluate.summarize(shown, self.recipe.eval.k)
        return summary

    def _unsolved(self, condition: Condition) -> list[Problem]:
        rows = read_jsonl(self.run.path / f"conditions/{condition}/eval/attempts.jsonl")
        solved = {row["problem_id"] for row in rows if row["reward"]}
        return [problem for problem in self.tests if problem.id not in solved]

    def _watch(self, folder: Path, bar: Bar) -> "Callable[[Step, list[Attempt]], bool]":
        """Show each step, and look at the test problems every `eval_every` steps; training itself never sees them."""
        from ladder_lite import evaluate

        def look_at_tests(step: int, seconds: float) -> None:
            attempts = evaluate.sample(self.task, self.backend, self.tests, self.recipe.eval, 1, self.recipe.seed)
            accuracy = evaluate.summarize(attempts, 1)["pass@1"]["value"]
            seconds += sum(row["seconds"] for row in read_jsonl(folder / "metrics.jsonl"))  # of the steps before
            append_jsonl(folder / "curve.jsonl", [{"step": step, "pass@1": accuracy, "seconds": seconds}])
            bar.set(step, test=accuracy)
            for attempt in Random(step).sample(attempts, min(SHOWN_ANSWERS, len(attempts))):
                mark = "[green]right[/]" if attempt.correct else f"[red]{attempt.grade.reason.value.lower()}[/]"
                self.live.say(f"  {mark} {show(attempt.completion.text)}")

        def after_step(step: "Step", _: "list[Attempt]") -> bool:
            bar.set(step.step, reward=step.reward, no_signal=step.groups_without_signal)
            if step.step % self.recipe.grpo.eval_every == 0:
                look_at_tests(step.step, step.seconds)
            return False

        if not read_jsonl(folder / "curve.jsonl"):
            with self.deadline.piece("evaluation", len(self.tests)):
                look_at_tests(0, 0.0)
        return after_step


def _remove_checkpoints(stage: Stage) -> None:
    """Training that is done needs its adapter only; checkpoints are larger, and there are two."""
    for folder in ("checkpoints", "train/checkpoints"):
        shutil.rmtree(stage.path / folder, ignore_errors=True)


def _ids(problems: Sequence[Problem]) -> list[str]:
    return [problem.id for problem in problems]


CONDITIONS: dict[Condition, Callable[[Experiment], None]] = {
    "base": Experiment.base,
    "rl_without_variants": Experiment.rl_without_variants,
    "ladder": Experiment.ladder,
    "ladder_ttrl": Experiment.ladder_ttrl,
}
