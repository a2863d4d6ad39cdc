"""Make the problem set `smollm.jsonl`, and measure SmolLM2 before training: which prompt brings out most of it.

    python benchmarks/smollm.py problems                     # rewrites smollm.jsonl, in seconds
    python benchmarks/smollm.py base model.id=FILE.gguf      # a quarter of an hour on one core

A problem needs one step, but has constants of five digits: `41272*(x-35781)**7`. The prompts are compared on other such
integrals, on easier ones, as variants are, and on every fortieth problem of `undergrad`. None of them is used by the
recipe. Writes benchmarks/results/smollm-base.json.
"""

import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
import transformers
import typer

from ladder_lite.config import load_recipe
from ladder_lite.evaluate import Sampler
from ladder_lite.evaluate.scores import summarize
from ladder_lite.models import load_backend
from ladder_lite.problems import Problem, load_problems
from ladder_lite.tasks import load_task
from ladder_lite.verify import verify

HERE = Path(__file__).parent
N_POOL = 90
N_EACH, SAMPLES = 10, 8

# An integrand, and its antiderivative as the prompt's examples would write it. Powers alone, because the base model
# solves up to 1 % of cosines, exponentials and reciprocals, whatever their numbers.
INTEGRAND = "{a}*(x{c:+})**{n}"
ANSWER = f"{INTEGRAND.replace('{n}', '({n}+1)')}/({{n}}+1)"
# Down the ladder: what is left out of the integrand, and the lowest and the highest number in it.
LEVELS = {
    "five digits": ("", 10001, 99999),
    "three digits": ("", 101, 999),
    "one digit": ("", 2, 9),
    "two digits, nothing added": ("{c:+}", 11, 99),
    "one digit, nothing added": ("{c:+}", 2, 9),
}


def draw(rng: Random, text: str, lowest: int, highest: int) -> list[str]:
    """Fill in distinct numbers; for a text of several lines, the same ones in each."""
    numbers = dict(zip("ac", rng.sample(range(lowest, highest + 1), 2), strict=True))
    numbers |= {"c": numbers["c"] * rng.choice((-1, 1)), "n": rng.randint(2, 9)}
    return text.format(**numbers).replace("(x)", "x").split("\n")


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def problems() -> None:
    """Write the problem set."""
    rng, rows = Random(22), []
    for _ in range(N_POOL):
        integrand, answer = draw(rng, f"{INTEGRAND}\n{ANSWER}", *LEVELS["five digits"][1:])
        if not verify(integrand, answer).reward:
            raise SystemExit(f"{integrand}: {answer} is wrong")
        rows.append({"integrand": integrand, "answer": answer})
    (HERE / "smollm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} problems")


_EXAMPLES = "task.prompts.solve_examples="
_CALL = "integrate({},x)".format
RECIPE = "ten examples (the recipe's)"
PROMPTS: dict[str, Callable[[list[Any]], list[str]]] = {
    RECIPE: lambda _: [],
    "five examples": lambda examples: [_EXAMPLES + json.dumps(examples[:5])],
    "ten examples, written integrate(f,x)": lambda examples: [
        _EXAMPLES + json.dumps([example | {"user": _CALL(example["user"])} for example in examples]),
        "task.prompts.solve='{integral}'",
    ],
    "chat instruction": lambda _: [
        _EXAMPLES + "[]",
        "task.prompts.system=You solve integrals. Write the antiderivative in Python syntax between <answer> and "
        "</answer> and nothing else.",
        "task.prompts.solve=What is the antiderivative of {integrand} with respect to {variable}?",
    ],
    "answer only": lambda _: [
        _EXAMPLES + "[]",
        "task.prompts.system=null",
        "task.prompts.solve='{integral} = <answer>'",
    ],
}
ARMS = [*((name, 0.6) for name in PROMPTS), (RECIPE, 0.9)]


@app.command()
def base(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings to change.")] = None,
) -> None:
    """Measure the base model at several prompts and temperatures."""
    recipe = load_recipe("smollm", overrides or ())
    backend, by_kind = load_backend(recipe), _problems()
    examples = [example.model_dump() for example in recipe.task.prompts.solve_examples]
    figures: dict[str, Any] = {
        "command": shlex.join(
            ["python", "benchmarks/smollm.py", *(re.sub("=.*/", "=", each) for each in sys.argv[1:])]
        ),
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, Python {platform.python_version()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model": "SmolLM2-135M-Instruct, the weights of model.id as float32",
        "samples": SAMPLES,
        "problems": {kind: [problem.data["integrand"] for problem in own] for kind, own in by_kind.items()},
        "arms": [],
    }
    for name, temperature in ARMS:
        started, changes = time.monotonic(), [*(overrides or ()), *PROMPTS[name](examples)]
        settings = recipe.eval.model_copy(update={"temperature": temperature, "batch_size": 64})
        sampler = Sampler(load_task(load_recipe("smollm", changes).task), backend, settings, seed=22)
        attempts = sampler.sample([problem for own in by_kind.values() for problem in own], SAMPLES)
        kinds = {}
        for kind, own in by_kind.items():
            ids = {problem.id for problem in own}
            summary = summarize([attempt for attempt in attempts if attempt.problem_id in ids], SAMPLES)
            kinds[kind] = {key: summary[key] for key in ("n_problems", "pass@1", f"pass@{SAMPLES}")}
        arm = {"prompt": name, "temperature": temperature, "seconds": time.monotonic() - started}
        arm["tokens"] = sum(attempt.completion.n_tokens for attempt in attempts)
        figures["arms"].append({**arm, "kinds": kinds})
        (HERE / "results" / "smollm-base.json").write_text(json.dumps(figures, indent=1) + "\n")
        print(
            name,
            temperature,
            f"{arm['seconds']:.0f} s",
            {level: kinds[level]["pass@8"]["value"] for level in LEVELS},
            flush=True,
        )


def _problems() -> dict[str, list[Problem]]:
    """The problems by kind."""
    rng, by_kind = Random(7), {}
    for level, (without, lowest, highest) in LEVELS.items():
        drawn = [draw(rng, INTEGRAND.replace(without, ""), lowest, highest)[0] for _ in range(N_EACH)]
        data = [{"integrand": each, "variable": "x", "lower": None, "upper": None} for each in drawn]
        by_kind[level] = [Problem.root("integration", each) for each in data]
    by_kind["undergrad, every fortieth"] = load_problems("undergrad", "test")[::40]
    return by_kind


if __name__ == "__main__":
    app()
