"""The colours of figures and pages, each for light and for dark surroundings.

Okabe and Ito's, which are told apart with every kind of colour vision; darkened on white and lightened on black until
they can be read as text (a contrast of 4.5 and more).
"""

from typing import Literal, NamedTuple

from ladder_lite.config import BUILT_IN, condition_of


class Colour(NamedTuple):
    """A colour on white and on near black."""

    light: str
    dark: str


class Key(NamedTuple):
    """A line of a figure's legend: its colour by name, and what is drawn in it; a line may have dashes."""

    label: str
    colour: str
    dashes: tuple[float, ...] = ()
    shape: Literal["line", "area", "diamond"] = "line"


PALETTE = {
    "ink": Colour("#1f2328", "#e8eaed"),
    "soft": Colour("#59606a", "#a7afb9"),
    "line": Colour("#e1e4e8", "#343a42"),
    "edge": Colour("#9aa1aa", "#6b7480"),
    **{condition.name: Colour(*condition.colour) for condition in BUILT_IN.values()},
    "ablation": Colour(*condition_of("ablation").colour),
    "right": Colour("#007a5b", "#2fc69c"),
    "wrong": Colour("#b84c01", "#ff9d5d"),
    "truncated": Colour("#0072b3", "#5ab5eb"),
    "unreadable": Colour("#a84680", "#e79bc7"),
    "refused": Colour("#846901", "#e3c630"),
    "unverifiable": Colour("#5a5a5b", "#b4b4b5"),
}
"""By name; no two are equal, so that a drawing's colours say which of them are meant."""


def label_of(condition: str) -> str:
    """What a condition is called in a figure."""
    return condition_of(condition).label


def colour_of(condition: str) -> str:
    """The name of a condition's colour."""
    return condition if condition in BUILT_IN else "ablation"
