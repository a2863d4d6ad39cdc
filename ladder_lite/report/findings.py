"""What a run found, as data: the contents of report.json, read from the files of the run alone.

A run may be unfinished, older, or hold other conditions than this version knows: what is missing is left out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ladder_lite import variants
from ladder_lite.config import BUILT_IN, with_ablations
from ladder_lite.errors import UserError
from ladder_lite.evaluate import scores
from ladder_lite.problems import Problem, load_problems
from ladder_lite.problems.attempts import Attempt, Outcome, outcome_of
from ladder_lite.report.paper_results import experiment_of
from ladder_lite.runs import Run, layout, read_json

Report = Mapping[str, Any]
"""The contents of report.json."""

RACERS = tuple(condition.name for condition in BUILT_IN.values() if condition.problems_of)
"""Conditions that spend tokens on single test problems, the paper's Figure 6."""

TREES = (layout.VARIANTS, f"{layout.train('ladder')}/{layout.VARIANTS}")
"""The places of the variant tree: that of before training, and what grew in it while LADDER trained."""

_N_BINS = 40


def measure(run: Run) -> dict[str, Any]:
    """Return the contents of report.json.

    `seconds` and `n_tokens` of a condition are those of its training (or of its single problems) and of its
    evaluation; `steps` of a condition with TTRL are those of all its problems together.
    """
    tree = variants.count(run.path / layout.VARIANTS)
    entries = {name: entry for name in run.conditions if (entry := _condition(run, name))}
    return {
        "recipe": run.name,
        "seed": run.seed,
        "model": run.model,
        "experiment": experiment_of(run.test),
        "conditions": entries,
        "variants": {key: tree[key] for key in ("kept", "rejected", "duplicates", "by_depth")},
        "curve": [row for name in run.conditions for row in _curve(run, name)],
        "training": {name: summary for name in run.conditions if (summary := _training(run, name))},
        "ttrl": _ttrl(run, "ladder_ttrl"),
        "ttrl_without_ladder": _ttrl(run, "ttrl"),
        "race": _race(run),
        "differences": _differences(run, entries),
        "depths": _depths(run),
        "costs": _costs(run),
        "peak_memory_bytes": max((done.get("peak_memory_bytes") or 0 for done in _markers(run).values()), default=0),
        "versions": read_json(run.path / layout.VERSIONS),
    }


def outcomes(run: Run, condition: str) -> list[dict[str, Any]]:
    """The done.json of every test problem that a condition is done with, in the order in which it tried them."""
    stage = layout.problems(condition)
    found = {path.parent.name: read_json(path) for path in sorted((run.path / stage).glob(f"*/{layout.DONE}"))}
    order = [str(name) for name in run.done(stage).get("problems", [])]
    names = [*(name for name in order if name in found), *(name for name in found if name not in order)]
    return [found[name] for name in names]


def pass_keys(entry: Mapping[str, Any]) -> list[str]:
    """The keys pass@1, pass@10, ... of an entry, by k."""
    return sorted((key for key in entry if key.startswith("pass@")), key=lambda key: int(key.removeprefix("pass@")))


def read_variants(run: Run, file: str) -> list[dict[str, Any]]:
    """The rows of a file of the variant tree, from all its places."""
    return [row for place in TREES for row in run.rows(place, file)]


def known_problems(problem_set: str, split: str) -> list[Problem]:
    """The problems of a set, none where it was moved since the run; a report shows ids then."""
    try:
        return load_problems(problem_set, split)
    except UserError:
        return []


def _work(condition: str) -> tuple[str, str, str]:
    """The stages that a condition can have to itself, in their order."""
    return layout.train(condition), layout.problems(condition), layout.evaluation(condition)


def _condition(run: Run, name: str) -> dict[str, Any]:
    """The summary of an evaluated condition with what it cost, nothing before it is evaluated."""
    work = [run.done(stage) for stage in _work(name)]
    evaluated = work[-1]
    if "pass@1" not in evaluated:
        return {}
    own = ("digest", "seconds", "peak_memory_bytes", "n_tokens")
    entry = {key: value for key, value in evaluated.items() if key not in own}
    entry |= {"steps": sum(part.get("steps", 0) for part in work)}
    entry |= {"seconds": sum(part.get("seconds", 0.0) for part in work)}
    if any("n_tokens" in part for part in work):
        entry |= {"n_tokens": sum(part.get("n_tokens", 0) for part in work)}
    return entry | ({"variants": work[0]["variants"]} if "variants" in work[0] else {})


def _curve(run: Run, name: str) -> list[dict[str, Any]]:
    rows = run.rows(layout.train(name), layout.CURVE)
    return [{"condition": name, **{key: row[key] for key in ("step", "pass@1", "seconds")}} for row in rows]


