"""The conditions of an experiment in one table: what each does, starts from and is compared with, and how it is shown.

A recipe adds ablations, which are LADDER with other settings. Stages, command lines, reports and figures look a
condition up here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Condition:
    """A row of the table.

    `trains_on` is what GRPO learns from: the training problems themselves ("roots"), variants of them, or variants of
    one test problem at a time, which is TTRL. `start` is the condition whose model it begins with. A condition about
    single test problems takes those that a stage of another condition leaves (`problems_of`, "CONDITION/STAGE").
    `colour` is for white and for near black surroundings.
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
        """The conditions that must be done before a condition about single problems."""
        if self.problems_of is None:
            return ()
        return tuple(dict.fromkeys((self.problems_of.partition("/")[0], self.start)))

    @property
    def has_adapter(self) -> bool:
        """Whether training leaves an adapter; TTRL takes its own back after each problem."""
        return self.trains_on in ("roots", "variants")

    @property
    def is_evaluated(self) -> bool:
        """Whether it answers all test problems in the end; more samples of single ones change no model."""
        return self.problems_of is None or self.trains_on is not None


_ABLATION_COLOUR = ("#5b6fa8", "#9db0e6")

# In the order of the flow: each condition comes after those that it needs.
BUILT_IN = {
    condition.name: condition
    for condition in (
        Condition("base", "base model", "the model as it came", ("#5a5a5a", "#b4b4b4")),
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
            "GRPO on variants of the training problems that the model wrote itself",
            ("#0072b2", "#5ab5ea"),
            trains_on="variants",
            compared_with=("base", "rl_without_variants"),
        ),
        Condition(
            "ladder_ttrl",
            "LADDER + TTRL",
            "LADDER, then test-time RL on single problems it left unsolved",
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
"""Conditions that every recipe can name."""


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
