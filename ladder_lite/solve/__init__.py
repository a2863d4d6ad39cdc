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
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config import EMBEDDED, Recipe, list_recipes, load_recipe
from ladder_lite.errors import UserError
from ladder_lite.install import shipped
from ladder_lite.problems import Problem
from ladder_lite.runs import is_run, open_run
from ladder_lite.solve.search import Search
from ladder_lite.terminal import Live
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
    deadline = Deadline.after(budget)
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
        from ladder_lite.doctor.checks import open_backend

        backend = open_backend(self.recipe, Path(gettempdir()), self.live)  # TTRL's files are temporary
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
        backend = self.backend
        try:
            backend.check([self.task.prompt(problem)])
        except UserError as error:
            if self.recipe.model.id != EMBEDDED:
                raise
            raise UserError(
                f"{error}; the embedded model reads sums of a few kinds of terms: take another --model"
            ) from error


def _choose(
    model: str, condition: str | None, recipe_name: str | None, overrides: list[str]
) -> tuple[Recipe, Path | None]:
    """The recipe that a `--model` comes to, and its adapter if it has one."""
    path = Path(model)
    if is_run(path):
        if recipe_name is not None:
            raise UserError(f"--recipe {recipe_name}: the run {model} has a recipe of its own; leave it out")
        run = open_run(path)
        return run.recipe(overrides), run.adapter(condition or "ladder")
    if condition is not None:
        raise UserError(f"--condition {condition}: {model} is no run folder; name one, such as --model runs/tiny-s0")
    if path.parent == Path() and (shipped("recipes") / f"{model}.yaml").exists():
        if recipe_name not in (None, model):
            raise UserError(f"--recipe {recipe_name}: --model {model} is a recipe already; leave one of them out")
        return load_recipe(model, overrides), None
    if recipe_name is None:
        own = (load_recipe(name) for name, _ in list_recipes())
        recipe_name = next((r.name for r in own if model in (r.model.id, r.model.mirror)), CHAT_RECIPE)
    chosen = [f"model.id={json.dumps(model)}", "model.mirror=null"]
    return load_recipe(recipe_name, [*chosen, *overrides]), None


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
