"""The parts of a report, independent of Markdown and HTML: chapters of paragraphs, tables, figures and trees.

Foreign text (a model's, a recipe's, a problem set's) is always `Code`, one harmless line of bounded width, and never a
`str`. Escaping it is the task of the module `render` alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ladder_lite.report.drawing.palette import Key
from ladder_lite.terminal import one_line


@dataclass(frozen=True, slots=True)
class Code:
    """Foreign text, shown on one line of at most `width` columns."""

    text: str
    width: int = 80

    @property
    def line(self) -> str:
        """The text without line breaks, control and bidi characters, cut to the width."""
        return one_line(self.text, self.width)

    @property
    def left_out(self) -> str:
        """A note on the length of the text if it was cut, else ""."""
        # A short text can end in "..." by itself, and a long one can be all spaces, which `line` drops.
        cut = len(self.text) > self.width and self.line.endswith("...")
        return f"cut, of {len(self.text):,} characters" if cut else ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Emphasized words: a verdict, or what matters most in a sentence."""

    text: str
    look: Literal["strong", "right", "wrong"] = "strong"  # a CSS class of the page


# A sentence with a foreign word in it: ("Model: ", Code("org/model"), ".")
Inline = str | Code | Mark
Text = Inline | tuple[Inline, ...]
Row = dict[Text, Text]
"""A row of a table: its cells by the headings of their columns."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph; a `note` is set apart from the text."""

    text: Text
    note: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a list, with nested items."""

    text: Text
    items: tuple["Item", ...] = ()


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `columns` has one letter per column, l for text and r for numbers."""

    columns: str
    head: tuple[Text, ...]
    rows: tuple[tuple[Text, ...], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG beside report.md."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing for the page, with a picture for report.md if it has one."""

    title: str
    alt: str
    svg: str  # an <svg> element, inserted into the page without escaping
    caption: Text
    legend: tuple[Key, ...] = ()
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures, shown side by side if the page is wide enough."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A problem of a variant tree; `n_hidden` is the number of its children that are not shown."""

    text: Code
    label: str  # "training problem", or the kind of variant that was asked for: "easier", "equivalent"
    rate: float | None  # None if training never tried it
    children: tuple["Node", ...] = ()
    n_hidden: int = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """Collapsible variant trees."""

    roots: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Printable text with line breaks, shown verbatim; with a `summary` it is collapsed below that line."""

    text: str
    summary: str | None = None


Block = Paragraph | Bullets | Table | Figures | Tree | Listing


@dataclass(frozen=True, slots=True)
class Chapter:
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Document:
    """A report: its title, its main result in one or two sentences, and its chapters."""

    title: Text
    headline: Text
    chapters: Sequence[Chapter]

    @property
    def pictures(self) -> dict[str, bytes]:
        """The PNG files of all figures, by file name."""
        blocks = [block for chapter in self.chapters for block in chapter.blocks if isinstance(block, Figures)]
        pictures = [figure.picture for block in blocks for figure in block.figures if figure.picture]
        return {picture.name: picture.content for picture in pictures}


def parts(text: Text) -> tuple[Inline, ...]:
    """Return the parts of a text."""
    return text if isinstance(text, tuple) else (text,)


def listed(texts: Iterable[Text]) -> tuple[Inline, ...]:
    """Join the texts with commas."""
    # ["a", (Code("b"), " (2)")] -> ("a", ", ", Code("b"), " (2)")
    return tuple(part for index, text in enumerate(texts) for part in ((", ",) if index else ()) + parts(text))


def table(columns: str, rows: Sequence[Row]) -> list[Block]:
    """Return a table of the rows, or no block if there are no rows.

    A cell that a row lacks is empty. The last letter of `columns` also applies to all further columns.
    """
    # The union of the rows' headings, in the order in which they first appear.
    head = tuple(dict.fromkeys(heading for row in rows for heading in row))
    cells = tuple(tuple(row.get(heading, "") for heading in head) for row in rows)
    return [Table(columns.ljust(len(head), columns[-1]), head, cells)] if rows else []


def side_by_side(*figures: Figure | None) -> list[Block]:
    """Return the figures that have data (are not None) side by side, or no block if none has."""
    shown = tuple(figure for figure in figures if figure)
    return [Figures(shown)] if shown else []
