"""Tasks: what the loop trains on. `load_task` makes one from a recipe's settings.

The recipe's `task.name` is one of these:

- `integration`, the paper's task
- `reasoning_gym:NAME`, a task of the package reasoning-gym
- `MODULE:CLASS` or `FILE.py:CLASS`, a subclass of `Task`; see `README.md` in this folder
- the name of an entry point of the group `ladder_lite.tasks`, which another package declares

    python -m ladder_lite.tasks check my_task.py:MyTask
"""

import sys
from contextlib import suppress
from functools import cache as cached
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ladder_lite.config import TaskSettings
from ladder_lite.errors import UserError, nearest
from ladder_lite.tasks.problem import Problem
from ladder_lite.tasks.rows import Notes
from ladder_lite.tasks.task import RESERVED, Effect, Messages, Rejected, Task, Unreadable, VariantRequest
from ladder_lite.verify import Grade, Reason
from ladder_lite.verify.rules.fingerprints import Index, Keys

__all__ = ["Effect", "Grade", "Index", "Keys", "Messages", "Notes", "Problem", "Reason", "Rejected", "Task"]
__all__ += ["Unreadable", "VariantRequest", "known_tasks", "latex", "load_task", "plain_task", "statement"]

ENTRY_POINTS = "ladder_lite.tasks"


def load_task(settings: TaskSettings, cache: Path | None = None) -> Task:
    """Return the task of a recipe. `cache` is a file in which it may keep what is costly to compute.

    Raises UserError if there is no such task, or if a prompt template does not fit it.
    """
    task = _find(settings.name)(settings, cache)
    task.check_prompts()
    return task


def known_tasks() -> list[str]:
    """Return the names of integration and of the tasks that installed packages declare."""
    return ["integration", *sorted(entry_points(group=ENTRY_POINTS).names)]


@cached
def plain_task(name: str) -> Task:
    """Return a task without a recipe: it reads, states and grades problems by its strict rules, but has no prompts."""
    return _find(name)(TaskSettings.model_construct(name=name, protocol="strict"))


def statement(problem: Problem) -> str:
    """Return a problem as one line of text, without its recipe; if its task cannot be loaded, its values."""
    try:
        return plain_task(problem.task).statement(problem)
    except UserError:  # a report may be written where the file of a task is not
        return ", ".join(value for value in problem.data.values() if value is not None)


def latex(problem: Problem) -> str | None:
    """Return a problem in LaTeX, without its recipe; None if its task has none, cannot be loaded or refuses it."""
    with suppress(UserError, Unreadable):
        task = plain_task(problem.task)
        task.validate(problem.data)  # the files of a run may have been changed
        return task.latex(problem)
    return None


def _find(name: str) -> type[Task]:
    # Imported here, not at the top: `solve --help` imports this package and must not wait for the verifier.
    place, colon, attribute = name.rpartition(":")
    if name == "integration":
        from ladder_lite.tasks.integration import IntegrationTask

        return IntegrationTask
    if place == "reasoning_gym":
        from ladder_lite.tasks.reasoning_gym import ReasoningGymTask

        return ReasoningGymTask
    found: Any
    try:
        if colon:
            found = getattr(_module(place), attribute)
        else:
            found = next(iter(entry_points(group=ENTRY_POINTS, name=name))).load()
    except StopIteration as error:
        known = known_tasks()
        raise UserError(
            f"task.name {name}: no such task{nearest(name, known) or '.'} There are {', '.join(known)}, "
            "reasoning_gym:NAME, and MODULE:CLASS or FILE.py:CLASS for a task of your own"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise UserError(f"task.name {name}: cannot be imported ({type(error).__name__}: {error})") from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"task.name {name}: not a subclass of ladder_lite.tasks.Task")
    fields = [*getattr(found, "fields", ())]
    if not fields or RESERVED & {*fields} or not {*found.optional} <= {*fields}:
        raise UserError(
            f"task.name {name}: `fields` must name at least one field and none of {', '.join(sorted(RESERVED))}; "
            "`optional` must name some of them"
        )
    return found


def _module(place: str) -> Any:
    is_file = place.endswith(".py")
    # Like a script, a file can import its neighbours. As with `python -m`, modules are found in the current folder.
    if (folder := str(Path(place).resolve().parent if is_file else Path.cwd())) not in sys.path:
        sys.path.append(folder)
    if not is_file:
        return import_module(place)
    # The prefix keeps the file apart from modules of the same name.
    spec = spec_from_file_location(f"task_file_{Path(place).stem}", place)
    assert spec is not None  # None for a suffix that is not Python's
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
