"""The settings of a recipe's ablations: LADDER or TTRL with some settings changed."""

from ladder_lite.config.load import with_changes
from ladder_lite.config.schema import Recipe


def recipe_for(recipe: Recipe, name: str) -> Recipe:
    """The recipe with the changes of an ablation, which `load_recipe` has checked; as it is for other conditions."""
    changes = dict(recipe.ablations.get(name, {}))
    if not changes:
        return recipe
    share = changes.pop("share", 1)
    assert isinstance(share, int | float)
    changed = with_changes(recipe, changes, name)
    variants = changed.variants.model_copy(update={"per_root": max(1, round(share * changed.variants.per_root))})
    return changed.model_copy(update={"variants": variants})


def shares_tree(recipe: Recipe, name: str) -> bool:
    """Whether an ablation uses the first variants of the shared tree; otherwise it grows its own."""
    ours, its = recipe.variants, recipe_for(recipe, name).variants
    same = {"per_root": ours.per_root, "adaptive": ours.adaptive, "third": ours.third}
    return its.model_copy(update=same) == ours and its.first_per_root <= ours.first_per_root
