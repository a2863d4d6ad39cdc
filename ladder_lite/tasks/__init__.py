"""Tasks: what the loop trains on, and `load_task`, which makes one of a recipe's settings.

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
    """A problem as a line of text, for those who have no recipe to load its task with."""
    return _task_of(problem.task).statement(problem)


def load_task(settings: TaskSettings, cache: Path | None = None) -> Task:
    """The task that a recipe names; `cache` is a file for what it need not work out twice."""
    return _task_of(settings.name)(settings, cache)


def _task_of(name: str) -> "type[IntegrationTask]":
    from ladder_lite.tasks.integration import IntegrationTask

    return {"integration": IntegrationTask}[name]
