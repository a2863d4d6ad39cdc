"""The chapter on test-time reinforcement learning: what it solved, in how many steps, compared with its baselines."""

from collections.abc import Mapping, Sequence
from typing import Any

from ladder_lite import variants
from ladder_lite.report import figures
from ladder_lite.report.controls import SIGNIFICANT, sign_test
from ladder_lite.report.document import Block, Chapter, Figures, code, table
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.report.findings import Report, outcomes
from ladder_lite.report.paper_results import TEST_TIME
from ladder_lite.runs import Run, layout
from ladder_lite.terminal import clock_time, counted, percent

Problems = Mapping[str, tuple[str, str]]
"""By id: a number as text, the same in all tables and figures of the chapter, and the statement as Markdown."""

# `stopped` in a problem's done.json, as the table says it.
_STOPPED = {
    "max_steps": "all steps taken",
    "budget": "budget used up",
    "plateau": "almost all groups had zero variance",
    "no variants": "no variants",
}
RIVALS = ("ladder_pass100", "ttrl")  # what LADDER + TTRL is compared with
_MAX_PROBLEMS = 60


def test_time(report: Report, run: Run, statements: Mapping[str, str]) -> Chapter:
    """Build the chapter on TTRL after LADDER, TTRL without LADDER, and LADDER resampled with as many tokens."""
    tried = {name: outcomes(run, name) for name in ("ladder_ttrl", "ttrl", "ladder_pass100")}
    if not any(tried.values()):
        return Chapter("Test-time reinforcement learning", ())
    # Statements are too long for the axis of a figure, so the problems are numbered.
    ids = dict.fromkeys(row["problem_id"] for rows in tried.values() for row in rows)
    problems = {
        problem_id: (str(number), code(statements.get(problem_id, problem_id)))
        for number, problem_id in enumerate(ids, start=1)
    }
    blocks: list[Block] = [
        *(compared([report["race"]], other) for other in RIVALS),
        Figures(filter(None, [figures.race(report)])),
        *_ttrl(report["ttrl"], run, "ladder_ttrl", tried["ladder_ttrl"], problems),
        *_ttrl(report["ttrl_without_ladder"], run, "ttrl", tried["ttrl"], problems),
        *_resampled(run, tried["ladder_pass100"], problems),
        TEST_TIME if run.recipe.task.name == "integration" else "",
    ]
    return Chapter("Test-time reinforcement learning", blocks)


def compared(races: Sequence[Mapping[str, Any]], other: str) -> str:
    """Say whether LADDER + TTRL or another method solved more problems, and whether that is significant.

    A problem counts once per race. Returns "" if no race has both methods.
    """
    test = sign_test(races, "ladder_ttrl", other)
    if not test:
        return ""
    p, wins, losses = test["p"], test["wins"], test["losses"]
    significance = "significant" if p <= SIGNIFICANT else "not significant"
    differ = f" They differ on {wins + losses} ({significance}; sign test, p = {p:.2g})." if wins + losses else ""
    winner, loser = label_of("ladder_ttrl"), label_of(other)
    if wins < losses:
        winner, loser = loser, winner
    # The first words of the paragraph must not claim more than the test: a lead on a few problems proves nothing.
    verdict = f"{winner} beats {loser}" if p <= SIGNIFICANT else f"{winner} is ahead of {loser}"
    if wins == losses:
        verdict = f"{winner} and {loser} are level"
    budget = ""
    if other == "ladder_pass100":
        # Resampling gets 100 answers even where TTRL took fewer tokens than these: count both ways.
        methods = [race["methods"] for race in races if other in race.get("methods", {})]
        within = sum(
            tokens is not None and tokens <= limit
            for own in methods
            for tokens, limit in zip(own[other]["tokens_to_solve"], own["ladder_ttrl"]["spent"], strict=True)
        )
        budget = f" (at least 100 answers per problem and as many tokens as TTRL; {within} within TTRL's tokens alone)"
    return (
        f"**{verdict}**: of the same {counted(test['n_problems'], 'test problem')}, {label_of('ladder_ttrl')} solved "
        f"{test['solved'][0]} by the paper's rule and {label_of(other)} solved {test['solved'][1]}{budget}.{differ}"
    )


