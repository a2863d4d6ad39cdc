"""One run's folder: which recipe it belongs to, which stages are done, and files that survive a kill at any moment.

    with RunDir.open(Path("runs/tiny-s0"), recipe) as run:
        stage = run.stage("variants", inputs)
        if stage.done is None:
            stage.begin()
            append_jsonl(stage.path / "problems.jsonl", rows)
            stage.finish({"kept": len(rows)})

A stage's done.json is written last. It and begun.json hold a digest of the stage's inputs, so that neither finished
nor half-finished work is ever mixed with that of other settings.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ladder_lite.config import BUILT_IN, Recipe, dump_recipe, load_recipe, with_more
from ladder_lite.errors import UserError
from ladder_lite.install import versions
from ladder_lite.jsonl import digest, write_atomic, write_json
from ladder_lite.runs import layout


class RunDir:
    """The folder of one run of one recipe, held by one process at a time."""

    def __init__(self, path: Path, recipe: Recipe, lock: IO[str]) -> None:
        self.path, self.recipe, self._lock = path, recipe, lock

    @staticmethod
    def open(path: Path, recipe: Recipe, *, redo: bool = False) -> "RunDir":
        """Create the run folder, or go on with the one that is there.

        Raises UserError where the folder cannot be written, is another process's at the moment, holds something else,
        is damaged, or belongs to a recipe with other settings. With `redo`, other settings are taken over: the stages
        they concern then ask to be redone one by one, by their digests.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (foreign := _foreign_file(path)) is not None:
                raise UserError(f"{path}: not a run folder, it holds {foreign}; choose another --run-dir")
            run = RunDir(path, recipe, _take_lock(path / layout.LOCK))
        except OSError as error:
            raise UserError(
                f"{path}: cannot write to this run folder ({error.strerror}); choose another --run-dir"
            ) from error
        try:
            run._settle(redo)
        except BaseException:
            run.close()
            raise
        return run

    def stage(self, name: str, inputs: object) -> "Stage":
        """Return the stage with this relative path, for example "conditions/ladder/train"; nothing is written yet.

        `inputs` is JSON: the slice of the recipe and whatever else decides the stage's results.
        """
        return Stage(self.path, name, digest(inputs))

    def close(self) -> None:
        """Let other processes in; the end of the process, however it comes, does the same."""
        self._lock.close()

    def _settle(self, redo: bool) -> None:
        """Make the folder this recipe's, or raise if it is another's."""
        if (self.path / layout.RECIPE).exists():
            there = _read_recipe(self.path)
            difference = _first_difference(there.model_dump(mode="json"), self.recipe.model_dump(mode="json"))
            # What other conditions left stays, and in the report.
            known = [name for name in there.conditions if name in (*BUILT_IN, *self.recipe.ablations)]
            self.recipe = with_more(self.recipe, known)
            if difference is not None and not redo:
                raise UserError(
                    f"{self.path}: was made with {difference}; choose another --run-dir, or name the stages to --redo"
                )
        else:
            write_json(self.path / layout.VERSIONS, versions())
        write_atomic(self.path / layout.RECIPE, dump_recipe(self.recipe))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the run with its own folder."""

    run_path: Path
    name: str
    digest: str

    def __post_init__(self) -> None:
        parts = Path(self.name).parts
        if not parts or Path(self.name).is_absolute() or ".." in parts:
            raise ValueError(f"a stage's name is a path below the run folder, not {self.name!r}")

    @property
    def path(self) -> Path:
        """The stage's folder."""
        return self.run_path / self.name

    @property
    def done(self) -> dict[str, Any] | None:
        """The summary of the finished stage, None while there is work left.

        Raises UserError where the stage was done from other inputs, or its done.json is damaged.
        """
        summary = self._read_marker(layout.DONE)
        if summary is not None:
            del summary["digest"]
        return summary

    def begin(self) -> None:
        """Create the folder for these inputs, or go on in it; UserError where it was begun from other inputs."""
        if self._read_marker(layout.BEGUN) is None:
            write_json(self.path / layout.BEGUN, {"digest": self.digest})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write done.json: call it last."""
        write_json(self.path / layout.DONE, {"digest": self.digest, **summary})

    def clear(self) -> None:
        """Remove the stage's folder, so that it is rerun; a link that leads out of the run is left alone."""
        inside = self.path.parent.resolve().is_relative_to(self.run_path.resolve())
        if not inside or self.path.is_symlink():
            raise UserError(f"{self.path}: a link in the run folder; remove it by hand before --redo {self.name}")
        if self.path.exists():
            (self.path / layout.DONE).unlink(missing_ok=True)  # first: what is half removed must not count as done
            shutil.rmtree(self.path)

    def _read_marker(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            marker = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); --redo {self.name} reruns this stage") from error
        if not isinstance(marker, dict) or "digest" not in marker:
            raise UserError(f"{path}: damaged (no digest in it); --redo {self.name} reruns this stage")
        if marker["digest"] != self.digest:
            word = "done" if name == layout.DONE else "begun"
            raise UserError(
                f"{self.path}: this stage was {word} with other settings or inputs; "
                f"--redo {self.name} reruns it, another --run-dir keeps it"
            )
        return marker


def _foreign_file(path: Path) -> str | None:
    """Name something in the folder that is no run's, None where a run is or can be."""
    names = {entry.name for entry in path.iterdir()}
    if layout.RECIPE in names:
        return None
    # Left by a run that was killed at its start.
    ours = {layout.LOCK, layout.VERSIONS, f"{layout.VERSIONS}.tmp", f"{layout.RECIPE}.tmp"}
    return min(names - ours, default=None)


def _take_lock(path: Path) -> IO[str]:
    # A record lock: children of this process do not inherit it, and the kernel frees it when the process is killed.
    lock = path.open("a+", encoding="ascii")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        lock.seek(0)
        holder = lock.read(20).strip() or "another process"
        lock.close()
        raise UserError(
            f"{path.parent}: process {holder} is working in this run folder ({path.name}); "
            "wait for it or choose another --run-dir"
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _read_recipe(path: Path) -> Recipe:
    try:
        return load_recipe(str(path / layout.RECIPE))
    except UserError as error:
        raise UserError(
            f"{error} (the run folder is damaged or of another version; choose another --run-dir)"
        ) from error


def _first_difference(old: Any, new: Any, key: str = "") -> str | None:
    """Name the first setting that differs, with both values, of those that concern all stages.

    `smoke`, `profiles` and `description` decide nothing; what an ablation changes, the digests of its stages hold.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            if not key and name in ("smoke", "profiles", "description", "ablations", "conditions", "full"):
                continue
            below = _first_difference(old.get(name), new.get(name), f"{key}.{name}".removeprefix("."))
            if below is not None:
                return below
        return None
    return None if old == new else f"{key} {_short(old)} and not {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
