"""Axes in the look of the page: small, with a quiet grid, in the colours of the palette, readable on a phone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: it would look for a window system and keep global state
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ladder_lite.report.drawing.palette import PALETTE, Key, colour_of, label_of
from ladder_lite.terminal import one_line, percent

FONT = 13.0
_WIDTH = 340.0  # units of a drawing, and about as many pixels on a phone
_ROW = 40.0  # of a bar, with the words above it
_HEADING = 26.0
_TOPS = (0.1, 0.25, 0.5, 1.0)  # an axis of shares ends at the first that holds everything
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 2), (7, 2, 1.5, 2), (2, 5))


def ink(name: str) -> str:
    """The colour of that name in a drawing."""
    return PALETTE[name].light


def keys_of(conditions: Iterable[str]) -> dict[str, Key]:
    """Return a line of the legend for each condition; ablations share a colour and are told apart by their dashes."""
    names = list(conditions)
    ablations = [name for name in names if colour_of(name) == "ablation"]
    dashes = {name: _DASHES[at % len(_DASHES)] for at, name in enumerate(ablations)}
    return {name: Key(one_line(label_of(name), 30), colour_of(name), dashes.get(name, ())) for name in names}


def canvas(below: str, left: str, height: float = 230.0) -> tuple[Figure, Axes]:
    """Return a drawing with one pair of axes, and what stands below and left of them."""
    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=ink("line"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=FONT, labelcolor=ink("soft"), pad=6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink("edge"))
    axes.set_xlabel(below, fontsize=FONT, color=ink("soft"))
    axes.set_ylabel(left, fontsize=FONT, color=ink("soft"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure, axes


def shares_up(axes: Axes, highest: float) -> None:
    """Make the vertical axis one of shares, from 0 to what holds the highest."""
    axes.set_ylim(0, next((top for top in _TOPS if highest <= top), 1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def draw_curve(axes: Axes, key: Key, xs: Sequence[float], ys: Sequence[float], **how: Any) -> None:
    """Draw a line as the legend says; those of ablations are thin and lie below the others."""
    how = {"linewidth": 1.3, "zorder": 2} | how if key.colour == "ablation" else {"linewidth": 2.4, "zorder": 3} | how
    style = (0, key.dashes) if key.dashes else "-"
    marker = "." if len(xs) == 1 else ""  # a line of one point is invisible
    colour = ink(key.colour)
    axes.plot(xs, ys, label=key.label, color=colour, linestyle=style, marker=marker, clip_on=False, **how)


def draw_dot(axes: Axes, x: float, y: float, colour: str, marker: str = "o", label: str | None = None) -> None:
    """Draw a mark on top of the lines; with a label, one that the legend has a line for."""
    axes.plot(x, y, marker, label=label, color=ink(colour), markersize=6.5, zorder=4, clip_on=False)


def bar_panels(n_rows: int, panels: Mapping[str, tuple[float, float]]) -> tuple[Figure, list[Axes]]:
    """Return a drawing with panels for rows of bars from 0 to 1, each from left to right as its heading says."""
    height = _ROW * n_rows + _HEADING
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    drawn = []
    for heading, (left, right) in panels.items():
        axes = figure.add_axes((left, 0.0, right - left, 1 - _HEADING / height))
        axes.set(xlim=(0, 1), ylim=(n_rows, 0))
        axes.axis("off")
        axes.plot([0, 0], [0.08, n_rows - 0.05], color=ink("edge"), linewidth=0.8, clip_on=False)
        write(axes, 0.0, -0.3, heading, "ink", weight="bold")
        drawn.append(axes)
    return figure, drawn


def draw_bar(axes: Axes, row: int, share: Mapping[str, float], colour: str) -> None:
    """Draw a share as a bar, its interval across the bar's end, and its value above."""
    at = row + 0.62
    axes.barh(at, share["value"], height=0.36, color=ink(colour), linewidth=0)
    ends = [share["low"], share["high"]]
    axes.plot(ends, [at, at], "-|", color=ink("ink"), linewidth=1.3, markersize=9, markeredgewidth=1.3, clip_on=False)
    write(axes, 1.0, row + 0.22, percent(share["value"]), colour, weight="bold", ha="right")


def write(axes: Axes, x: float, y: float, words: str, colour: str, **how: Any) -> None:
    """Write words, dollar signs and all, with their middle at the height y."""
    axes.text(x, y, words, color=ink(colour), fontsize=FONT, va="center", parse_math=False, **how)
