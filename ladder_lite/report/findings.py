"""The results of a run as data: the contents of report.json, read from the files of the run alone.

A run may be unfinished. Missing results are left out.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from scipy.stats import pearsonr, rankdata

from ladder_lite import variants
from ladder_lite.config import BUILT_IN, EMBEDDED, model_name, with_ablations
from ladder_lite.errors import UserError
from ladder_lite.evaluate import scores
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt, Outcome, outcome_of
from ladder_lite.problems.similarity import distances
from ladder_lite.report import controls
from ladder_lite.report.document import code, escape
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.report.paper_results import experiment_of
from ladder_lite.runs import Run, layout, read_json
from ladder_lite.tasks import plain_task, statement
from ladder_lite.terminal import percent

Report = Mapping[str, Any]
"""The contents of report.json."""

TREES = (layout.VARIANTS, f"{layout.train('ladder')}/{layout.VARIANTS}")
"""The folders of the variant tree: one for what was grown before training, one for what grew during LADDER's."""

_STEP_KEYS = ("groups_without_signal", "sampled_groups_without_signal", "entropy", "solved_problems")
"""Keys of metrics.jsonl that the report shows against the step."""

_CLAIM = ("ladder", "rl_without_variants")  # the difference that the paper is about

_N_BINS = 40  # points of a figure of training; report.json stays small for a run of thousands of steps


def measure(run: Run) -> dict[str, Any]:
    """Return the contents of report.json.

    `seconds` and `n_tokens` of a condition cover its training (or its single problems) and its evaluation. `steps` of
    a TTRL condition are summed over its problems.
    """
    tree = variants.summarize_tree(run.path / layout.VARIANTS)
    # `_condition` is empty for a condition without a finished evaluation.
    entries = {name: entry for name in run.conditions if (entry := _condition(run, name))}
    costs = _costs(run)
    probes = {name: rates for name in run.conditions if (rates := _probes(run, name))}
    report: dict[str, Any] = {
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "model": run.recipe.model.id,
        "experiment": experiment_of(run.recipe),
        "conditions": entries,
        "variants": {key: tree[key] for key in ("kept", "rejected", "duplicates", "by_depth", "tokens")},
        "curve": [
            {"condition": name, **row} for name in run.conditions for row in run.rows(layout.train(name), layout.CURVE)
        ],
        "training": {name: summary for name in run.conditions if (summary := _training(run, name))},
        "probes": probes,
        "lost": _lost(run, probes),
        "ttrl": _ttrl(run, "ladder_ttrl"),
        "ttrl_without_ladder": _ttrl(run, "ttrl"),
        "race": _race(run),
        "differences": _differences(run, entries),
        "contamination": _contamination(run),
        "depths": _depths(run),
        "costs": costs,
        "jobs": run.rows(layout.WORKERS, layout.JOBS),
        "peak_memory_bytes": max((cost["peak_memory_bytes"] or 0 for cost in costs), default=0),
        "versions": read_json(run.path / layout.VERSIONS),
    }
    return report | {"controls": controls.measure(run.recipe.ablations, report["differences"], [report])}


