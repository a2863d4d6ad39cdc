"""Integrals as problems, and the task that reads and grades them."""

from ladder_lite.config.load import load_recipe
from ladder_lite.problems import Problem
from ladder_lite.tasks import load_task

TASK = load_task(load_recipe("tiny").task)


def problem(integrand: str, variable: str = "x", lower: str | None = None, upper: str | None = None) -> Problem:
    """Return a root problem of the integration task. Its texts are not normalized."""
    data = {"integrand": integrand, "variable": variable, "lower": lower, "upper": upper}
    return Problem.root("integration", data)
