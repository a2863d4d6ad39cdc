"""The stages that the conditions of a recipe are made of, and which of them each stage starts from."""

from collections.abc import Collection, Iterable

from ladder_lite.config import Recipe, shares_tree, with_ablations
from ladder_lite.errors import UserError, nearest
from ladder_lite.runs import layout


def needs(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Every stage that a recipe can have, in the order of the flow, each with those whose results it starts from."""
    select = (layout.SELECT,) if recipe.task.select is not None else ()
    tree = (*select, layout.TRANSFORMATIONS) if recipe.variants.transformations == "model" else select
    found: dict[str, tuple[str, ...]] = dict.fromkeys(tree, ())
    found[layout.VARIANTS] = tree
    for condition in with_ablations(recipe.ablations):
        name = condition.name
        before: tuple[str, ...] = select
        if condition.trains_on == "variants":
            before = (layout.VARIANTS,)
            if not shares_tree(recipe, name):
                before = (layout.variants(name),)
                found[layout.variants(name)] = tree
        if condition.has_adapter:
            found[layout.train(name)] = before
            before = (layout.train(name),)
        if condition.problems_of is not None:
            found[layout.problems(name)] = (f"{layout.CONDITIONS}/{condition.problems_of}",)
            before = (layout.evaluation(condition.start), layout.problems(name))
        if condition.is_evaluated:
            found[layout.evaluation(name)] = before
    return found


def stages_of(recipe: Recipe, conditions: Collection[str]) -> list[str]:
    """The stages of some conditions and those that these start from, in the order of the flow."""
    stages = needs(recipe)
    wanted = [name for name in stages if layout.condition_name(name) in conditions]
    found = set(wanted)
    while wanted:
        more = [name for name in stages[wanted.pop()] if name not in found]
        found.update(more)
        wanted += more
    return [name for name in stages if name in found]


def trained(recipe: Recipe, conditions: Collection[str]) -> list[str]:
    """The conditions that train on problems of the training split, those that others start from included."""
    found = stages_of(recipe, conditions)
    return [condition.name for condition in with_ablations(recipe.ablations) if layout.train(condition.name) in found]


def dependents(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """The stages, and those that start from the results of one of them; UserError for an unknown stage."""
    stages = needs(recipe)
    for name in names:
        if name not in stages:
            raise UserError(f"--redo {name}: no such stage{nearest(name, stages)}; the stages are {', '.join(stages)}")
    stale = set(names)
    for stage, starts_from in stages.items():  # in the order of the flow, so one pass finds all
        if stale.intersection(starts_from):
            stale.add(stage)
    return [stage for stage in stages if stage in stale]