def headline(report: Report) -> str:
    """Return the main result of a run in one or two sentences of Markdown."""
    shares = {name: entry["pass@1"]["value"] for name, entry in report["conditions"].items()}
    if report["experiment"] == "smoke":
        return "This was a smoke test of a few steps: its numbers mean nothing."
    if not shares:
        return "No condition has been evaluated yet."
    if "ladder" not in shares:
        so_far = ", ".join(f"{escape(label_of(name))} {percent(share)}" for name, share in shares.items())
        return f"LADDER is not finished yet. pass@1 so far: {so_far}."
    subject = "The embedded model" if report["model"] == EMBEDDED else code(model_name(report["model"]))
    sentences = f"{subject} solves {percent(shares['ladder'])} of the test problems after LADDER"
    words = {"base": "before", "rl_without_variants": "with RL without variants"}
    baselines = {name: shares[name] for name in words if name in shares}
    if baselines:
        # "..., compared with 1.2 % before and 0 % with RL without variants"
        compared = " and ".join(f"{percent(share)} {words[name]}" for name, share in baselines.items())
        sentences += f", compared with {compared}"
        # The headline must not read as a success where training gained nothing, or no more than the control.
        if shares["ladder"] <= max(baselines.values()):
            sentences += ": LADDER did not help"
        elif any((row["condition"], row["reference"]) == _CLAIM and row["low"] <= 0 for row in report["differences"]):
            sentences += "; the difference from RL without variants is not significant"
    sentences += "."
    if report["ttrl"]["attempted"]:
        sentences += (
            f" Test-time RL then solved {report['ttrl']['solved']} of {report['ttrl']['attempted']} problems that "
            "LADDER had left unsolved."
        )
    return sentences


def outcomes(run: Run, condition: str) -> list[dict[str, Any]]:
    """Return the done.json of every test problem that a condition has finished, in the order in which it tried them."""
    stage = layout.problems(condition)
    by_id = {path.parent.name: read_json(path) for path in sorted((run.path / stage).glob(f"*/{layout.DONE}"))}
    # The order is known once the whole stage is done; until then, the problems are sorted by id.
    order = [str(name) for name in run.done(stage).get("problems", [])]
    return [by_id[name] for name in dict.fromkeys([*order, *by_id]) if name in by_id]


def read_variants(run: Run, file: str) -> list[dict[str, Any]]:
    """Return the rows of a file of the variant tree, from before and during training."""
    return [row for place in TREES for row in run.rows(place, file)]


def known_problems(run: Run, problem_set: str, split: str) -> list[Problem]:
    """Return the problems of a set, or none if it cannot be read any more; reports then show their ids."""
    try:
        return plain_task(run.recipe.task.name).load(problem_set, split, check=False)
    except UserError:
        return []


def _stages(condition: str) -> tuple[str, str, str]:
    # A condition has one of the first two, or neither (the base model).
    return layout.train(condition), layout.problems(condition), layout.evaluation(condition)


def _condition(run: Run, name: str) -> dict[str, Any]:
    """Summarize an evaluated condition and its cost; empty if it has not been evaluated."""
    # run.done() returns {} for a stage that is not finished or that the condition does not have.
    summaries = [run.done(stage) for stage in _stages(name)]
    training, _, evaluation = summaries
    if "pass@1" not in evaluation:
        return {}
    # These keys describe the evaluation stage alone; costs are summed over all stages below.
    of_stage = ("digest", "seconds", "peak_memory_bytes", "n_tokens")
    entry = {key: value for key, value in evaluation.items() if key not in of_stage}
    entry |= {"steps": sum(summary.get("steps", 0) for summary in summaries)}
    entry |= {"seconds": sum(summary.get("seconds", 0.0) for summary in summaries)}
    if any("n_tokens" in summary for summary in summaries):
        entry |= {"n_tokens": sum(summary.get("n_tokens", 0) for summary in summaries)}
    return entry | ({"variants": training["variants"]} if "variants" in training else {})


