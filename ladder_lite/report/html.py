"""A report as one HTML file: no script, nothing loaded from elsewhere, every text escaped by the template."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ladder_lite.report.document import Document, parts
from ladder_lite.report.drawing.palette import PALETTE
from ladder_lite.terminal import percent

_TEMPLATE = "page.html.j2"


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
    colours = {name.replace("_", "-"): colour for name, colour in PALETTE.items()}
    return environment.get_template(_TEMPLATE).render(document=document, colours=colours)
