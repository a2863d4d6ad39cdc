"""A run folder while a run works in it: its recipe, its lock, its stages, and files that survive a kill at any moment.

    with RunDir.open(Path("runs/tiny-s0"), recipe) as run:
        stage = run.stage("variants", inputs)
        if stage.done is None:
            stage.begin()
            append_jsonl(stage.path / "problems.jsonl", rows)
            stage.finish({"kept": len(rows)})

A stage's begun.json is written first and its done.json last. Both have a digest of the stage's inputs, so that neither
finished nor half-finished work is ever mixed with work from other settings. What a kill (-9, power cut) costs:

- before `begin`: nothing;
- between `begin` and `finish`: the stage resumes from its own files, such as checkpoints or rows of JSON lines;
- in `finish`: `write_json` replaces done.json as a whole or not at all, so the stage is still unfinished and resumes;
- in `clear`: the stage is there as a whole or gone; what is left of its folder is removed when the run is opened again.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ladder_lite.config import BUILT_IN, Recipe, dump_recipe, load_recipe, shown, with_more
from ladder_lite.errors import UserError
from ladder_lite.install import versions
from ladder_lite.jsonl import digest, write_atomic, write_json
from ladder_lite.runs import layout
from ladder_lite.runs.finished import read_json

if TYPE_CHECKING:
    from filelock import BaseFileLock


# `smoke`, `profiles` and `description` decide no result, `conditions` and `full` only which results there are, and the
# changes of an ablation are in the digests of its stages.
_MAY_DIFFER = {"smoke", "profiles", "description", "ablations", "conditions", "full"}

# These decide nothing until something is trained. Variants may have taken hours before a setting turns out to be wrong.
_OF_TRAINING = {"grpo", "ttrl"}


_ORPHANS_S = 60.0


class RunDir:
    """The folder of one run of one recipe; one process at a time has it open."""

    def __init__(self, path: Path, recipe: Recipe, lock: "BaseFileLock") -> None:
        self.path, self.recipe, self._lock = path, recipe, lock

    @staticmethod
    def open(path: Path, recipe: Recipe, *, redo: bool = False) -> "RunDir":
        """Create a run folder, or open an existing one to resume its run.

        Raises UserError if the folder cannot be written, is open in another process, is not a run folder, is damaged,
        or belongs to a recipe with other settings. Other settings are accepted while no stage is done, those of
        training until something is trained, and all with `redo`: the digest of each stage that they affect then asks
        for a --redo of that stage.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Checked before anything is written: a mistyped --run-dir must not leave files in somebody's project.
            if (foreign := _foreign_file(path)) is not None:
                raise UserError(f"{path}: not a run folder, it contains {foreign}; choose another --run-dir")
            run = RunDir(path, recipe, _take_lock(path / layout.LOCK))
        except OSError as error:
            raise UserError(
                f"{path}: cannot write to this run folder ({error.strerror}); choose another --run-dir"
            ) from error
        # Under the lock: two processes that start at once must not both find the folder empty.
        try:
            # The workers of a process that was killed may take some seconds to end.
            for lock in (path / layout.WORKERS).glob("*.lock"):
                _take_lock(lock, _ORPHANS_S).release()
            # What a kill left of a cleared stage. Before the recipe: a done.json in it must not count.
            if (path / layout.TRASH).exists():
                shutil.rmtree(path / layout.TRASH)
            run._write_recipe(redo)
        except BaseException:
            run.close()  # in a notebook this process lives on and would keep the lock
            raise
        return run

    @staticmethod
    def join(path: Path, stage: str, timeout_s: float) -> "RunDir":
        """Work on one stage of a run folder that another process has opened and has told this one to work in.

        Raises UserError if a third process works on the stage and does not end within the timeout.
        """
        lock = _take_lock(path / layout.WORKERS / f"{stage.replace('/', '.')}.lock", timeout_s)
        return RunDir(path, load_recipe(str(path / layout.RECIPE)), lock)

    def stage(self, name: str, inputs: object) -> "Stage":
        """Return the stage with this path within the run folder, such as "conditions/ladder/train"; writes nothing.

        `inputs` is a JSON value: the part of the recipe, and whatever else, that decides the stage's results.
        """
        return Stage(self.path, name, digest(inputs))

    def close(self) -> None:
        """Release the lock; the kernel does the same when the process ends, however it ends."""
        self._lock.release()

    def _write_recipe(self, redo: bool) -> None:
        """Write the recipe into the folder; raises UserError if the folder belongs to another one."""
        if (self.path / layout.RECIPE).exists():
            try:
                existing = load_recipe(str(self.path / layout.RECIPE))
            except UserError as error:
                raise UserError(
                    f"{error} (the run folder is damaged or from another version; choose another --run-dir)"
                ) from error
            places = (layout.train("*"), layout.problems("*", "*"))
            is_trained = any(any(self.path.glob(f"{place}/{layout.DONE}")) for place in places)
            may_differ = _MAY_DIFFER if is_trained else _MAY_DIFFER | _OF_TRAINING
            old, new = (each.model_dump(mode="json", exclude=may_differ) for each in (existing, self.recipe))
            difference = _first_difference(old, new)
            # Conditions of earlier runs in this folder (--full, --only) stay in the recipe, and so in the report. An
            # ablation that this recipe no longer has cannot be run again, and is left out.
            known = [name for name in existing.conditions if name in (*BUILT_IN, *self.recipe.ablations)]
            self.recipe = with_more(self.recipe, known)
            # Until a stage is done, the run has no result that other settings could be mixed with. The first start may
            # have failed because of a setting, such as a model that does not exist, which is now corrected.
            if difference is not None and not redo and any(self.path.rglob(layout.DONE)):
                raise UserError(
                    f"{self.path}: was made with {difference}; choose another --run-dir, or name the stages to --redo"
                )
        else:
            # Before the recipe, whose existence makes the folder a run's: a kill in between leaves a folder that
            # `_foreign_file` still accepts, and the next start writes both. Later versions do not overwrite this file.
            write_json(self.path / layout.VERSIONS, versions())
        write_atomic(self.path / layout.RECIPE, dump_recipe(self.recipe))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a run: a unit of work with its own folder, done once for its inputs."""

    run_path: Path
    name: str
    digest: str

    def __post_init__(self) -> None:
        # Names contain ids and conditions from files; `clear` removes the folder, so it must lie within the run.
        parts = Path(self.name).parts
        if not parts or Path(self.name).is_absolute() or ".." in parts:
            raise ValueError(f"a stage's name is a path below the run folder, not {self.name!r}")

    @property
    def path(self) -> Path:
        """The stage's folder."""
        return self.run_path / self.name

    @property
    def done(self) -> dict[str, Any] | None:
        """The summary of the finished stage, None if it is not finished.

        Raises UserError if the stage was done with other inputs or its done.json is damaged.
        """
        summary = self._read_marker(layout.DONE)
        if summary is not None:
            del summary["digest"]
        return summary

    def begin(self) -> None:
        """Create the stage's folder, or resume in it. Raises UserError if it was begun with other inputs.

        A stage that failed before it wrote anything, for example because its model could not be loaded, starts over.
        """
        has_files = any(entry.name != layout.BEGUN for entry in self.path.glob("*"))
        if not has_files or self._read_marker(layout.BEGUN) is None:
            write_json(self.path / layout.BEGUN, {"digest": self.digest})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write done.json, which makes the stage finished: call it last."""
        # All or nothing, and on the disk when it returns: `write_json` writes a temporary file, syncs and renames it.
        write_json(self.path / layout.DONE, {"digest": self.digest, **summary})

    def clear(self) -> None:
        """Remove the stage's folder, so that the stage is rerun. Raises UserError for a symbolic link."""
        # A folder that leads out of the run by a link in its path is somebody else's data. (Links inside the folder
        # are safe: rmtree removes them and does not follow them.)
        inside = self.path.parent.resolve().is_relative_to(self.run_path.resolve())
        if not inside or self.path.is_symlink():
            raise UserError(f"{self.path}: a link in the run folder; remove it by hand before --redo {self.name}")
        if self.path.exists():
            # rmtree takes time, and a kill within it must not leave a folder that the next run resumes in.
            shutil.rmtree(self.path.rename(self.run_path / layout.TRASH))

    def _read_marker(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        # A kill leaves the old file or the new one. Damage is due to a disk or an editor.
        marker = read_json(path, f"--redo {self.name} reruns this stage")
        # Never resumed and never overwritten: the user decides whether the old results may go.
        if marker.get("digest") != self.digest:
            word = "done" if name == layout.DONE else "begun"
            raise UserError(
                f"{self.path}: this stage was {word} with other settings or inputs; "
                f"--redo {self.name} reruns it, another --run-dir keeps it"
            )
        return marker


def _foreign_file(path: Path) -> str | None:
    """The name of a file that does not belong to a run; None if the folder is a run's or empty."""
    if (path / layout.RECIPE).exists():
        return None
    # What a run leaves if it is killed before its recipe is written. `write_atomic` writes *.tmp.
    names = {entry.name for entry in path.iterdir() if entry.suffix != ".tmp"}
    return min(names - {layout.LOCK, layout.VERSIONS}, default=None)


def _take_lock(path: Path, timeout_s: float = 0) -> "BaseFileLock":
    from filelock import FileLock, Timeout  # here, because --help needs no lock

    # The kernel frees the lock when the process dies, so there is no stale one to remove after a kill. The file itself
    # stays, with the process id of the holder, and means nothing without the lock.
    lock = FileLock(path)
    try:
        path.parent.mkdir(exist_ok=True)
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise UserError(
            f"{path.parent}: process {path.read_text(encoding='ascii').strip()} is working in this run folder "
            f"({path.name}); wait for it or choose another --run-dir"
        ) from error
    path.write_text(f"{os.getpid()}\n", encoding="ascii")
    return lock


def _first_difference(old: Any, new: Any, key: str = "") -> str | None:
    """The first setting that differs, as text with both values: "seed 0 and not 1"; None if nothing differs."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else f"{key} {shown(old)} and not {shown(new)}"
    names = dict.fromkeys((*old, *new))
    differences = (_first_difference(old.get(name), new.get(name), f"{key}.{name}".removeprefix(".")) for name in names)
    return next(filter(None, differences), None)
