"""The settings of a recipe's arms: LADDER with one setting changed."""

from ladder_lite.config.load import change
from ladder_lite.config.schema import Recipe


def arm(recipe: Recipe, name: str) -> Recipe:
    """The recipe with the settings of a LADDER condition; its own for `ladder`. UserError for settings that clash."""
    changes = recipe.arms.get(name, {})
    changed = change(recipe, changes, f"arms.{name}")
    share = changes.get("share", 1)
    assert isinstance(share, int | float)
    per_root = max(1, round(share * changed.variants.per_root))
    return changed.model_copy(update={"variants": changed.variants.model_copy(update={"per_root": per_root})})


def shares_tree(recipe: Recipe, name: str) -> bool:
    """Whether an arm begins with the first variants of the tree that all conditions share, or grows one of its own."""
    ours, its = recipe.variants, arm(recipe, name).variants
    same = {"per_root": ours.per_root, "adaptive": ours.adaptive}
    return its.model_copy(update=same) == ours and its.first_per_root <= ours.first_per_root
