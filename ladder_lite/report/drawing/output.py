"""One drawing in two forms: SVG as a part of the page, and a PNG that stands alone in a README.

In the SVG text is text, and every colour of the palette is a CSS variable, for light and dark surroundings. Its title
and its legend are text of the page; the PNG has them in it.
"""

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from ladder_lite.report.drawing.axes import FONT, ink
from ladder_lite.report.drawing.palette import PALETTE


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """Return an `<svg>` element, whose ids are others than those of a figure of another name.

    It has the figure's aspect and takes the width it is given.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    written = buffer.getvalue()
    root = ElementTree.fromstring(written)
    for element in list(root.iter()):
        for child in list(element):
            if _local(child.tag) in ("metadata", "style"):
                element.remove(child)
        element.tag = _local(element.tag)
        attributes = {_local(key): _of_the_page(value) for key, value in element.items()}
        if f"#{attributes.get('id')}" not in written:  # those referred to are made of the name's hash
            attributes.pop("id", None)
        element.attrib = attributes
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.attrib |= {"role": "img", "aria-label": alt, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def to_png(figure: Figure, title: str, about: str) -> bytes:
    """Return a drawing of one pair of axes as a PNG of 1600 x 900 pixels, with a legend; this changes the drawing."""
    figure.set_size_inches(10, 5.625)
    figure.set_layout_engine("constrained", rect=(0.02, 0.02, 0.96, 0.8), w_pad=0, h_pad=0)
    figure.text(0.025, 0.94, title, fontsize=18, weight="bold", color=ink("ink"), va="center", parse_math=False)
    figure.text(0.025, 0.875, about, fontsize=FONT, color=ink("soft"), va="center", parse_math=False)
    (axes,) = figure.axes
    lines, labels = axes.get_legend_handles_labels()
    words = axes.legend(
        lines,
        labels,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=min(FONT, 200 / len(lines)),
        labelcolor="linecolor",
    )
    for text in words.get_texts():
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _local(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition("}")[2]


def _of_the_page(value: str) -> str:
    """An attribute with the colours and the font of the page."""
    for name, colour in PALETTE.items():
        value = value.replace(colour.light, f"var(--{name.replace('_', '-')})")
    return re.sub(r"font-family: [^;]*(; |$)", "", value)
