"""One problem, solved by a model and verified.

    python -m ladder_lite.solve "5*exp(3*x)"                                # the embedded model
    python -m ladder_lite.solve "x**2*exp(x)*sin(x)" --model runs/tiny-s0 --ttrl --budget 10m
    python -m ladder_lite.solve "integrate(1/(x**2+1), (x, 0, 1))" --model Qwen/Qwen2.5-7B-Instruct --json

    from ladder_lite.solve import solve
    print(solve("x*exp(3*x)", model="runs/tiny-s0").latex)

Answers are sampled until the task's verifier accepts one, by its strict rule. If it accepts none, `--ttrl` trains the
model on variants of the problem that it writes itself (`ladder_lite.ttrl`) until a verified answer appears. The
weights are restored afterwards, and nothing is kept: all files are in a temporary folder.

Exit codes: 0 for a verified answer, 1 for no verified answer, 2 for a mistake in the input.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from rich.console import Console

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.config import EMBEDDED, Recipe, list_recipes, load_recipe, recipe_names
from ladder_lite.errors import UserError, nearest
from ladder_lite.install import shipped
from ladder_lite.models import Backend
from ladder_lite.problems import Problem
from ladder_lite.runs import is_run, layout, open_run
from ladder_lite.solve.search import Search
from ladder_lite.tasks import load_task
from ladder_lite.terminal import Live
from ladder_lite.tiny import KNOWS

CHAT_RECIPE = "llama3b"
"""The recipe whose prompts and settings an instruct model from the hub gets, unless `--recipe` names another."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The result for one problem.

    `answer` is the verified answer as text (of an integral in Python's notation, without a constant of integration);
    `latex` is the same in LaTeX, if the task can write it. Both are None if no answer was verified. `attempts` counts
    the graded answers to the problem and to its detour, also those sampled during training. `steps` counts GRPO steps,
    0 without TTRL. `seconds` is wall-clock time.
    """

    problem: Problem
    verified: bool
    answer: str | None
    latex: str | None
    attempts: int
    steps: int
    seconds: float

    def to_row(self) -> dict[str, Any]:
        """The solution as a JSON object; instead of `problem` it has the problem's own fields."""
        row = asdict(self)
        return {**row.pop("problem")["data"], **row}


def solve(
    text: str,
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
    """Solve one problem; the arguments are those of the command line. Prints nothing unless a `Live` is given.

    For several problems use a `Solver`, which loads the model once. Raises UserError where the command line exits
    with code 2.
    """
    deadline = Deadline.after(budget)
    solver = Solver(model, condition=condition, recipe=recipe, seed=seed, live=live)
    return solver.solve(text, ttrl=ttrl, deadline=deadline, samples=samples, steps=steps, lower=lower, upper=upper)


class Solver:
    """A model that solves problems one after the other; its weights are the same after each.

    `model` is the name of a shipped recipe, a run folder, an exported adapter or merged model, an id on the Hugging
    Face hub, a local folder or a GGUF file.
    For a run folder, `condition` chooses the adapter. For the last three, `recipe` supplies prompts and settings.
    Raises UserError if these do not fit together.
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
        # A run may have been graded by the paper's protocol, which accepts errors of 1 %. An answer that is called
        # verified here must pass the strict rule.
        strict = chosen.task.model_copy(update={"protocol": "strict"})
        # A recipe for a GPU (`device: cuda`) may still solve one problem on a CPU, slowly.
        device = "cpu" if chosen.model.device == "cpu" else "auto"
        model_settings = chosen.model.model_copy(update={"device": device})
        ttrl = chosen.ttrl.model_copy(update={"train_on": "variants"})  # of a control: not what a user wants solved
        self.recipe = chosen.model_copy(update={"task": strict, "model": model_settings, "ttrl": ttrl})
        self.task = load_task(strict)
        self.live = live or Live(Console(quiet=True, force_interactive=False))

    @property
    def is_untrained(self) -> bool:
        """Whether this is the embedded model as shipped, which fails on most problems."""
        return self.recipe.model.id == EMBEDDED and self._adapter is None

    @cached_property
    def backend(self) -> Backend:
        """The model, loaded after a check of the machine."""
        from ladder_lite.doctor.checks import open_backend

        backend = open_backend(self.recipe, Path(gettempdir()), self.live)  # where TTRL will write its files
        if self._adapter is not None:
            backend.load(self._adapter)
        return backend

    def read(self, text: str, **fields: str | None) -> Problem:
        """Read a problem that a user typed, with further fields of the task such as `lower` and `upper`.

        Raises UserError if it is not a problem of the task or cannot be verified.
        """
        problem = self.task.read(text, **fields)
        # Grade a dummy answer before the model is loaded. A reward of None, whatever the answer, means that the problem
        # itself cannot be verified: it diverges, for example.
        grade = self.task.grade(problem, "<answer>0</answer>")
        if grade.reward is None:
            raise UserError(f'"{text[:80]}" cannot be verified ({grade.detail}); no answer to it would count')
        return problem

    def solve(
        self,
        text: str,
        *,
        ttrl: bool = False,
        deadline: Deadline | None = None,
        samples: int | None = None,
        steps: int | None = None,
        **fields: str | None,
    ) -> Solution:
        """Sample up to `samples` answers; if none is right and `ttrl` is set, train on variants of the problem.

        `samples` defaults to the recipe's `eval.samples`. `steps` limits the GRPO steps and defaults to the recipe's
        `ttrl` settings; the learning rate schedule covers all of them. The deadline may be overrun by one piece of
        work. Raises UserError as `read` does, and if the prompt does not suit the model.
        """
        started = time.monotonic()
        if samples is not None and samples < 1:
            raise UserError(f"samples is {samples}; it must be 1 or more")
        problem = self.read(text, **fields)
        ways = self._readable([problem, self.task.detour(problem)])
        search = Search(self.task, self.backend, self.recipe, problem, ways, self.live, deadline or Deadline.never())
        try:
            search.sample(self.recipe.eval.samples if samples is None else samples)
            if search.answer is None and ttrl:
                search.learn(steps)
        except OutOfTime:  # not an error: a verified answer found before it still counts
            self.live.say("the budget is used")
        finally:
            self.live.show_panel(None)  # the tree that `search` draws below the bars
        answer, latex = (None, None) if search.answer is None else self.task.formulas(problem, search.answer)
        seconds = round(time.monotonic() - started, 3)
        return Solution(problem, answer is not None, answer, latex, len(search.attempts), search.steps, seconds)

    def _readable(self, problems: Sequence[Problem | None]) -> list[Problem]:
        """The problems whose prompts the model can read. Raises UserError if there are none."""
        readable: list[Problem] = []
        errors: list[UserError] = []
        check = self.backend.check  # outside the try: loading the model may raise a UserError of its own
        for problem in filter(None, problems):
            try:
                check([self.task.prompt(problem)])
                readable.append(problem)
            except UserError as error:
                errors.append(error)
        if not readable and self.recipe.model.id == EMBEDDED:
            # Its vocabulary is small: a prompt with erf(x), for example, cannot be tokenized.
            raise UserError(f"{errors[0]}; the embedded model reads {KNOWS}: take another --model")
        if not readable:
            raise errors[0]
        return readable


def _choose(
    model: str, condition: str | None, recipe_name: str | None, overrides: list[str]
) -> tuple[Recipe, Path | None]:
    """The recipe and the adapter's folder, if any, that the options of the command line choose."""
    path = Path(model)
    # Overrides are YAML; JSON quoting keeps a path with a colon in it, "./a: b.gguf", one string.
    this_model = [f"model.id={json.dumps(model)}", "model.mirror=null"]
    # 1. A run folder: its recipe, and the adapter of a condition (None for "base").
    if is_run(path):
        if recipe_name is not None:
            raise UserError(f"--recipe {recipe_name}: the run {model} has its own recipe; leave out --recipe")
        run = open_run(path)
        return run.recipe_with(overrides), run.adapter(condition or "ladder")
    if condition is not None:
        raise UserError(f"--condition {condition}: {model} is not a run folder; name one, such as --model runs/tiny-s0")
    # 2. What `ladder_lite.export` wrote, with its recipe: an adapter for the recipe's model, or a whole model.
    if (exported := path / layout.EXPORTED_RECIPE).exists() and recipe_name is None:
        adapter = path if (path / layout.ADAPTER_CONFIG).exists() else None
        return load_recipe(str(exported), overrides if adapter else [*this_model, *overrides]), adapter
    # 3. The name of a shipped recipe: its base model. "tiny" is one, "./tiny" and "a/tiny" are paths or hub ids.
    if path.parent == Path() and (shipped("recipes") / f"{model}.yaml").exists():
        if recipe_name not in (None, model):
            raise UserError(f"--recipe {recipe_name}: --model {model} already names a recipe; leave one of them out")
        return load_recipe(model, overrides), None
    # 4. Any other model. A name that can only be a path, or has no owner as hub ids have, fails here and not after a
    # minute of attempts to reach the hub.
    is_model = (path / "config.json").exists() or (path.suffix == ".gguf" and path.is_file())
    could_be_id = len(path.parts) == 2 and path.parts[0] not in ("runs", "..", "~") and path.suffix != ".gguf"
    if not (is_model or (could_be_id and not path.exists()) or model == EMBEDDED):
        runs = sorted(str(run.parent) for run in Path("runs").glob(f"*/{layout.RECIPE}"))
        known = [*recipe_names(), *runs]
        if path.is_dir():
            raise UserError(
                f"--model {model}: neither a run nor a model, it has no config.json; there are {', '.join(known)}"
            )
        raise UserError(
            f"--model {model}: no such model, run or recipe{nearest(model, known)}; there are {', '.join(known)}; an "
            "id on the hub is OWNER/NAME"
        )
    # A shipped recipe made for this very model has the prompts and limits that suit it best.
    if recipe_name is None:
        shipped_recipes = (load_recipe(name) for name, _ in list_recipes())
        recipe_name = next((r.name for r in shipped_recipes if model in (r.model.id, r.model.mirror)), CHAT_RECIPE)
    return load_recipe(recipe_name, [*this_model, *overrides]), None
