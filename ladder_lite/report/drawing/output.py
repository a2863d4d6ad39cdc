"""A drawing in two formats: SVG as a part of the page, and a PNG that can stand alone, in a README for example.

The SVG contains text as text, and refers to the colours of the palette by CSS variables, which have other values in the
page's dark theme. Its title and legend are text of the page; the PNG contains them.
"""

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from ladder_lite.report.drawing.axes import FONT, ink
from ladder_lite.report.drawing.palette import PALETTE


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """Return an `<svg>` element with the figure's aspect ratio that takes the width it is given.

    Figures of different names have different ids, so a page can contain all of them.
    """
    buffer = io.StringIO()
    # Text stays text instead of becoming outlines, so it can be searched and takes the page's font. matplotlib hashes
    # the salt into the ids of clip paths and markers; without one, it draws a random salt, and two reports of the same
    # run would differ. So they would with the date.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    source = buffer.getvalue()
    root = ElementTree.fromstring(source)
    for element in list(root.iter()):
        # The style element would apply to the whole page, and the metadata has links to other sites.
        for child in list(element):
            if _local(child.tag) in ("metadata", "style"):
                element.remove(child)
        # Within HTML, an <svg> needs no namespaces: {http://www.w3.org/2000/svg}path -> path
        element.tag = _local(element.tag)
        attributes = {_local(key): _themed(value) for key, value in element.items()}
        # Keep only ids that something refers to (with the salt's hash). Others, such as "axes_1", are the same in
        # every figure.
        if f"#{attributes.get('id')}" not in source:
            attributes.pop("id", None)
        element.attrib = attributes
    # The viewBox remains, so the drawing scales with the page.
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.attrib |= {"role": "img", "aria-label": alt, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def to_png(figure: Figure, title: str, about: str) -> bytes:
    """Return a drawing of one pair of axes as a PNG of 1600 x 900 pixels, with title and legend.

    This changes the drawing, so make its SVG first.
    """
    figure.set_size_inches(10, 5.625)  # 160 dots per inch below
    # The axes get the lower 80 % of the height; the rest is for the two lines of the title.
    figure.set_layout_engine("constrained", rect=(0.02, 0.02, 0.96, 0.8), w_pad=0, h_pad=0)
    figure.text(0.025, 0.94, title, fontsize=18, weight="bold", color=ink("ink"), va="center", parse_math=False)
    figure.text(0.025, 0.875, about, fontsize=FONT, color=ink("soft"), va="center", parse_math=False)
    (axes,) = figure.axes
    lines, _ = axes.get_legend_handles_labels()
    legend = axes.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),  # right of the axes
        frameon=False,
        fontsize=min(FONT, 200 / len(lines)),  # smaller from 16 conditions on, so that all of them fit
        labelcolor="linecolor",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # labels may contain dollar signs
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _local(name: str) -> str:
    """Return an XML name without its namespace."""
    return name.rpartition("}")[2]


def _themed(value: str) -> str:
    """Return an attribute with colours replaced by the page's CSS variables, and without a font family."""
    # "fill: #0072b2" -> "fill: var(--ladder)"; the colours of the palette are distinct, so this is unambiguous.
    for name, colour in PALETTE.items():
        value = value.replace(colour.light, f"var(--{name.replace('_', '-')})")
    return re.sub(r"font-family: [^;]*(; |$)", "", value)
