"""The parts of a report: Markdown, figures, variant trees and folded listings, in chapters.

Foreign text (a model's, a recipe's, a problem set's) enters Markdown through `code` or `escape` only. Either makes it
one harmless line of bounded width.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ladder_lite.report.drawing.palette import Key
from ladder_lite.terminal import one_line

WIDTH = 160
"""The most columns of a piece of foreign text."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing for the page, with a picture for report.md if it has one. The caption is Markdown."""

    title: str
    svg: str  # an <svg> element, inserted into the page without escaping
    caption: str
    legend: tuple[Key, ...] = ()
    picture: tuple[str, bytes] | None = None  # the name and content of a PNG file beside report.md


class Figures(list[Figure]):
    """Figures, shown side by side if the page is wide enough."""


@dataclass(frozen=True, slots=True)
class Node:
    """A problem of a variant tree; `n_hidden` is the number of its children that are not shown."""

    text: str  # on one line
    latex: str | None  # the same for the page, if it has such a form
    label: str  # "training problem", or the kind of variant that was asked for: "easier", "equivalent"
    rate: float | None  # None if training never tried it
    children: tuple["Node", ...] = ()
    n_hidden: int = 0


class Trees(list[Node]):
    """Collapsible variant trees."""


@dataclass(frozen=True, slots=True)
class Folded:
    """Printable text with line breaks, collapsed on the page below a summary and left out of report.md."""

    summary: str
    text: str


Block = str | Figures | Trees | Folded
"""A part of a chapter, which is left out if it is empty; a string is Markdown."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Document:
    """A report: its title, its main result in one or two sentences, and its chapters. Empty chapters are left out.

    `formulas` has the LaTeX that the page shows in place of the code spans with these texts.
    """

    title: str
    headline: str
    chapters: Sequence[Chapter]
    formulas: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def pictures(self) -> dict[str, bytes]:
        """The PNG files of all figures, by file name."""
        blocks = [block for chapter in self.chapters for block in chapter.blocks if isinstance(block, Figures)]
        return dict(figure.picture for block in blocks for figure in block if figure.picture)


def code(text: str, width: int = WIDTH) -> str:
    """Return foreign text as a code span of one line, without control and bidi characters; "" if nothing is left."""
    line = one_line(text, width)
    fence = _fence("`", line)
    # Markdown strips one space at each end. It keeps a backtick at an end of the text apart from the fence.
    pad = " " if fence != "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""


def escape(text: str, width: int = WIDTH) -> str:
    """Return foreign text as a part of a sentence, on one line, with a backslash before each character of syntax."""
    return re.sub(r"([\\`*_~<&\[\]])", r"\\\1", one_line(text, width))


def listing(text: str) -> str:
    """Return printable text as a block that is shown verbatim."""
    fence = _fence("```", text)
    return f"{fence}\n{text}\n{fence}"


def bullets(items: Iterable[str], indent: str = "") -> str:
    """Return a list of Markdown items."""
    return "\n".join(f"{indent}- {item}" for item in items)


def table(columns: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table of rows, each with its cells by the heading of their columns; "" if there are no rows.

    A cell that a row lacks is empty. `columns` has one letter per column, l for text and r for numbers; the last letter
    also applies to all further columns.
    """
    # The union of the rows' headings, in the order in which they first appear.
    head = list(dict.fromkeys(heading for row in rows for heading in row))
    return grid(columns, head, [[row.get(heading, "") for heading in head] for row in rows]) if rows else ""


def grid(columns: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table like `table`, of rows that have a cell for each heading; headings may be equal."""
    rule = ["---:" if column == "r" else "---" for column in columns.ljust(len(head), columns[-1])]
    # A bar ends a cell even inside a code span, where the backslash is not shown (a rule of GitHub's tables).
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (head, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fence(shortest: str, text: str) -> str:
    """Return a row of backticks that the text does not contain."""
    # Nothing inside such a fence can close it.
    while shortest in text:
        shortest += "`"
    return shortest
