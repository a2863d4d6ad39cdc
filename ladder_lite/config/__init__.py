"""What a run is made with: recipes, their schema, conditions, YAML with places, which settings are TRL's."""

from ladder_lite.config.ablations import recipe_for, shares_tree
from ladder_lite.config.conditions import BUILT_IN, Condition, condition_of, with_ablations
from ladder_lite.config.load import dump_recipe, list_recipes, load_recipe, recipe_names, shown, with_changes, with_more
from ladder_lite.config.schema import (
    EMBEDDED,
    Adaptive,
    EvalSettings,
    Example,
    GrpoSettings,
    Mix,
    ModelSettings,
    Recipe,
    Refill,
    TaskSettings,
    Transformations,
    TtrlSettings,
    VariantSettings,
    model_name,
)
from ladder_lite.config.trl_settings import SETTINGS, settle

__all__ = ["BUILT_IN", "Condition", "condition_of", "recipe_for", "shares_tree", "with_ablations", "with_changes"]
__all__ += ["EMBEDDED", "Recipe", "dump_recipe", "list_recipes", "load_recipe", "recipe_names", "shown", "with_more"]
__all__ += ["Adaptive", "EvalSettings", "Example", "GrpoSettings", "Mix", "ModelSettings", "Refill", "TaskSettings"]
__all__ += ["SETTINGS", "Transformations", "TtrlSettings", "VariantSettings", "model_name", "settle"]
