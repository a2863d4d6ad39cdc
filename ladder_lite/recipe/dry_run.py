"""What a recipe would take, before anything is loaded: GPU memory by card, batches, steps, tokens, time left.

    python -m ladder_lite.recipe llama3b --dry-run
    python -m ladder_lite.recipe llama3b --dry-run --json

Needs no GPU, no torch, and for the models of the shipped recipes no network. The run folder is only looked at.
"""

import math
from collections.abc import Sequence
from functools import partial
from heapq import nlargest
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from ladder_lite.config import BUILT_IN, GrpoSettings, Recipe, condition_of, recipe_for, shares_tree, with_ablations
from ladder_lite.errors import UserError
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models import memory
from ladder_lite.models.shape import read_shape
from ladder_lite.problems import load_problems
from ladder_lite.recipe import stages
from ladder_lite.recipe.test_time import N_SAMPLES
from ladder_lite.runs import layout
from ladder_lite.terminal import clock_time

_SHOWN_PARTS = 2


def outlook(recipe: Recipe, run: Path) -> dict[str, Any]:
    """What the recipe would take, as the JSON object of `--dry-run --json`; `run` is its run folder, there or not.

    Counts of problems are None where a set has not been fetched yet, and so is what depends on them. `tokens` are
    upper bounds, but for those of variants: they are counted as if no variant were rejected and asked for again.
    Batches and groups are those of `grpo`. Where ablations and TTRL change `grpo.trl`, theirs count in steps,
    tokens, the longest completion, the peaks and whether a card fits.
    """
    shape = read_shape(recipe.model.id)
    loader: memory.Loader = "transformers" if recipe.model.backend == "transformers" else "unsloth"
    work = _Work(recipe)
    trainings = [recipe.grpo, *work.trainings.values()]
    setups = list(dict.fromkeys(memory.Setup.of(shape, recipe.model, training.trl, loader) for training in trainings))
    return {
        "recipe": recipe.name,
        "model": recipe.model.id,
        "parameters": shape.parameters,
        "loader": loader,
        "steps": _known(sum(work.steps.values())),
        "steps_by_condition": {name: _known(steps) for name, steps in work.steps.items()},
        "completions_per_step": recipe.grpo.completions_per_step,
        "num_generations": recipe.grpo.trl["num_generations"],
        "max_prompt_length": recipe.model.max_prompt_length,
        "max_completion_length": max(setup.max_completion_length for setup in setups),
        "tokens": {name: _known(number) for name, number in work.tokens().items()},
        "seconds_left": work.seconds_left(run),
        "cards": [_card(recipe, setups, card_gb, gib) for card_gb, gib in memory.CARDS.items()],
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
        largest = nlargest(_SHOWN_PARTS, card["parts"].items(), key=lambda part: part[1])
        table.add_row(
            f"{card['card_gb']} GB",
            f"{card['gib']:.1f}",
            f"{card['micro_batch']} x {card['accumulation']}" if card["fits"] else "too small",
            f"{card['generation_batch']}" if card["fits"] else "-",
            memory.gib(peaks["generate"]),
            memory.gib(peaks["train"]),
            ", ".join(f"{name} {size / memory.GIB:.1f}" for name, size in largest),
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


class _Work:
    """What the conditions of a recipe train and generate, at most; those that others start from are among them.

    A count of problems is NaN where a set is not available, and so is what depends on it.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._stages = stages.stages_of(recipe, recipe.conditions)
        self._recipes = {name: recipe_for(recipe, name) for name in stages.trained(recipe, recipe.conditions)}
        self._learning = [
            condition.name
            for condition in BUILT_IN.values()
            if condition.trains_on == "single problems" and layout.problems(condition.name) in self._stages
        ]
        self._ttrl = recipe.ttrl.over(recipe.grpo)
        splits = (recipe.task.train, "train"), (recipe.task.test, "test")
        if (select := recipe.task.select) is None:
            self._train, self._test, self._pool = _n_problems(splits[0]), _n_problems(splits[1]), 0.0
        else:
            self._train, self._test, self._pool = select.train, select.test, _n_problems(*splits)
        wanted = recipe.ttrl.problems
        self._learned = self._test if wanted == "all" or self._test < wanted else wanted
        self.trainings = {name: its.grpo for name, its in self._recipes.items()}
        self.trainings |= dict.fromkeys(self._learning, self._ttrl)
        self.steps: dict[str, float] = {name: _max_steps(its.grpo) for name, its in self._recipes.items()}
        self.steps |= dict.fromkeys(self._learning, self._learned * _max_steps(self._ttrl))

    def tokens(self) -> dict[str, float]:
        """Generated tokens by purpose, and their total."""
        recipe, variants, ttrl_steps = self._recipe, self._recipe.variants, _max_steps(self._ttrl)
        select, longest = recipe.task.select, recipe.eval.max_new_tokens
        learned = self._learned * len(self._learning)
        looks = sum(1 + _max_steps(its.grpo) // its.grpo.eval_every for its in self._recipes.values())
        evaluated = sum(
            layout.evaluation(c.name) in self._stages
            for c in with_ablations(recipe.ablations)
            if c.name not in self._learning
        )
        # Of each test problem: samples and a greedy answer after each condition, one at each look; of each learned one:
        # samples, and its tries.
        answers = self._test * (evaluated * (recipe.eval.samples + 1) + looks)
        answers += learned * (recipe.eval.samples + 1 + ttrl_steps * recipe.ttrl.samples_per_step)
        answers += self._pool * (select.samples if select else 0)
        resampled = 0.0
        if layout.problems("ladder_pass100") in self._stages:
            of_one = (
                ttrl_steps * (_tokens_per_step(self._ttrl) + recipe.ttrl.samples_per_step * longest)
                + recipe.ttrl.per_root * variants.max_new_tokens / variants.per_prompt
            )
            resampled = self._learned * max(N_SAMPLES * longest, of_one) // 1
        written = self._train * self._variants_per_root() + learned * recipe.ttrl.per_root
        tokens = {
            "training": sum(self.steps[name] * _tokens_per_step(each) for name, each in self.trainings.items()),
            "evaluation": answers * longest + resampled,
            "variants": written * (variants.max_new_tokens / variants.per_prompt) // 1,
        }
        return tokens | {"total": sum(tokens.values())}

    def _variants_per_root(self) -> int:
        """Variants written of each training problem: in the tree that conditions share, and in each one's own part."""
        shared = self._recipe.variants.first_per_root if layout.VARIANTS in self._stages else 0
        own = (
            its.variants.per_root - (its.variants.first_per_root if shares_tree(self._recipe, name) else 0)
            for name, its in self._recipes.items()
            if condition_of(name).trains_on == "variants"
        )
        return shared + sum(own)

    def seconds_left(self, run: Path) -> float | None:
        """Seconds that the steps left would take at the median pace of those measured; None below two of these."""
        seconds: list[float] = []

        def look(folder: Path, max_steps: int) -> int:
            rows = read_jsonl(folder / layout.METRICS)
            seconds.extend(row["seconds"] for row in rows)
            return 0 if (folder / layout.DONE).exists() else max(0, max_steps - len(rows))

        ttrl_steps, left = _max_steps(self._ttrl), 0.0
        for name, its in self._recipes.items():
            left += look(run / layout.train(name), _max_steps(its.grpo))
        for name in self._learning:
            tried = run / layout.problems(name)
            begun = sorted(tried.glob("*/"))
            left += sum(look(each / layout.TRAIN, 0 if (each / layout.DONE).exists() else ttrl_steps) for each in begun)
            if not (tried / layout.DONE).exists():
                left += max(self._learned - len(begun), 0) * ttrl_steps  # in this order, what is unknown stays NaN
        return None if len(seconds) < 2 or math.isnan(left) else left * median(seconds)


def _n_problems(*splits: tuple[str, str]) -> float:
    """How many problems these splits, each of a set, hold together."""
    try:
        return len({problem.id for name, split in splits for problem in load_problems(name, split)})
    except UserError:  # not fetched yet, or written by a stage of the run; the run itself says so
        return math.nan


def _max_steps(training: GrpoSettings) -> int:
    return int(training.trl["max_steps"])


def _tokens_per_step(training: GrpoSettings) -> int:
    return training.completions_per_step * int(training.trl.get("max_completion_length") or 256)  # TRL's own is 256


def _card(recipe: Recipe, setups: Sequence[memory.Setup], card_gb: int, gib: float) -> dict[str, Any]:
    """What would be done on a card; the peaks of the smallest batches where nothing fits.

    The batches are those of `grpo`, whose setup comes first; the peaks those of the training that takes most.
    """
    free_bytes = int(gib * memory.GIB)
    plans = [memory.plan(each, free_bytes) for each in setups]
    chosen = plans[0]
    batch = partial(memory.generation_batch, setups[0], free_bytes, recipe.model.max_prompt_length)
    eval_batch = batch(recipe.eval.max_new_tokens, recipe.eval.batch_size, recipe.eval.top_p)
    variants_batch = batch(recipe.variants.max_new_tokens, recipe.variants.batch_size)
    peaks = [
        (planned.train, planned.generate) if planned else memory.smallest_parts(each)
        for each, planned in zip(setups, plans, strict=True)
    ]
    train, generate = (max(parts, key=memory.total) for parts in zip(*peaks, strict=True))
    return {
        "card_gb": card_gb,
        "gib": gib,
        "fits": None not in plans and eval_batch > 0 and variants_batch > 0,
        "micro_batch": chosen.micro_batch if chosen else None,
        "accumulation": chosen.accumulation if chosen else None,
        "num_generations": recipe.grpo.trl["num_generations"],
        "max_completion_length": max(each.max_completion_length for each in setups),
        "generation_batch": chosen.generation_batch if chosen else None,
        "eval_batch": eval_batch or None,
        "variants_batch": variants_batch or None,
        "predicted_peak_bytes": {"generate": memory.total(generate), "train": memory.total(train)},
        "parts": train,
        "generate_parts": generate,
    }


def _known(number: float) -> int | None:
    return None if math.isnan(number) else int(number)


def _count(number: int | None) -> str:
    return "unknown (a problem set is not fetched)" if number is None else f"{number:,}"
