"""A matplotlib figure as SVG that belongs into a page: its text is text, its colours are the page's.

Every colour that stands in the palette becomes a CSS variable, so that one drawing serves light and dark surroundings.
"""

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from ladder_lite.report.drawing.palette import PALETTE

_VARIABLES = {colour.light: f"var(--{name.replace('_', '-')})" for name, colour in PALETTE.items()}
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """Return an `<svg>` element, without ids that another figure of the page has: they begin with `name`.

    It has the figure's aspect and takes the width it is given.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _tag(child) in ("metadata", "style"):
                parent.remove(child)
    used = {
        reference
        for element in root.iter()
        for key, value in element.attrib.items()
        for reference in (_REFERENCE.findall(value) if not key.endswith("href") else [value.removeprefix("#")])
    }
    for element in root.iter():
        element.tag = _tag(element)
        _settle(element, used, name)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": alt, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def _settle(element: ElementTree.Element, used: set[str], name: str) -> None:
    """Drop ids nobody refers to, make the others the figure's own, and put the page's colours and font in."""
    for key, value in list(element.attrib.items()):
        del element.attrib[key]
        if key == "id":
            if value in used:
                element.set("id", f"{name}-{value}")
        elif key.endswith("href"):
            element.set("href", f"#{name}-{value.removeprefix('#')}")
        else:
            value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
            for colour, variable in _VARIABLES.items():
                value = value.replace(colour, variable)
            if key == "style":
                value = re.sub(r"font-family: [^;]*(; |$)", "", value)
            element.set(key, value)


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]
