"""Make the problem set `smollm.jsonl`, and measure SmolLM2 before training: which prompt brings out most of it.

    python benchmarks/smollm.py problems                     # rewrites smollm.jsonl, in seconds
    python benchmarks/smollm.py base model.id=FILE.gguf      # a quarter of an hour on one core

A problem is a sum of two or three terms of different techniques. The prompts are compared on single terms, on sums, on
other simple integrals and on every twentieth problem of `undergrad`. None of them is used by the recipe. Writes
benchmarks/results/smollm-base.json.
"""

import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from itertools import islice
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
N_POOL = 45  # sums of each length
N_EACH, SAMPLES = 3, 8

# By technique: an integrand, and its antiderivative as the prompt's examples write it; {a} and {b} are digits.
TERMS = {
    "cosine": ("{a}*cos({b}*x)", "{a}*sin({b}*x)/{b}"),
    "sine": ("{a}*sin({b}*x)", "-{a}*cos({b}*x)/{b}"),
    "exponential": ("{a}*exp({b}*x)", "{a}*exp({b}*x)/{b}"),
    "reciprocal": ("{a}/x", "{a}*log(x)"),
    "power": ("{a}*x**{b}", "{a}*x**({b}+1)/({b}+1)"),
}
OTHERS = {
    "cosine without a factor": "cos({b}*x)",
    "power without a factor": "x**{b}",
    "square root": "{a}*sqrt(x)",
    "shifted reciprocal": "{a}/(x+{b})",
    "hyperbolic cosine": "{a}*cosh(x)",
}


def draw_sum(rng: Random, n_terms: int) -> tuple[str, str]:
    """Draw an integrand and its antiderivative."""
    integrand = answer = ""
    for technique in rng.sample(sorted(TERMS), n_terms):
        sign = rng.choice("+-") if integrand else ""
        digits = {"a": rng.randint(2, 9), "b": rng.randint(2, 9)}
        term, solved = (text.format(**digits) for text in TERMS[technique])
        integrand += sign + term
        answer += (sign + solved).replace("+-", "-").replace("--", "+")
    return integrand, answer


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def problems() -> None:
    """Write the problem set."""
    rng, rows = Random(22), []
    for name, n_terms in (("two terms", 2), ("three terms", 3)):
        for integrand, answer in islice(dict.fromkeys(draw_sum(rng, n_terms) for _ in range(2 * N_POOL)), N_POOL):
            if not verify(integrand, answer).reward:
                raise SystemExit(f"{integrand}: {answer} is wrong")
            rows.append({"integrand": integrand, "answer": answer, "technique": name, "steps": n_terms})
    (HERE / "smollm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} problems")


_EXAMPLES = "task.prompts.solve_examples="
_CALL = "integrate({},x)".format
RECIPE = "two sums, eight terms (the recipe's)"
# Changes to the recipe, from its examples: two sums, then eight terms.
PROMPTS: dict[str, Callable[[list[Any]], list[str]]] = {
    RECIPE: lambda _: [],
    "eight terms": lambda examples: [_EXAMPLES + json.dumps(examples[2:])],
    "eight terms, two sums": lambda examples: [_EXAMPLES + json.dumps(examples[2:] + examples[:2])],
    "four terms": lambda examples: [_EXAMPLES + json.dumps(examples[-4:])],
    "two sums, eight terms, written integrate(f,x)": lambda examples: [
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
        "command": shlex.join(["python", "benchmarks/smollm.py", *(Path(each).name for each in sys.argv[1:])]),
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
        kinds, easy = {}, [each for kind in by_kind if "undergrad" not in kind for each in by_kind[kind]]
        for kind, own in {"all but undergrad": easy, **by_kind}.items():
            ids = {problem.id for problem in own}
            summary = summarize([attempt for attempt in attempts if attempt.problem_id in ids], SAMPLES)
            kinds[kind] = {key: summary[key] for key in ("n_problems", "pass@1", f"pass@{SAMPLES}")}
        arm = {"prompt": name, "temperature": temperature, "seconds": time.monotonic() - started}
        arm["tokens"] = sum(attempt.completion.n_tokens for attempt in attempts)
        figures["arms"].append({**arm, "kinds": kinds})
        (HERE / "results" / "smollm-base.json").write_text(json.dumps(figures, indent=1) + "\n")
        print(name, temperature, f"{arm['seconds']:.0f} s", kinds["all but undergrad"], flush=True)


def _problems() -> dict[str, list[Problem]]:
    """The problems by kind; those of `undergrad` by their number of steps."""
    rng, texts = Random(7), {}
    for kind, text in {**{kind: text for kind, (text, _) in TERMS.items()}, **OTHERS}.items():
        drawn = dict.fromkeys(text.format(a=rng.randint(2, 9), b=rng.randint(2, 9)) for _ in range(50))
        texts[kind] = list(drawn)[:N_EACH]
    pool = {row["integrand"] for row in map(json.loads, (HERE / "smollm.jsonl").read_text().splitlines())}
    sums = dict.fromkeys(draw_sum(rng, 2)[0] for _ in range(3 * N_EACH))
    texts["two terms"] = [text for text in sums if text not in pool][: 2 * N_EACH]
    data = {"variable": "x", "lower": None, "upper": None}
    by_kind = {
        kind: [Problem.root("integration", {"integrand": text, **data}) for text in own] for kind, own in texts.items()
    }
    by_kind["undergrad, every twentieth"] = load_problems("undergrad", "test")[::20]
    return by_kind


if __name__ == "__main__":
    app()
