"""Tasks: what the loop trains on. `load_task` makes one from a recipe's settings.

`integration.py` is the paper's task. The loop (`variants`, `train`, `evaluate`, `ttrl`) knows tasks only through the
protocol in `task.py`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ladder_lite.config import TaskSettings
from ladder_lite.problems import Problem
from ladder_lite.tasks.task import Effect, Messages, Rejected, Task, VariantRequest

if TYPE_CHECKING:
    from ladder_lite.tasks.integration import IntegrationTask

__all__ = ["Effect", "Messages", "Rejected", "Task", "VariantRequest", "load_task", "statement"]


def statement(problem: Problem) -> str:
    """A problem as one line of text, without loading its task from a recipe."""
    return _task_of(problem.task).statement(problem)


def load_task(settings: TaskSettings, cache: Path | None = None) -> Task:
    """The task of a recipe. `cache` is a file in which it may keep what is costly to compute."""
    return _task_of(settings.name)(settings, cache)


def _task_of(name: str) -> "type[IntegrationTask]":
    # Imported here, not at the top: `solve --help` imports this package and must not wait for the verifier.
    from ladder_lite.tasks.integration import IntegrationTask

    # A second task is a second entry; `TaskSettings.name` lists the same names.
    return {"integration": IntegrationTask}[name]
