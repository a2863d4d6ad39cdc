"""The chapter on test-time reinforcement learning: what it solved, in how many steps, and against what."""

from collections.abc import Mapping
from typing import Any

from scipy.stats import binomtest

from ladder_lite import variants
from ladder_lite.report import page_figures
from ladder_lite.report.document import Block, Chapter, Code, Figures, Mark, Paragraph, Table, Text
from ladder_lite.report.drawing.palette import label_of
from ladder_lite.report.findings import Run, outcomes, read_json
from ladder_lite.report.paper_results import TEST_TIME
from ladder_lite.terminal import clock_time, percent

Report = Mapping[str, Any]

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
    numbers = _numbers(found)
    steps = {name: [(numbers[row["problem_id"]], row) for row in found[name]] for name in ("ladder_ttrl", "ttrl")}
    figures = [page_figures.race(report), *(page_figures.steps_to_solve(steps[name], name) for name in steps)]
    blocks: list[Block] = [Paragraph(sentence) for sentence in _race(report)]
    if drawn := tuple(figure for figure in figures if figure):
        blocks.append(Figures(drawn))
    blocks += _ttrl(report["ttrl"], run, "ladder_ttrl", found["ladder_ttrl"], numbers, statements)
    blocks += _ttrl(report["ttrl_without_ladder"], run, "ttrl", found["ttrl"], numbers, statements)
    blocks += _resampled(run, found["ladder_pass100"], numbers, statements)
    return Chapter("Test-time reinforcement learning", (*blocks, Paragraph(TEST_TIME)))


