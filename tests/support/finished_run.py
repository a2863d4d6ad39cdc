"""A finished run as its stages leave it, its model's text hostile; and the conditions that few runs have."""

import random
from pathlib import Path
from typing import Any

import yaml

from ladder_lite.config.load import dump_recipe
from ladder_lite.config.schema import Recipe
from ladder_lite.jsonl import append_jsonl, write_json
from ladder_lite.problems import Problem

HOSTILE = "`|``<script>alert(1)</script> ![x](http://x/y.png) \x1b[31m\u202e\n# heading\n| a | b |\n$x$ [b]"
CONDITIONS = ("base", "rl_without_variants", "ladder", "ladder_ttrl")
PASS_1 = {"base": 0.0125, "rl_without_variants": 0.0, "ladder": 0.64, "ladder_ttrl": 0.7}


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": (1 + value) / 2}


def an_attempt(problem_id: str, index: int, text: str, answer: str | None, reason: str) -> dict[str, Any]:
    return {
        "problem_id": problem_id,
        "index": index,
        "text": text,
        "n_tokens": 9,
        "truncated": False,
        "reward": float(reason == "CORRECT"),
        "reason": reason,
        "answer": answer,
        "detail": "",
    }


def build_run(run: Path, recipe: Recipe, tests: list[Problem]) -> None:
    """The four conditions that every run has."""
    run.mkdir()
    (run / "recipe.resolved.yaml").write_text(dump_recipe(recipe))
    write_json(run / "versions.json", {"python": "3.11.9", "torch": "2.9.0"})

    variants, root = run / "variants", Problem.root("integration", {"integrand": "x", "variable": "x"})
    kept = [
        Problem.child(root, {"integrand": f"x**{n}", "variable": "x"}, ("drop-one",), "easier").to_row()
        | {"depth": depth}
        for n, depth in enumerate([1] * 5 + [2] * 3 + [3])
    ]
    append_jsonl(variants / "problems.jsonl", [{"round": 0, **row} for row in kept])
    reasons = ["duplicate"] * 4 + ["unreadable"] * 6 + ["test_problem"]
    rejected = [
        {"round": 0, "text": HOSTILE, "reason": r, "equal_to": "tiny", "parent_id": root.id, "depth": 1}
        for r in reasons
    ]
    append_jsonl(variants / "rejected.jsonl", rejected)
    rounds = [{"round": n, "depth": 1, "requests": 10, "n_tokens": 100, "seconds": 30.5} for n in range(2)]
    append_jsonl(variants / "rounds.jsonl", rounds)
    write_json(variants / "done.json", {"digest": "d", "kept": 9, "seconds": 61.0, "peak_memory_bytes": 7 * 2**30})

    rng = random.Random(0)
    for condition in CONDITIONS:
        folder = run / "conditions" / condition
        attempts = [
            an_attempt(
                problem.id, index, HOSTILE, HOSTILE if rng.random() < 0.5 else None, rng.choice(["CORRECT", "WRONG"])
            )
            for problem in tests
            for index in range(4)
        ]
        append_jsonl(folder / "eval/attempts.jsonl", attempts)
        summary = {"n_problems": 20, "pass@1": share(PASS_1[condition]), "pass@2": share(PASS_1[condition] / 2 + 0.5)}
        write_json(folder / "eval/done.json", {"digest": "d", **summary, "seconds": 5.5, "peak_memory_bytes": 2**30})
    for condition, steps in (("rl_without_variants", 40), ("ladder", 60)):
        train = run / "conditions" / condition / "train"
        append_jsonl(
            train / "metrics.jsonl",
            [{"step": n, "reward": 0.5, "groups_without_signal": 0.5} for n in range(1, steps + 1)],
        )
        rows = [{"step": n, "pass@1": n / 100, "seconds": 1.5 * n} for n in range(20, steps + 1, 20)]
        append_jsonl(train / "curve.jsonl", rows)
        done = {
            "digest": "d",
            "steps": steps,
            "seconds": 100.25,
            "stopped": "max_steps",
            "peak_memory_bytes": 3 * 2**30,
        }
        write_json(train / "done.json", done)

    problems = run / "conditions/ladder_ttrl/problems"
    for problem, solved_at in zip(tests[:3], (4, None, 11), strict=True):
        outcome = {"problem_id": problem.id, "solved": solved_at is not None, "steps_to_solve": solved_at}
        outcome |= {"steps": solved_at or 30, "seconds": 20.0, "answer": HOSTILE if solved_at else None}
        write_json(problems / problem.id / "done.json", {"digest": "d", **outcome})
        append_jsonl(problems / problem.id / "variants/problems.jsonl", [{"round": 0, **row} for row in kept[:6]])
    write_json(problems / "done.json", {"digest": "d", "n_left": 9, "attempted": 3, "steps": 45, "seconds": 60.0})


