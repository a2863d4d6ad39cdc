"""The front door: a recipe's conditions one after the other, and the command line that runs them.

    python -m ladder_lite.recipe tiny
    python -m ladder_lite.recipe tiny seed=1 --run-dir runs/second
    python -m ladder_lite.recipe llama3b --dry-run
    python -m ladder_lite.recipe llama3b --budget 9h

Run the same command again after a kill, a crash, Ctrl-C or the end of the budget and it goes on where it was. What a
condition does is told in `ladder_lite.recipe.experiment`: the paper's loop is its `do`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config import Recipe, with_more
from ladder_lite.recipe import stages
from ladder_lite.recipe.experiment import Experiment
from ladder_lite.runs import RunDir, layout, read_json
from ladder_lite.terminal import Live


def run_recipe(
    recipe: Recipe,
    path: Path,
    live: Live,
    only: str | None = None,
    redo: Sequence[str] = (),
    deadline: Deadline | None = None,
) -> dict[str, Any]:
    """Run a recipe's conditions in their order, or one of them, and write the report; returns the report.

    Stages to `redo` are rerun with those that depend on them, also in conditions that the recipe does not list.
    OutOfTime where the deadline comes first; the report is then written of what is there.
    """
    from ladder_lite import report

    stale = stages.dependents(recipe, redo)
    there = [name for name in stale if name in redo or (path / name).exists()]
    recipe = with_more(recipe, [name for stage in there if (name := layout.condition_name(stage))])
    with RunDir.open(path, recipe, redo=bool(redo)) as run:
        for name in reversed(stale):  # a kill must not leave results of what is gone
            run.stage(name, None).clear()
        experiment = Experiment(recipe, run, live, deadline)
        try:
            for condition in recipe.conditions:
                if only in (None, condition):
                    experiment.do(condition)
        except OutOfTime:
            report.write_report(run.path)
            raise
        finished = run.path / layout.REPORT
        if not experiment.context.worked and finished.exists():
            live.say("everything is done already; --redo STAGE reruns a stage")
            return read_json(finished, f"python -m ladder_lite.report {run.path} writes it again")
        return report.write_report(run.path)
