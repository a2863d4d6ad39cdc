"""An experiment: its conditions and the stages that they are made of, each done once and resumed where it was.

The loop of the paper is `Experiment.ladder` (variants -> GRPO -> evaluation) and `Experiment.ladder_ttrl` (the same for
single test problems). `ladder_lite.recipe` runs the conditions of a recipe one after the other.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ladder_lite.budget import Deadline
from ladder_lite.config.arms import arm, shares_tree
from ladder_lite.config.schema import Recipe
from ladder_lite.errors import UserError
from ladder_lite.jsonl import append_jsonl, read_jsonl
from ladder_lite.problems import Problem
from ladder_lite.recipe import test_time
from ladder_lite.recipe.context import Lab, ids
from ladder_lite.runs.run_dir import RunDir, Stage
from ladder_lite.terminal import Bar, Live, show
from ladder_lite.train import divergence

if TYPE_CHECKING:
    from ladder_lite.problems.attempts import Attempt
    from ladder_lite.train.log import Step

SHOWN_ANSWERS = 2
"""Sampled answers printed each time the test problems are looked at."""


class Experiment:
    """A recipe at work in its run folder. Every method is a condition or a stage; a stage that is done is skipped."""

    def __init__(self, recipe: Recipe, run: RunDir, live: Live, deadline: Deadline | None = None) -> None:
        self.recipe = recipe
        self.lab = Lab(recipe, run, live, deadline)

    def do(self, condition: str) -> None:
        """Do a condition, and what it starts from, unless it is done: a built-in one, or an arm of the recipe."""
        if condition in self.recipe.arms:
            self.ladder(condition)
        else:
            CONDITIONS[condition](self)

    # The conditions, as the paper has them.

    def base(self) -> None:
        """The untrained model on the test problems."""
        self.evaluate("base")

    def rl_without_variants(self) -> None:
        """The paper's control: GRPO on the training problems themselves."""
        self.train("rl_without_variants", self.lab.roots)
        self.evaluate("rl_without_variants")

    def ladder(self, condition: str = "ladder") -> None:
        """LADDER: GRPO on the variants that the model wrote of the training problems; an arm by its own settings."""
        variants = self.grow_variants(condition)
        if self.arm(condition).variants.adaptive:  # roots are tried now and then, and get children while they are stuck
            variants = [*self.lab.roots, *variants]
        self.train(condition, variants)
        self.evaluate(condition)

    def ladder_ttrl(self) -> None:
        """TTRL, from LADDER's weights, for test problems that LADDER leaves unsolved."""
        self.ladder()
        test_time.learn(self.lab, "ladder_ttrl")
        test_time.answer_after(self.lab, "ladder_ttrl")

    def ttrl(self) -> None:
        """The paper's other control: TTRL for the same problems, from the base model's weights."""
        self.ladder_ttrl()
        self.base()
        test_time.learn(self.lab, "ttrl")
        test_time.answer_after(self.lab, "ttrl")

    def ladder_pass100(self) -> None:
        """What TTRL is measured against: LADDER's model sampled on the same problems, for as many tokens."""
        self.ladder_ttrl()
        test_time.resample(self.lab)

    # The stages.

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
            self.lab.do("transformations", [self.recipe.variants.model_dump()], work)

    def grow_variants(self, condition: str = "ladder") -> list[Problem]:
        """The variant tree of the training problems: the one that conditions share, its beginning, or an arm's own."""
        from ladder_lite import variants

        shared = shares_tree(self.recipe, condition)
        recipe = self.recipe if shared else self.arm(condition)
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
                "tests_among_roots": [str(test.data["integrand"]) for test in self.lab.in_both(roots)],
            }

        self.write_transformations()
        # Fetching another benchmark later does not make a tree stale, so only this run's tests are inputs.
        inputs = [recipe.variants.model_dump(), asdict(self.lab.library(recipe)), ids(roots), ids(tests)]
        stage = self.lab.do("variants" if shared else f"conditions/{condition}/variants", inputs, work)
        tree = variants.load(stage.path)
        if not tree:
            raise UserError(f"{stage.path}: the model wrote no usable variant; rejected.jsonl says what was wrong")
        wanted = self.arm(condition).variants.first_per_root
        return variants.first(tree, wanted) if wanted < per_root else tree

    def train(self, condition: str, problems: Sequence[Problem]) -> None:
        """GRPO on the problems, from a fresh adapter to `train/adapter`; LADDER's tree may grow meanwhile."""
        from ladder_lite import variants
        from ladder_lite.train import grpo

        recipe, lab = self.arm(condition), self.lab
        settings = recipe.grpo
        adaptive = recipe.variants.adaptive if condition != "rl_without_variants" else None

        def work(stage: Stage) -> dict[str, Any]:
            lab.restore("base")
            growth = None
            tree = [problem for problem in problems if problem.parent_id is not None]
            if adaptive:
                growth = variants.Growth(lab.writer(recipe), lab.roots, tree, adaptive, stage.path / "variants")
            with lab.live.stage(f"train {condition}", int(settings.trl["max_steps"])) as bar:
                after_step = self._watch(stage.path, bar, settings.eval_every)
                steps = grpo.train(
                    lab.task,
                    lab.backend,
                    problems,
                    settings,
                    stage.path,
                    recipe.seed,
                    after_step,
                    growth,
                    lab.deadline,
                    lab.live.say,
                )
            lab.backend.save(stage.path / "adapter")
            grown = variants.count(stage.path / "variants")
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
        lab.do(f"conditions/{condition}/train", inputs, work)

    def evaluate(self, condition: str) -> None:
        """Answers of the condition's model to all test problems, sampled and greedy."""
        from ladder_lite import evaluate

        recipe, lab = self.recipe, self.lab
        ways = ((recipe.eval, "."), (evaluate.greedy(recipe.eval), "greedy"))

        def work(stage: Stage) -> dict[str, Any]:
            lab.restore(condition)
            started = time.monotonic()
            with lab.live.stage(f"evaluate {condition}", len(lab.tests)) as bar:
                sampled, best = (
                    evaluate.evaluate(
                        lab.task, lab.backend, lab.tests, settings, stage.path / folder, recipe.seed, bar, lab.deadline
                    )
                    for settings, folder in ways
                )
            return lab.summarize(sampled, best) | {"seconds": time.monotonic() - started}

        lab.do(f"conditions/{condition}/eval", lab.looks, work)

    # What the stages share.

    def arm(self, condition: str) -> Recipe:
        """The recipe with the settings of a condition: an arm's, and its own for all others."""
        return arm(self.recipe, condition)

    def _watch(self, folder: Path, bar: Bar, every: int) -> "Callable[[Step, list[Attempt]], bool]":
        """Show each step, and look at the test problems every so many steps; training itself never sees them."""
        from ladder_lite import evaluate
        from ladder_lite.evaluate.scores import summarize

        lab = self.lab

        def look_at_tests(step: int, seconds: float) -> None:
            attempts = evaluate.sample(lab.task, lab.backend, lab.tests, self.recipe.eval, 1, self.recipe.seed)
            accuracy = summarize(attempts, 1)["pass@1"]["value"]
            seconds += sum(row["seconds"] for row in read_jsonl(folder / "metrics.jsonl"))  # of the steps before
            append_jsonl(folder / "curve.jsonl", [{"step": step, "pass@1": accuracy, "seconds": seconds}])
            bar.set(step, test=accuracy)
            for attempt in Random(step).sample(attempts, min(SHOWN_ANSWERS, len(attempts))):
                mark = "[green]right[/]" if attempt.correct else f"[red]{attempt.grade.reason.value.lower()}[/]"
                lab.live.say(f"  {mark} {show(attempt.completion.text)}")

        def after_step(step: "Step", _: "list[Attempt]") -> bool:
            bar.set(step.step, reward=step.reward, no_signal=step.groups_without_signal)
            if step.step % every == 0:
                look_at_tests(step.step, step.seconds)
            return False

        if not read_jsonl(folder / "curve.jsonl"):
            with lab.deadline.piece("evaluation", len(lab.tests)):
                look_at_tests(0, 0.0)
        return after_step


CONDITIONS: dict[str, Callable[[Experiment], None]] = {
    "base": Experiment.base,
    "rl_without_variants": Experiment.rl_without_variants,
    "ladder": Experiment.ladder,
    "ladder_ttrl": Experiment.ladder_ttrl,
    "ttrl": Experiment.ttrl,
    "ladder_pass100": Experiment.ladder_pass100,
}
