"""A report as Markdown: tables and pictures for a README. Foreign text stays code that nothing in it can end."""

import re
from collections.abc import Callable
from typing import Any

from ladder_lite.report.document import (
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
from ladder_lite.terminal import percent

_SPECIAL = re.compile(r"([\\`*_<\[\]])")
_TREE_DEPTH = 2


def to_markdown(document: Document) -> str:
    """Return the document as Markdown, with the pictures of those figures that have one."""
    lines = [f"# {_text(document.title)}", "", _text(document.headline), ""]
    for chapter in document.chapters:
        lines += [f"## {chapter.title}", ""]
        for block in chapter.blocks:
            if written := _BLOCKS[type(block)](block):
                lines += [*written, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _paragraph(block: Paragraph) -> list[str]:
    return [f"{'> ' if block.note else ''}{_text(block.text)}"]


def _bullets(block: Bullets) -> list[str]:
    return [line for item in block.items for line in _item(item, "")]


def _item(item: Item, indent: str) -> list[str]:
    return [f"{indent}- {_text(item.text)}", *(line for below in item.items for line in _item(below, indent + "  "))]


def _table(block: Table) -> list[str]:
    rule = ["---:" if column == "r" else "---" for column in block.columns]
    return [_row(map(_text, block.head)), _row(rule), *(_row(map(_text, row)) for row in block.rows)]


def _row(cells: Any) -> str:
    escaped = "\\|"
    return f"| {' | '.join(cell.replace('|', escaped) for cell in cells)} |"


def _figures(block: Figures) -> list[str]:
    lines: list[str] = []
    for figure in block.figures:
        if figure.png:
            lines += ["", f"![{figure.alt}]({figure.png})", "", _text(figure.caption)]
    return lines[1:]


def _tree(block: Tree) -> list[str]:
    return [line for root in block.roots for line in _node(root, 0)]


def _node(node: Node, depth: int) -> list[str]:
    rate = "not tried" if node.rate is None else f"solved in {percent(node.rate)} of tries"
    lines = [f"{'  ' * depth}- {_text(node.text)} {node.label}, {rate}"]
    if depth < _TREE_DEPTH:
        lines += [line for child in node.children for line in _node(child, depth + 1)]
    return lines


def _listing(block: Listing) -> list[str]:
    fence = "```"
    while fence in block.text:
        fence += "`"
    return [] if block.summary else [fence, block.text, fence]


def _text(text: Text) -> str:
    return "".join(_inline(part) for part in parts(text))


def _inline(part: Inline) -> str:
    if isinstance(part, Code):
        return _code(part)
    if isinstance(part, Mark):
        return f"**{part.text}**" if part.look != "wrong" else part.text
    return _SPECIAL.sub(r"\\\1", part)


def _code(code: Code) -> str:
    line = code.line
    fence = "`"
    while fence in line:
        fence += "`"
    pad = " " if fence != "`" or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


_BLOCKS: dict[type, Callable[[Any], list[str]]] = {
    Paragraph: _paragraph,
    Bullets: _bullets,
    Table: _table,
    Figures: _figures,
    Tree: _tree,
    Listing: _listing,
}
