"""The chapter on test-time reinforcement learning: what it solved, in how many steps, and against what."""

from collections.abc import Mapping
from typing import Any

from scipy.stats import binomtest

from ladder_lite import variants
from ladder_lite.report import figures
from ladder_lite.report.document import Block, Chapter, Code, Mark, Paragraph, Row, Text, side_by_side, table
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.report.findings import Report, outcomes
from ladder_lite.report.paper_results import TEST_TIME
from ladder_lite.runs import Run, layout
from ladder_lite.terminal import clock_time, percent

Problems = Mapping[str, tuple[str, Code]]
"""By id: a short name, the same in all tables and figures, and the statement."""

_STOPPED = {
    "solved": "solved",
    "max_steps": "all steps taken",
    "budget": "budget used up",
    "plateau": "no signal left",
    "no variants": "no variants",
}
_CHOSEN = (
    " It does have one in which model votes: its verdict on the test problem ended the training "
    "(ttrl.stop_when_solved, the paper's rule)."
)
_RARE = 0.05
_N_PROBLEMS = 60
_WIDTH = 120


def test_time(report: Report, run: Run, statements: Mapping[str, str]) -> Chapter:
    """TTRL after LADDER, TTRL without LADDER, and LADDER resampled at equal generated tokens."""
    found = {name: outcomes(run, name) for name in ("ladder_ttrl", "ttrl", "ladder_pass100")}
    if not any(found.values()):
        return Chapter("Test-time reinforcement learning", ())
    ids = dict.fromkeys(row["problem_id"] for rows in found.values() for row in rows)
    problems = {
        problem_id: (str(number), Code(statements.get(problem_id, problem_id), _WIDTH))
        for number, problem_id in enumerate(ids, start=1)
    }
    drawn = [figures.race(report)]
    for name in ("ladder_ttrl", "ttrl"):
        drawn.append(figures.steps_to_solve([(problems[row["problem_id"]][0], row) for row in found[name]], name))
    blocks = [
        *_race(report),
        *side_by_side(*drawn),
        *_ttrl(report["ttrl"], run, "ladder_ttrl", found["ladder_ttrl"], problems),
        *_ttrl(report["ttrl_without_ladder"], run, "ttrl", found["ttrl"], problems),
        *_resampled(run, found["ladder_pass100"], problems),
        Paragraph(TEST_TIME),
    ]
    return Chapter("Test-time reinforcement learning", blocks)


def _race(report: Report) -> list[Block]:
    """Plain sentences: who solved more of the same problems, also when TTRL loses."""
    methods = report["race"].get("methods", {})
    others = [name for name in ("ladder_pass100", "ttrl") if name in methods and "ladder_ttrl" in methods]
    return [Paragraph(compared(report["race"], name)) for name in others]


def compared(race: Mapping[str, Any], other: str) -> Text:
    """Say whether TTRL after LADDER or another method of a race solved more, and whether chance explains that."""
    ours, theirs = race["methods"]["ladder_ttrl"], race["methods"][other]
    pairs = list(zip(ours["tokens_to_solve"], theirs["tokens_to_solve"], strict=True))
    only_ours = sum(a is not None and b is None for a, b in pairs)
    only_theirs = sum(a is None and b is not None for a, b in pairs)
    n_apart = only_ours + only_theirs
    p = float(binomtest(only_ours, n_apart).pvalue) if n_apart else 1.0
    by_chance = "more than chance explains" if p <= _RARE else "chance could explain that"
    certainty = f" They differ on {n_apart}: {by_chance} (sign test, p = {p:.2g})." if n_apart else ""
    winner, loser = "TTRL after LADDER", label_of(other)
    if only_ours < only_theirs:
        winner, loser = loser, winner
    # Of few problems a lead proves nothing, and the first words of the paragraph must not say otherwise.
    verdict = f"{winner} beats {loser}" if p <= _RARE else f"{winner} is ahead of {loser}"
    if only_ours == only_theirs:
        verdict = f"{winner} and {loser} are level"
    how = ""
    if other == "ladder_pass100":
        within = sum(b is not None and b <= spent for (_, b), spent in zip(pairs, ours["spent"], strict=True))
        how = f" (at least 100 answers a problem and as many generated tokens as TTRL; {within} within those tokens)"
    return (
        Mark(verdict),
        f": of the same {len(pairs)} test problems, TTRL after LADDER solved {ours['solved']} by the paper's rule, "
        f"{label_of(other)} {theirs['solved']}{how}.{certainty}",
    )


