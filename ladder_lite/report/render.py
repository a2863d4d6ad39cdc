"""Rendering of a document as Markdown, for a README, and as one HTML page without scripts or external resources."""

from html import unescape
from pathlib import Path
from xml.etree.ElementTree import tostring

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markupsafe import Markup

from ladder_lite.report.document import Block, Document, Figures, Folded, Node, Trees, code, escape
from ladder_lite.report.drawing.palette import PALETTE
from ladder_lite.terminal import percent

_TREE_DEPTH = 2  # a list cannot be collapsed, so Markdown shows less of a tree than the page


def to_html(document: Document, reload_s: int | None = None) -> str:
    """Return the document as a page for any screen width, with a light and a dark theme.

    With `reload_s`, the page reloads itself after that many seconds.
    """
    # Neither HTML nor anything that refers to another page, in case foreign text was not escaped.
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])
    # A wide table scrolls within a box, which the keyboard can reach.
    box = '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>\n'
    markdown.add_render_rule("table_open", lambda *_: box)
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")

    markdown.add_render_rule(
        "code_inline",
        lambda _, tokens, at, *__: _formula(tokens[at].content, document.formulas.get(tokens[at].content)),
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # off by default in Jinja
        undefined=StrictUndefined,  # a misspelt name in the template raises instead of rendering as nothing
        # Lines that have only a template tag leave no blank lines and no indentation in the page.
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Markup exempts a value from escaping: safe for drawings, which this package makes, and for what markdown-it
    # renders, which has escaped the text itself.
    environment.filters |= {"percent": percent, "drawing": Markup}
    environment.filters["markdown"] = lambda text: Markup(markdown.render(text))
    environment.filters["formula"] = lambda node: Markup(_formula(node.text, node.latex))
    environment.filters["inline"] = lambda text: Markup(markdown.renderInline(text))
    # Jinja has no isinstance, so the template selects by class name: {% if one | kind == "Figures" %}.
    environment.filters["kind"] = lambda block: type(block).__name__
    # CSS variables are written with hyphens: --rl-without-variants.
    colours = {name.replace("_", "-"): colour for name, colour in PALETTE.items()}
    page = environment.get_template("page.html.j2")
    return page.render(document=document, colours=colours, reload_s=reload_s)


def _formula(text: str, latex: str | None) -> str:
    """Return a problem as HTML: MathML, with the text as a tooltip, or the text alone if there is no LaTeX."""
    if latex is None:
        return f"<code>{escapeHtml(text)}</code>"
    # The library's own conversion to a string writes "<" in texts as it is.
    element = convert_to_element(latex, xmlns="")
    for node in element.iter():
        node.text = node.text and unescape(node.text)
    return f'<span class="formula" title="{escapeHtml(text)}">{tostring(element, encoding="unicode")}</span>'


def to_markdown(document: Document) -> str:
    """Return the document as Markdown; figures without a picture are left out."""
    blocks = [f"# {document.title}", document.headline]
    for chapter in document.chapters:
        if any(chapter.blocks):
            blocks += [f"## {chapter.title}", *map(_to_markdown, chapter.blocks)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _to_markdown(block: Block) -> str:
    match block:
        case Figures():
            pictures = [(figure, figure.picture[0]) for figure in block if figure.picture]
            return "\n\n".join(f"![{figure.title}]({name})\n\n{figure.caption}" for figure, name in pictures)
        case Trees():
            return "\n".join(line for root in block for line in _node(root, 0))
        case Folded():
            return ""
    return block


def _node(node: Node, depth: int) -> list[str]:
    # "- `19*x**2` (easier): pass rate 83 %"; the rate is an estimate, not the plain share of right answers.
    rate = "not tried" if node.rate is None else f"pass rate {percent(node.rate)}"
    children = node.children if depth < _TREE_DEPTH else ()
    line = f"{'  ' * depth}- {code(node.text)} ({escape(node.label)}): {rate}"
    return [line, *(below for child in children for below in _node(child, depth + 1))]
