"""Make the problem set `smollm.jsonl`, and measure SmolLM2 before training: which prompt brings out most of it.

    python benchmarks/smollm.py problems                     # rewrites smollm.jsonl, in seconds
    python benchmarks/smollm.py base model.id=FILE.gguf      # a quarter of an hour on one core

A problem is a sum of two terms, each of which needs one step but has constants of three digits:
`412*cos(357*x-168)+635/(x+127)`. The prompts are compared on other such integrals, on easier ones, as variants are, and
on every fortieth problem of `undergrad`. None of them is used by the recipe. Writes
benchmarks/results/smollm-base.json.
"""

import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from itertools import combinations, count, islice
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
N_POOL = 15  # problems of each pair of techniques
N_EACH, SAMPLES = 2, 8

# By technique: an integrand, and its antiderivative as the prompt's examples would write it. No sines: the base model
# hardly ever writes their sign, whatever the numbers, so there is no easier variant to learn it from.
TERMS = {
    "cosine": ("{a}*cos({b}*x{c:+})", "{a}*sin({b}*x{c:+})/{b}"),
    "exponential": ("{a}*exp({b}*x{c:+})", "{a}*exp({b}*x{c:+})/{b}"),
    "reciprocal": ("{a}/(x{c:+})", "{a}*log(x{c:+})"),
    "power": ("{a}*(x{c:+})**{n}", "{a}*(x{c:+})**({n}+1)/({n}+1)"),
}
# Down the ladder: the number of terms, what is left out of each, and the lowest and the highest number in it.
LEVELS = {
    "two terms, three digits": (2, "", 101, 999),
    "one term, three digits": (1, "", 101, 999),
    "one term, two digits, no shift": (1, "{c:+}", 11, 99),
    "two terms, one digit, no shift": (2, "{c:+}", 2, 9),
    "one term, one digit, no shift": (1, "{c:+}", 2, 9),
}


def draw(rng: Random, techniques: Sequence[str], without: str = "", lowest: int = 101, highest: int = 999) -> list[str]:
    """Draw a sum of terms of these techniques, with distinct numbers in each; return the integrand and its answer."""
    sums = ["", ""]
    for technique in techniques:
        numbers = dict(zip("abc", rng.sample(range(lowest, highest + 1), 3), strict=True))
        numbers |= {"c": numbers["c"] * rng.choice((-1, 1)), "n": rng.randint(2, 9)}
        sign = rng.choice("+-") if sums[0] else ""
        for index, text in enumerate(TERMS[technique]):
            sums[index] += sign + text.replace(without, "").format(**numbers).replace("(x)", "x")
    return sums


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def problems() -> None:
    """Write the problem set."""
    rng, rows = Random(22), list[dict[str, str]]()
    for pair in combinations(TERMS, 2):
        drawn = (draw(rng, rng.sample(pair, 2)) for _ in count())
        # In floating point, not every such answer can be checked: beside a fast exponential, a cosine loses its digits.
        checked = ((integrand, answer) for integrand, answer in drawn if verify(integrand, answer).reward)
        rows += [
            {"integrand": integrand, "answer": answer, "technique": " and ".join(pair)}
            for integrand, answer in islice(checked, N_POOL)
        ]
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
        at = {
            level: [each for kind in by_kind if kind.startswith(f"{level}:") for each in by_kind[kind]]
            for level in LEVELS
        }
        for kind, own in {**at, **by_kind}.items():
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
    for level, (n_terms, *limits) in LEVELS.items():
        for techniques in combinations(TERMS, n_terms):
            drawn = sorted({draw(rng, techniques, *limits)[0] for _ in range(N_EACH)})
            data = [{"integrand": each, "variable": "x", "lower": None, "upper": None} for each in drawn]
            kind = f"{level}: {' and '.join(techniques)}"
            by_kind[kind] = [Problem.root("integration", each) for each in data]
    by_kind["undergrad, every fortieth"] = load_problems("undergrad", "test")[::40]
    return by_kind


if __name__ == "__main__":
    app()
