"""The colours of figures and pages, each in a version for the light and one for the dark theme.

They are those of Okabe and Ito, which can be told apart with any kind of colour vision, darkened for the light theme
and lightened for the dark one until they are readable as text (a contrast of at least 4.5).
"""

from typing import Literal, NamedTuple

from ladder_lite.config import BUILT_IN, condition_of


class Colour(NamedTuple):
    """A colour for the light theme (on white) and for the dark theme (on near black)."""

    light: str
    dark: str


class Key(NamedTuple):
    """An entry of a figure's legend."""

    label: str
    colour: str  # a name in PALETTE
    dashes: tuple[float, ...] = ()  # lengths of strokes and gaps; () is a solid line
    shape: Literal["line", "area", "diamond"] = "line"


PALETTE = {
    "ink": Colour("#1f2328", "#e8eaed"),  # text
    "soft": Colour("#59606a", "#a7afb9"),  # captions and labels
    "line": Colour("#e1e4e8", "#343a42"),  # grids and the borders of tables
    "edge": Colour("#9aa1aa", "#6b7480"),  # axes
    **{condition.name: Colour(*condition.colour) for condition in BUILT_IN.values()},
    # Any name that is not built in belongs to an ablation, and all ablations have the same colour.
    "ablation": Colour(*condition_of("ablation").colour),
    # The outcomes of rollouts, by the values of `Outcome`. Each differs from a condition's colour by a single step of
    # blue: it looks the same, but remains a different value.
    "right": Colour("#007a5b", "#2fc69c"),
    "wrong": Colour("#b84c01", "#ff9d5d"),
    "truncated": Colour("#0072b3", "#5ab5eb"),
    "unreadable": Colour("#a84680", "#e79bc7"),
    "refused": Colour("#846901", "#e3c630"),
    "unverifiable": Colour("#5a5a5b", "#b4b4b5"),
}
"""Colours by name. All are distinct, because `to_svg` finds the name of a colour by its value."""


def label_of(condition: str) -> str:
    """Return the name of a condition for people: "LADDER + TTRL"."""
    return condition_of(condition).label


def colour_of(condition: str) -> str:
    """Return the name of a condition's colour."""
    return condition if condition in BUILT_IN else "ablation"
