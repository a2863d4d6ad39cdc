"""Recipes: what loads, and the one line that each mistake gets."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ladder_lite.config.load import dump_recipe, list_recipes, load_recipe, with_more
from ladder_lite.config.schema import Recipe
from ladder_lite.config.trl_settings import TRL_DEFAULTS
from ladder_lite.errors import UserError
from ladder_lite.install import shipped
from ladder_lite.problems import load_problems
from ladder_lite.recipe.__main__ import app as recipe_command

# Short, with one key per line where a test counts lines.
RECIPE = """\
name: small
description: for the tests
seed: 3
task:
  name: integration
  train: tiny
  test: tiny
  select: null
  protocol: strict
  stop: ["</answer>"]
  thinking: false
  prompts:
    system: null
    solve_examples: []
    variant_examples: [{user: x, assistant: y}]
    solve: "integrate {integrand} d{variable}"
    easier: "easier {integrand}"
    equivalent: "equivalent {integrand} {persona} {suggestions} {count}"
    transformations: null
model:
  id: tiny
  mirror: null
  backend: transformers
  dtype: float32
  load_in_4bit: false
  engine: auto
  max_prompt_length: 64
  lora: {r: 8, target_modules: all-linear}
ablations: {ladder_half: {share: 0.5}}
conditions: [base, ladder]
full: [ladder_half]
variants:
  per_root: 10
  depth: 3
  per_prompt: 1
  suggestions: [1, 2]
  mix: {easier: 0.7, equivalent: 0.3}
  temperature: [0.8, 1.4]
  personas: [no, 2024-01-01]
  transformations: {easier: [drop a term, lower a power], equivalent: [reorder, rename]}
  max_new_tokens: 64
  batch_size: 8
  adaptive: {start: 4, every: 5, requests: 8}
  equal_up_to_factor: false
grpo:
  rows: pass_rate
  format_reward: 0
  eval_every: 25
  plateau: {patience: 50, min_signal: 0.02}
  trl:
    learning_rate: 5e-4
    max_steps: 200
    tf32: false
    num_generations: 4
    per_device_train_batch_size: 8
    max_completion_length: 64
eval: {samples: 10, k: 5, temperature: 1.0, top_p: 1.0, max_new_tokens: 64, batch_size: 8}
ttrl: {problems: all, order: listed, per_root: 5, depth: 2, max_steps: 20, budget: null, samples_per_step: 8, \
  stop_when_solved: true, trl: {}}
profiles:
  small: {eval.k: 3, eval.samples: 8}
smoke:
  grpo.trl.max_steps: 2
  eval.samples: 6
