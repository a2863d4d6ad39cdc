"""The colours of figures and pages, each for light and for dark surroundings.

Okabe and Ito's, which are told apart with every kind of colour vision; darkened on white and lightened on black until
they can be read as text (a contrast of 4.5 and more).
"""

from typing import Literal, NamedTuple


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
    "base": Colour("#5a5a5a", "#b4b4b4"),
    "rl_without_variants": Colour("#b84c00", "#ff9d5c"),
    "ladder": Colour("#0072b2", "#5ab5ea"),
    "ladder_ttrl": Colour("#007a5a", "#2fc69b"),
    "ttrl": Colour("#a8467f", "#e79bc6"),
    "ladder_pass100": Colour("#846900", "#e3c62f"),
    "arm": Colour("#5b6fa8", "#9db0e6"),
    "right": Colour("#007a5b", "#2fc69c"),
    "wrong": Colour("#b84c01", "#ff9d5d"),
    "unreadable": Colour("#a84680", "#e79bc7"),
    "refused": Colour("#846901", "#e3c630"),
    "unverifiable": Colour("#5a5a5b", "#b4b4b5"),
}
"""By name; no two are equal, so that a drawing's colours say which of them are meant."""

LABELS = {
    "base": "base model",
    "rl_without_variants": "RL without variants",
    "ladder": "LADDER",
    "ladder_ttrl": "LADDER + TTRL",
    "ttrl": "TTRL without LADDER",
    "ladder_pass100": "LADDER resampled",
}
"""What conditions are called in figures; an arm goes by its own name."""


def label_of(condition: str) -> str:
    """What a condition is called in a figure."""
    return LABELS.get(condition, condition)


def colour_of(condition: str) -> str:
    """The name of a condition's colour."""
    return condition if condition in LABELS else "arm"
