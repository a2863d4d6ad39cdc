"""What a report is made of, before it is Markdown or HTML: chapters of paragraphs, tables, figures and trees.

Text from elsewhere (a model's, a recipe's, a problem set's) is always `Code`, one harmless line of bounded width, and
never a `str`; how it is escaped is the business of the module `render` alone.
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
        """What is said where the text was cut: its length."""
        cut = len(self.text) > self.width and self.line.endswith("...")
        return f"cut, of {len(self.text):,} characters" if cut else ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Words of ours that stand out: a verdict, or what matters most in a sentence."""

    text: str
    look: Literal["strong", "right", "wrong"] = "strong"


Inline = str | Code | Mark
Text = Inline | tuple[Inline, ...]
Row = dict[Text, Text]
"""A row of a table: its cells by the headings of their columns."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph; with `note`, one that is set apart."""

    text: Text
    note: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A line of a list, with a list of its own below it."""

    text: Text
    items: tuple["Item", ...] = ()


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `columns` has one letter a column, l for text and r for numbers."""

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
    """A drawing for the page, in markup of ours, and its picture, where it has one."""

    title: str
    alt: str
    svg: str
    caption: Text
    legend: tuple[Key, ...] = ()
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures side by side where there is room."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A problem of a variant tree, its pass rate where it was tried, and how many more children it has."""

    text: Code
    label: str
    rate: float | None
    children: tuple["Node", ...] = ()
    n_hidden: int = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """Variant trees, to be unfolded."""

    roots: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Printable text with line breaks, shown as it is; with a `summary` it is folded away below that."""

    text: str
    summary: str | None = None


Block = Paragraph | Bullets | Table | Figures | Tree | Listing


@dataclass(frozen=True, slots=True)
class Chapter:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Document:
    """A report: its title, its finding in a sentence or two, its chapters."""

    title: Text
    headline: Text
    chapters: Sequence[Chapter]

    @property
    def pictures(self) -> dict[str, bytes]:
        """The contents of the pictures of all figures, by name."""
        blocks = [block for chapter in self.chapters for block in chapter.blocks if isinstance(block, Figures)]
        found = [figure.picture for block in blocks for figure in block.figures if figure.picture]
        return {picture.name: picture.content for picture in found}


def parts(text: Text) -> tuple[Inline, ...]:
    """The pieces of a text."""
    return text if isinstance(text, tuple) else (text,)


def listed(texts: Iterable[Text]) -> tuple[Inline, ...]:
    """The texts with commas between them."""
    return tuple(part for at, text in enumerate(texts) for part in ((", ",) if at else ()) + parts(text))


def table(columns: str, rows: Sequence[Row]) -> list[Block]:
    """Return a table of the rows, or nothing where there are none.

    A cell that a row lacks is empty. The last letter of `columns` stands for all further columns, too.
    """
    head = tuple(dict.fromkeys(heading for row in rows for heading in row))
    cells = tuple(tuple(row.get(heading, "") for heading in head) for row in rows)
    return [Table(columns.ljust(len(head), columns[-1]), head, cells)] if rows else []


def side_by_side(*found: Figure | None) -> list[Block]:
    """Return the figures that have something to show, side by side, or nothing where none has."""
    shown = tuple(figure for figure in found if figure)
    return [Figures(shown)] if shown else []
