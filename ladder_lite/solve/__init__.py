"""One integral, solved by a model and verified.

    python -m ladder_lite.solve "5*exp(3*x)"                                # the embedded model
    python -m ladder_lite.solve "x**2*exp(x)*sin(x)" --model runs/tiny-s0 --ttrl --budget 10m
    python -m ladder_lite.solve "integrate(1/(x**2+1), (x, 0, 1))" --model Qwen/Qwen2.5-7B-Instruct --json

    from ladder_lite.solve import solve
    print(solve("x*exp(3*x)", model="runs/tiny-s0").latex)

Answers are sampled until one is verified, by the strict rule of `ladder_lite.verify`. Where none is and `--ttrl` asks
for it, the model learns the integral from variants that it writes itself (`ladder_lite.ttrl`) until a verified answer
appears. Its weights are then as they were, and nothing is kept: files are those of a temporary folder.

The exit code is 0 for a verified answer, 1 where there is none, 2 for a mistake in the input.
"""

import json
import sys
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config.load import list_recipes, load_recipe
from ladder_lite.config.schema import EMBEDDED, Recipe
from ladder_lite.errors import UserError
from ladder_lite.install import shipped
from ladder_lite.problems import Problem
from ladder_lite.solve.search import Search
from ladder_lite.terminal import Live, show
from ladder_lite.verify.expressions.latex import bare, typeset
from ladder_lite.verify.expressions.parse import parse
from ladder_lite.verify.numerics import definite
from ladder_lite.verify.rules.by_component import TOLERANCE

if TYPE_CHECKING:
    from ladder_lite.models import Backend
    from ladder_lite.tasks import Task

CHAT_RECIPE = "llama3b"
"""The recipe that tells an instruct model of the hub what to do, where `--recipe` names no other."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What came of an integral.

    `answer` is the verified antiderivative, or value, in Python's notation without a constant of integration, and
    `latex` the same in LaTeX; both are None where nothing was verified. `attempts` counts the answers to the integral
    itself that went to the verifier, those during training included; `steps` are GRPO's, 0 without TTRL.
    """

    integrand: str
    verified: bool
    answer: str | None
    latex: str | None
    attempts: int
    steps: int
    seconds: float

    def to_row(self) -> dict[str, Any]:
        """The solution as a JSON object."""
        return asdict(self)


def solve(
    integral: str,
    *,
    model: str = "tiny",
    condition: str | None = None,
    recipe: str | None = None,
    ttrl: bool = False,
    budget: str | None = None,
    samples: int | None = None,
    steps: int | None = None,
    lower: str | None = None,
    upper: str | None = None,
    seed: int | None = None,
    live: Live | None = None,
) -> Solution:
    """Solve one integral; arguments are those of the command line. Prints nothing unless a `Live` is given.

    For several integrals a `Solver` loads its model once. Raises UserError for what the command line exits with 2.
    """
    deadline = _deadline(budget)
    solver = Solver(model, condition=condition, recipe=recipe, seed=seed, live=live)
    return solver.solve(integral, ttrl=ttrl, deadline=deadline, samples=samples, steps=steps, lower=lower, upper=upper)


class Solver:
    """A model that solves integrals, one after the other, and is the same after each.

    `model` is a shipped recipe's name, a run folder, an id of the hub, a local folder or a GGUF file. Of a run, it is
    the adapter that a `condition` trained; the last three are asked in the words of a `recipe`.
    """

    def __init__(
        self,
        model: str = "tiny",
        *,
        condition: str | None = None,
        recipe: str | None = None,
        seed: int | None = None,
        live: Live | None = None,
    ) -> None:
        chosen, self._adapter = _choose(model, condition, recipe, [] if seed is None else [f"seed={seed}"])
        task = chosen.task.model_copy(update={"protocol": "strict"})
        device = "cpu" if chosen.model.device == "cpu" else "auto"  # one integral can do without a GPU
        own = chosen.model.model_copy(update={"device": device})
        self.recipe = chosen.model_copy(update={"task": task, "model": own})
        self.live = live or Live(Console(quiet=True, force_interactive=False))

    @property
    def is_untrained(self) -> bool:
        """Whether it is the embedded model as it comes."""
        return self.recipe.model.id == EMBEDDED and self._adapter is None

    @cached_property
    def task(self) -> "Task":
        """The recipe's task, verified by the strict rule."""
        from ladder_lite.tasks import load_task

        return load_task(self.recipe.task)

    @cached_property
    def backend(self) -> "Backend":
        """The model, loaded when it is first needed, on a machine that was looked at first."""
        from ladder_lite.doctor.checks import demand, predict, preflight, to_download
        from ladder_lite.models import load_backend

        needs = predict(self.recipe)
        with TemporaryDirectory() as scratch:
            demand(preflight(self.recipe, Path(scratch), **needs))
        if n_bytes := to_download(self.recipe.model, needs.get("download_bytes")):
            self.live.say(f"load {show(self.recipe.model.id)}: downloading about {n_bytes / 1e9:.1f} GB")
        with self.live.stage(f"load {self.recipe.model.id}", None):
            backend = load_backend(self.recipe)
        if self._adapter is not None:
            backend.load(self._adapter)
        return backend

    def read(self, integral: str, lower: str | None = None, upper: str | None = None) -> Problem:
        """The problem that was typed; UserError where it is no integral, or one that cannot be verified."""
        problem = self.task.read(integral)
        if lower is not None or upper is not None:
            if lower is None or upper is None:
                raise UserError("--lower and --upper: give both, or neither for an antiderivative")
            if problem.data["lower"] is not None:
                raise UserError(f'"{integral[:80]}" has bounds already; leave --lower and --upper out')
            data = problem.data
            problem = self.task.read(f"integrate({data['integrand']}, ({data['variable']}, {lower}, {upper}))")
        grade = self.task.grade(problem, "<answer>0</answer>")  # the wrong answer tells what no answer could pass
        if grade.reward is None:
            raise UserError(f'"{integral[:80]}" cannot be verified ({grade.detail}), so no answer would count')
        return problem

    def solve(
        self,
        integral: str,
        *,
        ttrl: bool = False,
        deadline: Deadline | None = None,
        samples: int | None = None,
        steps: int | None = None,
        lower: str | None = None,
        upper: str | None = None,
    ) -> Solution:
        """Sample up to `samples` answers (the recipe's `eval.samples` if None), then learn by TTRL where asked to.

        TTRL takes at most `steps` steps (the recipe's if None), and the learning rate falls over all of them.
        The deadline may be overrun by one piece of work.
        """
        started = time.monotonic()
        problem = self.read(integral, lower, upper)
        self._check(problem)
        search = Search(self.task, self.backend, self.recipe, problem, self.live, deadline or Deadline.never())
        try:
            search.sample(self.recipe.eval.samples if samples is None else samples)
            if search.answer is None and ttrl:
                search.learn(steps)
        except OutOfTime:
            self.live.say("the budget is used")
        finally:
            self.live.show_panel(None)
        integrand = str(problem.data["integrand"])
        answer, latex = (None, None) if search.answer is None else _formulas(problem, search.answer)
        seconds = round(time.monotonic() - started, 3)
        return Solution(integrand, answer is not None, answer, latex, len(search.attempts), search.steps, seconds)

    def _check(self, problem: Problem) -> None:
        try:
            self.backend.check([self.task.prompt(problem)])
        except UserError as error:
            if self.recipe.model.id != EMBEDDED:
                raise
            raise UserError(
                f"{error}; the embedded model reads sums of a few kinds of terms: take another --model"
            ) from error


