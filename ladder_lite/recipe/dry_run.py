"""What a recipe would take, before anything is loaded: GPU memory by card, batches, steps, tokens, time left.

    python -m ladder_lite.recipe llama3b --dry-run
    python -m ladder_lite.recipe llama3b --dry-run --json

Needs no GPU, no torch, and for the models of the shipped recipes no network. The run folder is only looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from ladder_lite.config.arms import arm, shares_tree
from ladder_lite.config.schema import GrpoSettings, Recipe
from ladder_lite.errors import UserError
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models.memory import (
    CARDS,
    GIB,
    Loader,
    Parts,
    Setup,
    generate_parts,
    generation_batch,
    gib,
    plan,
    read_shape,
    total,
    train_parts,
)
from ladder_lite.problems import load_problems
from ladder_lite.recipe import stages
from ladder_lite.recipe.test_time import N_SAMPLES
from ladder_lite.terminal import clock_time

_SHOWN_PARTS = 2


def outlook(recipe: Recipe, run: Path) -> dict[str, Any]:
    """What the recipe would take, as the JSON object of `--dry-run --json`; `run` is its run folder, there or not.

    Counts of problems are None where a set has not been fetched yet, and so is what depends on them. `tokens` are
    upper bounds, but for those of variants: they are counted as if no variant were rejected and asked for again.
    Batches and groups are those of `grpo`. Those of arms and of TTRL, where they change `grpo.trl`, count in steps,
    tokens, the longest completion, the peaks and whether a card fits.
    """
    shape = read_shape(recipe.model.id)
    loader: Loader = "transformers" if recipe.model.backend == "transformers" else "unsloth"
    trainings = [recipe.grpo]
    arms = (arm(recipe, name).grpo for name in stages.trained(recipe, recipe.conditions))
    trainings += [training for training in arms if training.trl != recipe.grpo.trl]
    if _learning(recipe):
        trainings.append(recipe.ttrl.over(recipe.grpo))
    setups = [Setup.of(shape, recipe.model, training.trl, loader) for training in trainings]
    counts = _Counts.of(recipe)
    steps = _steps(recipe, counts)
    return {
        "recipe": recipe.name,
        "model": recipe.model.id,
        "parameters": shape.parameters,
        "loader": loader,
        "steps": _sum(steps),
        "steps_by_condition": steps,
        "completions_per_step": recipe.grpo.completions_per_step,
        "num_generations": recipe.grpo.trl["num_generations"],
        "max_prompt_length": recipe.model.max_prompt_length,
        "max_completion_length": _longest(setups),
        "tokens": _tokens(recipe, counts, steps),
        "seconds_left": _seconds_left(recipe, counts, run),
        "cards": [_card(recipe, setups, card_gb, gib) for card_gb, gib in CARDS.items()],
    }


def render(outlook: dict[str, Any]) -> RenderableType:
    """The outlook as a table and some lines."""
    title = f"{outlook['recipe']}: {outlook['model']}, {outlook['parameters'] / 1e6:,.0f} million weights"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("card", "GiB", "micro-batch", "rollouts", "generate", "train"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("largest parts of training")
    for card in outlook["cards"]:
        peaks = card["predicted_peak_bytes"]
        table.add_row(
            f"{card['card_gb']} GB",
            f"{card['gib']:.1f}",
            f"{card['micro_batch']} x {card['accumulation']}" if card["fits"] else "too small",
            f"{card['generation_batch']}" if card["fits"] else "-",
            gib(peaks["generate"]),
            gib(peaks["train"]),
            ", ".join(f"{name} {size / GIB:.1f}" for name, size in _largest(card["parts"])),
        )
    return Group(table, *_lines(outlook))


def _lines(outlook: dict[str, Any]) -> list[str]:
    tokens, left = outlook["tokens"], outlook["seconds_left"]
    by_condition = ", ".join(f"{name} {_count(steps)}" for name, steps in outlook["steps_by_condition"].items())
    purposes = ", ".join(f"{name} {_count(number)}" for name, number in tokens.items() if name != "total")
    return [
        "GiB: what such a card leaves, and the peaks predicted; where it is too small, those of the smallest batches. "
        "Rollouts are what is generated at once.",
        f"Never changed: groups of {outlook['num_generations']}, {outlook['completions_per_step']} completions a step, "
        f"up to {outlook['max_prompt_length']} + {outlook['max_completion_length']} tokens each.",
        f"Steps: at most {_count(outlook['steps'])} ({by_condition or 'no condition trains'}).",
        f"Tokens: at most about {_count(tokens['total'])} ({purposes}); most replies end earlier.",
        "Time left: known once two steps have been measured."
        if left is None
        else f"Time left: at most {clock_time(left)} of training, at the pace so far; evaluation comes on top.",
    ]


@dataclass(frozen=True, slots=True)
class _Counts:
    """Problems of a recipe's splits; None where a set is not at hand."""

    train: int | None
    test: int | None
    pool: int | None

    @staticmethod
    def of(recipe: Recipe) -> "_Counts":
        train, test = _problems(recipe.task.train, "train"), _problems(recipe.task.test, "test")
        select = recipe.task.select
        if select is None:
            return _Counts(None if train is None else len(train), None if test is None else len(test), 0)
        return _Counts(select.train, select.test, None if train is None or test is None else len(train | test))

    def learned(self, recipe: Recipe) -> int | None:
        """Test problems that TTRL learns, at most."""
        wanted = recipe.ttrl.problems
        if wanted == "all":
            return self.test
        return wanted if self.test is None else min(wanted, self.test)


