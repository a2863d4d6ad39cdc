"""The figures of report.html: small drawings, readable at the width of a phone, in the colours of the page.

Each function takes the contents of report.json and returns a `Figure`, or None where the run has nothing to show in it.
Their legends and captions are text of the page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from ladder_lite.report.document import Figure, Key
from ladder_lite.report.drawing.palette import PALETTE, colour_of, label_of
from ladder_lite.report.drawing.pictures import by_condition, clear_axes, dashes_of, race_lines, shares_up
from ladder_lite.report.drawing.svg import to_svg
from ladder_lite.report.findings import REASONS
from ladder_lite.report.paper_results import PAPER, VARIANTS, Quoted
from ladder_lite.terminal import percent, plain

Report = Mapping[str, Any]

_WIDTH = 340.0  # units of a drawing, and about as many pixels on a phone
_FONT = 13.0
_ROW = 40.0
_MAX_PROBLEMS = 24
_DASHED = (5.0, 2.0)


def _ink(name: str) -> str:
    return PALETTE[name].light


def bars(report: Report) -> Figure | None:
    """pass@1 of the conditions with 95 % intervals; the paper's beside them, in a panel of its own."""
    paper, entries = PAPER[report["experiment"]], report["conditions"]
    if not entries:
        return None
    names = [*entries, *paper.others]
    height = _ROW * len(names) + 30
    drawing = Drawing(figsize=(_WIDTH / 72, height / 72))
    ours = drawing.add_axes((0.0, 0.0, 0.66, 1 - 26 / height))
    papers = drawing.add_axes((0.74, 0.0, 0.26, 1 - 26 / height))
    for axes, heading in ((ours, "this run"), (papers, "the paper*")):
        axes.set(xlim=(0, 1), ylim=(len(names), 0))
        axes.axis("off")
        axes.plot([0, 0], [0.08, len(names) - 0.05], color=_ink("edge"), linewidth=0.8, clip_on=False)
        axes.text(
            0, -0.12, heading, color=_ink("ink"), fontsize=_FONT, weight="bold", va="bottom", transform=axes.transData
        )
    for row, name in enumerate(names):
        _words(ours, 0.015, row + 0.22, plain(label_of(name), 24), "ink" if name in entries else "soft")
        if name in entries:
            _bar(ours, row, entries[name]["pass@1"], colour_of(name))
        quoted = paper.results.get(name) or paper.others.get(name)
        if quoted:
            _quoted(papers, row, quoted)
    alt = "; ".join(f"{label_of(name)} {percent(entry['pass@1']['value'])}" for name, entry in entries.items())
    return Figure(
        "pass@1 on the test problems",
        f"Bars: {plain(alt, 400)}",
        to_svg(drawing, "bars", f"pass@1 by condition: {plain(alt, 400)}"),
        f"Lines across the ends of the bars: 95 % intervals. *The paper's figures are of another model "
        f"({paper.subject}) and stand apart from ours.",
    )


def seeds(mean: Mapping[str, Any], name: str) -> Figure:
    """Means over seeds as bars with their intervals, and a dot for each seed."""
    conditions = mean["conditions"]
    height = _ROW * len(conditions) + 4
    drawing = Drawing(figsize=(_WIDTH / 72, height / 72))
    axes = drawing.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, 1), ylim=(len(conditions), 0))
    axes.axis("off")
    for row, (condition, found) in enumerate(conditions.items()):
        _words(axes, 0.01, row + 0.22, plain(label_of(condition), 30), "ink")
        _bar(axes, row, found, colour_of(condition))
        axes.plot(
            found["values"],
            [row + 0.62] * len(found["values"]),
            "o",
            markersize=5,
            zorder=4,
            clip_on=False,
            markerfacecolor="none",
            markeredgecolor=_ink("ink"),
        )
    alt = f"Means of pass@1 over {len(mean['seeds'])} seeds"
    caption = "Circles: the single seeds. Lines across the ends of the bars: 95 % intervals of the means."
    return Figure(alt, alt, to_svg(drawing, name, alt), caption)


def _bar(axes: Axes, row: int, result: Mapping[str, float], colour: str) -> None:
    at = row + 0.62
    axes.barh(at, result["value"], height=0.36, color=_ink(colour), linewidth=0)
    axes.plot([result["low"], result["high"]], [at, at], color=_ink("ink"), linewidth=1.3, zorder=3)
    for end in ("low", "high"):
        axes.plot([result[end]] * 2, [at - 0.11, at + 0.11], color=_ink("ink"), linewidth=1.3, zorder=3, clip_on=False)
    _words(axes, 1.0, row + 0.22, percent(result["value"]), colour, weight="bold", ha="right")


def _quoted(axes: Axes, row: int, quoted: Quoted) -> None:
    start = quoted.low if quoted.low < quoted.high and quoted.low else 0.0
    words = quoted.words.replace("<=", "≤").rstrip("*")
    drawn = axes.barh(row + 0.62, quoted.high - start, left=start, height=0.36, facecolor="none", linewidth=1.1)[0]
    drawn.set(edgecolor=_ink("soft"), linestyle=(0, (2, 1.5)))
    _words(axes, 0.03, row + 0.22, words, "soft")


