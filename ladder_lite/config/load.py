"""Load recipes: a YAML file, one of its profiles and `key=value` overrides become one frozen, checked `Recipe`.

    recipe = load_recipe("tiny", ["eval.samples=20", "grpo.trl.learning_rate=1e-4"])

Unknown and missing settings are errors. Each error names the key, where it was written, and what is allowed there.
`ladder_lite.config.schema` describes the settings.
"""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ladder_lite.config.conditions import BUILT_IN
from ladder_lite.config.schema import Recipe
from ladder_lite.config.trl_settings import LibrarySettings
from ladder_lite.config.yaml_source import Places, read_yaml
from ladder_lite.errors import UserError, nearest
from ladder_lite.install import shipped


def load_recipe(
    name_or_path: str, overrides: Sequence[str] = (), smoke: bool = False, profile: str | None = None
) -> Recipe:
    """Load and check a shipped recipe by name, or a YAML file by path.

    Changes apply in this order: the profile, the `smoke` section if `smoke` is set, and `overrides` of the form
    "a.b.c=VALUE", where VALUE is YAML. Raises UserError: one line with the key, its place (file:line or the override),
    and what is allowed there.
    """
    path = _find_recipe(name_or_path)
    source = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{source}: no such recipe file; --list names the shipped recipes") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot read this recipe: {error}") from error
    tree, places = read_yaml(text, source)
    if not isinstance(tree, dict):
        raise UserError(f"{source}: a recipe is a mapping of settings, this file has none")
    profiles = tree["profiles"] if isinstance(tree.get("profiles"), dict) else {}
    if profile is not None and profile not in profiles:
        known = f"it has {', '.join(profiles)}" if profiles else "it has none"
        raise UserError(f"{source}: no profile {profile}{nearest(profile, profiles)}; {known}")
    # Check all sections, applied or not: a mistake in `smoke` should not wait for the day someone uses it.
    smoked = _section(tree, places, "smoke")
    for changes in [smoked, *(_section(profiles, places, name, "profiles") for name in profiles)]:
        _check_with_ablations(*_apply(tree, places, changes))
    chosen = _section(profiles, places, profile, "profiles") if profile else []
    own = [(f'override "{override}"', *_split_override(override)) for override in overrides]
    tree, places = _apply(tree, places, [*chosen, *(smoked if smoke else []), *own])
    return _check_with_ablations(tree, places)


