"""A run folder opened to be read: its recipe, its adapters, and what its stages left. No model is loaded.

    run = open_run(Path("runs/tiny-s0"))
    run.adapter("ladder")                                  # the folder of LADDER's adapter
    run.rows(layout.evaluation("ladder"), layout.ATTEMPTS)

The run may be unfinished, of an older version, or hold conditions that this version does not know.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ladder_lite.config import Recipe, condition_of, load_recipe
from ladder_lite.errors import UserError, nearest
from ladder_lite.jsonl import read_jsonl
from ladder_lite.runs import layout


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, and what is commonly asked of its recipe; `settings` is all of it, as YAML has it.

    `conditions` are the recipe's and those that were run besides, as --full and --only do.
    """

    path: Path
    name: str
    seed: int
    model: str
    train: str
    test: str
    conditions: tuple[str, ...]
    ablations: Mapping[str, Mapping[str, Any]]
    samples: int
    k: int
    settings: Mapping[str, Any]

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe, with `key=value` changes; UserError where this version cannot read it."""
        return load_recipe(str(self.path / layout.RECIPE), overrides)

    @property
    def adapters(self) -> dict[str, Path]:
        """The folders of trained adapters by condition, in the order of the conditions."""
        found = self.path.glob(f"{layout.train('*')}/{layout.ADAPTER}")
        trained = {path.parents[1].name: path for path in sorted(found)}
        return {name: trained[name] for name in dict.fromkeys([*self.conditions, *trained]) if name in trained}

    def adapter(self, condition: str) -> Path | None:
        """The folder of the adapter that a condition trained, None for the base model; UserError for another."""
        if condition == "base":
            return None
        adapters = self.adapters
        if condition in adapters:
            return adapters[condition]
        known = condition_of(condition)
        if known.problems_of is not None:
            why = "TTRL rolls its own back after each problem" if known.trains_on else "it trains none"
            raise UserError(
                f"--condition {condition}: this condition leaves no adapter ({why}); --condition {known.start} is the "
                "model that it starts from"
            )
        names = ["base", *adapters]
        trained = f"it has {', '.join(names)}" if adapters else "nothing is trained there yet; run the recipe first"
        raise UserError(
            f"--condition {condition}: {self.path} has no such adapter{nearest(condition, names)}; {trained}"
        )

    def done(self, stage: str) -> dict[str, Any]:
        """The summary of a finished stage, an empty one while it is not finished."""
        return read_json(self.path / stage / layout.DONE)

    def rows(self, stage: str, name: str) -> list[dict[str, Any]]:
        """The rows of a file of a stage, none where there is no such file."""
        return read_jsonl(self.path / stage / name)


def is_run(path: Path) -> bool:
    """Whether the folder is that of a run."""
    return (path / layout.RECIPE).exists()


def open_run(path: Path) -> Run:
    """Read a run's recipe; UserError where the folder is not a run or the recipe is damaged."""
    file = path / layout.RECIPE
    try:
        tree = yaml.safe_load(file.read_bytes())
        return Run(
            path=path,
            name=str(tree["name"]),
            seed=int(tree["seed"]),
            model=str(tree["model"]["id"]),
            train=str(tree["task"]["train"]),
            test=str(tree["task"]["test"]),
            conditions=tuple(dict.fromkeys([*map(str, tree["conditions"]), *_run_besides(path)])),
            ablations=tree.get("ablations") or tree.get("arms") or {},  # `arms` in runs of earlier versions
            samples=int(tree["eval"]["samples"]),
            k=int(tree["eval"]["k"]),
            settings=tree,
        )
    except FileNotFoundError as error:
        raise UserError(f"{path}: not a run folder (no {file.name}); name one, such as runs/tiny-s0") from error
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, ValueError, AttributeError) as error:
        load_recipe(str(file))  # names the line of the mistake, where this version understands the rest
        raise UserError(f"{file}: damaged ({error}); copy it from another run of the recipe") from error


def read_json(path: Path, remedy: str = "redo the stage of this file") -> dict[str, Any]:
    """A JSON object of a run, an empty one where there is no such file yet; UserError for a damaged one."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (not a JSON object); {remedy}")
    return value


def _run_besides(path: Path) -> list[str]:
    """Conditions that were run though the recipe does not list them."""
    stages = (layout.evaluation("*"), layout.problems("*"))
    markers = [marker for stage in stages for marker in path.glob(f"{stage}/{layout.DONE}")]
    return sorted({marker.parent.parent.name for marker in markers})
