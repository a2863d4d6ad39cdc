"""Controls: do LADDER and TTRL gain more than something simpler would, such as any reward or more tries?"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy.stats import binomtest

from ladder_lite.config import with_ablations
from ladder_lite.report.document import code, table
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.runs import layout
from ladder_lite.terminal import points_interval

SIGNIFICANT = 0.05

_SPENT = {"n_tokens": "tokens", "n_verifier_calls": "verifier calls"}

# What a control is, by its name or by a change that it makes as an ablation.
_WORDS = {
    "rl_without_variants": "GRPO on the training problems themselves",
    "ladder_pass100": "more tries",
    "grpo.reward=random": "rewards at random",
    "grpo.reward=format": "rewards for readable answers",
    "variants.third=nearest": "the third of the variants nearest to the training problems",
    "variants.third=farthest": "the third of the variants farthest from the training problems",
    "variants.third=longest": "the longest third of the variants",
    "grpo.rows=staged": "short variants first, then longer ones",
    "ttrl.train_on=problem": "GRPO on the test problem itself",
    "ttrl.train_on=other": "TTRL on variants of another test problem",
}


def sign_test(races: Iterable[Mapping[str, Any]], name: str, other: str) -> dict[str, Any]:
    """Compare how many problems two methods of these races solve; {} if no race has both.

    A problem counts once per race. Returns `n_problems`, `solved` by each, `wins` and `losses` (the problems that only
    the first or only the second method solves), and `p`: if the methods were equally good, each of these problems would
    be a coin flip.
    """
    both = [race["methods"] for race in races if race.get("methods", {}).keys() >= {name, other}]
    columns = [
        [tokens is not None for own in both for tokens in own[each]["tokens_to_solve"]] for each in (name, other)
    ]
    if not both:
        return {}
    wins, losses = (sum(a > b for a, b in zip(*each, strict=True)) for each in (columns, columns[::-1]))
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return {"n_problems": len(columns[0]), "solved": [*map(sum, columns)], "wins": wins, "losses": losses, "p": p}


def measure(
    ablations: Mapping[str, Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    reports: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return a row for each control that has finished, in one report or over several seeds.

    `more_than` says what the control is, and `answer` whether the method does better: "yes", "no" if it does worse, or
    "not shown". Controls of LADDER have `points`, LADDER's pass@1 minus the control's, as an interval. Those of TTRL
    have `test`, a `sign_test`. `n_tokens` and `n_verifier_calls` are those of the method and of the control, without
    the shared tree and without evaluation; None if they are not known.
    """
    rows = []
    for condition in with_ablations(ablations):
        name = condition.name
        keys = [name, *(f"{key}={value}" for key, value in ablations.get(name, {}).items())]
        words = next((_WORDS[key] for key in keys if key in _WORDS), None)
        method = "ladder_ttrl" if condition.problems_of else "ladder"
        found: dict[str, Any] = {}
        if condition.problems_of and (test := sign_test([report["race"] for report in reports], method, name)):
            lead = (test["wins"] - test["losses"]) * (test["p"] <= SIGNIFICANT)
            found = {"test": test}
        for row in differences:
            if {row["condition"], row["reference"]} == {method, name} == {"ladder", name}:
                ends = [row[end] if row["condition"] == method else 0.0 - row[end] for end in ("low", "value", "high")]
                found = {"points": dict(zip(("low", "value", "high"), sorted(ends), strict=True))}
                lead = (min(ends) > 0) - (max(ends) < 0)
        if words and found:
            answer = "yes" if lead > 0 else "no" if lead < 0 else "not shown"
            spent = {key: _spent(reports, (method, name), key) for key in _SPENT}
            rows.append({"more_than": words, "method": method, "control": name, "answer": answer, **found, **spent})
    return rows


def describe(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the table "Is it more than ...?" and how to read it; nothing without controls."""
    cells = []
    for row in rows:
        cell = {"is it more than ...?": row["more_than"], "answer": row["answer"], "control": code(row["control"])}
        if test := row.get("test"):
            first, second = test["solved"]
            cell["difference"] = f"{first} and {second} of {test['n_problems']} solved, p = {test['p']:.2g}"
        else:
            cell["difference"] = points_interval(row["points"])
        cell |= {heading: " / ".join(f"{n:,}" for n in row[key] or ()) for key, heading in _SPENT.items()}
        cells.append(cell)
    how = (
        f"Each control is compared with {label_of('ladder')} or, if it is about single test problems, with "
        f"{label_of('ladder_ttrl')}. Differences are the method's pass@1 minus the control's, in percentage points "
        "with 95 % intervals, or the problems that each solves, with a sign test. Within a single run, neither covers "
        "the variation between training runs, which only several seeds show. Tokens and verifier calls: method / "
        "control, without the shared tree and evaluation. TTRL and its controls stop at the first right answer, after "
        "all steps, or on a plateau."
    )
    return [table("llllr", cells), how] if cells else []


def _spent(reports: Iterable[Mapping[str, Any]], conditions: Sequence[str], key: str) -> list[int] | None:
    """Return what each condition spent, in the reports that know it of all of them; None if no report does."""
    known = []
    for report in reports:
        by_stage = {row["stage"]: row.get(key) or 0 for row in report["costs"]}
        stages = [(layout.variants(name), layout.train(name), layout.problems(name)) for name in conditions]
        row = [sum(by_stage.get(stage, 0) for stage in own) for own in stages]
        known += [row] if all(row) else []
    return [sum(column) for column in zip(*known, strict=True)] or None
