"""An experiment: the conditions of a recipe and the stages that they consist of.

The paper's loop is `Experiment.run_stage`, called for one stage after the other: variants -> GRPO -> evaluation, and
the same for single test problems. Each stage runs once. After a kill, a stage resumes where it was interrupted; a
finished stage is skipped.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ladder_lite import variants
from ladder_lite.budget import Deadline
from ladder_lite.config import Recipe, condition_of, recipe_for, shares_tree
from ladder_lite.errors import UserError
from ladder_lite.evaluate.scores import summarize
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt
from ladder_lite.recipe import test_time
from ladder_lite.recipe.context import RunContext, ids
from ladder_lite.recipe.stages import stages_of
from ladder_lite.runs import RunDir, Stage, layout
from ladder_lite.terminal import Bar, Live, show, verdict
from ladder_lite.train import divergence
from ladder_lite.variants import transformations

if TYPE_CHECKING:  # importing GRPO imports SciPy
    from ladder_lite.train.state import Step

SHOWN_ANSWERS = 2
"""Sampled answers printed at each interim evaluation."""


class Experiment:
    """A recipe at work in its run folder. `run_stage` runs a stage; the other methods are the kinds of stages."""

    def __init__(self, recipe: Recipe, run: RunDir, live: Live, deadline: Deadline | None = None) -> None:
        self.recipe = recipe
        self.context = RunContext(recipe, run, live, deadline)

    def stages(self, only: str | None = None) -> list[str]:
        """The stages of all conditions of the recipe, or of one, in the order in which they run."""
        conditions = [only] if only else self.recipe.conditions
        # One condition after the other, so that each has its result as early as possible.
        in_order = (stage for name in conditions for stage in stages_of(self.recipe, [name]))
        return list(dict.fromkeys(in_order))

    def parts(self, stage: str) -> list[str]:
        """The substages of a stage, one for each test problem that it works on; none for most kinds of stages."""
        name, folder, _ = layout.split_stage(stage)
        if name is None or folder != layout.SINGLE_PROBLEMS:
            return []
        chosen = test_time.choose(self.context, condition_of(name, self.recipe.ablations))
        return [layout.problems(name, problem.id) for problem in chosen]

    def run_stage(self, stage: str) -> None:
        """Run one stage or substage unless it is done; the stages that it starts from must be done."""
        name, folder, problem_id = layout.split_stage(stage)
        condition, context = condition_of(name or "ladder", self.recipe.ablations), self.context
        if folder == layout.SELECT:
            context.select()
        elif folder == layout.TRANSFORMATIONS:
            self.write_transformations()
        elif folder == layout.VARIANTS:
            self.grow_variants(condition.name)

        # 1. Train. `base` trains on nothing and has no such stage.
        elif folder == layout.TRAIN and condition.trains_on == "roots":
            # The paper's control: the same GRPO on the hard training problems themselves. Where the base model never
            # finds a right answer, no group has any, and the verifier's rewards give GRPO nothing to learn from.
            self.train(condition.name, context.roots)
        elif folder == layout.TRAIN:
            # LADDER and its ablations: the model's own easier variants give groups with both right and wrong answers.
            tree = self.grow_variants(condition.name)
            if recipe_for(self.recipe, condition.name).variants.adaptive:
                # An adaptive tree adds the roots to the training rows: they are tried now and then, and while they
                # are stuck they get children.
                tree = [*context.roots, *tree]
            self.train(condition.name, tree)
        elif folder == layout.SINGLE_PROBLEMS:
            # TTRL: the whole loop again for each unsolved test problem; the weights are restored after each. LADDER
            # resampled changes no weights; it is the baseline for TTRL on the same problems.
            test_time.run_problems(context, condition, problem_id)

        # 2. Evaluate on all test problems.
        elif condition.problems_of is None:
            self.evaluate(condition.name)
        else:
            # TTRL leaves no single model to evaluate: each problem it tried was answered by its own tuned weights.
            test_time.evaluate_after_ttrl(context, condition)

    def write_transformations(self) -> None:
        """Let the base model write the library of transformations if `variants.transformations` is `model`."""

        context, settings = self.context, self.recipe.variants

        def work(stage: Stage) -> dict[str, Any]:
            with context.live.progress("transformations"):
                context.restore("base")
                return transformations.write(context.task, context.backend, settings, stage.path, self.recipe.seed)

        if settings.transformations == "model":
            context.run_stage(layout.TRANSFORMATIONS, [settings.model_dump()], work)

    def grow_variants(self, condition: str = "ladder") -> list[Problem]:
        """The variants a condition trains on: the shared tree, its first variants, or an ablation's own tree.

        Raises UserError if the model wrote no usable variant.
        """
        # An ablation that only trains on fewer variants (`share: 0.1`) takes the first ones of LADDER's tree, so that
        # the two differ in their number alone. One that changes how the tree grows needs its own tree.
        context, shared = self.context, shares_tree(self.recipe, condition)
        recipe = self.recipe if shared else recipe_for(self.recipe, condition)
        per_root, roots = recipe.variants.first_per_root, context.roots

        def work(stage: Stage) -> dict[str, Any]:
            writer = context.writer(recipe)
            with context.live.progress("variants", per_root * len(roots)) as bar:
                context.restore("base")  # another condition may have left its adapter in the backend
                variants.grow(writer, roots, stage.path, bar)
            # The last two entries are about contamination: which sets no variant may equal, and which test problems
            # equal a training problem.
            return {
                **variants.summarize_tree(stage.path),
                "library": writer.library.source,
                "held_out_sets": {name: len(problems) for name, problems in writer.held_out.items()},
                "tests_among_roots": [context.task.statement(test) for test in context.tests_among(roots)],
            }

        # All shipped and fetched benchmarks are held out, but only this run's tests are inputs of the stage: fetching
        # another benchmark later must not make a finished tree stale.
        settings = recipe.variants.model_dump(), asdict(context.library(recipe))
        inputs = [*settings, ids(roots), ids(context.tests), ids(context.probe)]
        stage = context.run_stage(layout.VARIANTS if shared else layout.variants(condition), inputs, work)
        tree = variants.load(stage.path)
        if not tree:
            raise UserError(f"{stage.path}: the model wrote no usable variant; rejected.jsonl says what was wrong")
        own = recipe_for(self.recipe, condition).variants
        if own.first_per_root < per_root:
            tree = variants.first_per_root(tree, own.first_per_root)
        return variants.third_per_root(tree, roots, own.third) if own.third else tree

    def train(self, condition: str, problems: Sequence[Problem]) -> None:
        """Train a fresh adapter with GRPO on the problems and save it in `train/adapter`.

        If the condition trains on variants and `variants.adaptive` is set, the tree grows between steps.
        """
        from ladder_lite.train import grpo
        from ladder_lite.train.state import Training

        recipe, context = recipe_for(self.recipe, condition), self.context
        settings = recipe.grpo
        # The control must not grow variants, whatever the recipe's tree does.
        adaptive = recipe.variants.adaptive if condition_of(condition).trains_on == "variants" else None

        def work(stage: Stage) -> dict[str, Any]:
            context.restore(condition_of(condition).start)
            growth, folder = None, stage.path / layout.VARIANTS
            tree = [problem for problem in problems if problem.parent_id is not None]  # without the roots
            if adaptive:
                # New variants go to the training stage's own folder: the shared tree stays as it was grown, and a
                # redo of this stage removes them.
                growth = variants.Growth(context.writer(recipe), context.roots, tree, adaptive, folder)
            with context.live.progress(f"train {condition}", int(settings.trl["max_steps"])) as bar:
                after_step = self._step_callback(stage.path, bar, settings.eval_every)
                training = Training(
                    context.task, context.backend, settings, stage.path, recipe.seed, context.deadline, context.live.say
                )
                steps = grpo.train(training, problems, after_step, growth)
            if steps[-1].stop == "plateau":
                context.live.say(f"{condition} ended early: almost no group had rewards that differ (grpo.plateau)")
            # A kill before done.json is written costs nothing: `grpo.train` then loads the last checkpoint, finds that
            # training has ended, and returns the same steps.
            context.backend.save(stage.path / layout.ADAPTER)
            grown = variants.summarize_tree(folder)  # all zero if the tree did not grow
            # Totals come from the logs, which earlier processes of a resumed run wrote too.
            return {
                "steps": len(steps),
                "seconds": sum(step.seconds for step in steps) + grown["seconds"],
                "n_tokens": sum(step.n_tokens for step in steps) + grown["tokens"],
                "stopped": steps[-1].stop or "max_steps",
                "n_verifier_calls": sum(step.n_rollouts or 0 for step in steps),
                "variants": len(tree) + grown["kept"],
                "grown": grown["kept"],
                "rollbacks": len(divergence.load(stage.path)),
            }

        # Settings of the tree are inputs only while it grows here; otherwise the ids of the problems say it all. The
        # evaluation settings are inputs because interim evaluations write this stage's curve.jsonl.
        growing = [recipe.variants.model_dump()] if adaptive else []
        inputs = [settings.model_dump(), ids(problems), *growing, *context.evaluation_inputs]
        context.run_stage(layout.train(condition), inputs, work)

    def evaluate(self, condition: str) -> None:
        """Sample the condition's model on all test problems: `eval.samples` answers to each, and a greedy one.

        If the recipe has a probe, its problems get `eval.samples` answers, too.
        """
        context, live, title = self.context, self.context.live, f"evaluate {condition}"

        def work(stage: Stage) -> dict[str, Any]:
            context.restore(condition)
            started, sampler = time.monotonic(), context.sampler
            sampled = sampler.evaluate(context.tests, stage.path, live, title)
            greedy = sampler.greedy().evaluate(context.tests, stage.path / layout.GREEDY, live, f"{title}, greedy")
            summary = context.summarize(sampled, greedy)
            if context.probe:
                probed = sampler.evaluate(context.probe, stage.path / layout.PROBE, live, f"probe {condition}")
                summary["probe"] = context.summarize_probe(probed)
            return summary | {"seconds": time.monotonic() - started}

        context.run_stage(layout.evaluation(condition), context.evaluation_inputs, work)

    def _step_callback(self, folder: Path, bar: Bar, every: int) -> "Callable[[Step, list[Attempt]], bool]":
        """A callback for `grpo.train` that shows each step and evaluates on the test problems every `every` steps.

        The test accuracy is only recorded: it picks no checkpoint and stops no training run.
        """
        context = self.context
        tests = {test.id: test for test in context.tests}

        def evaluate_interim(step: int, seconds: float) -> None:
            # One answer per problem, from the same seed each time: changes along the curve are due to the weights.
            attempts = context.sampler.sample(context.tests, 1)
            accuracy = summarize(attempts, 1)["pass@1"]["value"]
            # metrics.jsonl gets its row after this callback, so it has the earlier steps only; `seconds` is this one's.
            seconds += sum(row["seconds"] for row in read_jsonl(folder / layout.METRICS))
            append_jsonl(folder / layout.CURVE, [{"step": step, "pass@1": accuracy, "seconds": seconds}])
            bar.set(step, test=accuracy)
            # A generator of its own: what is printed must not shift the random draws of training.
            for attempt in Random(step).sample(attempts, min(SHOWN_ANSWERS, len(attempts))):
                asked = context.task.statement(tests[attempt.problem_id])
                answer = attempt.grade.answer or attempt.completion.text
                context.live.say(f"  {verdict(attempt)} {show(asked, 33)} -> {show(answer, 33)}")

        def after_step(step: "Step", _: "list[Attempt]") -> bool:
            bar.set(step.step, reward=step.reward, zero_variance=step.groups_without_signal)
            if step.step % every == 0:
                evaluate_interim(step.step, step.seconds)
            return False  # never ends training early

        # The curve starts at step 0. A resumed run has this row already: `grpo.train` drops rows of curve.jsonl only
        # beyond its last checkpoint.
        if not read_jsonl(folder / layout.CURVE):
            with context.deadline.piece("evaluation", len(context.tests)):
                evaluate_interim(0, 0.0)
        return after_step