def _words(axes: Axes, x: float, y: float, words: str, colour: str, **how: Any) -> None:
    axes.text(x, y, words, color=_ink(colour), fontsize=_FONT, va="center", parse_math=False, **how)


def accuracy(report: Report) -> Figure | None:
    """Test accuracy while training, against the GRPO step: LADDER, the control, and thinner the arms."""
    curves = by_condition(report["curve"])
    if not curves:
        return None
    drawing, axes = _canvas("GRPO step")
    final = {name: entry["pass@1"]["value"] for name, entry in report["conditions"].items()}
    highest, keys = 0.0, []
    for name, dashes in dashes_of(curves):
        steps, values = [row["step"] for row in curves[name]], [row["pass@1"] for row in curves[name]]
        _curve(axes, name, dashes, *_thinned(steps, values))
        if name in final and colour_of(name) != "arm":
            end = max(report["conditions"][name].get("steps", 0), steps[-1])
            axes.plot(end, final[name], "o", color=_ink(colour_of(name)), markersize=6, zorder=4, clip_on=False)
        highest = max(highest, *values, final.get(name, 0.0))
        keys.append(Key(f"{plain(label_of(name), 30)} {percent(final.get(name, values[-1]))}", colour_of(name), dashes))
    if "base" in final:
        axes.axhline(final["base"], color=_ink("base"), linewidth=1.2, dashes=_DASHED, zorder=1)
        keys.append(Key(f"base model {percent(final['base'])}", "base", _DASHED))
        highest = max(highest, final["base"])
    shares_up(axes, highest)
    axes.set_xlim(0, max(1, *(row["step"] for row in report["curve"])))
    return Figure(
        "Test accuracy while training",
        "Test accuracy against GRPO step",
        to_svg(drawing, "accuracy", "Test accuracy against GRPO step"),
        "Lines: one answer a problem, sampled while training. Dots, and the numbers of the legend: the evaluation at "
        "the end, where there is one.",
        tuple(keys),
        png="accuracy.png",
    )


def variants(report: Report) -> Figure | None:
    """Accuracy against the number of variants that training could draw from, the paper's Figure 3."""
    points = sorted(
        (entry["variants"], name, entry["pass@1"])
        for name, entry in report["conditions"].items()
        if entry.get("variants") and name not in ("ladder_ttrl", "ttrl")
    )
    if len(points) < 2:
        return None
    drawing, axes = _canvas("variants that training could draw from")
    line = [point for point in points if _is_share(point[1])]
    axes.plot(
        [n for n, _, _ in line],
        [result["value"] for _, _, result in line],
        color=_ink("ladder"),
        linewidth=1.6,
        zorder=2,
    )
    for n, name, result in points:
        axes.plot([n, n], [result["low"], result["high"]], color=_ink(colour_of(name)), linewidth=1.4, zorder=2)
        axes.plot(
            n,
            result["value"],
            "o" if _is_share(name) else "D",
            color=_ink(colour_of(name)),
            markersize=7,
            zorder=3,
            clip_on=False,
        )
    few, many = points[0][0], points[-1][0]
    if many > 4 * few:
        axes.set_xscale("log")
        axes.set_xlim(few / 1.3, many * 1.3)
        ticks = _apart([n for n, _, _ in points])
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xlim(0, many * 1.1)
    shares_up(axes, max(result["high"] for _, _, result in points))
    return Figure(
        "Accuracy against number of variants",
        "pass@1 against the number of variants",
        to_svg(drawing, "variants", "pass@1 against the number of variants"),
        "Dots joined by the line: LADDER with part of its variants and with all. A part is the first ones of each "
        "training problem, which lie less deep in the tree. Diamonds: arms that differ otherwise. " + VARIANTS,
        (Key("LADDER, all variants", "ladder"), Key("arms", "arm")),
    )


def _is_share(name: str) -> bool:
    """Whether a condition is LADDER or LADDER with a part of its variants, by the names that recipes use."""
    return name == "ladder" or name.removeprefix("ladder_").isdecimal()


def _apart(numbers: Sequence[int]) -> list[int]:
    """The numbers that can stand below a logarithmic axis without touching."""
    kept: list[int] = []
    for number in sorted(set(numbers), reverse=True):
        if not kept or kept[-1] / number > 1.45:
            kept.append(number)
    return kept[::-1]


def signal(report: Report) -> Figure | None:
    """Groups whose rewards are all equal, against the step: nothing is learned from them."""
    training = {
        name: row
        for name, row in report["training"].items()
        if any(v is not None for v in row["groups_without_signal"])
    }
    if not training:
        return None
    drawing, axes = _canvas("GRPO step")
    keys = []
    for name, dashes in dashes_of(training):
        row = training[name]
        values = [float("nan") if value is None else value for value in row["groups_without_signal"]]
        _curve(axes, name, dashes, row["steps"], values)
        keys.append(Key(plain(label_of(name), 30), colour_of(name), dashes))
    shares_up(axes, 1.0)
    axes.set_xlim(0, None)
    return Figure(
        "Groups without signal",
        "Share of groups without signal against GRPO step",
        to_svg(drawing, "signal", "Share of groups without signal against GRPO step"),
        "The share of groups whose rewards are all equal, of which GRPO learns nothing; means over stretches of steps.",
        tuple(keys),
    )


