"""What the conditions of a recipe are made of: their stages, and what each starts from."""

from collections.abc import Collection, Iterable

from ladder_lite.config.arms import shares_tree
from ladder_lite.config.schema import Recipe
from ladder_lite.errors import UserError, nearest


def needs(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Every stage that a recipe can have, in the order of the flow, each with those whose results it starts from."""
    tree = tuple(
        name
        for name, there in (
            ("select", recipe.task.select is not None),
            ("transformations", recipe.variants.transformations == "model"),
        )
        if there
    )
    select = tuple(name for name in tree if name == "select")
    found: dict[str, tuple[str, ...]] = dict.fromkeys(tree, ())
    found["variants"] = tree
    found["conditions/base/eval"] = select
    found["conditions/rl_without_variants/train"] = select
    found["conditions/rl_without_variants/eval"] = ("conditions/rl_without_variants/train",)
    for name in ("ladder", *recipe.arms):
        folder, grown = f"conditions/{name}", "variants"
        if not shares_tree(recipe, name):
            grown = f"{folder}/variants"
            found[grown] = tree
        found[f"{folder}/train"] = (grown,)
        found[f"{folder}/eval"] = (f"{folder}/train",)
    found["conditions/ladder_ttrl/problems"] = ("conditions/ladder/eval",)
    found["conditions/ladder_ttrl/eval"] = ("conditions/ladder_ttrl/problems",)
    found["conditions/ladder_pass100/problems"] = ("conditions/ladder_ttrl/problems",)
    found["conditions/ttrl/problems"] = ("conditions/ladder_ttrl/problems",)
    found["conditions/ttrl/eval"] = ("conditions/base/eval", "conditions/ttrl/problems")
    return found


def stages_of(recipe: Recipe, conditions: Collection[str]) -> list[str]:
    """The stages of some conditions and those that these start from, in the order of the flow."""
    stages = needs(recipe)
    wanted = [name for name in stages if name.split("/")[:2][-1] in conditions and name.startswith("conditions/")]
    found = set(wanted)
    while wanted:
        more = [name for name in stages[wanted.pop()] if name not in found]
        found.update(more)
        wanted += more
    return [name for name in stages if name in found]


def trained(recipe: Recipe, conditions: Collection[str]) -> list[str]:
    """The conditions that train on problems of the training split, those that others start from included."""
    return [name.split("/")[1] for name in stages_of(recipe, conditions) if name.endswith("/train")]


def dependents(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """The stages, and those that start from the results of one of them; UserError for a stage that there is not."""
    stages = needs(recipe)
    for name in names:
        if name not in stages:
            raise UserError(f"--redo {name}: no such stage{nearest(name, stages)}; the stages are {', '.join(stages)}")
    stale = set(names)
    for stage, starts_from in stages.items():  # in the order of the flow, so one pass finds all
        if stale.intersection(starts_from):
            stale.add(stage)
    return [stage for stage in stages if stage in stale]
