"""A document as Markdown, for a README, and as one HTML page without scripts that loads nothing from elsewhere.

Foreign text stays text: code that nothing in it can end, and escaped by the page's template.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ladder_lite.report.document import (
    Block,
    Bullets,
    Code,
    Document,
    Figures,
    Inline,
    Item,
    Listing,
    Mark,
    Node,
    Paragraph,
    Table,
    Text,
    Tree,
    parts,
)
from ladder_lite.report.drawing.palette import PALETTE
from ladder_lite.terminal import percent

_SPECIAL = re.compile(r"([\\`*_<\[\]])")
_TREE_DEPTH = 2


def to_html(document: Document) -> str:
    """Return the document as a page, readable at any width, in light and in dark surroundings."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"parts": parts, "percent": percent, "drawing": Markup}  # drawings are markup of ours
    environment.filters["kind"] = lambda block: type(block).__name__
    colours = {name.replace("_", "-"): colour for name, colour in PALETTE.items()}
    return environment.get_template("page.html.j2").render(document=document, colours=colours)


def to_markdown(document: Document) -> str:
    """Return the document as Markdown, with the pictures of those figures that have one."""
    lines = [f"# {_text(document.title)}", "", _text(document.headline), ""]
    for chapter in document.chapters:
        lines += [f"## {chapter.title}", ""]
        for block in chapter.blocks:
            if written := _lines(block):
                lines += [*written, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _lines(block: Block) -> list[str]:
    match block:
        case Paragraph(text, note):
            return [f"{'> ' if note else ''}{_text(text)}"]
        case Bullets(items):
            return [line for item in items for line in _item(item, "")]
        case Table(columns, head, rows):
            rule = _row("---:" if column == "r" else "---" for column in columns)
            return [_row(map(_text, head)), rule, *(_row(map(_text, row)) for row in rows)]
        case Figures(figures):
            lines = []
            for figure in figures:
                if figure.picture:
                    lines += ["", f"![{figure.alt}]({figure.picture.name})", "", _text(figure.caption)]
            return lines[1:]
        case Tree(roots):
            return [line for root in roots for line in _node(root, 0)]
        case Listing(text, summary):
            fence = _fence("```", text)
            return [] if summary else [fence, text, fence]


def _item(item: Item, indent: str) -> list[str]:
    return [f"{indent}- {_text(item.text)}", *(line for below in item.items for line in _item(below, indent + "  "))]


def _row(cells: Iterable[str]) -> str:
    escaped = "\\|"
    return f"| {' | '.join(cell.replace('|', escaped) for cell in cells)} |"


def _node(node: Node, depth: int) -> list[str]:
    rate = "not tried" if node.rate is None else f"solved in {percent(node.rate)} of tries"
    below = node.children if depth < _TREE_DEPTH else ()
    line = f"{'  ' * depth}- {_text(node.text)} {node.label}, {rate}"
    return [line, *(further for child in below for further in _node(child, depth + 1))]


def _text(text: Text) -> str:
    return "".join(_inline(part) for part in parts(text))


def _inline(part: Inline) -> str:
    match part:
        case Code():
            line = part.line
            fence = _fence("`", line)
            pad = " " if fence != "`" or not line else ""
            return f"{fence}{pad}{line}{pad}{fence}"
        case Mark(text, look):
            return text if look == "wrong" else f"**{text}**"
    return _SPECIAL.sub(r"\\\1", part)


def _fence(shortest: str, text: str) -> str:
    """Return a row of backticks that the text does not hold."""
    while shortest in text:
        shortest += "`"
    return shortest
