"""The picture of a run: test accuracy against GRPO step, for report.md and the README."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ladder_lite.live import percent, plain
from ladder_lite.scores import wilson_interval

# Okabe and Ito's colours, darkened where they must be read as text: told apart with every kind of colour vision.
_TRAINED = {"ladder": ("LADDER", "#0072B2"), "rl_without_variants": ("RL without variants", "#C85200")}
_UNTRAINED = {"base": ("base model", "#5A5A5A"), "ladder_ttrl": ("LADDER + TTRL", "#007A5A")}
_TOPS = (0.1, 0.25, 0.5, 1.0)  # the axis ends at the first that holds everything


def draw_accuracy(report: Mapping[str, Any], path: Path) -> None:
    """Draw the curves of a report (the contents of report.json) as a PNG of 1600 x 900 pixels.

    Lines are the checks made while training, with 95 % bands; the marks at their ends, the base model's level and
    LADDER + TTRL are final evaluations where there are any.
    """
    from matplotlib.figure import Figure  # not pyplot: it would look for a window system and keep global state
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=200, facecolor="white")
    axes = figure.add_axes((0.09, 0.13, 0.58, 0.68))
    final = {name: entry["pass@1"]["value"] for name, entry in report["conditions"].items()}
    n_problems = max((entry["n_problems"] for entry in report["conditions"].values()), default=0)
    trained = {name: report["conditions"][name].get("steps", 0) for name in _TRAINED if name in final}
    last_step = max((row["step"] for row in report["curve"]), default=0)
    last_step = max(last_step, *trained.values()) if report["curve"] and trained else last_step
    ends: list[tuple[float, str, str]] = []
    bounds = [0.0]

    for name, (label, colour) in _TRAINED.items():
        rows = [row for row in report["curve"] if row["condition"] == name]
        if not rows:
            continue
        steps, values = [row["step"] for row in rows], [row["pass@1"] for row in rows]
        end, end_step = final.get(name, values[-1]), max(steps[-1], trained.get(name, 0))
        axes.plot(steps, values, color=colour, linewidth=2.2, solid_capstyle="round", zorder=3, clip_on=False)
        axes.plot([steps[-1], end_step], [values[-1], end], color=colour, linewidth=1.4, zorder=3, clip_on=False)
        axes.plot([end_step, last_step], [end, end], color=colour, linewidth=1.4, linestyle=":", zorder=3)
        axes.plot(end_step, end, "o", color=colour, markersize=6.5, zorder=5, clip_on=False)
        if n_problems:
            low, high = zip(*(wilson_interval(value, n_problems) for value in values), strict=True)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0, zorder=1)
            bounds += high
        bounds += [*values, end]
        ends.append((end, label, colour))
    for name, (label, colour) in _UNTRAINED.items():
        if name not in final:
            continue
        if name == "base":
            axes.axhline(final[name], color=colour, linewidth=1.4, linestyle=(0, (5, 3)), zorder=2)
        else:
            axes.plot(last_step, final[name], "D", color=colour, markersize=6.5, zorder=4, clip_on=False)
        bounds.append(final[name])
        ends.append((final[name], label, colour))

    top = next(limit for limit in _TOPS if max(bounds) <= limit)
    axes.set(xlim=(0, max(last_step, 1)), ylim=(0, top))
    heights = _spread([value for value, _, _ in ends], top, gap=0.075 * top)
    for height, (value, label, colour) in zip(heights, ends, strict=True):
        across = axes.get_yaxis_transform()  # x in widths of the axes, y in shares
        axes.plot([1.015, 1.05], [value, height], color=colour, linewidth=1, transform=across, clip_on=False)
        words = f"{label} {percent(value)}"
        axes.text(1.06, height, words, color=colour, fontsize=10.5, weight="bold", va="center", transform=across)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=10.5, labelcolor="#333333", pad=6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#999999")
    axes.set_xlabel("GRPO step", fontsize=10.5, color="#333333")
    figure.text(0.025, 0.94, "Test accuracy while training", fontsize=14, weight="bold", color="#111111", va="center")
    about = f"{plain(report['recipe'], 28)}, seed {report['seed']}: pass@1"
    if n_problems:
        about += f" on {n_problems} test problems, with 95 % intervals"
    figure.text(0.025, 0.875, about, fontsize=10.5, color="#555555", va="center", parse_math=False)
    figure.savefig(path, format="png")


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
