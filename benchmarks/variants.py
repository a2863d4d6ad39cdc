"""Measure the effect of the paper's methods for diverse variants, and whether easier variants are easier.

    python benchmarks/variants.py                                   # the embedded model
    python benchmarks/variants.py --recipe smollm model.id=FOLDER   # a real model
    python benchmarks/variants.py --run runs/tiny-s0                # also the pass rates of a run's variants

The first part grows trees of one level from the same roots and seeds, with personas, suggestions and the cycle of
temperatures on or off. It prints valid and distinct variants per 1,000 generated tokens, as ratios to the arm with all
three (the baseline). The second part samples answers to each variant of a run and to its parent, with the run's LADDER
adapter. Writes benchmarks/results/variants-RECIPE.json.
"""

import json
import platform
from collections import Counter
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
import typer

from ladder_lite import variants
from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import Recipe
from ladder_lite.evaluate import Sampler
from ladder_lite.models import Backend, load_backend
from ladder_lite.problems import Problem
from ladder_lite.problems.attempts import Attempt
from ladder_lite.tasks import Task, load_task
from ladder_lite.terminal import Bar, Live
from ladder_lite.variants.transformations import open_library

HERE = Path(__file__).parent
ALL = ("personas", "suggestions", "temperatures")
ARMS = {
    "all three": ALL,
    "without personas": ("suggestions", "temperatures"),
    "without suggestions": ("personas", "temperatures"),
    "without the cycle of temperatures": ("personas", "suggestions"),
    "none": (),
}


def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings to change.")] = None,
    recipe: Annotated[str, typer.Option(help="The recipe whose model writes the variants.")] = "tiny",
    roots: Annotated[int, typer.Option(help="Number of training problems to grow trees from.")] = 10,
    per_root: Annotated[int, typer.Option(help="Number of variants of each.")] = 40,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    run: Annotated[Path | None, typer.Option(help="A run whose variants are measured.")] = None,
    tries: Annotated[int, typer.Option(help="Number of answers to each of its variants.")] = 16,
    out: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Measure the effect of the paper's methods for diverse variants, and whether easier variants are easier."""
    changes = ["variants.adaptive=null", "variants.depth=1", f"variants.per_root={per_root}", "task.select=null"]
    settings = load_recipe(recipe, [*changes, *(overrides or ())])
    task, backend = load_task(settings.task), load_backend(settings)
    figures: dict[str, Any] = {
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "recipe": settings.name,
        "roots": roots,
        "per_root": per_root,
        "seeds": seeds,
    }
    with Live() as live:
        figures["arms"] = {arm: Counter() for arm in ARMS}
        for seed in map(int, seeds.split(",")):
            for arm, parts in ARMS.items():
                with live.progress(f"seed {seed}, {arm}", roots * per_root) as bar:
                    figures["arms"][arm].update(_write(settings, task, backend, parts, roots, seed, bar))
        if run is not None:
            with live.progress("pass rates", None):
                figures["easier"] = _measure(run, tries)
    for counts in figures["arms"].values():
        counts["valid_per_1000_tokens"] = 1000 * counts["valid"] / counts["tokens"]
        counts["distinct_per_1000_tokens"] = 1000 * counts["distinct"] / counts["tokens"]
    path = out or HERE / "results" / f"variants-{settings.name}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    _print(figures)


def _write(
    settings: Recipe, task: Task, backend: Backend, parts: tuple[str, ...], roots: int, seed: int, bar: Bar
) -> dict[str, int]:
    """Write a tree of one level with some of the paper's methods; return its counts."""
    changed: dict[str, Any] = {}
    if "personas" not in parts:
        changed["personas"] = settings.variants.personas[:1]  # always the same one
    if "suggestions" not in parts:
        changed["suggestions"] = (0, 0)
    if "temperatures" not in parts:
        middle = sum(settings.variants.temperature) / 2
        changed["temperature"] = (middle, middle)
    chosen = settings.variants.model_copy(update=changed)
    with TemporaryDirectory() as scratch:
        writer = variants.Writer(task, backend, chosen, open_library(task, chosen, Path(scratch)), {}, seed)
        variants.grow(writer, task.problems("train")[:roots], Path(scratch), bar)
        counts = variants.summarize_tree(Path(scratch))
    # Rejected only because they equal another problem: valid, but not distinct.
    n_repeated = sum(counts["reasons"].get(reason, 0) for reason in ("duplicate", "equal_to_parent", "test_problem"))
    written = counts["kept"] + counts["duplicates"] + counts["rejected"]
    return {
        "written": written,
        "valid": counts["kept"] + n_repeated,
        "distinct": counts["kept"],
        "tokens": counts["tokens"],
    }


def _measure(run: Path, tries: int) -> dict[str, Any]:
    """Count the variants of a run that are solved more often than their parents, by requested effect.

    The answers come from the run's LADDER adapter, which was trained on these variants. The base model would not show
    differences, because it solves hardly any of them.
    """
    recipe = load_recipe(str(run / "recipe.resolved.yaml"))
    task, backend = load_task(recipe.task), load_backend(recipe)
    backend.load(run / "conditions/ladder/train/adapter")
    tree = [*variants.load(run / "variants"), *variants.load(run / "conditions/ladder/train/variants")]
    problems = {problem.id: problem for problem in (*task.problems("train"), *tree)}
    attempts = Sampler(task, backend, recipe.eval, recipe.seed).sample(list(problems.values()), tries)
    right = _count_right(attempts)
    verdicts: dict[str, Counter[str]] = {}
    # The difference of two binomial counts has a standard deviation of at most sqrt(tries / 2); noise is twice that.
    noise = 2 * sqrt(tries / 2)
    for variant in tree:
        difference = right[variant.id] - right[variant.parent_id or ""]
        verdict = "easier" if difference > 0 else "harder" if difference < 0 else "as hard"
        verdicts.setdefault(variant.requested, Counter())[verdict] += 1
        if abs(difference) > noise:
            verdicts[variant.requested][f"surely {verdict}"] += 1
    return {
        "tries": tries,
        "variants": len(tree),
        "pass_rate_of_roots": _rate([problem for problem in problems.values() if not problem.depth], right, tries),
        "pass_rate_of_variants": _rate(tree, right, tries),
        "by_request": {request: dict(counts) for request, counts in verdicts.items()},
        "easier_share": sum(counts["easier"] for counts in verdicts.values()) / len(tree),
        "surely_easier_share": sum(counts["surely easier"] for counts in verdicts.values()) / len(tree),
    }


def _count_right(attempts: list[Attempt]) -> Counter[str]:
    right: Counter[str] = Counter()
    for attempt in attempts:
        right[attempt.problem_id] += attempt.correct
    return right


def _rate(problems: list[Problem], right: Counter[str], tries: int) -> float:
    return sum(right[problem.id] for problem in problems) / (tries * len(problems))


def _print(figures: dict[str, Any]) -> None:
    baseline = figures["arms"]["all three"]["distinct_per_1000_tokens"]
    print(f"{'':<36}{'valid':>8}{'distinct per 1,000 tokens':>28}{'x all three':>13}")
    for arm, counts in figures["arms"].items():
        distinct = counts["distinct_per_1000_tokens"]
        valid = counts["valid"] / counts["written"]
        print(f"{arm:<36}{valid:>8.1%}{distinct:>28.2f}{distinct / baseline:>13.2f}")
    if easier := figures.get("easier"):
        print(
            f"easier than their parents: {easier['easier_share']:.1%} of {easier['variants']} ({easier['tries']} tries)"
        )
        print(f"  by request: {easier['by_request']}")


if __name__ == "__main__":
    typer.run(main)
