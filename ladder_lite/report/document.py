"""What a report is made of, before it is Markdown or HTML: chapters of paragraphs, tables, figures and trees.

Text from elsewhere (a model's, a recipe's, a problem set's) is always `Code`, one harmless line of bounded width, and
never a `str`; how it is escaped is the business of the modules `markdown` and `html` alone.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ladder_lite.terminal import plain


@dataclass(frozen=True, slots=True)
class Code:
    """Foreign text, shown on one line of at most `width` columns."""

    kind: ClassVar[str] = "code"
    text: str
    width: int = 80

    @property
    def line(self) -> str:
        """The text without line breaks, control and bidi characters, cut to the width."""
        return plain(self.text, self.width)

    @property
    def left_out(self) -> str:
        """What is said where the text was cut: its length."""
        cut = len(self.text) > self.width and self.line.endswith("...")
        return f"cut, of {len(self.text):,} characters" if cut else ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Words of ours that stand out: a verdict, or what matters most in a sentence."""

    kind: ClassVar[str] = "mark"
    text: str
    look: Literal["strong", "right", "wrong"] = "strong"


Inline = str | Code | Mark
Text = Inline | tuple[Inline, ...]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph; with `note`, one that is set apart."""

    kind: ClassVar[str] = "paragraph"
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

    kind: ClassVar[str] = "bullets"
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `columns` has one letter a column, l for text and r for numbers."""

    kind: ClassVar[str] = "table"
    columns: str
    head: tuple[Text, ...]
    rows: tuple[tuple[Text, ...], ...]


@dataclass(frozen=True, slots=True)
class Key:
    """A line of a figure's legend: a colour of the page's palette, and the dashes of the line or an area."""

    label: str
    colour: str
    dashes: tuple[float, ...] = ()
    area: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing for the page, in markup of ours; `png` is its picture beside report.md, where it has one there."""

    kind: ClassVar[str] = "figure"
    title: str
    alt: str
    svg: str
    caption: Text
    legend: tuple[Key, ...] = ()
    png: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures side by side where there is room."""

    kind: ClassVar[str] = "figures"
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

    kind: ClassVar[str] = "tree"
    roots: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Printable text with line breaks, shown as it is; with a `summary` it is folded away below that."""

    kind: ClassVar[str] = "listing"
    text: str
    summary: str | None = None


Block = Paragraph | Bullets | Table | Figures | Tree | Listing


@dataclass(frozen=True, slots=True)
class Chapter:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A report: its title, its finding in a sentence or two, its chapters."""

    title: tuple[Inline, ...]
    headline: Text
    chapters: tuple[Chapter, ...]


def parts(text: Text) -> tuple[Inline, ...]:
    """The pieces of a text."""
    return text if isinstance(text, tuple) else (text,)
