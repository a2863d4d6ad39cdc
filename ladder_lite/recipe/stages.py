"""The stages of a recipe and their dependencies: a small directed graph, derived from the table of conditions."""

from collections.abc import Collection, Iterable

from ladder_lite.config import Recipe, shares_tree, with_ablations
from ladder_lite.errors import UserError, nearest
from ladder_lite.runs import layout


def dependencies(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Every stage that a recipe can have, in topological order, with the stages whose results it starts from."""
    select = (layout.SELECT,) if recipe.task.select is not None else ()
    before_tree = (*select, layout.TRANSFORMATIONS) if recipe.variants.transformations == "model" else select
    graph: dict[str, tuple[str, ...]] = dict.fromkeys(before_tree, ())
    graph[layout.VARIANTS] = before_tree
    for condition in with_ablations(recipe.ablations):
        name = condition.name
        before: tuple[str, ...] = select  # what the condition's next stage starts from
        if condition.trains_on == "variants":
            tree = layout.VARIANTS if shares_tree(recipe, name) else layout.variants(name)
            graph[tree] = before_tree
            before = (tree,)
        if condition.has_adapter:
            graph[layout.train(name)] = before
            before = (layout.train(name),)
        if condition.problems_of is not None:
            # problems_of is "ladder/eval" or "ladder_ttrl/problems": a stage's name within the conditions' folder.
            graph[layout.problems(name)] = (f"{layout.CONDITIONS}/{condition.problems_of}",)
            # The evaluation after TTRL takes the untouched problems' answers from the condition it started from.
            before = (layout.evaluation(condition.start), layout.problems(name))
        if condition.is_evaluated:
            graph[layout.evaluation(name)] = before
    return graph


def stages_of(recipe: Recipe, conditions: Collection[str]) -> list[str]:
    """The stages of these conditions, of those they need, and all that they depend on, in topological order."""
    graph, wanted = dependencies(recipe), set(conditions)
    for condition in reversed(with_ablations(recipe.ablations)):  # each comes after those it needs
        if condition.name in wanted:
            wanted.update(condition.needs)
    found = {name for name in graph if layout.split_stage(name)[0] in wanted}
    for stage in reversed(graph):  # from the last stage to the first, so one pass finds all
        if stage in found:
            found.update(graph[stage])
    return [name for name in graph if name in found]


def dependents(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """These stages and all stages that depend on them, in topological order.

    Raises UserError for an unknown stage.
    """
    graph = dependencies(recipe)
    for name in names:
        if name not in graph:
            raise UserError(f"--redo {name}: no such stage{nearest(name, graph)}; the stages are {', '.join(graph)}")
    stale = set(names)
    for stage, starts_from in graph.items():  # in topological order, so one pass finds all
        if stale.intersection(starts_from):
            stale.add(stage)
    return [stage for stage in graph if stage in stale]
