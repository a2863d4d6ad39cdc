"""An experiment: its conditions and the stages that they are made of, each done once and resumed where it was.

The loop of the paper is `Experiment.do`: variants -> GRPO -> evaluation, and the same for single test problems.
`ladder_lite.recipe` runs the conditions of a recipe one after the other.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ladder_lite.budget import Deadline
from ladder_lite.config import Recipe, shares_tree, with_ablations
from ladder_lite.errors import UserError
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.problems import Problem
from ladder_lite.recipe import test_time
from ladder_lite.recipe.context import RunContext, ids
from ladder_lite.runs import RunDir, Stage, layout
from ladder_lite.terminal import Bar, Live, show, verdict
from ladder_lite.train import divergence

if TYPE_CHECKING:
    from ladder_lite.problems.attempts import Attempt
    from ladder_lite.train.state import Step

SHOWN_ANSWERS = 2
"""Sampled answers printed each time the test problems are looked at."""


class Experiment:
    """A recipe at work in its run folder. `do` does a condition; the other methods are stages, each done once."""

    def __init__(self, recipe: Recipe, run: RunDir, live: Live, deadline: Deadline | None = None) -> None:
        self.recipe = recipe
        self.conditions = {condition.name: condition for condition in with_ablations(recipe.ablations)}
        self.context = RunContext(recipe, run, live, deadline)

    def do(self, name: str) -> None:
        """Do a condition and those it needs, unless they are done."""
        condition, context = self.conditions[name], self.context
        for earlier in condition.needs:
            self.do(earlier)
        if condition.trains_on == "roots":  # the paper's control
            self.train(name, context.roots)
        elif condition.trains_on == "variants":  # LADDER
            variants = self.grow_variants(name)
            if context.recipe_for(
                name
            ).variants.adaptive:  # roots are tried now and then, and get children while they are stuck
                variants = [*context.roots, *variants]
            self.train(name, variants)
        elif condition.trains_on == "single problems":  # TTRL
            test_time.learn(context, condition)
        # And what its model answers to the test problems; after TTRL, those that it tried have a model each.
        if condition.problems_of is None:
            self.evaluate(name)
        elif condition.is_evaluated:
            test_time.answer_after(context, condition)
        else:
            test_time.resample(context, condition)

    def write_transformations(self) -> None:
        """The library of transformations, written by the model where the recipe says so."""
        from ladder_lite.variants import transformations

        def work(stage: Stage) -> dict[str, Any]:
            with self.context.live.progress("transformations", None):
                self.context.restore("base")
                return transformations.write(
                    self.context.task, self.context.backend, self.recipe.variants, stage.path, self.recipe.seed
                )

        if self.recipe.variants.transformations == "model":
            self.context.do(layout.TRANSFORMATIONS, [self.recipe.variants.model_dump()], work)

    def grow_variants(self, condition: str = "ladder") -> list[Problem]:
        """The variants a condition trains on: the shared tree, its beginning, or an ablation's own tree."""
        from ladder_lite import variants

        shared = shares_tree(self.recipe, condition)
        recipe = self.recipe if shared else self.context.recipe_for(condition)
        per_root = recipe.variants.first_per_root
        roots, tests = self.context.roots, self.context.tests

        def work(stage: Stage) -> dict[str, Any]:
            writer = self.context.writer(recipe)
            with self.context.live.progress("variants", per_root * len(roots)) as bar:
                self.context.restore("base")
                variants.grow(writer, roots, stage.path, bar)
            return {
                **variants.count(stage.path),
                "library": writer.library.source,
                "held_out_sets": {name: len(problems) for name, problems in writer.held_out.items()},
                "tests_among_roots": [self.context.task.statement(test) for test in self.context.in_both(roots)],
            }

        self.write_transformations()
        # Fetching another benchmark later does not make a tree stale, so only this run's tests are inputs.
        inputs = [recipe.variants.model_dump(), asdict(self.context.library(recipe)), ids(roots), ids(tests)]
        stage = self.context.do(layout.VARIANTS if shared else layout.variants(condition), inputs, work)
        tree = variants.load(stage.path)
        if not tree:
            raise UserError(f"{stage.path}: the model wrote no usable variant; rejected.jsonl says what was wrong")
        wanted = self.context.recipe_for(condition).variants.first_per_root
        return variants.first(tree, wanted) if wanted < per_root else tree

    def train(self, condition: str, problems: Sequence[Problem]) -> None:
        """GRPO on the problems, from a fresh adapter to `train/adapter`; LADDER's tree may grow meanwhile."""
        from ladder_lite import variants
        from ladder_lite.train import grpo
        from ladder_lite.train.state import Training

        recipe, context = self.context.recipe_for(condition), self.context
        settings = recipe.grpo
        adaptive = recipe.variants.adaptive if self.conditions[condition].trains_on == "variants" else None

        def work(stage: Stage) -> dict[str, Any]:
            context.restore(self.conditions[condition].start)
            growth = None
            tree = [problem for problem in problems if problem.parent_id is not None]
            if adaptive:
                growth = variants.Growth(
                    context.writer(recipe), context.roots, tree, adaptive, stage.path / layout.VARIANTS
                )
            with context.live.progress(f"train {condition}", int(settings.trl["max_steps"])) as bar:
                after_step = self._watch(stage.path, bar, settings.eval_every)
                training = Training(
                    context.task, context.backend, settings, stage.path, recipe.seed, context.deadline, context.live.say
                )
                steps = grpo.train(training, problems, after_step, growth)
            context.backend.save(stage.path / layout.ADAPTER)
            grown = variants.count(stage.path / layout.VARIANTS)
            return {
                "steps": len(steps),
                "seconds": sum(step.seconds for step in steps) + grown["seconds"],
                "n_tokens": sum(step.n_tokens for step in steps) + grown["tokens"],
                "stopped": steps[-1].stop or "max_steps",
                "variants": len(tree) + grown["kept"],
                "grown": grown["kept"],
                "rollbacks": len(divergence.load(stage.path)),
            }

        growing = [recipe.variants.model_dump()] if adaptive else []
        inputs = [settings.model_dump(), ids(problems), *growing, *context.evaluation_inputs]
        context.do(layout.train(condition), inputs, work)

    def evaluate(self, condition: str) -> None:
        """Answers of the condition's model to all test problems, sampled and greedy."""
        context = self.context

        def work(stage: Stage) -> dict[str, Any]:
            context.restore(condition)
            started = time.monotonic()
            with context.live.progress(f"evaluate {condition}", len(context.tests)) as bar:
                sampled = context.sampler.evaluate(context.tests, stage.path, bar)
                best = context.sampler.greedy().evaluate(context.tests, stage.path / layout.GREEDY, bar)
            return context.summarize(sampled, best) | {"seconds": time.monotonic() - started}

        context.do(layout.evaluation(condition), context.evaluation_inputs, work)

    def _watch(self, folder: Path, bar: Bar, every: int) -> "Callable[[Step, list[Attempt]], bool]":
        """Show each step, and look at the test problems every so many steps; training itself never sees them."""
        from ladder_lite.evaluate.scores import summarize

        context = self.context

        def look_at_tests(step: int, seconds: float) -> None:
            attempts = context.sampler.sample(context.tests, 1)
            accuracy = summarize(attempts, 1)["pass@1"]["value"]
            seconds += sum(row["seconds"] for row in read_jsonl(folder / layout.METRICS))  # of the steps before
            append_jsonl(folder / layout.CURVE, [{"step": step, "pass@1": accuracy, "seconds": seconds}])
            bar.set(step, test=accuracy)
            for attempt in Random(step).sample(attempts, min(SHOWN_ANSWERS, len(attempts))):
                context.live.say(f"  {verdict(attempt)} {show(attempt.completion.text)}")

        def after_step(step: "Step", _: "list[Attempt]") -> bool:
            bar.set(step.step, reward=step.reward, zero_variance=step.groups_without_signal)
            if step.step % every == 0:
                look_at_tests(step.step, step.seconds)
            return False

        if not read_jsonl(folder / layout.CURVE):
            with context.deadline.piece("evaluation", len(context.tests)):
                look_at_tests(0, 0.0)
        return after_step
