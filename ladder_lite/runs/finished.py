"""Read a run folder: its recipe, its adapters and the results of its stages. Loads no model and writes nothing.

    run = open_run(Path("runs/tiny-s0"))
    run.adapter("ladder")                                  # the folder of LADDER's adapter
    run.rows(layout.evaluation("ladder"), layout.ATTEMPTS)

The run may be unfinished.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladder_lite.config import Recipe, condition_of, load_recipe
from ladder_lite.errors import UserError, nearest
from ladder_lite.jsonl import read_jsonl
from ladder_lite.runs import layout


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder with its recipe; `conditions` are those of the recipe and those added by --full or --only."""

    path: Path
    recipe: Recipe
    conditions: tuple[str, ...]

    def recipe_with(self, overrides: Sequence[str]) -> Recipe:
        """The recipe with "KEY=VALUE" changes."""
        return load_recipe(str(self.path / layout.RECIPE), overrides)

    @property
    def adapters(self) -> dict[str, Path]:
        """The folders of trained adapters by condition, in the order of the conditions."""
        folders = self.path.glob(f"{layout.train('*')}/{layout.ADAPTER}")
        # parents[1] of conditions/ladder/train/adapter is conditions/ladder.
        trained = {path.parents[1].name: path for path in sorted(folders)}
        # Adapters of unknown conditions come last.
        return {name: trained[name] for name in dict.fromkeys([*self.conditions, *trained]) if name in trained}

    def adapter(self, condition: str) -> Path | None:
        """The folder of the adapter that a condition trained, None for the base model.

        Raises UserError, worded for `--condition`, if there is no such adapter.
        """
        if condition == "base":
            return None
        adapters = self.adapters
        if condition in adapters:
            return adapters[condition]
        known = condition_of(condition, self.recipe.ablations)
        names = ["base", *adapters]
        trained = f"it has {', '.join(names)}" if adapters else "nothing has been trained yet; run the recipe first"
        why = f"has no such adapter{nearest(condition, names)}; {trained}"
        if known.problems_of is not None:
            kept = "TTRL rolls its own back after each problem" if known.trains_on else "this condition trains none"
            why = f"has no such adapter: {kept}; use the one it starts from, --condition {known.start}"
        raise UserError(f"--condition {condition}: {self.path} {why}")

    def done(self, stage: str) -> dict[str, Any]:
        """The summary of a finished stage, {} if it is not finished."""
        return read_json(self.path / stage / layout.DONE)

    def rows(self, stage: str, name: str) -> list[dict[str, Any]]:
        """The rows of a JSON lines file of a stage, [] if there is no such file."""
        return read_jsonl(self.path / stage / name)


def is_run(path: Path) -> bool:
    """Whether the folder is a run folder."""
    return (path / layout.RECIPE).exists()


def open_run(path: Path) -> Run:
    """Open a run folder. Raises UserError if it is not one, or if this version cannot read its recipe."""
    if not is_run(path):
        raise UserError(f"{path}: not a run folder (no {layout.RECIPE}); name one, such as runs/tiny-s0")
    recipe = load_recipe(str(path / layout.RECIPE))
    return Run(path, recipe, tuple(dict.fromkeys([*recipe.conditions, *_conditions_with_results(path)])))


def read_json(path: Path, remedy: str = "redo the stage of this file") -> dict[str, Any]:
    """Read a JSON object of a run, {} if the file does not exist. Raises UserError with the remedy if it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (not a JSON object); {remedy}")
    return value


def _conditions_with_results(path: Path) -> list[str]:
    """The conditions with a finished evaluation or finished single problems, whether the recipe lists them or not."""
    stages = (layout.evaluation("*"), layout.problems("*"))
    markers = [marker for stage in stages for marker in path.glob(f"{stage}/{layout.DONE}")]
    return sorted({marker.parent.parent.name for marker in markers})
