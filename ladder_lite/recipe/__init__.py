"""Run a recipe: its conditions one after the other, then the report.

    python -m ladder_lite.recipe tiny
    python -m ladder_lite.recipe tiny seed=1 --run-dir runs/second
    python -m ladder_lite.recipe llama3b --dry-run
    python -m ladder_lite.recipe llama3b --budget 9h
    python -m ladder_lite.recipe tiny --seeds 0,1,2 --workers 2

After a kill, a crash, Ctrl-C or the end of the budget, the same command resumes the run. The loop of the paper is
`Experiment.run_stage` in `ladder_lite.recipe.experiment`.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config import Recipe, with_more
from ladder_lite.recipe import stages
from ladder_lite.recipe.context import RunContext
from ladder_lite.recipe.experiment import Experiment
from ladder_lite.recipe.workers import Workers, run_on_workers
from ladder_lite.runs import RunDir, layout, read_json
from ladder_lite.tasks import Task, load_task
from ladder_lite.terminal import Live


def run_recipe(
    recipe: Recipe,
    path: Path,
    live: Live,
    only: str | None = None,
    redo: Sequence[str] = (),
    deadline: Deadline | None = None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """Run all conditions of a recipe, or `only` one of them, write the report and return it.

    The stages named in `redo` are rerun together with all stages that depend on them. Raises OutOfTime if the deadline
    comes first; the report then covers the stages that are done.
    """
    [result] = run_recipes({path: recipe}, live, only, redo, deadline, workers)
    return result


def run_recipes(
    recipes: Mapping[Path, Recipe],
    live: Live,
    only: str | None = None,
    redo: Sequence[str] = (),
    deadline: Deadline | None = None,
    workers: Workers | None = None,
) -> list[dict[str, Any]]:
    """Run several recipes, by run folder, as `run_recipe` does; with workers, their stages run at once."""
    from ladder_lite import report

    with ExitStack() as stack:
        experiments = [
            stack.enter_context(_open(recipe, path, live, redo, deadline)) for path, recipe in recipes.items()
        ]
        try:
            if workers:
                run_on_workers(experiments, only, workers, live)
            else:
                for experiment in experiments:
                    for stage in experiment.stages(only):
                        experiment.run_stage(stage)
                    if len(experiments) > 1:  # one model in memory at a time
                        experiment.context.close()
        except OutOfTime:
            for experiment in experiments:
                report.write_report(experiment.context.run.path)
            raise
        return [_report(experiment.context) for experiment in experiments]


@contextmanager
def _open(
    recipe: Recipe, path: Path, live: Live, redo: Sequence[str], deadline: Deadline | None
) -> Iterator[Experiment]:
    """Open the run folder of a recipe while the block runs; remove the stages that are to be rerun."""
    # Before anything is written or loaded: a mistake in a problem file must not claim the run folder.
    task = load_task(recipe.task)
    for split in ("train", "test", "probe"):
        task.problems(split)
    stale = stages.dependents(recipe, redo)
    # An earlier --full or --only may have left results of conditions that this recipe does not list. If a redo makes
    # them stale, those conditions are rerun too; otherwise the report would lose them without a word.
    rerun = [name for name in stale if name in redo or (path / name).exists()]
    recipe = with_more(recipe, [name for stage in rerun if (name := layout.split_stage(stage)[0])])
    with RunDir.open(path, recipe, redo=bool(redo)) as run:
        _keep_source(task, run.path / layout.TASK, live)
        # Dependent stages are removed first: a kill in between must not leave results whose inputs are gone.
        for name in reversed(stale):
            run.stage(name, None).clear()
        yield Experiment(recipe, run, live, deadline)


def _report(context: RunContext) -> dict[str, Any]:
    from ladder_lite import report

    run = context.run
    finished = run.path / layout.REPORT
    written = finished.stat().st_mtime if finished.exists() else 0.0
    # If no stage has ended since, the report on disk is up to date; drawing its figures again would need matplotlib.
    if not context.ran_a_stage and all(done.stat().st_mtime <= written for done in run.path.rglob(layout.DONE)):
        context.live.say("everything is done already; --redo STAGE reruns a stage")
        return read_json(finished, f"python -m ladder_lite.report {run.path} writes it again")
    return report.write_report(run.path)


def _keep_source(task: Task, copy: Path, live: Live) -> None:
    """Copy the file of a task of the user's into the run folder; warn if it has changed since the run began."""
    file = inspect.getsourcefile(type(task))
    if file is None or type(task).__module__.startswith("ladder_lite."):
        return
    source = Path(file).read_bytes()
    # Not an error: the change may repair what stopped the run.
    if copy.exists() and copy.read_bytes() != source:
        live.say(f"{file} has changed since this run began; stages that are done keep the grades it gave then")
    copy.write_bytes(source)