def _learning(recipe: Recipe) -> list[str]:
    """The conditions that learn single test problems, those that others start from included."""
    named = stages.stages_of(recipe, recipe.conditions)
    return [name.split("/")[1] for name in named if name.endswith("ttrl/problems")]


def _longest(setups: Sequence[Setup]) -> int:
    return max(setup.max_completion_length for setup in setups)


def _problems(name: str, split: str) -> set[str] | None:
    try:
        return {problem.id for problem in load_problems(name, split)}
    except UserError:  # not fetched yet, or written by a stage of the run; the run itself says so
        return None


def _steps(recipe: Recipe, counts: _Counts) -> dict[str, int | None]:
    """Optimizer steps of each condition that trains, at most; TTRL comes after LADDER, whether asked for or not."""
    steps: dict[str, int | None] = {}
    for name in stages.trained(recipe, recipe.conditions):
        steps[name] = int(arm(recipe, name).grpo.trl["max_steps"])
    for name in _learning(recipe):
        steps[name] = _times(counts.learned(recipe), int(recipe.ttrl.over(recipe.grpo).trl["max_steps"]))
    return steps


def _tokens(recipe: Recipe, counts: _Counts, steps: dict[str, int | None]) -> dict[str, int | None]:
    """Generated tokens by purpose."""
    ttrl, learning = recipe.ttrl.over(recipe.grpo), _learning(recipe)
    learned = _times(counts.learned(recipe), len(learning))
    arms = {name: arm(recipe, name) for name in steps if name not in learning}
    longest = recipe.eval.max_new_tokens
    looks = sum(1 + int(arm.grpo.trl["max_steps"]) // arm.grpo.eval_every for arm in arms.values())
    named = stages.stages_of(recipe, recipe.conditions)
    evaluated = sum(name.endswith("/eval") and name.split("/")[1] not in learning for name in named)
    # Of each test problem: samples and a greedy answer after each condition, one at each look; of each learned one:
    # samples, and its tries.
    answers = _times(counts.test, evaluated * (recipe.eval.samples + 1) + looks)
    tries = recipe.eval.samples + 1 + int(ttrl.trl["max_steps"]) * recipe.ttrl.samples_per_step
    chosen = _times(counts.pool, recipe.task.select.samples if recipe.task.select else 0)
    of_one = (
        _tokens_per_step(ttrl) * int(ttrl.trl["max_steps"])
        + recipe.ttrl.per_root * recipe.variants.max_new_tokens / recipe.variants.per_prompt
        + int(ttrl.trl["max_steps"]) * recipe.ttrl.samples_per_step * longest
    )
    resampled = "conditions/ladder_pass100/problems" in named
    trained = {name: _times(steps[name], _tokens_per_step(arm.grpo)) for name, arm in arms.items()} | {
        name: _times(steps[name], _tokens_per_step(ttrl)) for name in learning
    }
    tokens = {
        "training": _sum(trained),
        "evaluation": _sum(
            {
                "answers": _times(answers, longest),
                "tries": _times(learned, tries * longest),
                "select": _times(chosen, longest),
                "pass@100": _times(counts.learned(recipe), max(N_SAMPLES * longest, of_one)) if resampled else 0,
            }
        ),
        "variants": _times(
            _sum(
                {
                    "training": _times(counts.train, _variants_per_root(recipe, named)),
                    "ttrl": _times(learned, recipe.ttrl.per_root),
                }
            ),
            recipe.variants.max_new_tokens / recipe.variants.per_prompt,
        ),
    }
    return tokens | {"total": _sum(tokens)}


def _variants_per_root(recipe: Recipe, named: Sequence[str]) -> int:
    """Variants written of each training problem: in the tree that conditions share, and in each one's own part."""
    shared = recipe.variants.first_per_root if "variants" in named else 0
    own = 0
    for name in ("ladder", *recipe.arms):
        if f"conditions/{name}/train" in named:
            its = arm(recipe, name).variants
            own += its.per_root - (its.first_per_root if shares_tree(recipe, name) else 0)
    return shared + own


def _tokens_per_step(training: GrpoSettings) -> int:
    return training.completions_per_step * int(training.trl.get("max_completion_length") or 256)  # TRL's own is 256


def _seconds_left(recipe: Recipe, counts: _Counts, run: Path) -> float | None:
    """Seconds that the steps left would take at the median pace of those measured; None below two of these."""
    seconds: list[float] = []
    left: dict[str, int | None] = {}

    def look(folder: Path, max_steps: int) -> int:
        rows = read_jsonl(folder / "metrics.jsonl")
        seconds.extend(row["seconds"] for row in rows)
        return 0 if (folder / "done.json").exists() else max(0, max_steps - len(rows))

    ttrl_steps = int(recipe.ttrl.over(recipe.grpo).trl["max_steps"])
    for name in stages.trained(recipe, recipe.conditions):
        max_steps = int(arm(recipe, name).grpo.trl["max_steps"])
        left[name] = look(run / "conditions" / name / "train", max_steps)
    for name in _learning(recipe):
        tried = run / "conditions" / name / "problems"
        begun = [
            look(folder / "train", 0 if (folder / "done.json").exists() else ttrl_steps)
            for folder in sorted(tried.glob("*/"))
        ]
        learned = 0 if (tried / "done.json").exists() else counts.learned(recipe)
        left[name] = None if learned is None else sum(begun) + max(0, learned - len(begun)) * ttrl_steps
    steps_left = _sum(left)
    return None if len(seconds) < 2 or steps_left is None else steps_left * median(seconds)


def _card(recipe: Recipe, setups: Sequence[Setup], card_gb: int, gib: float) -> dict[str, Any]:
    """What would be done on a card; the peaks of the smallest batches where nothing fits.

    The batches are those of `grpo`, whose setup comes first; the peaks those of the training that takes most.
    """
    setup, free_bytes, prompt = setups[0], int(gib * GIB), recipe.model.max_prompt_length
    plans = [plan(each, free_bytes) for each in setups]
    chosen = plans[0]
    evaluation, variants = recipe.eval, recipe.variants
    eval_batch = generation_batch(
        setup, free_bytes, prompt, evaluation.max_new_tokens, evaluation.batch_size, evaluation.top_p
    )
    variants_batch = generation_batch(setup, free_bytes, prompt, variants.max_new_tokens, variants.batch_size)
    peaks = [
        (planned.train, planned.generate) if planned else _smallest(each)
        for each, planned in zip(setups, plans, strict=True)
    ]
    train, generate = (max(parts, key=total) for parts in zip(*peaks, strict=True))
    return {
        "card_gb": card_gb,
        "gib": gib,
        "fits": None not in plans and eval_batch > 0 and variants_batch > 0,
        "micro_batch": chosen.micro_batch if chosen else None,
        "accumulation": chosen.accumulation if chosen else None,
        "num_generations": recipe.grpo.trl["num_generations"],
        "max_completion_length": _longest(setups),
        "generation_batch": chosen.generation_batch if chosen else None,
        "eval_batch": eval_batch or None,
        "variants_batch": variants_batch or None,
        "predicted_peak_bytes": {"generate": total(generate), "train": total(train)},
        "parts": train,
        "generate_parts": generate,
    }


def _smallest(setup: Setup) -> tuple[Parts, Parts]:
    """The parts of training on one completion and of generating one."""
    lengths = setup.max_prompt_length, setup.max_completion_length
    return train_parts(setup, 1), generate_parts(setup, 1, *lengths, setup.top_p)


def _times(number: int | None, factor: float) -> int | None:
    return None if number is None else int(number * factor)


def _sum(numbers: dict[str, int | None]) -> int | None:
    known = [number for number in numbers.values() if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _count(number: int | None) -> str:
    return "unknown (a problem set is not fetched)" if number is None else f"{number:,}"


def _largest(parts: Parts) -> list[tuple[str, int]]:
    return sorted(parts.items(), key=lambda part: -part[1])[:_SHOWN_PARTS]
