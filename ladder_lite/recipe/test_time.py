"""The conditions about test problems that LADDER leaves unsolved: TTRL after it and without it, and more samples.

All three are about the same problems, so that what TTRL adds can be told from what its tokens would have bought
otherwise (the paper's Figure 6).
"""

import json
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder_lite.jsonl import append_jsonl, truncate_jsonl
from ladder_lite.problems import Problem
from ladder_lite.runs.run_dir import Stage
from ladder_lite.terminal import show
from ladder_lite.train import divergence

if TYPE_CHECKING:
    from ladder_lite.problems.attempts import Attempt
    from ladder_lite.recipe.context import Lab

N_SAMPLES = 100
"""Answers that LADDER's model gives to each problem at least: the paper's pass@100."""

STARTS = {"ladder_ttrl": "ladder", "ttrl": "base"}
"""The condition whose model TTRL starts from, and whose answers stand where it tries nothing."""


def learn(lab: "Lab", condition: str) -> None:
    """TTRL for test problems that LADDER leaves unsolved, each a stage of its own below that of all."""
    from ladder_lite import ttrl

    recipe, start = lab.recipe, STARTS[condition]

    def work(stage: Stage) -> dict[str, Any]:
        left = _unsolved(lab)
        # Without LADDER the same problems: they are what the two are compared on.
        chosen = ttrl.choose(left, recipe.ttrl, recipe.seed) if start == "ladder" else _tried(lab)
        outcomes: list[dict[str, Any]] = []
        with lab.live.stage("TTRL" if start == "ladder" else "TTRL without LADDER", len(chosen)) as bar:
            for problem in chosen:
                outcomes.append(_learn_one(lab, problem, start, stage))
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
            "rollbacks": sum(len(divergence.load(stage.path / problem.id / "train")) for problem in chosen),
        }

    lab.do(f"conditions/{condition}/problems", [*_settings(lab), *lab.looks], work)


def answer_after(lab: "Lab", condition: str) -> None:
    """Accuracy after TTRL: its own answers to the problems it tried, those of the model it began with to all others."""

    def answers(tried: Path, folder: str) -> "list[Attempt]":
        ids = sorted(path.name for path in tried.glob("*/"))
        own = {problem_id: lab.attempts(f"{condition}/problems/{problem_id}", folder) for problem_id in ids}
        before = [attempt for attempt in lab.attempts(STARTS[condition], folder) if attempt.problem_id not in own]
        return [*before, *(attempt for part in own.values() for attempt in part)]

    def work(stage: Stage) -> dict[str, Any]:
        tried = lab.run.path / f"conditions/{condition}/problems"
        sampled, greedy = answers(tried, "eval"), answers(tried, "eval/greedy")
        for path, attempts in ((stage.path, sampled), (stage.path / "greedy", greedy)):
            truncate_jsonl(path / "attempts.jsonl", lambda row: False)
            append_jsonl(path / "attempts.jsonl", [attempt.to_row() for attempt in attempts])
        return lab.summarize(sampled, greedy) | {"seconds": 0.0}

    lab.do(f"conditions/{condition}/eval", [lab.recipe.eval.model_dump(), STARTS[condition]], work)


def resample(lab: "Lab") -> None:
    """LADDER's model on the problems that TTRL tried: 100 answers, and on to the tokens that TTRL took for each."""
    from ladder_lite.evaluate.scores import mean_with_interval

    def work(stage: Stage) -> dict[str, Any]:
        started = time.monotonic()
        outcomes: list[dict[str, Any]] = []
        chosen = _tried(lab)
        with lab.live.stage("LADDER's pass@100", len(chosen)) as bar:
            for problem in chosen:
                outcomes.append(_resample_one(lab, problem, stage))
                bar.advance(1)
        return {
            "attempted": len(chosen),
            "solved": sum(outcome["solved"] for outcome in outcomes),
            "pass@100": mean_with_interval([outcome["pass@100"] for outcome in outcomes]),
            "n_tokens": sum(outcome["n_tokens"] for outcome in outcomes),
            "seconds": time.monotonic() - started,
        }

    lab.do("conditions/ladder_pass100/problems", [*_settings(lab), *lab.looks], work)


def _learn_one(lab: "Lab", problem: Problem, start: str, above: Stage) -> dict[str, Any]:
    from ladder_lite import ttrl

    def work(stage: Stage) -> dict[str, Any]:
        lab.restore(start)
        outcome = ttrl.learn(lab.writer(lab.recipe), problem, lab.recipe, stage.path, lab.live)
        verdict = f"solved at step {outcome.steps_to_solve}" if outcome.solved else "not solved"
        lab.live.say(f"{verdict}: {show(str(problem.data['integrand']))}")
        return outcome.to_row()

    return lab.do_below(above, problem.id, work)


def _resample_one(lab: "Lab", problem: Problem, above: Stage) -> dict[str, Any]:
    """Sampled until both are reached; TTRL's tokens are what it took for this problem."""
    from ladder_lite import evaluate
    from ladder_lite.evaluate.scores import pass_at_k

    def work(stage: Stage) -> dict[str, Any]:
        spent = int(_summary(lab, problem.id)["n_tokens"])
        lab.restore("ladder")
        attempts = evaluate.sample_tokens(
            lab.task, lab.backend, problem, lab.recipe.eval, stage.path, lab.recipe.seed, N_SAMPLES, spent, lab.deadline
        )
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

    return lab.do_below(above, problem.id, work)


def _unsolved(lab: "Lab") -> list[Problem]:
    """The problems that none of LADDER's answers solves; not those on which the verifier can give no verdict."""
    from ladder_lite.evaluate.scores import pass_rates

    rates = pass_rates(lab.attempts("ladder"))
    return [problem for problem in lab.tests if rates.get(problem.id) == 0]


def _tried(lab: "Lab") -> list[Problem]:
    """The problems that TTRL after LADDER tried, in its order."""
    by_id = {problem.id: problem for problem in lab.tests}
    return [by_id[problem_id] for problem_id in _summary(lab)["problems"]]


def _summary(lab: "Lab", *below: str) -> dict[str, Any]:
    path = lab.run.path.joinpath("conditions/ladder_ttrl/problems", *below, "done.json")
    summary: dict[str, Any] = json.loads(path.read_bytes())
    return summary


def _settings(lab: "Lab") -> list[Any]:
    recipe = lab.recipe
    return [recipe.ttrl.model_dump(), recipe.variants.model_dump(), recipe.grpo.model_dump()]
