"""The pictures beside report.md, for a README: test accuracy against GRPO step, and TTRL against sampling anew."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: it would look for a window system and keep global state
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ladder_lite.evaluate.scores import wilson_interval
from ladder_lite.report.drawing.palette import PALETTE, colour_of, label_of
from ladder_lite.terminal import percent, plain

_TOPS = (0.1, 0.25, 0.5, 1.0)  # an axis of shares ends at the first that holds everything
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 2), (7, 2, 1.5, 2), (2, 5))
_LABEL_GAP = 0.075
_LABEL_WIDTH = 26

End = tuple[float, str, str]
"""Where a line ends: its height, its label, and the name of its colour."""


def draw_accuracy(report: Mapping[str, Any], path: Path) -> None:
    """Draw the curves of a report (the contents of report.json) as a PNG of 1600 x 900 pixels.

    Lines are the checks made while training, with 95 % bands but for the arms; the marks at their ends, the base
    model's level and LADDER + TTRL are final evaluations where there are any.
    """
    final = {name: entry["pass@1"]["value"] for name, entry in report["conditions"].items()}
    n_problems = max((entry["n_problems"] for entry in report["conditions"].values()), default=0)
    about = f"{plain(report['recipe'], 28)}, seed {report['seed']}: pass@1"
    about += f" on {n_problems} test problems, with 95 % intervals" if n_problems else ""
    figure, axes = _frame("Test accuracy while training", about, "GRPO step")
    curves = by_condition(report["curve"])
    trained = {name: report["conditions"][name].get("steps", 0) for name in curves if name in final}
    last_step = max([row["step"] for row in report["curve"]] + list(trained.values()), default=0)
    ends: list[End] = []
    bounds = [0.0]
    for name, dashes in dashes_of(curves):
        steps, values = [row["step"] for row in curves[name]], [row["pass@1"] for row in curves[name]]
        colour, thick = PALETTE[colour_of(name)].light, colour_of(name) != "arm"
        end, end_step = final.get(name, values[-1]), max(steps[-1], trained.get(name, 0))
        line = axes.plot(steps, values, color=colour, linewidth=2.2 if thick else 1.2, zorder=3, clip_on=False)[0]
        if dashes:
            line.set_dashes(dashes)
        axes.plot([steps[-1], end_step], [values[-1], end], color=colour, linewidth=1.2, zorder=3, clip_on=False)
        axes.plot([end_step, last_step], [end, end], color=colour, linewidth=1.2, linestyle=":", zorder=3)
        axes.plot(end_step, end, "o", color=colour, markersize=6.5 if thick else 4, zorder=5, clip_on=False)
        if n_problems and thick:
            low, high = zip(*(wilson_interval(value, n_problems) for value in values), strict=True)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0, zorder=1)
            bounds += high
        bounds += [*values, end]
        ends.append((end, f"{plain(label_of(name), _LABEL_WIDTH)} {percent(end)}", colour_of(name)))
    for name in ("base", "ladder_ttrl"):
        if name not in final:
            continue
        if name == "base":
            axes.axhline(final[name], color=PALETTE[name].light, linewidth=1.4, linestyle=(0, (5, 3)), zorder=2)
        else:
            axes.plot(last_step, final[name], "D", color=PALETTE[name].light, markersize=6.5, zorder=4, clip_on=False)
        bounds.append(final[name])
        ends.append((final[name], f"{label_of(name)} {percent(final[name])}", name))
    axes.set_xlim(0, max(last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    shares_up(axes, max(bounds))
    _label(axes, ends)
    figure.savefig(path, format="png")


def draw_race(report: Mapping[str, Any], path: Path) -> None:
    """Draw how many of the same test problems TTRL and sampling anew solve by generated tokens, as a PNG like that."""
    n_problems = len(report["race"]["problems"])
    about = (
        f"{plain(report['recipe'], 28)}, seed {report['seed']}: {n_problems} test problems that LADDER left unsolved"
    )
    figure, axes = _frame("Solved against generated tokens", about, "tokens generated for a problem", width=0.53)
    _label(axes, race_lines(axes, report["race"]))
    figure.savefig(path, format="png")


def race_lines(axes: Axes, race: Mapping[str, Any]) -> list[End]:
    """Draw the lines of a race and set the axes up; the ends have heights in problems."""
    n_problems, methods = len(race["problems"]), race["methods"]
    last = max(value for method in methods.values() for value in method["spent"])
    firsts = [value for method in methods.values() for value in method["tokens_to_solve"] if value]
    logarithmic = bool(firsts) and last > 20 * min(firsts)
    start = min(firsts) / 2 if logarithmic else 0.0
    ends = []
    for name, method in methods.items():
        at = sorted(value for value in method["tokens_to_solve"] if value is not None)
        xs, ys = [start, *at, max(method["spent"])], [0, *range(1, len(at) + 1), len(at)]
        colour = PALETTE[name].light
        axes.step(xs, ys, where="post", color=colour, linewidth=2.2, clip_on=False)
        axes.plot(xs[-1], ys[-1], "o", color=colour, markersize=5.5, clip_on=False)
        ends.append((float(ys[-1]), f"{label_of(name)}: {method['solved']} of {n_problems}", name))
    if logarithmic:
        axes.set_xscale("log")
    axes.set(xlim=(start, last * 1.05 or 1), ylim=(0, n_problems * 1.03))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return ends


def dashes_of(names: Mapping[str, Any]) -> list[tuple[str, tuple[float, ...]]]:
    """The conditions, each with the dashes of its line: arms share a colour and are told apart by them."""
    arms = [name for name in names if colour_of(name) == "arm"]
    return [(name, _DASHES[arms.index(name) % len(_DASHES)] if name in arms else ()) for name in names]


def by_condition(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of a report's `curve`, by condition."""
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        curves.setdefault(row["condition"], []).append(row)
    return curves