def _training(run: Run, name: str) -> dict[str, Any]:
    """Average a training run over bins of steps: zero-variance groups, entropy, and shares of rollout outcomes."""
    stage = layout.train(name)
    metrics = {row["step"]: row for row in run.rows(stage, layout.METRICS)}
    if not metrics:
        return {}
    counts: defaultdict[int, Counter[Outcome]] = defaultdict(Counter)
    for row in run.rows(stage, layout.ATTEMPTS):
        if not row.get("from_base"):
            counts[row["step"]].update([outcome_of(row["reason"], row.get("truncated", False))])
    # 100 steps make bins of ceil(100 / 40) = 3 steps: [1, 2, 3], [4, 5, 6], ..., [100].
    steps = sorted(metrics)
    size = -(-len(steps) // _N_BINS)
    bins = [steps[start : start + size] for start in range(0, len(steps), size)]
    totals = [sum((counts[step] for step in bin_), Counter()) for bin_ in bins]
    # Without rollouts in some bin (its log is missing or was cut), there are no shares to draw.
    kinds = Outcome if all(totals) else ()
    rollouts = {kind.value: [total[kind] / total.total() for total in totals] for kind in kinds}
    return {
        "steps": [sum(bin_) / len(bin_) for bin_ in bins],
        **{key: [_mean(metrics[step].get(key) for step in bin_) for bin_ in bins] for key in _STEP_KEYS},
        "rollouts": rollouts,
    }


def _probes(run: Run, name: str) -> dict[str, scores.Interval]:
    """Return the pass rate of each technique of the probe; for TTRL, the mean over its problems' last probes."""
    probes = [run.done(layout.evaluation(name)).get("probe", {})]
    for outcome in outcomes(run, name):
        probes += run.rows(layout.problems(name, outcome["problem_id"]) + f"/{layout.TRAIN}", layout.PROBES)[-1:]
    rates: defaultdict[str, list[scores.Interval]] = defaultdict(list)
    for probe in probes:
        for technique, entry in probe.get("techniques", {}).items():
            rates[technique].append(entry["pass@1"])
    return {
        technique: own[0] if len(own) == 1 else scores.mean_with_interval([rate["value"] for rate in own])
        for technique, own in rates.items()
    }


def _lost(run: Run, probed: Collection[str]) -> dict[str, list[str]]:
    """Return by condition the techniques of the probe that it answers worse than the base model, beyond chance."""
    try:
        known = plain_task(run.recipe.task.name).notes(run.recipe.task.probe or "")
        techniques = {id_: note.technique for id_, note in known.items()}
    except UserError:  # no probe, or its set cannot be read any more
        return {}
    # Of TTRL's probes, only the rates are kept.
    rates = {name: own for name in probed if (own := pass_rates(run, name, f"/{layout.PROBE}"))}
    base = rates.pop("base", {})
    lost: dict[str, list[str]] = {}
    for name in rates if base else ():
        lost[name] = []
        for technique in filter(None, dict.fromkeys(techniques.values())):
            own = {id_: rate for id_, rate in rates[name].items() if techniques.get(id_) == technique}
            if scores.paired_bootstrap(base, own)["high"] < 0:
                lost[name].append(technique)
    return lost


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ttrl(run: Run, condition: str) -> dict[str, Any]:
    tried = outcomes(run, condition)
    # The number of problems that LADDER left unsolved; None while the stage is not finished.
    n_left = run.done(layout.problems(condition)).get("n_left")
    solved = [outcome["steps_to_solve"] for outcome in tried if outcome["solved"]]
    voted_right = sum(outcome["voted_right"] for outcome in tried)
    result = {"n_left": n_left, "attempted": len(tried), "solved": len(solved), "steps_to_solve": solved}
    return result | {"voted_right": voted_right}


def _race(run: Run) -> dict[str, Any]:
    """Compare, on the same problems, the tokens that each method needed to solve each (the paper's Figure 6).

    `problems` are those that every method has finished, ablations of TTRL apart: these are left out until they have
    finished all of them. By method, `tokens_to_solve` has None for a problem that was not solved, and `spent` all
    tokens generated for a problem.
    """
    racers = [condition.name for condition in with_ablations(run.recipe.ablations) if condition.problems_of]
    tried = {name: {row["problem_id"]: row for row in outcomes(run, name)} for name in racers}
    built_in = [rows for name, rows in tried.items() if rows and name in BUILT_IN]
    problems = [name for name in (built_in or [{}])[0] if all(name in rows for rows in built_in)]
    methods = {name: rows for name, rows in tried.items() if rows and rows.keys() >= set(problems)}
    # One method alone has nothing to be compared with.
    if len(methods) < 2 or not problems:
        return {}
    race = {}
    for name, by_id in methods.items():
        rows = [by_id[problem_id] for problem_id in problems]
        race[name] = {
            "solved": sum(row["solved"] for row in rows),
            # Only resampling records `tokens_to_right`. For TTRL everything counts that was generated for the problem:
            # the tree, the rollouts, and the answers sampled after each step.
            "tokens_to_solve": [row.get("tokens_to_right", row["n_tokens"]) if row["solved"] else None for row in rows],
            "spent": [row["n_tokens"] for row in rows],
        }
    return {"problems": problems, "methods": race}


def _differences(run: Run, entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the differences of pass@1, condition minus reference, if both answered the same problems."""
    rates = {name: pass_rates(run, name) for name in entries}
    references = {condition.name: condition.compared_with for condition in with_ablations(run.recipe.ablations)}
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


def pass_rates(run: Run, condition: str, subfolder: str = "") -> dict[str, float]:
    """Return the share of right answers to each problem that the verifier can judge, by problem id.

    These are the test problems, or in the subfolder "/probe" those of the probe.
    """
    rows = run.rows(layout.evaluation(condition) + subfolder, layout.ATTEMPTS)
    return scores.pass_rates(Attempt.from_row(row) for row in rows)


def _contamination(run: Run) -> dict[str, Any]:
    """Return how near each test problem is to LADDER's variants, and how its pass rate depends on that.

    `problems` have the `nearest` variant's statement and its `distance` (see `problems.similarity`); `spearman` is the
    rank correlation of distance and LADDER's pass rate with its 95 % interval, None if either is constant or there
    are fewer than four tests. The result is empty without LADDER's evaluation.
    """
    rates = pass_rates(run, "ladder")
    tests = [problem for problem in known_problems(run, run.recipe.task.test, "test") if problem.id in rates]
    tree = [Problem.from_row(row) for row in read_variants(run, layout.PROBLEMS)] if tests else []
    if not tree:
        return {}
    table = distances(tests, tree)
    problems = [
        {
            "problem_id": test.id,
            "distance": float(row.min()),
            "nearest": statement(tree[row.argmin()]),
            "ladder": rates[test.id],
        }
        for test, row in zip(tests, table, strict=True)
    ]
    near, right = [float(row.min()) for row in table], [rates[test.id] for test in tests]
    if len(tests) < 4 or min(len(set(near)), len(set(right))) < 2:
        return {"problems": problems, "spearman": None}
    # Spearman's correlation is Pearson's of the ranks; the interval is Fisher's.
    found = pearsonr(rankdata(near), rankdata(right))
    low, high = found.confidence_interval()
    return {"problems": problems, "spearman": {"value": float(found.statistic), "low": float(low), "high": float(high)}}


def _depths(run: Run) -> dict[str, Any]:
    """Return how often training solved problems of each depth of the tree, in its first and last third of steps."""
    depths = {row["id"]: row["depth"] for row in read_variants(run, layout.PROBLEMS)}
    rollouts = [row for row in run.rows(layout.train("ladder"), layout.ATTEMPTS) if not row.get("from_base")]
    # {"1": {"first": {"n": 24, "pass_rate": 0.41}, "last": ...}}; JSON has string keys only.
    return {str(depth): thirds for depth, thirds in scores.pass_rates_by_depth(rollouts, depths).items()}


def _costs(run: Run) -> list[dict[str, Any]]:
    """Return what every finished stage took, in the order of the work."""
    stages = [layout.SELECT, layout.TRANSFORMATIONS, layout.VARIANTS]
    stages += [stage for name in run.conditions for stage in (layout.variants(name), *_stages(name))]
    return [
        {
            "stage": stage,
            "n_tokens": done.get("n_tokens", done.get("tokens")),  # stages of variants have "tokens"
            "n_verifier_calls": done.get("n_verifier_calls"),
            "seconds": done.get("seconds"),
            "peak_memory_bytes": done.get("peak_memory_bytes"),
        }
        for stage in stages
        if (done := run.done(stage))
    ]
