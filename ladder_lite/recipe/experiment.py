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
from ladder_lite.config import Recipe, shares_tree, with_arms
from ladder_lite.errors import UserError
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.problems import Problem
from ladder_lite.recipe import test_time
from ladder_lite.recipe.context import Lab, ids
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
        self.conditions = {condition.name: condition for condition in with_arms(recipe.arms)}
        self.lab = Lab(recipe, run, live, deadline)

    def do(self, name: str) -> None:
        """Do a condition, after those that it needs, unless it is done: a built-in one, or an arm of the recipe."""
        condition, lab = self.conditions[name], self.lab
        for earlier in condition.needs:
            self.do(earlier)
        if condition.trains_on == "roots":  # the paper's control
            self.train(name, lab.roots)
        elif condition.trains_on == "variants":  # LADDER
            variants = self.grow_variants(name)
            if lab.arm(name).variants.adaptive:  # roots are tried now and then, and get children while they are stuck
                variants = [*lab.roots, *variants]
            self.train(name, variants)
        elif condition.trains_on == "single problems":  # TTRL
            test_time.learn(lab, condition)
        # And what its model answers to the test problems; after TTRL, those that it tried have a model each.
        if condition.problems_of is None:
            self.evaluate(name)
        elif condition.is_evaluated:
            test_time.answer_after(lab, condition)
        else:
            test_time.resample(lab, condition)

    def write_transformations(self) -> None:
        """The library of transformations, written by the model where the recipe says so."""
        from ladder_lite.variants import transformations

        def work(stage: Stage) -> dict[str, Any]:
            with self.lab.live.stage("transformations", None):
                self.lab.restore("base")
                return transformations.write(
                    self.lab.task, self.lab.backend, self.recipe.variants, stage.path, self.recipe.seed
                )

        if self.recipe.variants.transformations == "model":
            self.lab.do(layout.TRANSFORMATIONS, [self.recipe.variants.model_dump()], work)

    def grow_variants(self, condition: str = "ladder") -> list[Problem]:
        """The variant tree of the training problems: the one that conditions share, its beginning, or an arm's own."""
        from ladder_lite import variants

        shared = shares_tree(self.recipe, condition)
        recipe = self.recipe if shared else self.lab.arm(condition)
        per_root = recipe.variants.first_per_root
        roots, tests = self.lab.roots, self.lab.tests

        def work(stage: Stage) -> dict[str, Any]:
            writer = self.lab.writer(recipe)
            with self.lab.live.stage("variants", per_root * len(roots)) as bar:
                self.lab.restore("base")
                variants.grow(writer, roots, stage.path, bar)
            return {
                **variants.count(stage.path),
                "library": writer.library.source,
                "held_out_sets": {name: len(problems) for name, problems in writer.held_out.items()},
                "tests_among_roots": [self.lab.task.statement(test) for test in self.lab.in_both(roots)],
            }

        self.write_transformations()
        # Fetching another benchmark later does not make a tree stale, so only this run's tests are inputs.
        inputs = [recipe.variants.model_dump(), asdict(self.lab.library(recipe)), ids(roots), ids(tests)]
        stage = self.lab.do(layout.VARIANTS if shared else layout.variants(condition), inputs, work)
        tree = variants.load(stage.path)
        if not tree:
            raise UserError(f"{stage.path}: the model wrote no usable variant; rejected.jsonl says what was wrong")
        wanted = self.lab.arm(condition).variants.first_per_root
        return variants.first(tree, wanted) if wanted < per_root else tree

    def train(self, condition: str, problems: Sequence[Problem]) -> None:
        """GRPO on the problems, from a fresh adapter to `train/adapter`; LADDER's tree may grow meanwhile."""
        from ladder_lite import variants
        from ladder_lite.train import grpo
        from ladder_lite.train.state import Training

        recipe, lab = self.lab.arm(condition), self.lab
        settings = recipe.grpo
        adaptive = recipe.variants.adaptive if self.conditions[condition].trains_on == "variants" else None

        def work(stage: Stage) -> dict[str, Any]:
            lab.restore(self.conditions[condition].start)
            growth = None
            tree = [problem for problem in problems if problem.parent_id is not None]
            if adaptive:
                growth = variants.Growth(lab.writer(recipe), lab.roots, tree, adaptive, stage.path / layout.VARIANTS)
            with lab.live.stage(f"train {condition}", int(settings.trl["max_steps"])) as bar:
                after_step = self._watch(stage.path, bar, settings.eval_every)
                training = Training(
                    lab.task, lab.backend, settings, stage.path, recipe.seed, lab.deadline, lab.live.say
                )
                steps = grpo.train(training, problems, after_step, growth)
            lab.backend.save(stage.path / layout.ADAPTER)
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
        inputs = [settings.model_dump(), ids(problems), *growing, *lab.looks]
        lab.do(layout.train(condition), inputs, work)

    def evaluate(self, condition: str) -> None:
        """Answers of the condition's model to all test problems, sampled and greedy."""
        lab = self.lab

        def work(stage: Stage) -> dict[str, Any]:
            lab.restore(condition)
            started = time.monotonic()
            with lab.live.stage(f"evaluate {condition}", len(lab.tests)) as bar:
                sampled = lab.sampler.evaluate(lab.tests, stage.path, bar)
                best = lab.sampler.greedy().evaluate(lab.tests, stage.path / layout.GREEDY, bar)
            return lab.summarize(sampled, best) | {"seconds": time.monotonic() - started}

        lab.do(layout.evaluation(condition), lab.looks, work)

    def _watch(self, folder: Path, bar: Bar, every: int) -> "Callable[[Step, list[Attempt]], bool]":
        """Show each step, and look at the test problems every so many steps; training itself never sees them."""
        from ladder_lite.evaluate.scores import summarize

        lab = self.lab

        def look_at_tests(step: int, seconds: float) -> None:
            attempts = lab.sampler.sample(lab.tests, 1)
            accuracy = summarize(attempts, 1)["pass@1"]["value"]
            seconds += sum(row["seconds"] for row in read_jsonl(folder / layout.METRICS))  # of the steps before
            append_jsonl(folder / layout.CURVE, [{"step": step, "pass@1": accuracy, "seconds": seconds}])
            bar.set(step, test=accuracy)
            for attempt in Random(step).sample(attempts, min(SHOWN_ANSWERS, len(attempts))):
                lab.live.say(f"  {verdict(attempt)} {show(attempt.completion.text)}")

        def after_step(step: "Step", _: "list[Attempt]") -> bool:
            bar.set(step.step, reward=step.reward, no_signal=step.groups_without_signal)
            if step.step % every == 0:
                look_at_tests(step.step, step.seconds)
            return False

        if not read_jsonl(folder / layout.CURVE):
            with lab.deadline.piece("evaluation", len(lab.tests)):
                look_at_tests(0, 0.0)
        return after_step