def _deadline(budget: str | None) -> Deadline:
    return Deadline.never() if budget is None else Deadline.after(budget)


def _choose(
    model: str, condition: str | None, recipe_name: str | None, overrides: list[str]
) -> tuple[Recipe, Path | None]:
    """The recipe that a `--model` comes to, and its adapter if it has one."""
    run = Path(model)
    if (run / "recipe.resolved.yaml").exists():
        if recipe_name is not None:
            raise UserError(f"--recipe {recipe_name}: the run {model} has a recipe of its own; leave it out")
        return load_recipe(str(run / "recipe.resolved.yaml"), overrides), _adapter(run, condition or "ladder")
    if condition is not None:
        raise UserError(f"--condition {condition}: {model} is no run folder; name one, such as --model runs/tiny-s0")
    if run.parent == Path() and (shipped("recipes") / f"{model}.yaml").exists():
        if recipe_name not in (None, model):
            raise UserError(f"--recipe {recipe_name}: --model {model} is a recipe already; leave one of them out")
        return load_recipe(model, overrides), None
    if recipe_name is None:
        own = (load_recipe(name) for name, _ in list_recipes())
        recipe_name = next((r.name for r in own if model in (r.model.id, r.model.mirror)), CHAT_RECIPE)
    chosen = [f"model.id={json.dumps(model)}", "model.mirror=null"]
    return load_recipe(recipe_name, [*chosen, *overrides]), None


def _adapter(run: Path, condition: str) -> Path | None:
    """The folder of the adapter that a condition of a run trained; None for the base model."""
    adapter = run / "conditions" / condition / "train/adapter"
    if condition == "base" or (adapter / "adapter_model.safetensors").exists():
        return None if condition == "base" else adapter
    found = sorted(path.parents[2].name for path in run.glob("conditions/*/train/adapter/adapter_model.safetensors"))
    trained = f"it has {', '.join(['base', *found])}" if found else "nothing is trained there yet"
    raise UserError(f"{run}: no adapter of the condition {condition}; {trained}")


def _formulas(problem: Problem, answer: str) -> tuple[str, str]:
    """A verified answer as text and as LaTeX, read as the verifier read it."""
    variable = problem.data["variable"] or "x"
    expression = parse(
        answer,
        variable,
        constant_of_integration=problem.data["lower"] is None,
        real_cube_roots="cbrt" in parse(str(problem.data["integrand"]), variable).functions,
    )
    return bare(expression), typeset(expression)


def checked(problem: Problem) -> str:
    """What a verified answer was checked for, and what that leaves open."""
    if problem.data["lower"] is not None:
        return (
            f"It equals the integral's value by numerical quadrature, to {definite.EXACT_TOLERANCE:g} of the integral "
            f"of the integrand's size ({definite.TOLERANCE:g} where it has a decimal point). Another number so close "
            "would have passed as well."
        )
    return (
        f"Its derivative equals the integrand, to {TOLERANCE:g} of its size, at up to 249 points, most of them between "
        "-10 and 10, all over one connected part of the domain at least, and it makes no step between them. That is a "
        "test and no proof: a wrong derivative would have to be that close, or to differ between the points only."
    )


# --- Command line ----------------------------------------------------------------------------------------------------

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
    deadline = _deadline(budget)
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
    """Say that there is no answer, and what could be tried."""
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