def _numbers(found: Mapping[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Short names for the problems, the same in all tables and figures."""
    ids = dict.fromkeys(row["problem_id"] for rows in found.values() for row in rows)
    return {problem_id: str(number) for number, problem_id in enumerate(ids, start=1)}


def _race(report: Report) -> list[Text]:
    """Plain sentences: who solved more of the same problems, also when TTRL loses."""
    methods = report["race"].get("methods", {})
    others = [name for name in ("ladder_pass100", "ttrl") if name in methods]
    return [compared(report["race"], name) for name in others] if "ladder_ttrl" in methods else []


def compared(race: Mapping[str, Any], other: str) -> Text:
    """Say whether TTRL after LADDER or another method of a race solved more, and whether chance explains that."""
    ours, theirs = race["methods"]["ladder_ttrl"], race["methods"][other]
    pairs = list(zip(ours["tokens_to_solve"], theirs["tokens_to_solve"], strict=True))
    only_ours = sum(a is not None and b is None for a, b in pairs)
    only_theirs = sum(a is None and b is not None for a, b in pairs)
    if only_ours == only_theirs:
        verdict = f"TTRL after LADDER and {label_of(other)} are level"
    else:
        names = ("TTRL after LADDER", label_of(other))
        winner, loser = names if only_ours > only_theirs else names[::-1]
        # Of few problems a lead proves nothing, and the first words of the paragraph must not say otherwise.
        verdict = f"{winner} beats {loser}" if _p(only_ours, only_theirs) <= _RARE else f"{winner} is ahead of {loser}"
    how = ""
    if other == "ladder_pass100":
        within = sum(b is not None and b <= spent for (_, b), spent in zip(pairs, ours["spent"], strict=True))
        how = f" (at least 100 answers a problem and as many generated tokens as TTRL; {within} within those tokens)"
    return (
        Mark(verdict),
        f": of the same {len(pairs)} test problems, TTRL after LADDER solved {ours['solved']} by the paper's rule, "
        f"{label_of(other)} {theirs['solved']}{how}.{_certainty(only_ours, only_theirs)}",
    )


def _certainty(only_ours: int, only_theirs: int) -> str:
    """Whether the problems that only one of two methods solved are more than chance explains, by the sign test."""
    n_apart = only_ours + only_theirs
    if not n_apart:
        return ""
    p = _p(only_ours, only_theirs)
    verdict = "more than chance explains" if p <= _RARE else "chance could explain that"
    return f" They differ on {n_apart}: {verdict} (sign test, p = {p:.2g})."


def _p(only_ours: int, only_theirs: int) -> float:
    """How likely chance alone would part two equal methods so far or farther, by the sign test."""
    return float(binomtest(only_ours, only_ours + only_theirs).pvalue)


def _ttrl(
    counts: Mapping[str, Any],
    run: Run,
    condition: str,
    found: list[dict[str, Any]],
    numbers: Mapping[str, str],
    statements: Mapping[str, str],
) -> list[Block]:
    if not found:
        return []
    left = "" if counts["n_left"] is None else f" of the {counts['n_left']} that LADDER left unsolved"
    said = (
        f"{label_of(condition)}: {counts['attempted']} problems{left}; solved {counts['solved']}, by the paper's rule: "
        "a right answer, as the verifier finds, at any step. They were chosen for having failed and are answered anew: "
        "chance alone lifts pass@1 of all problems a little, and the comparison with resampling is the fair one."
    )
    if "voted_right" in counts:
        chosen = _CHOSEN if run.settings.get("ttrl", {}).get("stop_when_solved", True) else ""
        said += (
            " By the majority vote of the tuned model's samples, in which the verifier has no say, "
            f"{counts['voted_right']} are answered right.{chosen}"
        )
    voted = any("voted_answer" in row for row in found)
    head: tuple[Text, ...] = (
        "no.",
        "solved at step",
        "steps",
        "time",
        "variants",
        *(["vote"] if voted else []),
        "problem",
        "answer",
        *(["voted answer"] if voted else []),
    )
    rows = []
    for row in found[:_N_PROBLEMS]:
        folder = run.path / "conditions" / condition / "problems" / str(row["problem_id"])
        rows.append(
            (
                numbers[row["problem_id"]],
                str(row["steps_to_solve"]) if row["solved"] else _unsolved(row),
                str(row["steps"]),
                clock_time(row["seconds"]),
                str(variants.count(folder / "variants")["kept"]),
                *([_vote(row)] if voted else []),
                Code(statements.get(row["problem_id"], row["problem_id"]), _WIDTH),
                Code(row["answer"], _WIDTH) if row["answer"] else "",
                *([Code(row["voted_answer"], _WIDTH) if row.get("voted_answer") else ""] if voted else []),
            )
        )
    blocks: list[Block] = [Paragraph(said), Table("rlrrr" + ("llll" if voted else "ll"), head, tuple(rows))]
    if len(found) > _N_PROBLEMS:
        blocks.append(Paragraph(f"And {len(found) - _N_PROBLEMS} more."))
    return blocks


def _unsolved(row: Mapping[str, Any]) -> str:
    why = _STOPPED.get(str(row.get("stopped")))
    return f"not solved ({why})" if why else "not solved"


def _vote(row: Mapping[str, Any]) -> Text:
    if row.get("voted_answer") is None:
        return "none"
    share = f" {percent(row['voted_share'])}" if row.get("voted_share") is not None else ""
    return Mark("right", "right") if row.get("voted_right") else Mark("wrong", "wrong"), share


def _resampled(
    run: Run, found: list[dict[str, Any]], numbers: Mapping[str, str], statements: Mapping[str, str]
) -> list[Block]:
    if not found:
        return []
    summary = read_json(run.path / "conditions/ladder_pass100/problems/done.json")
    rate = summary.get("pass@100")
    mean = f" Its pass@100 on them is {percent(rate['value'])}." if rate else ""
    solved = sum(bool(row["solved"]) for row in found)
    said = f"{label_of('ladder_pass100')}: {len(found)} problems; a right answer among the samples of {solved}.{mean}"
    rows = tuple(
        (
            numbers[row["problem_id"]],
            f"{row['n_samples']:,}",
            f"{row['n_right']:,}",
            f"{row['n_tokens']:,}",
            f"{row['ttrl_tokens']:,}" if row.get("ttrl_tokens") is not None else "",
            f"{row['tokens_to_right']:,}" if row.get("tokens_to_right") is not None else "never right",
            Code(statements.get(row["problem_id"], row["problem_id"]), _WIDTH),
        )
        for row in found[:_N_PROBLEMS]
    )
    head = ("no.", "samples", "right", "tokens", "tokens of TTRL", "until right", "problem")
    return [Paragraph(said), Table("rrrrrrl", head, rows)]