def _ttrl(
    counts: Mapping[str, Any],
    run: Run,
    condition: str,
    found: list[dict[str, Any]],
    problems: Problems,
) -> list[Block]:
    if not found:
        return []
    left = "" if counts["n_left"] is None else f" of the {counts['n_left']} that LADDER left unsolved"
    said = (
        f"{label_of(condition)}: {counts['attempted']} problems{left}; solved {counts['solved']}, by the paper's rule: "
        "a right answer at any step, by the verifier's verdict. They were chosen because they had failed and are "
        "answered again, so chance alone lifts pass@1 of all problems a little; the fair comparison is the one with "
        "resampling."
    )
    if "voted_right" in counts:
        chosen = _CHOSEN if run.settings.get("ttrl", {}).get("stop_when_solved", True) else ""
        said += (
            " By the majority vote of the tuned model's samples, in which the verifier has no say, "
            f"{counts['voted_right']} are answered right.{chosen}"
        )
    voted = any("voted_answer" in row for row in found)
    rows: list[Row] = []
    for row in found[:_N_PROBLEMS]:
        number, statement = problems[row["problem_id"]]
        tree = run.path / layout.problems(condition, str(row["problem_id"])) / layout.VARIANTS
        rows.append(
            {
                "no.": number,
                "solved at step": str(row["steps_to_solve"]) if row["solved"] else _unsolved(row),
                "steps": str(row["steps"]),
                "time": clock_time(row["seconds"]),
                "variants": str(variants.count(tree)["kept"]),
                **({"vote": _vote(row)} if voted else {}),
                "problem": statement,
                "answer": _code(row["answer"]),
                **({"voted answer": _code(row.get("voted_answer"))} if voted else {}),
            }
        )
    blocks: list[Block] = [Paragraph(said), *table("rlrrrl", rows)]
    if len(found) > _N_PROBLEMS:
        blocks.append(Paragraph(f"And {len(found) - _N_PROBLEMS} more."))
    return blocks


def _code(answer: str | None) -> Text:
    return Code(answer, _WIDTH) if answer else ""


def _unsolved(row: Mapping[str, Any]) -> str:
    why = _STOPPED.get(str(row.get("stopped")))
    return f"not solved ({why})" if why else "not solved"


def _vote(row: Mapping[str, Any]) -> Text:
    if row.get("voted_answer") is None:
        return "none"
    share = f" {percent(row['voted_share'])}" if row.get("voted_share") is not None else ""
    return Mark("right", "right") if row.get("voted_right") else Mark("wrong", "wrong"), share


def _resampled(run: Run, found: list[dict[str, Any]], problems: Problems) -> list[Block]:
    if not found:
        return []
    rate = run.done(layout.problems("ladder_pass100")).get("pass@100")
    mean = f" Its pass@100 on them is {percent(rate['value'])}." if rate else ""
    solved = sum(bool(row["solved"]) for row in found)
    said = f"{label_of('ladder_pass100')}: {len(found)} problems; a right answer among the samples of {solved}.{mean}"
    rows: list[Row] = [
        {
            "no.": problems[row["problem_id"]][0],
            "samples": f"{row['n_samples']:,}",
            "right": f"{row['n_right']:,}",
            "tokens": f"{row['n_tokens']:,}",
            "tokens of TTRL": f"{row['ttrl_tokens']:,}" if row.get("ttrl_tokens") is not None else "",
            "until right": f"{row['tokens_to_right']:,}" if row.get("tokens_to_right") is not None else "never right",
            "problem": problems[row["problem_id"]][1],
        }
        for row in found[:_N_PROBLEMS]
    ]
    return [Paragraph(said), *table("rrrrrrl", rows)]
