"""The table of conditions: what each trains on, starts from and is compared with, and how it is shown.

A recipe adds ablations, which are LADDER with other settings. Stages, command lines, reports and figures look a
condition up here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


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
        Condition("base", "base model", "the model as it was downloaded", ("#5a5a5a", "#b4b4b4")),
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


def condition_of(name: str) -> Condition:
    """Look up a condition; a name that is not built in is an ablation's."""
    ablation = Condition(
        name, name, "LADDER with other settings", _ABLATION_COLOUR, trains_on="variants", compared_with=("ladder",)
    )
    return BUILT_IN.get(name, ablation)


def with_ablations(ablations: Iterable[str]) -> list[Condition]:
    """All conditions of a recipe with these ablations, each after those it needs: ablations follow LADDER."""
    names = list(BUILT_IN)
    after = names.index("ladder") + 1
    return [condition_of(name) for name in (*names[:after], *ablations, *names[after:])]