"""
BATCH = {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 64}


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def refusal(source: str, overrides: list[str] | None = None, smoke: bool = False) -> str:
    with pytest.raises(UserError) as refused:
        load_recipe(source, overrides or [], smoke=smoke)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_values_arrive_with_their_types(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    assert recipe.seed == 3
    assert recipe.variants.temperature == (0.8, 1.4)
    assert recipe.grpo.trl == {"learning_rate": 0.0005, "max_steps": 200, "tf32": False, **BATCH, **TRL_DEFAULTS}
    assert recipe.variants.personas == ("no", "2024-01-01")  # YAML 1.1 would make a bool and a date of them
    assert recipe.task.prompts.system is None
    assert recipe.ttrl.problems == "all"


def test_a_dumped_recipe_reads_back_equal(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_file), ["grpo.trl.learning_rate=1e-7", "task.prompts.system='two\\nlines: √ # {'"])
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "dumped.yaml")) == recipe


@pytest.mark.parametrize("name", [name for name, _ in list_recipes()])
@pytest.mark.parametrize("change", ["variants.adaptive=null", "grpo.plateau=null", "ttrl.problems=0"])
@pytest.mark.parametrize("smoke", [False, True])
def test_a_changed_recipe_reads_back_equal(tmp_path: Path, name: str, change: str, smoke: bool) -> None:
    recipe = load_recipe(name, [change], smoke=smoke)
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "dumped.yaml")) == recipe


def test_a_recipe_cannot_be_changed(recipe_file: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(str(recipe_file)).seed = 4


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("eval.temperature=0", "eval.temperature", 0.0),
        ("grpo.plateau=null", "grpo.plateau", None),
        ("grpo.trl.beta=1e-3", "grpo.trl.beta", 0.001),
        ("grpo.trl.run_name=", "grpo.trl.run_name", None),
        (
            "grpo.trl={max_steps: 1, num_generations: 4, per_device_train_batch_size: 8, max_completion_length: 64}",
            "grpo.trl",
            {"max_steps": 1, **BATCH, **TRL_DEFAULTS},
        ),
        ("model.lora.target_modules=[q_proj, v_proj]", "model.lora.target_modules", ["q_proj", "v_proj"]),
        ("model.id=a=b", "model.id", "a=b"),
        ("ttrl.problems=8", "ttrl.problems", 8),
        ("conditions=[ladder_ttrl]", "conditions", ["ladder_ttrl"]),
        ("variants.adaptive=null", "variants.adaptive", None),
        ("variants.adaptive.start=9", "variants.adaptive", {"start": 9, "every": 5, "requests": 8}),
        ("variants.transformations=default", "variants.transformations", "default"),
        ("variants.transformations=a/library.json", "variants.transformations", "a/library.json"),
        ("task.select={samples: 4, train: 1, test: 2}", "task.select.samples", 4),
    ],
)
def test_overrides(recipe_file: Path, override: str, path: str, value: object) -> None:
    found: Any = load_recipe(str(recipe_file), [override]).model_dump(mode="json")
    for part in path.split("."):
        found = found[part]
    assert found == value


def test_overrides_come_after_smoke_and_smoke_after_the_recipe(recipe_file: Path) -> None:
    assert load_recipe(str(recipe_file)).eval.samples == 10
    smoke = load_recipe(str(recipe_file), smoke=True)
    assert (smoke.eval.samples, smoke.grpo.trl["max_steps"]) == (6, 2)
    assert load_recipe(str(recipe_file), ["eval.samples=7"], smoke=True).eval.samples == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sed=1", "unknown setting sed; did you mean seed?"),
        ("grpo.trl.lerning_rate=1", "unknown setting grpo.trl.lerning_rate; did you mean learning_rate?"),
        (
            "grpo.learning_rate=1",
            "unknown setting grpo.learning_rate; did you mean grpo.trl.learning_rate or ttrl.trl.learning_rate?",
        ),
        ("model.lora.use_dora=true", "must leave out use_dora: the adapter would be more than a product"),
        ("model.lora.bias=all", "must have a bias of none"),
        ("model.lora.modules_to_save=[lm_head]", "must leave out modules_to_save"),
        ("model.lora.init_lora_weights=pissa", "must have init_lora_weights of true or gaussian"),
        ("grpo.trl.full_determinism=true", "must leave out full_determinism: the training loop sets it"),
        ("model.lora.lora_alfa=1", "unknown setting model.lora.lora_alfa; did you mean lora_alpha?"),
        ("wholly.unlike=1", "unknown setting wholly"),
        ("seed=-1", "seed is -1; must be greater than or equal to 0"),
        ("seed=true", "seed is true; must be a valid integer"),
        ("seed='1'", 'seed is "1"; must be a valid integer'),
        ("seed=", "seed is null; must be a valid integer"),
        ("seed.x=1", "seed is a value, it has no settings below it"),
        ("name=../up", "name is \"../up\"; must match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$'"),
        ("grpo.rows=random", "grpo.rows is \"random\"; must be 'pass_rate', 'uniform' or 'staged'"),
        ("model={}", "model.id is missing; it has no default"),
        (
            "conditions=[lader]",
            'conditions is ["lader"]; must name conditions of base, rl_without_variants, ladder, ladder_ttrl, '
            "ladder_pass100, ttrl, ladder_half, and lader is none; did you mean ladder?",
        ),
        ("conditions=[base, base]", 'conditions is ["base", "base"]; must not name a condition twice'),
        (
            "ablations={base: {}}",
            'ablations is {"base": {}}; must not name an ablation base: that is a condition of every recipe',
        ),
        ("ablations.half={share: 2}", 'ablations.half is {"share": 2}; must have a share above 0 and up to 1'),
        (
            "ablations.half={eval.samples: 2}",
            'ablations.half is {"eval.samples": 2}; must change either share, variants.* and grpo.*, or ttrl.* alone; '
            "not eval.samples",
        ),
        (
            "ablations.half={share: 0.5, ttrl.max_steps: 2}",
            "must change either share, variants.* and grpo.*, or ttrl.* alone; not share",
        ),
        (
            "variants.third=nearest",
            'variants.third is "nearest"; must be null unless variants.adaptive is null: the tree must be complete',
        ),
        (
            "ablations.half={variants.transformations: model}",
            'ablations.half is {"variants.transformations": "model"}; must not have variants.transformations: model; '
            "the recipe can, for all of its conditions",
        ),
        ("ablations.half={grpo.row: uniform}", "unknown setting grpo.row; did you mean rows?"),
        ("ablations.half={variants.depth: 9}", "variants.depth is 9; must be less than or equal to 5"),
        ("conditions=[]", "conditions is []; must have at least 1 item after validation, not 0"),
        ("variants.depth=6", "variants.depth is 6; must be less than or equal to 5"),
        ("variants.temperature=[2, 1]", "variants.temperature is [2, 1]; must be [lowest, highest]"),
        ("variants.temperature=[0, 1]", "variants.temperature.0 is 0; must be greater than 0"),
        ("variants.temperature=[1]", "variants.temperature.1 is missing; it has no default"),
        ("variants.mix={easier: 0.5, equivalent: 0.6}", "equivalent is 0.6; must be 1 - easier, and easier is 0.5"),
        ("variants=null", "variants is null; must be a mapping of settings"),
        ("grpo.plateau.patience=0", "grpo.plateau.patience is 0; must be greater than 0"),
        ("grpo.trl.learning_rate=fast", 'grpo.trl.learning_rate is "fast"; must be a valid number'),
        ("grpo.trl.tf32=3", "grpo.trl.tf32 is 3; must be a valid boolean"),
        (
            "model.lora.target_modules=3",
            "target_modules is 3; must be a valid array or must be a valid string",
        ),
        ("eval.k=11", "eval.k is 11; must be at most eval.samples, which is 10"),
        ("eval.temperature=.nan", "eval.temperature is NaN; must be a finite number"),
        ("ttrl.problems=some", "ttrl.problems is \"some\"; must be a valid integer or must be 'all'"),
        ("ttrl.order=random", "ttrl.order is \"random\"; must be 'listed' or 'shuffled'"),
        ("ttrl.budget=ten", 'ttrl.budget is "ten"; must be a time: give hours, minutes or seconds'),
        ("ttrl.budget=600", "ttrl.budget is 600; must be a valid string"),
        ("smoke=3", "smoke is 3; must be a mapping of settings"),
        ("variants.transformations=own", "must be model, default, the path of a library.json, or lists"),
        ("variants.adaptive={start: 1}", "variants.adaptive.every is missing; it has no default"),
        ("variants.adaptive=3", "variants.adaptive is 3; must be a mapping of settings"),
        ("task.prompts.transformations='name {count}'", "must contain {effect}"),
        ("task.select.samples=0", "task.select.samples is 0; must be greater than 0"),
        ("task.prompts.solve='{'", "Single '{' encountered in format string"),
        ("task.prompts.easier='{integrand.real}'", "must double its literal braces: {integrand.real} is not"),
        ("task.prompts.solve='{integrand:d}'", "{integrand} is not a plain placeholder"),
        ("task.prompts.solve='{}'", "must double its literal braces: {} is not a plain placeholder"),
        ("seed=[", "not valid YAML: expected the node content"),
        ("seed=!!python/object:os.system {}", "seed is {}; must be a valid integer"),
        ("seed=!!binary aGk=", "not valid YAML: tag:yaml.org,2002:binary is not allowed"),
        ("seed", "write it as key=value"),
        ("=1", "write it as key=value"),
    ],
)
def test_refused_override_is_named_with_what_is_allowed(recipe_file: Path, override: str, message: str) -> None:
    error = refusal(str(recipe_file), [override])
    assert error.startswith(f'override "{override}": ')
    assert message in error


def test_a_pool_is_one_set(recipe_file: Path) -> None:
    error = refusal(recipe_file.name, ["task.test=mit_bee", "task.select={samples: 4, train: 1, test: 2}"])
    assert error.endswith("must be null unless task.train and task.test name the same set, the pool")


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("grpo.trl.seed=3", "must leave out seed: the training loop sets it"),
        ("ttrl.trl.num_iterations=2", "must leave out num_iterations: the training loop sets it"),
        ("grpo.trl.remove_unused_columns=true", "must leave out remove_unused_columns: the training loop sets it"),
        ("grpo.trl.num_generations=3", "that num_generations, 3, divides"),
        ("grpo.trl.max_steps=0", "must have a max_steps above 0"),
        ("grpo.trl.learning_rate=-1.0", "must have a learning_rate above 0"),
        ("grpo.trl.temperature=0.0", "must have a temperature above 0"),
        ("grpo.trl.beta=-1.0", "must have beta of 0 or more"),
        ("grpo.trl.epsilon=-0.5", "must have epsilon of 0 or more"),
        ("grpo.trl.scale_rewards=foo", "must have scale_rewards of group, batch or none"),
        ("grpo.trl.max_steps=-1", "must have a max_steps above 0"),
        ("grpo.trl.max_completion_length=-5", "must have a max_completion_length above 0"),
        ("grpo.trl.num_generations=1", "answers are compared within a group"),
        ("grpo.trl.loss_type=nope", "must have a loss_type of grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo, vespo"),
        ("grpo.trl.auto_find_batch_size=true", "must leave out auto_find_batch_size: the training loop sets it"),
        ("ttrl.trl={num_generations: 5}", "num_generations, 5, divides; that is with grpo.trl, which ttrl.trl changes"),
        ("variants.transformations=model", "transformations: model while task.prompts.transformations is null"),
        ("ttrl.probe_every=10", "must not have probe_every while task.probe is null"),
        ("grpo.format_reward=1", "must be less than 1"),
        ("variants.personas=[]", "must have at least 1 item after validation, not 0"),
    ],
)
def test_settings_that_could_not_train_are_refused(recipe_file: Path, override: str, rule: str) -> None:
    error = refusal(recipe_file.name, ["seed=1", override, "grpo.eval_every=7"])
    assert error.startswith((f'override "{override}": ', recipe_file.name))  # the file, if its own settings do not fit
    assert error.endswith(rule)
    if override.startswith("grpo.trl."):
        assert error.startswith(f'override "{override}": ')


def test_all_overrides_that_a_rule_is_about_are_named(recipe_file: Path) -> None:
    error = refusal(recipe_file.name, ["grpo.trl.num_generations=7", "seed=1", "grpo.trl.warmup_steps=3"])
    assert error.startswith('override "grpo.trl.num_generations=7", override "grpo.trl.warmup_steps=3": ')


def test_a_recipe_in_the_current_folder_is_found_by_name(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recipe_file.parent)
    recipe_file.rename("mine.yaml")
    assert load_recipe("mine") == load_recipe("mine.yaml")
    recipe_file.parent.joinpath("tiny.yaml").write_text("name: other", encoding="utf-8")
    assert load_recipe("tiny").name == "tiny"  # a shipped recipe comes first
    for name in ("", ".", "mine.v2"):
        assert "unknown recipe" in refusal(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 3", "sede: 3", "small.yaml:3: unknown setting sede; did you mean seed?"),
        ("seed: 3", "seed: x", 'small.yaml:3: seed is "x"; must be a valid integer'),
        ("name: small\n", "", "small.yaml: name is missing; it has no default"),
        ("seed: 3", "seed: 3\nseed: 4", 'small.yaml:4: not valid YAML: "seed" is set twice, first at small.yaml:3'),
        ("seed: 3", "seed: [3", "small.yaml:4: not valid YAML: expected ',' or ']', but got ':'"),
        ("seed: 3", "seed: *other", "small.yaml:3: not valid YAML: aliases (*name) are not allowed"),
        ("seed: 3", "[a]: 3", "small.yaml:3: not valid YAML: a key must be plain text"),
        ("seed: 3", "seed: \x00", "small.yaml: not valid YAML: "),
        ("  depth: 3\n", "", "small.yaml:32: variants.depth is missing; it has no default"),
        (
            "    max_steps: 200",
            "    max_step: 200",
            "small.yaml:52: unknown setting grpo.trl.max_step; did you mean max_s",
        ),
        ("[1, 2]", "[1, 3]", "small.yaml:40: variants.transformations is"),
        ("[base, ladder]", "\n  - base\n  - lader", 'small.yaml:30: conditions is ["base", "lader"]; must name'),
        (
            "  eval.samples: 6",
            "  eval.smaples: 6",
            "small.yaml:63: unknown setting eval.smaples; did you mean samples?",
        ),
        (
            "  eval.samples: 6",
            "  eval.samples: 4",
            "small.yaml:57: eval.k is 5; must be at most eval.samples, which is 4",
        ),
        (RECIPE, "", "small.yaml: a recipe is a mapping of settings, this file has none"),
        (RECIPE, "- a", "small.yaml: a recipe is a mapping of settings, this file has none"),
        (RECIPE, "{}", "small.yaml: name is missing; it has no default"),
    ],
)
def test_refused_file_is_named_with_its_line(recipe_file: Path, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    recipe_file.write_text(RECIPE.replace(old, new), encoding="utf-8")
    assert refusal("small.yaml").startswith(message)


def test_a_profile_comes_before_smoke_and_overrides(recipe_file: Path) -> None:
    profiled = load_recipe(str(recipe_file), profile="small")
    assert (profiled.eval.k, profiled.eval.samples) == (3, 8)
    both = load_recipe(str(recipe_file), ["eval.k=2"], smoke=True, profile="small")
    assert (both.eval.k, both.eval.samples) == (2, 6)


def test_profiles_are_checked_without_being_named(recipe_file: Path) -> None:
    with pytest.raises(UserError, match=r"small.yaml: no profile smal; did you mean small\?; it has small"):
        load_recipe(str(recipe_file), profile="smal")
    recipe_file.write_text(recipe_file.read_text().replace("eval.samples: 8", "eval.samples: 2"))
    with pytest.raises(UserError, match=r"eval\.k is 3; must be at most eval.samples, which is 2"):
        load_recipe(str(recipe_file))


def test_smoke_settings_are_checked_without_smoke_too(recipe_file: Path) -> None:
    recipe_file.write_text(RECIPE.replace("eval.samples: 6", "eval.samples: -6"), encoding="utf-8")
    assert refusal("small.yaml") == "small.yaml:63: eval.samples is -6; must be greater than 0"


def test_ablations_are_checked_with_smoke_settings_too(recipe_file: Path) -> None:
    ablation = RECIPE.replace("{share: 0.5}", "{grpo.trl.num_generations: 8}")
    recipe_file.write_text(ablation)
    assert load_recipe(str(recipe_file), smoke=True).ablations == {"ladder_half": {"grpo.trl.num_generations": 8}}
    recipe_file.write_text(ablation.replace("eval.samples: 6", "grpo.trl.per_device_train_batch_size: 4"))
    assert "num_generations, 8, divides" in refusal(str(recipe_file))


def test_unreadable_recipes(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    assert "cannot read this recipe" in refusal(str(tmp_path / "latin.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot read this recipe" in refusal(str(tmp_path / "folder.yaml"))
    assert "no such recipe file" in refusal(str(tmp_path / "absent.yaml"))


def test_unknown_recipe_names_the_known_and_the_nearest() -> None:
    assert refusal("tyni").startswith('unknown recipe "tyni"; did you mean tiny? The known ones are ')
    assert refusal("qqqqq").startswith('unknown recipe "qqqqq". The known ones are ')


RECIPES = sorted(path.stem for path in shipped("recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_loads_under_its_own_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert load_recipe(name, smoke=True) != recipe
    assert (name, recipe.description) in list_recipes()


@pytest.mark.parametrize("name", RECIPES)
def test_every_profile_changes_its_recipe_and_goes_with_smoke(name: str) -> None:
    recipe = load_recipe(name)
    for profile in recipe.profiles:
        assert load_recipe(name, profile=profile) != recipe
        smoke = load_recipe(name, smoke=True, profile=profile)
        assert smoke.model.id == ("embedded" if profile == "rehearsal" else recipe.model.id)


def test_the_large_recipes_have_the_papers_numbers() -> None:
    def batch(recipe: Recipe) -> int:
        return int(recipe.grpo.trl["per_device_train_batch_size"] * recipe.grpo.trl["gradient_accumulation_steps"])

    llama, qwen = load_recipe("llama3b"), load_recipe("qwen7b")
    assert llama.task.select is not None
    assert (llama.task.select.train, llama.task.select.test) == (10, 100)
    assert (llama.variants.per_root, llama.variants.depth, llama.variants.mix.easier) == (500, 3, 1.0)
    assert (qwen.variants.depth, qwen.variants.mix.easier, batch(qwen)) == (2, 0.7, 128)
    roots, tests = (load_problems(getattr(qwen.task, split), split) for split in ("train", "test"))
    assert len(tests) == 20
    assert qwen.variants.per_root * len(roots) == pytest.approx(9000, rel=0.01)
    assert (qwen.ttrl.problems, qwen.ttrl.per_root, qwen.ttrl.depth, qwen.ttrl.max_steps) == ("all", 800, 2, 100)
    for recipe in (llama, qwen):
        assert (recipe.grpo.trl["beta"], recipe.grpo.trl["scale_rewards"]) == (0.001, "group")
        assert (recipe.variants.per_prompt, recipe.variants.suggestions) == (10, (3, 5))


@pytest.mark.parametrize("name", RECIPES)
def test_print_shows_every_setting_with_overrides_applied(name: str, tmp_path: Path) -> None:
    printed = CliRunner().invoke(recipe_command, [name, "--print", "eval.samples=11"])
    assert printed.exit_code == 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(printed.stdout, encoding="utf-8")
    assert load_recipe(str(copy)) == load_recipe(name, ["eval.samples=11"])
    defaults = {*TRL_DEFAULTS, "engine", "equal_up_to_factor", "budget", "seed"}
    assert all(f"{setting}:" in printed.stdout for setting in defaults)


def test_features_are_off_unless_a_recipe_turns_them_on(recipe_file: Path) -> None:
    for line in ("seed: 3", "  select: null", "  mirror: null", "  thinking: false", "  plateau: {patience: 50, min_"):
        text = recipe_file.read_text(encoding="utf-8")
        recipe_file.write_text("".join(kept for kept in text.splitlines(True) if not kept.startswith(line)))
        assert recipe_file.read_text(encoding="utf-8") != text
    recipe = load_recipe(str(recipe_file))
    assert (recipe.seed, recipe.task.thinking) == (0, False)
    assert (recipe.task.select, recipe.model.mirror, recipe.grpo.plateau) == (None, None, None)


def test_defaults_of_trl_settings_give_way_to_the_recipe() -> None:
    changed = load_recipe("tiny", ["grpo.trl.report_to=wandb", "grpo.trl.top_p=0.9"]).grpo.trl
    assert {name: changed[name] for name in TRL_DEFAULTS} == TRL_DEFAULTS | {"report_to": "wandb", "top_p": 0.9}


def test_more_conditions_come_in_the_order_of_the_recipe() -> None:
    recipe = load_recipe("tiny", ["conditions=[base, ladder]", "full=[ladder_10, ttrl]"])
    assert with_more(recipe, ["ttrl", "base", "ladder_10"]).conditions == ("base", "ladder", "ladder_10", "ttrl")
    with pytest.raises(UserError, match="laddr: no such condition; did you mean ladder"):
        with_more(recipe, ["laddr"])


def test_reading_a_recipe_imports_no_training_library() -> None:
    program = (
        "import sys, ladder_lite.config.load as config; config.list_recipes();"
        "print(sorted({'torch', 'transformers', 'trl', 'peft', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"