def shares_up(axes: Axes, highest: float) -> None:
    """Make the upright axis one of shares, from 0 to what holds the highest."""
    axes.set_ylim(0, next((top for top in _TOPS if highest <= top), 1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def clear_axes(axes: Axes, below: str, size: float) -> None:
    """Take the frame off, draw a quiet grid, and say what is on the axis below."""
    axes.grid(axis="y", color=PALETTE["line"].light, linewidth=0.8)
    axes.set_axisbelow(True)
    soft = PALETTE["soft"].light
    axes.tick_params(which="both", length=0, labelsize=size, labelcolor=soft, color=soft, pad=6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["edge"].light)
    axes.set_xlabel(below, fontsize=size, color=soft)


def _frame(title: str, about: str, below: str, width: float = 0.58) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), dpi=200, facecolor="white")
    axes = figure.add_axes((0.09, 0.13, width, 0.68))
    clear_axes(axes, below, 10.5)
    figure.text(0.025, 0.94, title, fontsize=14, weight="bold", color=PALETTE["ink"].light, va="center")
    figure.text(0.025, 0.875, about, fontsize=10.5, color=PALETTE["soft"].light, va="center", parse_math=False)
    return figure, axes


def _label(axes: Axes, ends: Sequence[End]) -> None:
    """Write the label of each line beside its end, right of the axes."""
    top = axes.get_ylim()[1]
    heights = _spread([value for value, _, _ in ends], top, gap=min(_LABEL_GAP, 1 / max(len(ends), 1)) * top)
    across = axes.get_yaxis_transform()  # x in widths of the axes, y in data
    for height, (value, words, name) in zip(heights, ends, strict=True):
        colour = PALETTE[name].light
        axes.plot([1.015, 1.05], [value, height], color=colour, linewidth=1, transform=across, clip_on=False)
        axes.text(
            1.06,
            height,
            words,
            color=colour,
            fontsize=10.5,
            weight="bold" if name != "arm" else "normal",
            va="center",
            transform=across,
            parse_math=False,
        )


def _thousands(value: float, _: object) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _spread(values: Sequence[float], top: float, gap: float) -> list[float]:
    """Return a height for the label of each value: `gap` apart, inside [0, top], as near to the values as that allows.

    Labels that would overlap form a block around the mean of their values, and blocks that then touch are joined.
    """
    blocks: list[list[int]] = []

    def bottom(block: Sequence[int]) -> float:
        length = (len(block) - 1) * gap
        middle = sum(values[index] for index in block) / len(block)
        return min(max(middle - length / 2, 0.0), top - length)

    for index in sorted(range(len(values)), key=values.__getitem__):
        blocks.append([index])
        while len(blocks) > 1 and bottom(blocks[-2]) + len(blocks[-2]) * gap > bottom(blocks[-1]):
            joined = blocks.pop()
            blocks[-1] += joined
    return [height for _, height in sorted((i, bottom(b) + n * gap) for b in blocks for n, i in enumerate(b))]