def _ttrl(
    counts: Mapping[str, Any], run: Run, condition: str, tried: list[dict[str, Any]], problems: Problems
) -> list[str]:
    if not tried:
        return []
    n_tried = counted(counts["attempted"], "problem")
    if counts["n_left"] is not None:
        n_tried = f"{counts['attempted']} of {counted(counts['n_left'], 'problem')} that LADDER left unsolved"
    words = (
        f"{label_of(condition)} tried {n_tried} and solved {counts['solved']} by the paper's rule: the verifier "
        "accepts an answer at any step. These problems were selected because LADDER failed on them. Answering them "
        "again raises pass@1 a little by chance alone, so the fair comparison is with LADDER resampled."
        # The paper's rule needs a verifier for the test problem itself. A vote does not, so it is reported, too.
        f" The majority vote among the tuned model's samples is right on {counts['voted_right']} of them. The vote "
        "itself does not use the verifier."
    )
    if run.recipe.ttrl.stop_when_solved:
        words += (
            " The verifier does influence which model votes: training ends as soon as it accepts an answer to the "
            "test problem (ttrl.stop_when_solved, the paper's rule)."
        )
    rows = []
    for row in tried[:_MAX_PROBLEMS]:
        number, statement = problems[row["problem_id"]]
        tree = run.path / layout.problems(condition, str(row["problem_id"])) / layout.VARIANTS
        rows.append(
            {
                "no.": number,
                "solved at step": str(row["steps_to_solve"]) if row["solved"] else _unsolved(row),
                "steps": str(row["steps"]),
                "time": clock_time(row["seconds"]),
                "variants": str(variants.summarize_tree(tree)["kept"]),
                "vote": _vote(row),
                "problem": statement,
                "answer": code(row["answer"] or ""),
                "voted answer": code(row["voted_answer"] or ""),
            }
        )
    more = len(tried) - _MAX_PROBLEMS
    return [words, table("rlrrrl", rows), f"And {more} more." if more > 0 else ""]


def _unsolved(row: Mapping[str, Any]) -> str:
    # "not solved (budget used up)"
    why = _STOPPED.get(row["stopped"])
    return f"not solved ({why})" if why else "not solved"


def _vote(row: Mapping[str, Any]) -> str:
    if row["voted_answer"] is None:  # none of the samples could be read
        return "none"
    # "right 75 %": the share of the samples that voted for it
    return f"{'**right**' if row['voted_right'] else '*wrong*'} {percent(row['voted_share'])}"


def _resampled(run: Run, tried: list[dict[str, Any]], problems: Problems) -> list[str]:
    if not tried:
        return []
    # The mean over the problems is known once the stage is finished.
    rate = run.done(layout.problems("ladder_pass100")).get("pass@100")
    mean = f" pass@100 on these problems: {percent(rate['value'])}." if rate else ""
    solved = sum(bool(row["solved"]) for row in tried)
    words = (
        f"{label_of('ladder_pass100')} tried {counted(len(tried), 'problem')} and solved {solved}: a right answer "
        f"among the first 100, or within as many tokens as TTRL generated for the problem.{mean}"
    )
    rows = [
        {
            "no.": problems[row["problem_id"]][0],
            "samples": f"{row['n_samples']:,}",
            "right": f"{row['n_right']:,}",
            "tokens": f"{row['n_tokens']:,}",
            "tokens of TTRL": f"{row['ttrl_tokens']:,}" if row.get("ttrl_tokens") is not None else "",
            "tokens until right": f"{row['tokens_to_right']:,}" if row.get("tokens_to_right") is not None else "never",
            "problem": problems[row["problem_id"]][1],
        }
        for row in tried[:_MAX_PROBLEMS]
    ]
    return [words, table("rrrrrrl", rows)]
