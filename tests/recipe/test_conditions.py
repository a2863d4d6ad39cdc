"""Conditions and ablations of recipes, and the stages that they consist of."""

import pytest

from ladder_lite.config.ablations import recipe_for, shares_tree
from ladder_lite.config.conditions import BUILT_IN, condition_of, with_ablations
from ladder_lite.config.load import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.recipe.stages import dependencies, dependents, stages_of

RECIPES = ("tiny", "exam", "smollm", "llama3b", "qwen7b")


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_every_ablation_of_a_shipped_recipe_is_a_valid_recipe(name: str, smoke: bool) -> None:
    recipe = load_recipe(name, smoke=smoke)
    for ablation in recipe.ablations:
        changed = recipe_for(recipe, ablation)
        assert changed.task == recipe.task
        assert smoke or changed != recipe  # in a smoke run each root may have one variant only
    assert recipe_for(recipe, "ladder") == recipe
    assert {*recipe.full}.isdisjoint(recipe.conditions)
    assert {*recipe.full, *recipe.conditions} >= {*BUILT_IN}  # of the ablations, --full adds some


def test_conditions_come_after_those_they_need_and_can_be_told_apart() -> None:
    recipe = load_recipe("tiny")
    conditions = with_ablations(recipe.ablations)
    names = [condition.name for condition in conditions]
    assert sorted(names) == sorted({*BUILT_IN, *recipe.ablations})
    for number, condition in enumerate(conditions):
        assert set(condition.needs) <= set(names[:number])
        assert set(condition.compared_with) <= set(names)
    for attribute in ("label", "meaning", "colour"):
        assert len({getattr(condition, attribute) for condition in BUILT_IN.values()}) == len(BUILT_IN)


def test_a_share_limits_the_variants_of_each_root() -> None:
    recipe = load_recipe("tiny")
    assert [recipe_for(recipe, f"ladder_{percent}").variants.per_root for percent in (10, 25, 50)] == [10, 25, 50]
    assert recipe_for(load_recipe("tiny", ["variants.per_root=7"]), "ladder_10").variants.per_root == 1
    assert recipe_for(recipe, "ladder_10").grpo == recipe.grpo


def test_a_share_takes_the_first_variants_of_the_shared_tree() -> None:
    recipe = load_recipe("tiny")
    assert all(shares_tree(recipe, f"ladder_{percent}") for percent in (10, 25, 50))
    assert not shares_tree(
        recipe, "ladder_static"
    )  # it grows the whole tree before training, which is more than the shared tree
    assert dependencies(recipe)["conditions/ladder_static/train"] == ("conditions/ladder_static/variants",)
    other = load_recipe("tiny", ["ablations.ladder_deep={variants.depth: 4}"])
    assert not shares_tree(other, "ladder_deep")


def test_stages_of_a_condition_include_its_dependencies() -> None:
    recipe = load_recipe("tiny")
    assert stages_of(recipe, ["ladder_pass100"]) == [
        "variants",
        "conditions/ladder/train",
        "conditions/ladder/eval",
        "conditions/ladder_ttrl/problems",
        "conditions/ladder_ttrl/eval",
        "conditions/ladder_pass100/problems",
    ]
    assert "conditions/base/eval" in stages_of(recipe, ["ttrl"])
    assert all(need in dependencies(recipe) for stages in dependencies(recipe).values() for need in stages)


def test_an_ablation_of_ttrl_takes_the_problems_and_weights_of_ttrl() -> None:
    recipe = load_recipe("tiny")
    condition = condition_of("ttrl_direct", recipe.ablations)
    assert (condition.trains_on, condition.start, condition.compared_with) == (
        "single problems",
        "ladder",
        ("ladder_ttrl",),
    )
    assert dependencies(recipe)["conditions/ttrl_direct/problems"] == ("conditions/ladder_ttrl/problems",)
    assert dependencies(recipe)["conditions/ttrl_direct/eval"] == (
        "conditions/ladder/eval",
        "conditions/ttrl_direct/problems",
    )
    assert not condition.has_adapter
    assert condition_of("ladder_random", recipe.ablations).has_adapter
    assert recipe_for(recipe, "ttrl_direct").ttrl.train_on == "problem"


@pytest.mark.parametrize("name", ["tiny", "exam", "llama3b", "qwen7b"])
def test_recipes_have_the_controls(name: str) -> None:
    recipe = load_recipe(name)
    changes = [change for own in recipe.ablations.values() for change in own.items()]
    for key, values in {
        "grpo.reward": ("random", "format"),
        "grpo.rows": ("staged",),
        "variants.third": ("nearest", "farthest", "longest"),
        "ttrl.train_on": ("problem", "other"),
    }.items():
        assert {(key, value) for value in values} <= {change for change in changes if change[0] == key}
    if recipe.variants.adaptive is None:
        assert shares_tree(recipe, "ladder_nearest")
    # Whoever lets the tree grow need not touch the controls, which take their own complete tree.
    adaptive = load_recipe(name, ["variants.adaptive={start: 2, every: 3, requests: 4}"])
    assert not shares_tree(adaptive, "ladder_nearest")


def test_rerunning_a_stage_reruns_its_dependents() -> None:
    recipe = load_recipe("tiny")
    assert dependents(recipe, ["conditions/ladder/eval"]) == [
        "conditions/ladder/eval",
        "conditions/ladder_ttrl/problems",
        "conditions/ladder_ttrl/eval",
        "conditions/ttrl_direct/problems",
        "conditions/ttrl_direct/eval",
        "conditions/ttrl_other/problems",
        "conditions/ttrl_other/eval",
        "conditions/ladder_pass100/problems",
        "conditions/ttrl/problems",
        "conditions/ttrl/eval",
    ]
    assert "conditions/base/eval" not in dependents(recipe, ["variants"])
    assert dependents(recipe, []) == []
    with pytest.raises(UserError, match="no such stage; did you mean conditions/ladder/train"):
        dependents(recipe, ["conditions/ladder/trian"])


def test_select_adds_a_stage() -> None:
    recipe = load_recipe("llama3b")
    assert list(dependencies(recipe))[:3] == ["select", "transformations", "variants"]
    assert dependencies(recipe)["conditions/base/eval"] == ("select",)
