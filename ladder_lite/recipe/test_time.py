"""The conditions about test problems that LADDER leaves unsolved: TTRL after it and without it, and more samples.

All three are about the same problems, so that what TTRL adds can be told from what its tokens would have bought
otherwise (the paper's Figure 6).
"""

import time
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ladder_lite.config import Condition
from ladder_lite.jsonl import rewrite_jsonl
from ladder_lite.problems import Problem
from ladder_lite.runs import Stage, layout, read_json
from ladder_lite.terminal import show
from ladder_lite.train import divergence

if TYPE_CHECKING:
    from ladder_lite.problems.attempts import Attempt
    from ladder_lite.recipe.context import RunContext

N_SAMPLES = 100
"""Answers that LADDER's model gives to each problem at least: the paper's pass@100."""


def learn(context: "RunContext", condition: Condition) -> None:
    """TTRL for test problems that LADDER leaves unsolved, each a stage of its own below that of all."""
    from ladder_lite import ttrl

    recipe = context.recipe

    def work(stage: Stage) -> dict[str, Any]:
        left = _unsolved(context)
        # Without LADDER the same problems: they are what the two are compared on.
        chosen = (
            ttrl.choose(left, recipe.ttrl, recipe.seed) if condition.problems_of == "ladder/eval" else _tried(context)
        )
        outcomes: list[dict[str, Any]] = []
        with context.live.progress(condition.label, len(chosen)) as bar:
            for problem in chosen:
                outcomes.append(_learn_one(context, problem, condition.start, stage))
                bar.advance(1)
        solved = [outcome for outcome in outcomes if outcome["solved"]]
        return {
            "n_left": len(left),
            "attempted": len(chosen),
            "solved": len(solved),
            "voted_right": sum(bool(outcome["voted_right"]) for outcome in outcomes),
            "steps_to_solve": [outcome["steps_to_solve"] for outcome in solved],
            "problems": [problem.id for problem in chosen],
            **{key: sum(outcome[key] for outcome in outcomes) for key in ("steps", "seconds", "n_tokens")},
            "rollbacks": sum(len(divergence.load(stage.path / problem.id / layout.TRAIN)) for problem in chosen),
        }

    context.do(layout.problems(condition.name), [*_settings(context), *context.evaluation_inputs], work)


def answer_after(context: "RunContext", condition: Condition) -> None:
    """Accuracy after TTRL: its own answers to the problems it tried, those of the model it began with to all others."""

    name, start = condition.name, condition.start

    def answers(*below: str) -> "list[Attempt]":
        tried = sorted(path.name for path in (context.run.path / layout.problems(name)).glob("*/"))
        own = {id_: context.attempts("/".join((layout.problems(name, id_), layout.EVAL, *below))) for id_ in tried}
        before = context.attempts("/".join((layout.evaluation(start), *below)))
        return [*(a for a in before if a.problem_id not in own), *(a for part in own.values() for a in part)]

    def work(stage: Stage) -> dict[str, Any]:
        sampled, greedy = answers(), answers(layout.GREEDY)
        for path, attempts in ((stage.path, sampled), (stage.path / layout.GREEDY, greedy)):
            rewrite_jsonl(path / layout.ATTEMPTS, [attempt.to_row() for attempt in attempts])
        return context.summarize(sampled, greedy) | {"seconds": 0.0}

    context.do(layout.evaluation(name), [context.recipe.eval.model_dump(), start], work)


def resample(context: "RunContext", condition: Condition) -> None:
    """LADDER's model on the problems that TTRL tried: 100 answers, and on to the tokens that TTRL took for each."""
    from ladder_lite.evaluate.scores import mean_with_interval

    def work(stage: Stage) -> dict[str, Any]:
        started = time.monotonic()
        outcomes: list[dict[str, Any]] = []
        chosen = _tried(context)
        with context.live.progress(condition.label, len(chosen)) as bar:
            for problem in chosen:
                outcomes.append(_resample_one(context, problem, condition.start, stage))
                bar.advance(1)
        return {
            "attempted": len(chosen),
            "solved": sum(outcome["solved"] for outcome in outcomes),
            "pass@100": mean_with_interval([outcome["pass@100"] for outcome in outcomes]),
            "n_tokens": sum(outcome["n_tokens"] for outcome in outcomes),
            "seconds": time.monotonic() - started,
        }

    context.do(layout.problems(condition.name), [*_settings(context), *context.evaluation_inputs], work)


def _learn_one(context: "RunContext", problem: Problem, start: str, above: Stage) -> dict[str, Any]:
    from ladder_lite import ttrl

    def work(stage: Stage) -> dict[str, Any]:
        context.restore(start)
        outcome = ttrl.learn(context.writer(context.recipe), problem, context.recipe, stage.path, context.live)
        verdict = f"solved at step {outcome.steps_to_solve}" if outcome.solved else "not solved"
        context.live.say(f"{verdict}: {show(context.task.statement(problem))}")
        return outcome.to_row()

    return context.do_below(above, problem.id, work)


def _resample_one(context: "RunContext", problem: Problem, start: str, above: Stage) -> dict[str, Any]:
    """Sampled until both are reached; TTRL's tokens are what it took for this problem."""
    from ladder_lite.evaluate.scores import pass_at_k

    def work(stage: Stage) -> dict[str, Any]:
        spent = int(_summary(context, problem.id)["n_tokens"])
        context.restore(start)
        attempts = context.sampler.sample_tokens(problem, stage.path, N_SAMPLES, spent)
        until = list(accumulate(attempt.completion.n_tokens for attempt in attempts))
        first = next((index for index, attempt in enumerate(attempts) if attempt.correct), None)
        n_right = sum(attempt.correct for attempt in attempts)
        return {
            "problem_id": problem.id,
            "n_samples": len(attempts),
            "n_right": n_right,
            "n_tokens": until[-1],
            "ttrl_tokens": spent,
            "first_right": first,
            "tokens_to_right": None if first is None else until[first],
            "solved": first is not None and (first < N_SAMPLES or until[first] <= spent),
            "pass@100": pass_at_k(len(attempts), n_right, N_SAMPLES),
        }

    return context.do_below(above, problem.id, work)


def _unsolved(context: "RunContext") -> list[Problem]:
    """The problems that none of LADDER's answers solves; not those on which the verifier can give no verdict."""
    from ladder_lite.evaluate.scores import pass_rates

    rates = pass_rates(context.attempts(layout.evaluation("ladder")))
    return [problem for problem in context.tests if rates.get(problem.id) == 0]


def _tried(context: "RunContext") -> list[Problem]:
    """The problems that TTRL after LADDER tried, in its order."""
    by_id = {problem.id: problem for problem in context.tests}
    return [by_id[problem_id] for problem_id in _summary(context)["problems"]]


def _summary(context: "RunContext", problem_id: str = "") -> dict[str, Any]:
    """What TTRL after LADDER came to, on all problems or on one."""
    return read_json(context.run.path / layout.problems("ladder_ttrl", problem_id) / layout.DONE)


def _settings(context: "RunContext") -> list[Any]:
    recipe = context.recipe
    return [recipe.ttrl.model_dump(), recipe.variants.model_dump(), recipe.grpo.model_dump()]
