"""Rendering of a document as Markdown, for a README, and as one HTML page without scripts or external resources.

Foreign text has no effect on either: in Markdown it is a code span that it cannot close, in HTML it is escaped.
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

# Characters that are Markdown syntax inside a line. Our own sentences contain them too: "ttrl.stop_when_solved".
_SPECIAL = re.compile(r"([\\`*_<\[\]])")
_TREE_DEPTH = 2  # a list cannot be collapsed, so Markdown shows less of a tree than the page


def to_html(document: Document) -> str:
    """Return the document as a page for any screen width, with a light and a dark theme."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # off by default in Jinja
        undefined=StrictUndefined,  # a misspelt name in the template raises instead of rendering as nothing
        # Lines that have only a template tag leave no blank lines and no indentation in the page.
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Markup exempts a value from escaping: safe for drawings alone, which this package makes.
    environment.filters |= {"parts": parts, "percent": percent, "drawing": Markup}
    # Jinja has no isinstance, so the template selects by class name: {% if one | kind == "Table" %}.
    environment.filters["kind"] = lambda block: type(block).__name__
    # CSS variables are written with hyphens: --rl-without-variants.
    colours = {name.replace("_", "-"): colour for name, colour in PALETTE.items()}
    return environment.get_template("page.html.j2").render(document=document, colours=colours)


def to_markdown(document: Document) -> str:
    """Return the document as Markdown; figures without a picture are left out."""
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
            return lines[1:]  # without the first blank line
        case Tree(roots):
            return [line for root in roots for line in _node(root, 0)]
        case Listing(text, summary):
            fence = _fence("```", text)
            # Markdown cannot collapse the whole recipe, and the run folder has it in a file.
            return [] if summary else [fence, text, fence]


def _item(item: Item, indent: str) -> list[str]:
    return [f"{indent}- {_text(item.text)}", *(line for child in item.items for line in _item(child, indent + "  "))]


def _row(cells: Iterable[str]) -> str:
    # A bar ends a cell even inside a code span, where the backslash is not shown (a rule of GitHub's tables).
    escaped = "\\|"
    return f"| {' | '.join(cell.replace('|', escaped) for cell in cells)} |"


def _node(node: Node, depth: int) -> list[str]:
    # "- `19*x**2` (easier): pass rate 83 %"; the rate is an estimate, not the plain share of right answers.
    rate = "not tried" if node.rate is None else f"pass rate {percent(node.rate)}"
    children = node.children if depth < _TREE_DEPTH else ()
    line = f"{'  ' * depth}- {_text(node.text)} ({node.label}): {rate}"
    return [line, *(below for child in children for below in _node(child, depth + 1))]


def _text(text: Text) -> str:
    return "".join(_inline(part) for part in parts(text))


def _inline(part: Inline) -> str:
    match part:
        case Code():
            line = part.line
            fence = _fence("`", line)
            # Markdown strips one space at each end. It keeps a backtick at an end of the text apart from the fence,
            # and two fences of an empty text from being one.
            pad = " " if fence != "`" or not line else ""
            return f"{fence}{pad}{line}{pad}{fence}"
        case Mark(text, look):
            return text if look == "wrong" else f"**{text}**"  # without colours, right answers are bold
    return _SPECIAL.sub(r"\\\1", part)


def _fence(shortest: str, text: str) -> str:
    """Return a row of backticks that the text does not contain."""
    # Nothing inside such a fence can close it.
    while shortest in text:
        shortest += "`"
    return shortest
