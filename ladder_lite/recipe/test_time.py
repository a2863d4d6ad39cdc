"""The conditions about test problems that LADDER leaves unsolved: TTRL after LADDER, TTRL without it, and resampling.

All three work on the same problems. Resampling spends as many tokens as TTRL did, so the comparison shows what TTRL
adds beyond its extra compute (the paper's Figure 6).
"""

import time
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from ladder_lite.config import Condition, Recipe, recipe_for
from ladder_lite.errors import UserError
from ladder_lite.evaluate.scores import mean_with_interval, pass_at_k, pass_rates
from ladder_lite.jsonl import append_jsonl, rewrite_jsonl
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt
from ladder_lite.recipe.context import RunContext
from ladder_lite.runs import Stage, layout, read_json
from ladder_lite.terminal import show
from ladder_lite.train import divergence

if TYPE_CHECKING:  # importing GRPO imports SciPy
    from ladder_lite.train.state import Step

N_SAMPLES = 100
"""The fewest answers sampled from LADDER's model to each problem: the paper reports pass@100."""

_SUMMED = ("steps", "seconds", "n_tokens", "n_verifier_calls")  # over the problems of TTRL


def choose(context: RunContext, condition: Condition) -> list[Problem]:
    """The test problems of the condition, in order: what LADDER leaves unsolved, or those that TTRL after it tried."""
    from ladder_lite import ttrl

    # TTRL without LADDER takes the problems that TTRL after LADDER took, not the (larger) set that the base model
    # leaves unsolved: the two are compared problem by problem.
    if condition.problems_of == "ladder/eval":
        return ttrl.choose_problems(_unsolved_by_ladder(context), context.recipe.ttrl, context.recipe.seed)
    by_id = {problem.id: problem for problem in context.tests}
    return [by_id[problem_id] for problem_id in _ladder_ttrl_summary(context)["problems"]]


def run_problems(context: RunContext, condition: Condition, only: str = "") -> None:
    """Run TTRL or resampling on the problems of `choose`, each as a substage, or only on the one with the id `only`."""
    recipe = recipe_for(context.recipe, condition.name)
    run_on = (
        partial(_run_ttrl_on, context, condition, recipe)
        if condition.trains_on
        else partial(_resample_problem, context, condition)
    )
    chosen = choose(context, condition)

    def work(stage: Stage) -> dict[str, Any]:
        outcomes = context.run_substages(stage, condition.label, chosen, run_on)
        peak = {"peak_memory_bytes": max((outcome["peak_memory_bytes"] for outcome in outcomes), default=0)}
        if not condition.trains_on:
            return _summarize_resampling(outcomes) | peak
        return peak | {
            "n_left": len(_unsolved_by_ladder(context)),
            **_summarize_ttrl(outcomes),
            "problems": [problem.id for problem in chosen],
            # Steps undone after a divergence, not the return to the old weights after each problem.
            "rollbacks": sum(len(divergence.load(stage.path / problem.id / layout.TRAIN)) for problem in chosen),
        }

    # Resampling depends on TTRL's settings, too: they decide how many tokens there are to spend.
    settings = [recipe.ttrl.model_dump(), recipe.variants.model_dump(), recipe.grpo.model_dump()]
    name, inputs = layout.problems(condition.name), [*settings, *context.evaluation_inputs]
    if only:
        [problem] = (problem for problem in chosen if problem.id == only)
        context.run_substage(context.stage(name, inputs), problem, run_on)
    else:
        context.run_stage(name, inputs, work)


def evaluate_after_ttrl(context: RunContext, condition: Condition) -> None:
    """Write the test accuracy after TTRL; samples nothing.

    Problems that TTRL tried are answered by their tuned models, all others by the model that TTRL started from.
    """

    name, start = condition.name, condition.start

    def combined_answers(*subfolder: str) -> list[Attempt]:
        tried = sorted(path.name for path in (context.run.path / layout.problems(name)).glob("*/"))
        # By problem id, the answers that the tuned model gave when its training had ended:
        tuned = {
            id_: context.attempts("/".join((layout.problems(name, id_), layout.EVAL, *subfolder))) for id_ in tried
        }
        before = context.attempts("/".join((layout.evaluation(start), *subfolder)))
        # Every test problem exactly once. A tried problem counts as tuned even if TTRL made it worse; taking the better
        # of the two would select on the test result.
        return [*(a for a in before if a.problem_id not in tuned), *(a for part in tuned.values() for a in part)]

    def work(stage: Stage) -> dict[str, Any]:
        sampled, greedy = combined_answers(), combined_answers(layout.GREEDY)
        # Copied, so that this condition's folder reads like any other one: reports need not know about TTRL here.
        for path, attempts in ((stage.path, sampled), (stage.path / layout.GREEDY, greedy)):
            rewrite_jsonl(path / layout.ATTEMPTS, [attempt.to_row() for attempt in attempts])
        return context.summarize(sampled, greedy) | {"seconds": 0.0}  # sampled, and timed, in the stages before

    context.run_stage(layout.evaluation(name), [context.recipe.eval.model_dump(), start], work)


