"""The problems of an experiment, drawn from those of a pool that the base model fails.

That is how the paper's 110 problems came about, and why its base model starts near 0 %.
"""

from random import Random
from typing import TYPE_CHECKING, Any

from ladder_lite.errors import UserError
from ladder_lite.recipe.context import SPLITS, ids
from ladder_lite.runs.run_dir import Stage, append_jsonl, truncate_jsonl

if TYPE_CHECKING:
    from ladder_lite.recipe.context import Lab


def select(lab: "Lab") -> None:
    """The stage that samples the pool with the base model and writes `select/problems.jsonl`, a split to each row.

    UserError where the base model fails too few problems.
    """
    from ladder_lite import evaluate
    from ladder_lite.evaluate.scores import summarize

    recipe, settings = lab.recipe, lab.recipe.task.select
    assert settings is not None
    pool = list({problem.id: problem for split in SPLITS for problem in lab.task.problems(split)}.values())

    def work(stage: Stage) -> dict[str, Any]:
        lab.restore("base")
        sampling = recipe.eval.model_copy(update={"samples": settings.samples, "k": 1})
        with lab.live.stage("select", len(pool)) as bar:
            attempts = evaluate.evaluate(
                lab.task, lab.backend, pool, sampling, stage.path, recipe.seed, bar, lab.deadline
            )
        dropped = {attempt.problem_id for attempt in attempts if attempt.correct or attempt.grade.reward is None}
        failed = [problem for problem in pool if problem.id not in dropped]
        wanted = settings.train + settings.test
        if len(failed) < wanted:
            raise UserError(
                f"{stage.path}: the base model fails {len(failed)} of the {len(pool)} problems in all of "
                f"{settings.samples} tries, and {wanted} are wanted; lower task.select.train, test or samples"
            )
        Random(f"{recipe.seed}/select").shuffle(failed)
        rows = [
            {**problem.data, "split": "train" if at < settings.train else "test"}
            for at, problem in enumerate(failed[:wanted])
        ]
        truncate_jsonl(stage.path / "problems.jsonl", lambda row: False)
        append_jsonl(stage.path / "problems.jsonl", rows)
        return {"pool": len(pool), "failed": len(failed), **summarize(attempts, 1)}

    lab.do("select", [recipe.eval.model_dump(), ids(pool)], work)