def with_more(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """Add conditions to those of a recipe, ordered as in `conditions`, then `full`; UserError for unknown names."""
    known = [*BUILT_IN, *recipe.ablations]
    wanted = {*recipe.conditions, *names}
    for name in wanted.difference(known):
        raise UserError(f"{name}: no such condition{nearest(name, known)}; {recipe.name} has {', '.join(known)}")
    order = dict.fromkeys((*recipe.conditions, *recipe.full, *known))
    return recipe.model_copy(update={"conditions": tuple(name for name in order if name in wanted)})


def _section(tree: dict[str, Any], places: Places, name: str, *above: str) -> list[tuple[str, str, Any]]:
    """The changes (place, dotted key, value) in a section of a recipe."""
    section = tree.get(name)
    if not isinstance(section, dict):
        return []  # the schema reports it
    return [(places[(*above, name, key)], key, value) for key, value in section.items()]


def list_recipes() -> list[tuple[str, str]]:
    """Return (name, description) of every shipped recipe."""
    recipes = (load_recipe(name) for name in recipe_names())
    return [(recipe.name, recipe.description) for recipe in recipes]


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with all settings resolved; `load_recipe` reads it back unchanged."""
    tree = recipe.model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(path.stem for path in shipped("recipes").glob("*.yaml"))


def _find_recipe(name_or_path: str) -> Path:
    path = Path(name_or_path)
    # "tiny" is a shipped recipe even if a folder of that name exists here; "./tiny" and "tiny.yaml" are paths.
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    names = recipe_names()
    if name_or_path not in names and (own := Path(f"{name_or_path}.yaml")).is_file():
        return own
    if name_or_path not in names:
        hint = nearest(name_or_path, names) or "."
        raise UserError(f'unknown recipe "{name_or_path}"{hint} The known ones are {", ".join(names)}')
    return shipped("recipes") / f"{name_or_path}.yaml"


def _split_override(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f'override "{override}": write it as key=value, for instance seed=1')
    return key, read_yaml(value, f'override "{override}"', one_line=True)[0]


def _apply(tree: dict[str, Any], places: Places, changes: list[tuple[str, str, Any]]) -> tuple[dict[str, Any], Places]:
    """Apply the changes (place, dotted key, value) to copies of the settings and their places, and return both."""
    tree, places = copy.deepcopy(tree), dict(places)
    for place, key, value in changes:
        *sections, last = key.split(".")
        section = tree
        for depth, name in enumerate(sections, start=1):
            if section.get(name) is None:  # variants.adaptive.every=5 also works where variants.adaptive is null
                section[name] = {}
                places[tuple(sections[:depth])] = place
            section = section[name]
            if not isinstance(section, dict):
                raise UserError(f"{place}: {'.'.join(sections[:depth])} is a value, it has no settings below it")
        section[last] = value
        path = (*sections, last)
        # A new value replaces a section as a whole: errors about what is in it must name the override, not the file.
        places = {known: where for known, where in places.items() if known[: len(path)] != path}
        places[path] = place
    return tree, places


def _check_with_ablations(tree: dict[str, Any], places: Places) -> Recipe:
    """Return the recipe of these settings; raise for its first mistake, the changes of its ablations included."""
    recipe = _check(tree, places)
    for name, changes in recipe.ablations.items():
        place = _place(places, ("ablations", name))
        with_changes(recipe, {key: value for key, value in changes.items() if key != "share"}, place)
    return recipe


def with_changes(recipe: Recipe, changes: Mapping[str, Any], place: str) -> Recipe:
    """The recipe with changes by dotted key. Raises UserError, which names `place`, for the first mistake."""
    keys = [(place, key, value) for key, value in changes.items()]
    return _check(*_apply(recipe.model_dump(mode="json"), {(): place}, keys))


def _check(tree: dict[str, Any], places: Places) -> Recipe:
    """Return the recipe of these settings, or raise for its first mistake."""
    try:
        # Strict models reject a list for a tuple, except in JSON.
        return Recipe.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise UserError(_explain(error.errors(include_url=False), tree, places)) from error


def _explain(errors: list[ErrorDetails], tree: dict[str, Any], places: Places) -> str:
    # A misspelled key causes two errors, unknown and missing. Report the unknown one.
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    path, value = _written_part(error["loc"], tree)
    if error["type"] == "missing":
        path = (*path, str(error["loc"][-1]))
    place = _place(places, path)
    if isinstance(value, dict):  # a rule about a whole section: overrides within it are to blame, if there are any
        below = [where for known, where in places.items() if known[: len(path)] == path]
        place = ", ".join(dict.fromkeys(where for where in below if where.startswith("override "))) or place
    key = ".".join(path)
    if error["type"] == "missing":
        return f"{place}: {key} is missing; it has no default"
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown setting {key}{_nearest_setting(path)}"
    # Pydantic reports one error per member of a union; join their rules with "or".
    rules = [_rule(other["msg"]) for other in errors if _written_part(other["loc"], tree)[0] == path]
    return f"{place}: {key} is {shown(value)}; {' or '.join(dict.fromkeys(rules))}"


def shown(value: object) -> str:
    """The value of a setting in an error: JSON of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _place(places: Places, path: tuple[str, ...]) -> str:
    """Where a setting was written, or else the innermost section around it."""
    return next(places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in places)


def _written_part(loc: tuple[int | str, ...], tree: Any) -> tuple[tuple[str, ...], Any]:
    """Return the part of an error's location that exists in the recipe, and the value there.

    Pydantic appends the names of union members: ("eval", "k", "int") -> ("eval", "k").
    """
    path: list[str] = []
    for part in loc:
        if isinstance(tree, dict) and part in tree:
            tree = tree[str(part)]
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            break
        path.append(str(part))
    return tuple(path), tree


def _rule(message: str) -> str:
    # "Input should be greater than 0" -> "must be greater than 0"
    message = message.removeprefix("Value error, ").replace("an object", "a mapping of settings")
    return re.sub(r"^(Input|Tuple|List|String|Object) should (be )?", lambda m: f"must {m[2] or ''}", message)


def _nearest_setting(path: tuple[str, ...]) -> str:
    """A hint: a similar name in the same section, or the same name in another one."""
    known = list(_known_settings(Recipe, ()))
    siblings = [other[-1] for other in known if other[:-1] == path[:-1]]
    if hint := nearest(path[-1], siblings):
        return hint
    elsewhere = [".".join(other) for other in known if other[-1] == path[-1]]
    return f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""


def _known_settings(section: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        path = (*above, name)
        yield path
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _known_settings(kind, path)
        for mark in field.metadata:  # settings of TRL and peft
            if isinstance(mark, LibrarySettings):
                yield from ((*path, setting) for setting in mark.types)