def add_conditions(run: Path, tests: list[Problem], text: str = HOSTILE) -> None:
    """Arms, TTRL without LADDER, LADDER resampled, and what an evaluation may tell besides; `text` is foreign."""
    recipe = yaml.safe_load((run / "recipe.resolved.yaml").read_text())
    recipe["arms"] = {"ladder_10": {"share": 0.1}, "ladder_static": {"variants.adaptive": None}}
    recipe["conditions"] += ["ladder_10", "ladder_static", "ttrl", "ladder_pass100"]
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(recipe))
    conditions = run / "conditions"
    for name, n_variants in (("ladder_10", 100), ("ladder", 1000), ("ladder_static", 900)):
        train, evaluated = conditions / name / "train", conditions / name / "eval/done.json"
        done = {"steps": 60, "seconds": 100.0, "stopped": "max_steps", "variants": n_variants, "n_tokens": 5000}
        write_json(train / "done.json", {"digest": "d", **done})
        summary = {"n_problems": 20, "pass@1": share(0.5), "pass@2": share(0.6), "greedy": share(0.55)}
        summary |= {"majority": share(0.65), "techniques": {text: {"n_problems": 3, "pass@1": share(0.3)}}}
        summary |= {"shares": {"solved": 0.5, "wrong": 0.3, "unreadable": 0.15, "truncated": 0.05}, "n_tokens": 700}
        summary |= {"official": {"n_compared": 9, "n_agree": 8}, "seconds": 3.0}
        write_json(evaluated, {"digest": "d", **summary})
        append_jsonl(train / "curve.jsonl", [{"step": 60, "pass@1": 0.5, "seconds": 90.0}])
    attempts = [{**an_attempt("p", 0, text, text, "WRONG"), "step": step} for step in range(1, 61)]
    append_jsonl(conditions / "ladder/train/attempts.jsonl", attempts)
    vote = {"n_variants": 6, "voted_answer": text, "voted_share": 0.6}
    for name, n_tokens in (("ladder_ttrl", 900), ("ttrl", 3000)):
        for at, problem in enumerate(tests[:3]):
            marker = conditions / name / "problems" / problem.id / "done.json"
            solved = name == "ladder_ttrl" and at != 1
            outcome = {"problem_id": problem.id, "solved": solved, "steps_to_solve": 4 if solved else None, "steps": 30}
            outcome |= {"answer": text if solved else None, "seconds": 9.0, "n_tokens": n_tokens + at, **vote}
            outcome |= {"stopped": "solved" if solved else "budget", "voted_right": solved and at == 0}
            write_json(marker, {"digest": "d", **outcome})
    for at, problem in enumerate(tests[:3]):
        found = {"problem_id": problem.id, "n_samples": 100, "n_right": int(at == 2), "n_tokens": 950}
        found |= {"ttrl_tokens": 900 + at, "first_right": 3 if at == 2 else None, "solved": at == 2, "pass@100": at / 2}
        found |= {"tokens_to_right": 40 if at == 2 else None}
        write_json(conditions / "ladder_pass100/problems" / problem.id / "done.json", {"digest": "d", **found})
    summary = {"attempted": 3, "solved": 1, "pass@100": share(0.5), "n_tokens": 2850, "seconds": 5.0}
    write_json(conditions / "ladder_pass100/problems/done.json", {"digest": "d", **summary})
