"""TTRL: learn one test problem from its own variants, answer it, and put the weights back.

This is the method of the LADDER paper (arXiv 2503.00735), which learns from verified variants of the problem; the
method of the same name that rewards agreement with a majority vote (arXiv 2504.16084) is another one.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ladder_lite import evaluate, grpo, variants
from ladder_lite.attempts import Attempt
from ladder_lite.live import Live
from ladder_lite.problems import Problem
from ladder_lite.run_dir import append_jsonl, read_jsonl
from ladder_lite.settings import Recipe


@dataclass(frozen=True, slots=True)
class Outcome:
    """What TTRL made of one problem. By the paper's rule it is solved when a right answer appears at any step.

    `seconds` are those of everything done for it (tree, training, tries, answers) since it was begun or gone on with.
    """

    problem_id: str
    solved: bool
    steps_to_solve: int | None
    steps: int
    seconds: float
    answer: str | None

    def to_row(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return asdict(self)


def learn(writer: variants.Writer, problem: Problem, recipe: Recipe, folder: Path, live: Live) -> Outcome:
    """Tree, GRPO and answers for one problem, starting from the adapter the backend holds and leaving it as it was.

    After each step `samples_per_step` answers to the problem itself are sampled; the first right one ends training.
    The folder is laid out like a run's: `variants/`, `train/` with a `curve.jsonl`, and `eval/` with `eval.samples`
    attempts of the model as it is when training ends. KL, where `beta` asks for it, is measured against the adapter
    that the backend held at first. OutOfTime where the writer's deadline comes first; called again, it goes on.
    """
    settings, seed = recipe.ttrl, recipe.seed
    task, backend = writer.task, writer.backend
    started = time.monotonic()
    before = backend.snapshot()
    # The tree of a single problem is small: it is grown at once, without pauses for growth while training.
    tree_settings = {"per_root": settings.per_root, "depth": settings.depth, "adaptive": None}
    writer = writer._replace(settings=recipe.variants.model_copy(update=tree_settings))
    with live.stage("its variants", settings.per_root) as bar:
        tree = variants.grow(writer, [problem], folder / "variants", bar)
    steps: list[grpo.Step] = []
    curve = folder / "train" / "curve.jsonl"
    if tree:
        with live.stage("its GRPO", settings.max_steps) as bar:

            def try_problem(step: grpo.Step, _: list[Attempt]) -> bool:
                tries = evaluate.sample(
                    task, backend, [problem], recipe.eval, settings.samples_per_step, seed + step.step
                )
                right = [attempt.grade.answer for attempt in tries if attempt.correct]
                share = len(right) / len(tries)
                append_jsonl(curve, [{"step": step.step, "pass@1": share, "answer": right[0] if right else None}])
                bar.set(step.step, reward=step.reward, no_signal=step.groups_without_signal)
                return bool(right)

            training = settings.over(recipe.grpo)
            steps = grpo.train(
                task,
                backend,
                tree,
                training,
                folder / "train",
                seed,
                try_problem,
                deadline=writer.deadline,
                say=live.say,
            )
    with live.stage("its answers", 1) as bar:
        evaluate.evaluate(task, backend, [problem], recipe.eval, folder / "eval", seed, bar, writer.deadline)
    backend.restore(before)
    solved = [row for row in read_jsonl(curve) if row["answer"] is not None]
    return Outcome(
        problem.id,
        solved=bool(solved),
        steps_to_solve=solved[0]["step"] if solved else None,
        steps=len(steps),
        seconds=time.monotonic() - started,
        answer=solved[0]["answer"] if solved else None,
    )
