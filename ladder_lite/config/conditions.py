"""The table of conditions: what each trains on, starts from and is compared with, and how it is shown.

A recipe adds ablations, which are LADDER or TTRL with other settings. Stages, command lines, reports and figures look a
condition up here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

Ablations = Mapping[str, Mapping[str, Any]]
"""By name: the changes of each ablation, by dotted key."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the table.

    `trains_on` is what GRPO trains on: the training problems themselves ("roots"), variants of them, or variants of one
    test problem at a time, which is TTRL. `start` is the condition whose adapter it starts from. `problems_of`,
    "CONDITION/STAGE", is the stage whose unsolved problems TTRL or resampling takes. `colour` is for a light and for a
    dark background.
    """

    name: str
    label: str
    meaning: str
    colour: tuple[str, str]
    trains_on: Literal["roots", "variants", "single problems"] | None = None
    start: str = "base"
    problems_of: str | None = None
    compared_with: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The conditions that must finish first, for TTRL and resampling."""
        if self.problems_of is None:
            return ()
        return tuple(dict.fromkeys((self.problems_of.partition("/")[0], self.start)))

    @property
    def has_adapter(self) -> bool:
        """Whether training leaves an adapter; TTRL rolls its own back after each problem."""
        return self.trains_on in ("roots", "variants")

    @property
    def is_evaluated(self) -> bool:
        """Whether it ends with answers to all test problems; resampling changes no model, so it does not."""
        return self.problems_of is None or self.trains_on is not None


# All ablations share one colour: a report tells them apart by the dashes of their lines.
_ABLATION_COLOUR = ("#5b6fa8", "#9db0e6")

# Each condition comes after those it needs: stages run in this order.
BUILT_IN = {
    condition.name: condition
    for condition in (
        Condition("base", "base model", "the model before any training", ("#5a5a5a", "#b4b4b4")),
        Condition(
            "rl_without_variants",
            "RL without variants",
            "GRPO on the training problems themselves, the paper's control",
            ("#b84c00", "#ff9d5c"),
            trains_on="roots",
            compared_with=("base",),
        ),
        Condition(
            "ladder",
            "LADDER",
            "GRPO on variants of the training problems, written by the model itself",
            ("#0072b2", "#5ab5ea"),
            trains_on="variants",
            compared_with=("base", "rl_without_variants"),
        ),
        Condition(
            "ladder_ttrl",
            "LADDER + TTRL",
            "LADDER, then test-time RL on single problems that it does not solve",
            ("#007a5a", "#2fc69b"),
            trains_on="single problems",
            start="ladder",
            problems_of="ladder/eval",
            compared_with=("ladder",),
        ),
        Condition(
            "ladder_pass100",
            "LADDER resampled",
            "LADDER's model sampled on the same problems for as many tokens as test-time RL took",
            ("#846900", "#e3c62f"),
            start="ladder",
            problems_of="ladder_ttrl/problems",
        ),
        Condition(
            "ttrl",
            "TTRL without LADDER",
            "test-time RL on the same single problems, from the base model",
            ("#a8467f", "#e79bc6"),
            trains_on="single problems",
            problems_of="ladder_ttrl/problems",
            compared_with=("base",),
        ),
    )
}
"""Conditions available in every recipe."""


def is_of_ttrl(changes: Iterable[str]) -> bool:
    """Return whether an ablation with changes to these keys is one of TTRL after LADDER, and not of LADDER."""
    return any(key.startswith("ttrl.") for key in changes)


def condition_of(name: str, ablations: Ablations = MappingProxyType({})) -> Condition:
    """Look up a condition; a name that is neither built in nor among the ablations is that of an ablation of LADDER."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    original = BUILT_IN["ladder_ttrl" if is_of_ttrl(ablations.get(name, ())) else "ladder"]
    # An ablation of TTRL takes the same problems.
    problems_of = "ladder_ttrl/problems" if original.problems_of else None
    return replace(
        original,
        name=name,
        label=name,
        meaning=f"{original.label} with other settings",
        colour=_ABLATION_COLOUR,
        problems_of=problems_of,
        compared_with=(original.name,),
    )


def with_ablations(ablations: Ablations) -> list[Condition]:
    """All conditions of a recipe with these ablations, each after those it needs and after the one it changes."""
    extra = [condition_of(name, ablations) for name in ablations]
    return [
        condition
        for built_in in BUILT_IN.values()
        for condition in (built_in, *(each for each in extra if each.compared_with == (built_in.name,)))
    ]
