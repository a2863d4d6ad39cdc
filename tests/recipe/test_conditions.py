"""Which conditions there are, what stages they bring, and what an ablation changes."""

import pytest

from ladder_lite.config.ablations import recipe_for, shares_tree
from ladder_lite.config.conditions import BUILT_IN, with_ablations
from ladder_lite.config.load import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.recipe.stages import dependencies, dependents, stages_of, trained

RECIPES = ("tiny", "smollm", "llama3b", "qwen7b")


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_every_arm_of_a_shipped_recipe_is_a_recipe(name: str, smoke: bool) -> None:
    recipe = load_recipe(name, smoke=smoke)
    for arm_name in recipe.ablations:
        changed = recipe_for(recipe, arm_name)
        assert changed.task == recipe.task
        assert smoke or changed != recipe  # a smoke run may have a variant of each root in all
    assert recipe_for(recipe, "ladder") == recipe
    assert {*recipe.full}.isdisjoint(recipe.conditions)
    assert {*recipe.full, *recipe.conditions} == {*BUILT_IN, *recipe.ablations}  # --full adds all there is


def test_conditions_come_after_those_that_they_need_and_are_told_apart() -> None:
    recipe = load_recipe("tiny")
    conditions = with_ablations(recipe.ablations)
    names = [condition.name for condition in conditions]
    assert sorted(names) == sorted({*BUILT_IN, *recipe.ablations})
    for at, condition in enumerate(conditions):
        assert set(condition.needs) <= set(names[:at])
        assert set(condition.compared_with) <= set(names)
    for looks in ("label", "meaning", "colour"):
        assert len({getattr(condition, looks) for condition in BUILT_IN.values()}) == len(BUILT_IN)


def test_a_share_is_of_the_variants_of_each_root() -> None:
    recipe = load_recipe("tiny")
    assert [recipe_for(recipe, f"ladder_{percent}").variants.per_root for percent in (10, 25, 50)] == [10, 25, 50]
    assert recipe_for(load_recipe("tiny", ["variants.per_root=7"]), "ladder_10").variants.per_root == 1
    assert recipe_for(recipe, "ladder_10").grpo == recipe.grpo


def test_a_share_begins_with_the_first_variants_of_the_common_tree() -> None:
    recipe = load_recipe("tiny")
    assert all(shares_tree(recipe, f"ladder_{percent}") for percent in (10, 25, 50))
    assert not shares_tree(recipe, "ladder_static")  # all of it comes before training: more than the common tree has
    assert dependencies(recipe)["conditions/ladder_static/train"] == ("conditions/ladder_static/variants",)
    other = load_recipe("tiny", ["ablations.ladder_deep={variants.depth: 4}"])
    assert not shares_tree(other, "ladder_deep")


def test_conditions_bring_what_they_start_from() -> None:
    recipe = load_recipe("tiny")
    assert stages_of(recipe, ["ladder_pass100"]) == [
        "variants",
        "conditions/ladder/train",
        "conditions/ladder/eval",
        "conditions/ladder_ttrl/problems",
        "conditions/ladder_pass100/problems",
    ]
    assert "conditions/base/eval" in stages_of(recipe, ["ttrl"])
    assert trained(recipe, ["ttrl", "ladder_10"]) == ["ladder", "ladder_10"]
    assert trained(recipe, ["base"]) == []
    assert all(need in dependencies(recipe) for stages in dependencies(recipe).values() for need in stages)


def test_a_stage_that_is_rerun_takes_those_after_it_along() -> None:
    recipe = load_recipe("tiny")
    assert dependents(recipe, ["conditions/ladder/eval"]) == [
        "conditions/ladder/eval",
        "conditions/ladder_ttrl/problems",
        "conditions/ladder_ttrl/eval",
        "conditions/ladder_pass100/problems",
        "conditions/ttrl/problems",
        "conditions/ttrl/eval",
    ]
    assert "conditions/base/eval" not in dependents(recipe, ["variants"])
    assert dependents(recipe, []) == []
    with pytest.raises(UserError, match="no such stage; did you mean conditions/ladder/train"):
        dependents(recipe, ["conditions/ladder/trian"])


def test_a_recipe_that_selects_has_a_stage_more() -> None:
    recipe = load_recipe("llama3b")
    assert list(dependencies(recipe))[:3] == ["select", "transformations", "variants"]
    assert dependencies(recipe)["conditions/base/eval"] == ("select",)
