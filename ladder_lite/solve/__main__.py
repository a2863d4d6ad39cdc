"""`python -m ladder_lite.solve`. See `ladder_lite.solve`."""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ladder_lite.budget import Deadline
from ladder_lite.errors import run
from ladder_lite.problems import Problem
from ladder_lite.solve import CHAT_RECIPE, Solution, Solver, checked
from ladder_lite.terminal import Live

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(context_settings={"ignore_unknown_options": True})  # an integrand may begin with a minus
def main(
    integral: Annotated[str, typer.Argument(help='An integrand such as "x**2*exp(x)", or a call of integrate(...).')],
    model: Annotated[
        str,
        typer.Option(
            metavar="tiny|RUN|ID",
            help="A recipe's model, that of a run folder, an id of the hub, a local folder or a GGUF file.",
        ),
    ] = "tiny",
    condition: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose adapter of a run folder; default: ladder.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Whose prompts and settings other models get; default: {CHAT_RECIPE}, or its own."
        ),
    ] = None,
    ttrl: Annotated[
        bool, typer.Option("--ttrl", help="Where sampling fails, learn the integral from variants of it.")
    ] = False,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Time for all of it: 10m, 1h30m, 90s.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers to sample at first; default: the recipe's.")
    ] = None,
    lower: Annotated[str | None, typer.Option(help="Lower bound, of a definite integral.")] = None,
    upper: Annotated[str | None, typer.Option(help="Upper bound, of a definite integral.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of GRPO, with --ttrl; default: the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides every draw; default: the recipe's.")] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the solution as JSON and nothing else on stdout.")
    ] = False,
) -> None:
    """Solve one integral and verify the answer. Exit code 0: verified, 1: no verified answer, 2: a mistake."""
    deadline = Deadline.after(budget)
    console = Console(stderr=True, highlight=False, force_interactive=None if sys.stderr.isatty() else False)
    # What libraries print is not the solution.
    with redirect_stdout(sys.stderr) if json_ else nullcontext(), Live(console if json_ else None) as live:
        solver = Solver(model, condition=condition, recipe=recipe, seed=seed, live=live)
        try:
            problem = solver.read(integral, lower, upper)
            solution = solver.solve(
                integral, ttrl=ttrl, deadline=deadline, samples=samples, steps=steps, lower=lower, upper=upper
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; nothing is kept") from None
    if json_:
        typer.echo(json.dumps(solution.to_row()))
    else:
        lines = _success(problem, solution) if solution.verified else _failure(solver, solution, ttrl, budget)
        for line in lines:  # whole, however wide the terminal is: formulas are copied
            live.console.print(Text(line), soft_wrap=True)
    raise typer.Exit(0 if solution.verified else 1)


def _success(problem: Problem, solution: Solution) -> list[str]:
    kind = "antiderivative" if problem.data["lower"] is None else "value"
    return [
        f"verified {kind}: {solution.answer}",
        f"LaTeX: {solution.latex}",
        f"checked: {checked(problem)}",
        f"it took: {_effort(solution)}",
    ]


def _failure(solver: Solver, solution: Solution, ttrl: bool, budget: str | None) -> list[str]:
    """The lines for an integral without a verified answer, and what to try next."""
    remedies = []
    if solver.is_untrained:
        remedies.append(
            "a trained model: `python -m ladder_lite.recipe tiny` makes one, and `--model runs/tiny-s0` then takes it"
        )
    if not ttrl:
        remedies.append("`--ttrl`, to learn the integral from easier variants of it")
    if budget is not None:
        remedies.append("a longer `--budget`")
    if ttrl:
        remedies.append("more `--steps`")
    remedies.append("more `--samples`, another `--seed`, a larger `--model`")
    return [f"not solved: no answer was verified ({_effort(solution)})", f"to try: {'; '.join(remedies)}"]


def _effort(solution: Solution) -> str:
    steps = f", {solution.steps} steps of GRPO" if solution.steps else ""
    return f"{solution.attempts} answers tried{steps}, {solution.seconds:.0f} s"


if __name__ == "__main__":
    run(app)