def rollouts(report: Report, condition: str) -> Figure | None:
    """What became of the rollouts, by the reason of their reward, stacked against the step."""
    row = report["training"].get(condition)
    if row is None or not row["rollouts"]:
        return None
    kinds = [kind for kind in REASONS if any(row["rollouts"][kind])]
    drawing, axes = _canvas("GRPO step")
    steps = row["steps"] if len(row["steps"]) > 1 else [0, *row["steps"]]
    shares = [row["rollouts"][kind] * (len(steps) // len(row["steps"])) for kind in kinds]
    axes.stackplot(steps, *shares, colors=[_ink(kind) for kind in kinds], linewidth=0)
    axes.set_xlim(steps[0], steps[-1])
    shares_up(axes, 1.0)
    return Figure(
        f"Rewards by reason: {plain(label_of(condition), 30)}",
        f"Kinds of rollouts against GRPO step, {plain(label_of(condition), 30)}",
        to_svg(drawing, f"rollouts-{condition}", "Kinds of rollouts against GRPO step"),
        "Of all rollouts, from below: " + ", ".join(kinds) + ". Only right ones are rewarded.",
        tuple(Key(kind, kind, area=True) for kind in kinds),
    )


def steps_to_solve(problems: Sequence[tuple[str, Mapping[str, Any]]], condition: str) -> Figure | None:
    """Steps of TTRL for each problem, by its number in the table below; solved ones filled."""
    if not problems:
        return None
    shown = problems[:_MAX_PROBLEMS]
    height = 17.0 * len(shown) + 48
    drawing = Drawing(figsize=(_WIDTH / 72, height / 72))
    axes = drawing.add_axes((0.09, 38 / height, 0.86, 1 - 44 / height))
    clear_axes(axes, "GRPO steps", _FONT)
    for row, (_, outcome) in enumerate(shown):
        solved = outcome["solved"]
        axes.barh(
            row,
            outcome["steps_to_solve"] if solved else outcome["steps"],
            height=0.66,
            facecolor=_ink(colour_of(condition)) if solved else "none",
            edgecolor=_ink(colour_of(condition)),
            linewidth=1.1,
            linestyle="-" if solved else (0, (2, 1.5)),
        )
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks(range(len(shown)), [number for number, _ in shown])
    axes.set_xlim(0, max(1, *(outcome["steps"] for _, outcome in shown)) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=_ink("line"), linewidth=0.8)
    more = f" The first {len(shown)} of {len(problems)}." if len(problems) > len(shown) else ""
    return Figure(
        f"Steps per problem: {label_of(condition)}",
        f"Steps of TTRL by problem, {label_of(condition)}",
        to_svg(drawing, f"steps-{condition}", "Steps of TTRL by problem"),
        "Filled: solved after so many steps, by the paper's rule (a right answer at any step). Dashed: not solved in "
        f"so many. Numbered as in the table.{more}",
    )


def race(report: Report) -> Figure | None:
    """Problems solved against the tokens generated for one of them, the paper's Figure 6."""
    found = report["race"]
    if not found:
        return None
    drawing, axes = _canvas("tokens generated for a problem")
    ends = race_lines(axes, found)
    return Figure(
        "Solved against generated tokens",
        "Problems solved against tokens generated for each of them",
        to_svg(drawing, "race", "Problems solved against tokens generated for each of them"),
        f"Of the same {len(found['problems'])} test problems, how many each method had solved once it had generated "
        "so many tokens for each; a line ends at the largest budget that a problem was given.",
        tuple(Key(label, name) for _, label, name in ends),
        png="ttrl.png",
    )


def _canvas(below: str) -> tuple[Drawing, Axes]:
    drawing = Drawing(figsize=(_WIDTH / 72, 230 / 72))
    axes = drawing.add_axes((0.135, 0.185, 0.83, 0.775))
    clear_axes(axes, below, _FONT)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return drawing, axes


def _curve(axes: Axes, name: str, dashes: tuple[float, ...], steps: Sequence[float], values: Sequence[float]) -> None:
    arm = colour_of(name) == "arm"
    line = axes.plot(steps, values, color=_ink(colour_of(name)), linewidth=1.3 if arm else 2.4, clip_on=False)[0]
    line.set_zorder(2 if arm else 3)
    if dashes:
        line.set_dashes(dashes)


def _thinned(steps: list[int], values: list[float], most: int = 200) -> tuple[list[int], list[float]]:
    """Every n-th point, and the last one."""
    every = -(-len(steps) // most)
    return [*steps[:-1:every], steps[-1]], [*values[:-1:every], values[-1]]
