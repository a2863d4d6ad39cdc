"""Axes in the style of the page: small, with a light grid, in the colours of the palette, readable on a phone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, which looks for a window system and keeps global state
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ladder_lite.report.drawing.palette import PALETTE, Key, colour_of, label_of
from ladder_lite.terminal import one_line, percent

# Lengths are in points, of which an SVG of matplotlib has 72 to the inch.
FONT = 13.0
_WIDTH = 340.0  # about as many pixels as a phone is wide, so text appears there at its size
_ROW = 40.0  # height of a bar with the words above it
_HEADING = 26.0
_TOPS = (0.1, 0.25, 0.5, 1.0)  # an axis of shares ends at the first of these that is high enough
# Lengths of strokes and gaps, for up to eight ablations, then they repeat; () is a solid line.
_DASHES: tuple[tuple[float, ...], ...] = (
    *((), (5, 2), (1.5, 2), (7, 2, 1.5, 2)),
    *((2, 5), (10, 3), (4, 2, 1.5, 2, 1.5, 2), (10, 2, 4, 2)),
)


def ink(name: str) -> str:
    """Return the colour of that name for drawings."""
    # `to_svg` replaces it by a CSS variable, which is how the page's dark theme gets the other one.
    return PALETTE[name].light


def keys_of(conditions: Iterable[str]) -> dict[str, Key]:
    """Return a legend entry for each condition; ablations share a colour and differ in their dashes."""
    names = list(conditions)
    ablations = [name for name in names if colour_of(name) == "ablation"]
    dashes = {name: _DASHES[index % len(_DASHES)] for index, name in enumerate(ablations)}
    return {name: Key(one_line(label_of(name), 30), colour_of(name), dashes.get(name, ())) for name in names}


def canvas(x_label: str, y_label: str, height: float = 230.0) -> tuple[Figure, Axes]:
    """Return a drawing with one pair of axes with these labels."""
    # The constrained layout reserves the space that labels and ticks need.
    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=ink("line"), linewidth=0.8)
    axes.set_axisbelow(True)  # the grid is drawn behind the lines
    axes.tick_params(which="both", length=0, labelsize=FONT, labelcolor=ink("soft"), pad=6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink("edge"))
    axes.set_xlabel(x_label, fontsize=FONT, color=ink("soft"))
    axes.set_ylabel(y_label, fontsize=FONT, color=ink("soft"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))  # at most five intervals, at whole numbers of steps
    return figure, axes


def shares_up(axes: Axes, at_least: float = 0.0) -> None:
    """Make the y axis one of shares in percent, from 0 to a round number above all that has been drawn."""
    highest = max(at_least, axes.dataLim.ymax)
    axes.set_ylim(0, next((top for top in _TOPS if highest <= top), 1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def draw_curve(axes: Axes, key: Key, xs: Sequence[float], ys: Sequence[float], **options: Any) -> None:
    """Draw a line in the colour and dashes of its legend entry; ablations are thin and lie below the others."""
    defaults = {"linewidth": 1.3, "zorder": 2} if key.colour == "ablation" else {"linewidth": 2.4, "zorder": 3}
    style = (0, key.dashes) if key.dashes else "-"
    marker = "." if len(xs) == 1 else ""  # a line through a single point is invisible
    # Not clipped, or a line at 0 or 100 % would lose half of its width.
    line = {"label": key.label, "color": ink(key.colour), "linestyle": style, "marker": marker, "clip_on": False}
    axes.plot(xs, ys, **(line | defaults | options))


def draw_dot(axes: Axes, x: float, y: float, colour: str, marker: str = "o", label: str | None = None) -> None:
    """Draw a mark on top of the lines; with a label, it gets a legend entry of its own in the PNG."""
    axes.plot(x, y, marker, label=label, color=ink(colour), markersize=6.5, zorder=4, clip_on=False)


def bar_panels(n_rows: int, panels: Mapping[str, tuple[float, float]]) -> tuple[Figure, list[Axes]]:
    """Return a drawing with panels of horizontal bars from 0 to 1, by heading: {"this run": (0.0, 0.66)}.

    The numbers are where a panel starts and ends, as shares of the drawing's width.
    """
    height = _ROW * n_rows + _HEADING
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    drawn = []
    for heading, (left, right) in panels.items():
        axes = figure.add_axes((left, 0.0, right - left, 1 - _HEADING / height))
        axes.set(xlim=(0, 1), ylim=(n_rows, 0))  # row 0 is on top, and each row is 1 high
        axes.axis("off")
        # The line at 0 from which the bars start.
        axes.plot([0, 0], [0.08, n_rows - 0.05], color=ink("edge"), linewidth=0.8, clip_on=False)
        write(axes, 0.0, -0.3, heading, "ink", weight="bold")
        drawn.append(axes)
    return figure, drawn


def draw_bar(axes: Axes, row: int, share: Mapping[str, float], colour: str) -> None:
    """Draw a share as a bar, with its interval across the end of the bar and its value above."""
    y = row + 0.62  # the words above the bar are at row + 0.22
    axes.barh(y, share["value"], height=0.36, color=ink(colour), linewidth=0)
    ends = [share["low"], share["high"]]
    axes.plot(ends, [y, y], "-|", color=ink("ink"), linewidth=1.3, markersize=9, markeredgewidth=1.3, clip_on=False)
    write(axes, 1.0, row + 0.22, percent(share["value"]), colour, weight="bold", ha="right")


def write(axes: Axes, x: float, y: float, words: str, colour: str, **options: Any) -> None:
    """Write words, vertically centred at y."""
    # A recipe's name may contain dollar signs, which matplotlib would read as a formula.
    axes.text(x, y, words, color=ink(colour), fontsize=FONT, va="center", parse_math=False, **options)