def _training(run: Run, name: str) -> dict[str, Any]:
    """Means over stretches of steps: zero-variance groups, and the kinds of rollouts as shares."""
    stage = layout.train(name)
    signal = {row["step"]: row.get("groups_without_signal") for row in run.rows(stage, layout.METRICS)}
    if not signal:
        return {}
    counts: dict[int, Counter[Outcome]] = {}
    for row in run.rows(stage, layout.ATTEMPTS):
        counts.setdefault(row["step"], Counter())[outcome_of(row["reason"], row.get("truncated", False))] += 1
    steps = sorted(signal)
    size = -(-len(steps) // _N_BINS)
    stretches = [steps[at : at + size] for at in range(0, len(steps), size)]
    totals = [sum((counts.get(step, Counter()) for step in stretch), Counter()) for stretch in stretches]
    kinds = Outcome if all(totals) else ()
    rollouts = {kind.value: [total[kind] / total.total() for total in totals] for kind in kinds}
    return {
        "steps": [sum(stretch) / len(stretch) for stretch in stretches],
        "groups_without_signal": [_mean(signal[step] for step in stretch) for stretch in stretches],
        "rollouts": rollouts,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ttrl(run: Run, condition: str) -> dict[str, Any]:
    found = outcomes(run, condition)
    # How many were left unsolved is known when the stage ends.
    summary = run.done(layout.problems(condition))
    solved = [outcome["steps_to_solve"] for outcome in found if outcome["solved"]]
    result = {
        "n_left": summary.get("n_left"),
        "attempted": len(found),
        "solved": len(solved),
        "steps_to_solve": solved,
    }
    if any(outcome.get("voted_right") is not None for outcome in found):
        result["voted_right"] = sum(bool(outcome.get("voted_right")) for outcome in found)
    return result


def _race(run: Run) -> dict[str, Any]:
    """The paper's Figure 6: for each of the same problems, the tokens after which it was solved, null where it was not.

    The problems are those that every method present is done with. `spent` are the tokens of the attempt, solved or not.
    """
    efforts = {
        name: {row["problem_id"]: _effort(row) for row in outcomes(run, name) if "n_tokens" in row} for name in RACERS
    }
    methods = {name: rows for name, rows in efforts.items() if rows}
    some = next(iter(methods.values()), {})
    problems = [problem_id for problem_id in some if all(problem_id in rows for rows in methods.values())]
    if len(methods) < 2 or not problems:
        return {}
    race = {
        name: {
            "solved": sum(rows[problem_id][0] is not None for problem_id in problems),
            "tokens_to_solve": [rows[problem_id][0] for problem_id in problems],
            "spent": [rows[problem_id][1] for problem_id in problems],
        }
        for name, rows in methods.items()
    }
    return {"problems": problems, "methods": race}


def _effort(outcome: Mapping[str, Any]) -> tuple[float | None, float]:
    """Tokens until a problem was solved, and tokens spent on it; to TTRL everything generated for it counts."""
    spent = outcome["n_tokens"]
    return (outcome.get("tokens_to_right", spent) if outcome["solved"] else None), spent


def _differences(run: Run, entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Differences of pass@1, condition minus reference, where both were asked the same problems."""
    rates = {name: pass_rates(run, name) for name in entries}
    references = {condition.name: condition.compared_with for condition in with_ablations(run.ablations)}
    pairs = [(name, other) for name in entries for other in references.get(name, ()) if other in entries]
    return [
        {
            "condition": name,
            "reference": other,
            **scores.paired_bootstrap(rates[other], rates[name]),
            "n_problems": len(rates[name]),
        }
        for name, other in pairs
        if rates[name] and rates[name].keys() == rates[other].keys()
    ]


def pass_rates(run: Run, condition: str) -> dict[str, float]:
    """The share of right answers to each test problem that the verifier can judge."""
    rows = run.rows(layout.evaluation(condition), layout.ATTEMPTS)
    return scores.pass_rates(Attempt.from_row(row) for row in rows)


def _depths(run: Run) -> dict[str, Any]:
    """How often LADDER's training solved problems of each depth of the tree, in its first and last third."""
    depths = {row["id"]: row["depth"] for row in read_variants(run, layout.PROBLEMS)}
    rollouts = run.rows(layout.train("ladder"), layout.ATTEMPTS)
    return {str(depth): found for depth, found in scores.pass_rates_by_depth(rollouts, depths).items()}


def _markers(run: Run) -> dict[str, dict[str, Any]]:
    """The done.json of every stage by its name, those of single problems left out, in the order of the work."""
    stages = [layout.SELECT, layout.TRANSFORMATIONS, layout.VARIANTS]
    stages += [stage for name in run.conditions for stage in _work(name)]
    found = {stage: run.done(stage) for stage in stages}
    return {stage: done for stage, done in found.items() if done}


def _costs(run: Run) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "n_tokens": done.get("n_tokens", done.get("tokens")),
            "seconds": done.get("seconds"),
            "peak_memory_bytes": done.get("peak_memory_bytes"),
        }
        for stage, done in _markers(run).items()
    ]
