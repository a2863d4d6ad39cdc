"""The chapter on test-time reinforcement learning: what it solved, in how many steps, and against what."""

from collections.abc import Mapping
from typing import Any

from scipy.stats import binomtest

from ladder_lite import sketches, variants
from ladder_lite.document import Block, Chapter, Code, Figures, Mark, Paragraph, Table, Text
from ladder_lite.findings import Run, outcomes, read_json
from ladder_lite.live import clock_time, percent
from ladder_lite.palette import label_of
from ladder_lite.paper_results import TEST_TIME

Report = Mapping[str, Any]

_STOPPED = {
    "solved": "solved",
    "max_steps": "all steps taken",
    "budget": "budget used up",
    "plateau": "no signal left",
    "no variants": "no variants",
}
_N_PROBLEMS = 60
_WIDTH = 120


def test_time(report: Report, run: Run, statements: Mapping[str, str]) -> Chapter:
    """TTRL after LADDER, TTRL without LADDER, and LADDER resampled at equal generated tokens."""
    found = {name: outcomes(run, name) for name in ("ladder_ttrl", "ttrl", "ladder_pass100")}
    if not any(found.values()):
        return Chapter("Test-time reinforcement learning", ())
    numbers = _numbers(found)
    steps = {name: [(numbers[row["problem_id"]], row) for row in found[name]] for name in ("ladder_ttrl", "ttrl")}
    figures = [sketches.race(report), *(sketches.steps_to_solve(steps[name], name) for name in steps)]
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
    """Plain sentences: who solved more of the same problems at equal generated tokens, also when TTRL loses."""
    race = report["race"]
    methods = race.get("methods", {})
    sentences: list[Text] = []
    if "ladder_ttrl" in methods and "ladder_pass100" in methods:
        sentences.append(
            _compared(race, "ladder_pass100", " when its answers are only sampled anew, at least 100 a problem and for "
                      "as many generated tokens")  # fmt: skip
        )
    if "ladder_ttrl" in methods and "ttrl" in methods:
        sentences.append(_compared(race, "ttrl", ""))
    return sentences


def _compared(race: Mapping[str, Any], other: str, how: str) -> Text:
    ours, theirs = race["methods"]["ladder_ttrl"], race["methods"][other]
    n_problems = len(race["problems"])
    pairs = list(zip(ours["tokens_to_solve"], theirs["tokens_to_solve"], strict=True))
    only_ours = sum(a is not None and b is None for a, b in pairs)
    only_theirs = sum(a is None and b is not None for a, b in pairs)
    subject = "LADDER" if other == "ladder_pass100" else label_of(other)
    verdict = "TTRL after LADDER wins" if only_ours > only_theirs else (
        f"{label_of(other)} wins" if only_theirs > only_ours else "neither is ahead"
    )  # fmt: skip
    sure = ""
    if only_ours != only_theirs:
        p = binomtest(only_ours, only_ours + only_theirs).pvalue
        chance = "too few to rule out chance" if p > 0.05 else "more than chance explains"
        sure = f", {chance} (sign test over {only_ours + only_theirs} problems on which they differ, p = {p:.2g})"
    return (
        Mark(f"{verdict[0].upper()}{verdict[1:]}"),
        f"{sure}: of the same {n_problems} test problems, TTRL after LADDER solved {ours['solved']} by the paper's rule, "
        f"{subject}{how} {theirs['solved']}.",
    )


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
        f"{label_of(condition)}: {counts['attempted']} problems{left}; solved {counts['solved']}, by the paper's rule: a "
        "right answer, as the verifier finds, at any step."
    )
    if "voted_right" in counts:
        said += (
            f" Without the verifier, by the majority vote of the tuned model's samples, it answers {counts['voted_right']} "
            "right; that is what it would hand in."
        )
    voted = any("voted_answer" in row for row in found)
    head: tuple[Text, ...] = (
        "no.", "problem", "variants", "solved at step", "steps", "time", "answer", *(["voted answer", "vote"] if voted else [])
    )  # fmt: skip
    rows = []
    for row in found[:_N_PROBLEMS]:
        folder = run.path / "conditions" / condition / "problems" / str(row["problem_id"])
        rows.append(
            (
                numbers[row["problem_id"]],
                Code(statements.get(row["problem_id"], row["problem_id"]), _WIDTH),
                str(variants.count(folder / "variants")["kept"]),
                str(row["steps_to_solve"]) if row["solved"] else _unsolved(row),
                str(row["steps"]),
                clock_time(row["seconds"]),
                Code(row["answer"], _WIDTH) if row["answer"] else "",
                *(_vote(row) if voted else ()),
            )
        )
    blocks: list[Block] = [Paragraph(said), Table("rlrrrrl" + ("ll" if voted else ""), head, tuple(rows))]
    if len(found) > _N_PROBLEMS:
        blocks.append(Paragraph(f"And {len(found) - _N_PROBLEMS} more."))
    return blocks


def _unsolved(row: Mapping[str, Any]) -> str:
    why = _STOPPED.get(str(row.get("stopped")))
    return f"not solved ({why})" if why else "not solved"


def _vote(row: Mapping[str, Any]) -> tuple[Text, Text]:
    if row.get("voted_answer") is None:
        return "", "no vote"
    share = percent(row["voted_share"]) if row.get("voted_share") is not None else ""
    grade = Mark("right", "right") if row.get("voted_right") else Mark("wrong", "wrong")
    return Code(row["voted_answer"], _WIDTH), (grade, f" {share}")


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
            Code(statements.get(row["problem_id"], row["problem_id"]), _WIDTH),
            f"{row['n_samples']:,}",
            f"{row['n_right']:,}",
            f"{row['n_tokens']:,}",
            f"{row['ttrl_tokens']:,}" if row.get("ttrl_tokens") is not None else "",
            f"{row['tokens_to_right']:,}" if row.get("tokens_to_right") is not None else "never right",
        )
        for row in found[:_N_PROBLEMS]
    )
    head = ("no.", "problem", "samples", "right", "tokens", "tokens of TTRL", "tokens to the first right one")
    return [Paragraph(said), Table("rlrrrrr", head, rows)]