def _summarize_ttrl(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    solved = [outcome for outcome in outcomes if outcome["solved"]]
    # "solved" is the paper's rule: any right answer at any step, as judged by the verifier. "voted_right" asks more of
    # the tuned model: the majority of its final answers must be right, without a verifier to choose among them.
    return {
        "attempted": len(outcomes),
        "solved": len(solved),
        "voted_right": sum(outcome["voted_right"] for outcome in outcomes),
        "steps_to_solve": [outcome["steps_to_solve"] for outcome in solved],
        **{key: sum(outcome[key] for outcome in outcomes) for key in _SUMMED},
    }


def _summarize_resampling(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "attempted": len(outcomes),
        "solved": sum(outcome["solved"] for outcome in outcomes),
        # For a problem with more than 100 answers, pass@100 is estimated from all of them (`pass_at_k`).
        "pass@100": mean_with_interval([outcome["pass@100"] for outcome in outcomes]),
        "n_tokens": sum(outcome["n_tokens"] for outcome in outcomes),
        "n_verifier_calls": sum(outcome["n_samples"] for outcome in outcomes),
        "seconds": sum(outcome["seconds"] for outcome in outcomes),
    }


def _run_ttrl_on(
    context: RunContext, condition: Condition, recipe: Recipe, problem: Problem, stage: Stage
) -> dict[str, Any]:
    from ladder_lite import ttrl

    # TTRL puts the adapter back when it ends, but the first problem finds whatever the stage before left.
    context.restore(condition.start)
    every = recipe.ttrl.probe_every
    writer, probe = context.writer(recipe), _Probe(context, stage.path / layout.TRAIN / layout.PROBES, every)
    root = problem
    if recipe.ttrl.train_on == "other":
        others = [test for test in context.tests if test.id != problem.id]
        if not others:
            raise UserError("ttrl.train_on: other needs two or more test problems")
        root = Random(f"{recipe.seed}/other/{problem.id}").choice(others)
    outcome = ttrl.train_on_problem(writer, problem, recipe, stage.path, context.live, probe, root=root)
    why = outcome.stopped.replace("_", " ")  # "max steps", "plateau"
    verdict = f"solved at step {outcome.steps_to_solve}" if outcome.solved else f"not solved ({why})"
    context.live.say(f"{verdict}: {show(context.task.statement(problem))}")
    return outcome.to_row()


class _Probe(NamedTuple):
    """An observer of TTRL that samples an answer to each problem of the probe, every few steps."""

    context: RunContext
    log: Path
    every: int | None

    def tree(self, variants: Sequence[Problem]) -> None:
        """Do nothing: only the steps are observed."""

    def step(self, step: "Step", rollouts: list[Attempt], tries: list[Attempt]) -> None:
        """Write a row of `probes.jsonl` if it is due, or if the problem was solved in this step."""
        # With `train_on: problem`, the rollouts are answers to the problem as well.
        solved = any(each.correct and each.problem_id == tries[0].problem_id for each in (*rollouts, *tries))
        if self.every and self.context.probe and (step.step % self.every == 0 or solved):
            summary = self.context.summarize_probe(self.context.sampler.sample(self.context.probe, 1))
            append_jsonl(self.log, [{"step": step.step, **summary}])


def _resample_problem(context: RunContext, condition: Condition, problem: Problem, stage: Stage) -> dict[str, Any]:
    """Sample until there are `N_SAMPLES` answers and as many tokens as TTRL generated for this problem."""
    started = time.monotonic()
    ttrl_tokens = int(_ladder_ttrl_summary(context, problem.id)["n_tokens"])  # variants, rollouts and tries
    context.restore(condition.start)
    attempts = context.sampler.sample_tokens(problem, stage.path, N_SAMPLES, ttrl_tokens)
    # Lengths 40, 60, 50 -> [40, 100, 150]: the tokens spent once each answer is complete.
    tokens_so_far = list(accumulate(attempt.completion.n_tokens for attempt in attempts))
    first = next((index for index, attempt in enumerate(attempts) if attempt.correct), None)
    n_right = sum(attempt.correct for attempt in attempts)
    return {
        "problem_id": problem.id,
        "n_samples": len(attempts),
        "n_right": n_right,
        "n_tokens": tokens_so_far[-1],
        "ttrl_tokens": ttrl_tokens,
        "first_right": first,
        "tokens_to_right": None if first is None else tokens_so_far[first],
        # Within either allowance: the first 100 answers, or TTRL's tokens. The last answer may overrun the tokens; if
        # it is the first right one, it does not count.
        "solved": first is not None and (first < N_SAMPLES or tokens_so_far[first] <= ttrl_tokens),
        "pass@100": pass_at_k(len(attempts), n_right, N_SAMPLES),
        "seconds": time.monotonic() - started,
    }


def _unsolved_by_ladder(context: RunContext) -> list[Problem]:
    """The test problems that none of LADDER's sampled answers solves."""
    # `pass_rates` leaves out problems that the verifier cannot grade: no TTRL could be seen to solve them.
    rates = pass_rates(context.attempts(layout.evaluation("ladder")))
    return [problem for problem in context.tests if rates.get(problem.id) == 0]


def _ladder_ttrl_summary(context: RunContext, problem_id: str = "") -> dict[str, Any]:
    """The done.json of TTRL after LADDER, on all problems or on one."""
    return read_json(context.run.path / layout.problems("ladder_ttrl", problem_id) / layout.DONE)
