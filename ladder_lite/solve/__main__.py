"""`python -m ladder_lite.solve`. See `ladder_lite.solve`."""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ladder_lite.budget import Deadline
from ladder_lite.config import EMBEDDED
from ladder_lite.errors import UserError, run
from ladder_lite.solve import CHAT_RECIPE, Solution, Solver
from ladder_lite.tasks import Task
from ladder_lite.terminal import Live, counted
from ladder_lite.tiny import KNOWS

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(context_settings={"ignore_unknown_options": True})  # a problem may begin with a minus
def main(
    problem: Annotated[str, typer.Argument(help='Of the recipe\'s task: the integral of "5*exp(3*x)", for instance.')],
    model: Annotated[
        str,
        typer.Option(
            metavar="tiny|RUN|ID",
            help="A recipe's name, a run folder, an id on the Hugging Face hub, a local folder or a GGUF file.",
        ),
    ] = "tiny",
    condition: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With a run folder: the condition whose adapter to use. Default: ladder."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With a hub id, folder or GGUF file: the recipe that supplies prompts and settings. "
            f"Default: the recipe made for that model, else {CHAT_RECIPE}.",
        ),
    ] = None,
    ttrl: Annotated[
        bool, typer.Option("--ttrl", help="If no sampled answer is right, train on variants of the problem.")
    ] = False,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Total time limit: 10m, 1h30m, 90s.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Answers to sample before --ttrl. Default: the recipe's.")
    ] = None,
    lower: Annotated[str | None, typer.Option(metavar="A", help="Lower bound of a definite integral.")] = None,
    upper: Annotated[str | None, typer.Option(metavar="B", help="Upper bound of a definite integral.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Most GRPO steps with --ttrl.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Random seed. Default: the recipe's.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Solve one problem and verify the answer. Exit codes: 0 verified, 1 no verified answer, 2 invalid input."""
    deadline = Deadline.after(budget)
    if steps is not None and not ttrl:
        raise UserError(f"--steps {steps}: limits the training of --ttrl, which is missing")
    console = Console(stderr=True, highlight=False, force_interactive=None if sys.stderr.isatty() else False)
    # With --json, whatever libraries print to stdout goes to stderr, so that stdout is valid JSON.
    with redirect_stdout(sys.stderr) if json_ else nullcontext(), Live(console if json_ else None) as live:
        solver = Solver(model, condition=condition, recipe=recipe, seed=seed, live=live)
        try:
            fields = {"lower": lower, "upper": upper}
            solution = solver.solve(problem, ttrl=ttrl, deadline=deadline, samples=samples, steps=steps, **fields)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; nothing is kept") from None  # `errors.run` prints it and exits with 130
    if json_:
        typer.echo(json.dumps(solution.to_row()))
    else:
        lines = _success(solver.task, solution) if solution.verified else _failure(solver, solution, ttrl, budget)
        # soft_wrap: rich inserts no line breaks, so that a formula wider than the terminal can be copied. Text: square
        # brackets in it are not markup.
        for line in lines:
            live.console.print(Text(line), soft_wrap=True)
    raise typer.Exit(0 if solution.verified else 1)


def _success(task: Task, solution: Solution) -> list[str]:
    return [
        f"verified {task.answer_noun(solution.problem)}: {solution.answer}",
        *([f"LaTeX: {solution.latex}"] if solution.latex is not None else []),
        f"checked: {task.checked(solution.problem)}",
        f"it took: {_effort(solution)}",
    ]


def _failure(solver: Solver, solution: Solution, ttrl: bool, budget: str | None) -> list[str]:
    """The report of a failure, with what to try next."""
    remedies = []
    if solver.is_untrained:
        remedies.append("a trained model: run `python -m ladder_lite.recipe tiny`, then use `--model runs/tiny-s0`")
    if not ttrl:
        remedies.append("`--ttrl`, to train on easier variants of the problem")
    if budget is not None:
        remedies.append("a longer `--budget`")
    if ttrl:
        remedies.append("more `--steps`")
    remedies.append("more `--samples`, another `--seed`, a larger `--model`")
    lines = [f"not solved: no answer was verified ({_effort(solution)})", f"to try: {'; '.join(remedies)}"]
    if solver.recipe.model.id == EMBEDDED:
        lines.append(f"the embedded model knows {KNOWS}")
    return lines


def _effort(solution: Solution) -> str:
    steps = f", {counted(solution.steps, 'step')} of GRPO" if solution.steps else ""
    # "75 answers tried, 8 steps of GRPO, 95 s"
    return f"{counted(solution.attempts, 'answer')} tried{steps}, {solution.seconds:.0f} s"


if __name__ == "__main__":
    run(app)
