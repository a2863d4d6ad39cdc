"""The dry run of a recipe: predicted GPU memory by card, batches, steps, tokens and time left, with nothing loaded.

    python -m ladder_lite.recipe llama3b --dry-run
    python -m ladder_lite.recipe llama3b --dry-run --json

It needs no GPU and no torch, and no network for the models of the shipped recipes. It only reads the run folder.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from heapq import nlargest
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from ladder_lite.config import EMBEDDED, GrpoSettings, Recipe, condition_of, recipe_for, shares_tree, with_ablations
from ladder_lite.errors import NotFetchedError
from ladder_lite.jsonl import read_jsonl
from ladder_lite.models import memory
from ladder_lite.models.shape import read_shape
from ladder_lite.recipe import stages
from ladder_lite.recipe.test_time import N_SAMPLES
from ladder_lite.runs import layout
from ladder_lite.tasks import load_task
from ladder_lite.terminal import clock_time

_SHOWN_PARTS = 2
_WORDS = {"weights_4bit": "4-bit weights", "one_layer": "one layer at work", "cuda_context": "CUDA context"}
_T4_TOKENS = 60 * 3.2e9
"""Generated tokens a second on a T4, times weights: others report about 60 for a 3B model, training included."""


def predict(recipe: Recipe, run: Path) -> dict[str, Any]:
    """The JSON object of `--dry-run --json`; `run` is the recipe's run folder, which need not exist.

    Numbers that depend on a problem set which has not been fetched are None. `tokens` are upper bounds, except those of
    variants, which assume that no request has to be repeated. Batches and groups are those of `grpo`; changes that
    ablations and TTRL make to `grpo.trl` count for steps, tokens, the longest completion, the predicted peaks, and
    whether a card is large enough.
    """
    shape = read_shape(recipe.model.id)
    loader: memory.Loader = "transformers" if recipe.model.backend == "transformers" else "unsloth"
    work = _Workload(recipe)
    trainings = [recipe.grpo, *work.trainings.values()]
    # The setup of `grpo` comes first; ablations and TTRL add one only if they change what memory depends on.
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
        "t4_hours": {name: _known(hours) for name, hours in work.t4_hours(shape.parameters).items()},
        "cards": [_card(recipe, setups, card_gb, gib) for card_gb, gib in memory.CARDS.items()],
    }


def render(prediction: dict[str, Any], changes: Mapping[str, Any] | None = None) -> RenderableType:
    """The prediction as a table, a row for each card, and a few lines below it; no table for the embedded model.

    `changes` are those of the profile that was applied.
    """
    title = f"{prediction['recipe']}: {prediction['model']}, {prediction['parameters'] / 1e6:,.0f} million weights"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("card", "GiB", "micro-batch", "rollouts", "generate", "train"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("largest parts of training")
    for card in prediction["cards"]:
        peaks = card["predicted_peak_bytes"]
        largest = nlargest(_SHOWN_PARTS, card["parts"].items(), key=lambda part: part[1])
        table.add_row(
            f"{card['card_gb']} GB",
            f"{card['gib']:.1f}",
            f"{card['micro_batch']} x {card['accumulation']}" if card["fits"] else "too small",
            f"{card['generation_batch']}" if card["fits"] else "-",
            memory.gib(peaks["generate"]),
            memory.gib(peaks["train"]),
            ", ".join(f"{_WORDS.get(name, name.replace('_', ' '))} {size / memory.GIB:.1f}" for name, size in largest),
        )
    if prediction["model"] == EMBEDDED:
        return Group(f"{prediction['recipe']}: the embedded model, which needs no GPU.", *_lines(prediction)[1:])
    profile = ", ".join(f"{key}={value}" for key, value in (changes or {}).items())
    return Group(table, *_lines(prediction), *([f"The profile changes {profile}."] if changes else []))


def _lines(prediction: dict[str, Any]) -> list[str]:
    tokens, left = prediction["tokens"], prediction["seconds_left"]
    by_condition = ", ".join(f"{name} {_count(steps)}" for name, steps in prediction["steps_by_condition"].items())
    purposes = ", ".join(f"{name} {_count(number)}" for name, number in tokens.items() if name != "total")
    return [
        "GiB: free memory on such a card. generate, train: predicted peaks in GiB, with the smallest batches if the "
        "card is too small. rollouts: completions generated at once.",
        f"Groups of {prediction['num_generations']}, {prediction['completions_per_step']} completions "
        f"a step, up to {prediction['max_prompt_length']} + {prediction['max_completion_length']} tokens each.",
        f"Steps: at most {_count(prediction['steps'])} ({by_condition or 'no condition trains'}).",
        f"Tokens: at most about {_count(tokens['total'])} ({purposes}); most replies end earlier.",
        *_t4_line(prediction["t4_hours"]),
        "Time left: unknown until two training steps have been measured."
        if left is None
        else f"Time left: at most {clock_time(left)} of training at the pace so far, plus evaluation."
        if left
        else "All training steps are done.",
    ]


def _t4_line(hours: Mapping[str, int | None]) -> list[str]:
    if not hours or None in hours.values():
        return []
    by_condition = ", ".join(f"{name} {n:,}" for name, n in hours.items())
    return [
        f"Hours on a T4, an estimate: at most {by_condition}. That is 60 tokens a second for a 3B model, as others "
        "report, with every reply as long as allowed."
    ]


class _Workload:
    """What the conditions of a recipe, and the conditions they depend on, train and generate at most.

    A number of problems is NaN if the set is not available. NaN spreads through sums and products, so every total that
    depends on it is unknown too, without a check at each step.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._task = recipe, load_task(recipe.task)
        self._stages = stages.stages_of(recipe, recipe.conditions)
        conditions = with_ablations(recipe.ablations)
        # The recipe of each condition with a training stage (for an ablation, the changed one), by condition.
        self._recipes = {c.name: recipe_for(recipe, c.name) for c in conditions if layout.train(c.name) in self._stages}
        # The conditions that train on single problems: TTRL after LADDER, TTRL without it.
        self._ttrl = {
            c.name: recipe_for(recipe, c.name).ttrl
            for c in conditions
            if c.trains_on == "single problems" and layout.problems(c.name) in self._stages
        }
        # The evaluation after TTRL is not among these: it samples nothing.
        evaluated = {layout.evaluation(c.name) for c in conditions if c.name not in self._ttrl}
        self._n_evaluated = len(evaluated.intersection(self._stages))
        # Numbers of problems: training, test, and the pool that `select` samples from.
        splits = (recipe.task.train, "train"), (recipe.task.test, "test")
        if (select := recipe.task.select) is None:
            self._train, self._test, self._pool = self._n_problems(splits[0]), self._n_problems(splits[1]), 0.0
        else:
            self._train, self._test, self._pool = select.train, select.test, self._n_problems(*splits)
        # TTRL takes no more problems than there are tests. How many LADDER leaves unsolved is not known: at most all.
        limit = recipe.ttrl.problems
        self._n_ttrl = self._test if limit == "all" or self._test < limit else limit
        self.trainings = {name: each.grpo for name, each in self._recipes.items()}
        self.trainings |= {name: ttrl.over(recipe.grpo) for name, ttrl in self._ttrl.items()}
        self.steps: dict[str, float] = {name: _max_steps(each.grpo) for name, each in self._recipes.items()}
        self.steps |= {name: self._n_ttrl * _max_steps(self.trainings[name]) for name in self._ttrl}

    def tokens(self) -> dict[str, float]:
        """Generated tokens by purpose, and their total."""
        recipe, variants = self._recipe, self._recipe.variants
        select, longest = recipe.task.select, recipe.eval.max_new_tokens
        # One interim evaluation before the first step, and one every `eval_every` steps.
        n_interim = sum(1 + _max_steps(each.grpo) // each.grpo.eval_every for each in self._recipes.values())
        # Each test problem: samples and a greedy answer after each condition, one answer at each interim evaluation.
        answers = self._test * (self._n_evaluated * (recipe.eval.samples + 1) + n_interim)
        # Each problem of TTRL: samples and a greedy answer at the end, and the tries after each step.
        answers += sum(
            self._n_ttrl * (recipe.eval.samples + 1) + self.steps[name] * ttrl.samples_per_step
            for name, ttrl in self._ttrl.items()
        )
        answers += self._pool * (select.samples if select else 0)
        if recipe.task.probe:
            probes = sum(
                self._n_ttrl + self.steps[name] // ttrl.probe_every
                for name, ttrl in self._ttrl.items()
                if ttrl.probe_every
            )
            n_probe = self._n_problems((recipe.task.probe, "probe"))
            answers += n_probe * (self._n_evaluated * recipe.eval.samples + probes)
        resampled = 0.0
        if layout.problems("ladder_pass100") in self._stages:
            # Resampling LADDER takes as many tokens as TTRL took for the problem, and at least N_SAMPLES answers.
            after_ladder = self.trainings["ladder_ttrl"]
            ttrl_tokens_each = (
                _max_steps(after_ladder) * (_tokens_per_step(after_ladder) + recipe.ttrl.samples_per_step * longest)
                + recipe.ttrl.per_root * variants.max_new_tokens / variants.per_prompt
            )
            resampled = self._n_ttrl * max(N_SAMPLES * longest, ttrl_tokens_each) // 1
        n_variants = self._train * self._variants_per_root() + self._n_ttrl * sum(
            ttrl.per_root for ttrl in self._ttrl.values() if ttrl.train_on != "problem"
        )
        tokens = {
            "training": sum(self.steps[name] * _tokens_per_step(each) for name, each in self.trainings.items()),
            "evaluation": answers * longest + resampled,
            # A request takes up to `max_new_tokens` and brings `per_prompt` variants. `// 1` rounds down and keeps NaN.
            "variants": n_variants * (variants.max_new_tokens / variants.per_prompt) // 1,
        }
        return tokens | {"total": sum(tokens.values())}

    def t4_hours(self, parameters: int) -> dict[str, float]:
        """Hours of training on a T4 by condition, with replies of full length; none for models below a billion."""
        # Smaller models do not get faster in proportion: the overhead of each decoding step remains.
        tokens = {name: self.steps[name] * _tokens_per_step(each) for name, each in self.trainings.items()}
        hours = {name: n * parameters / _T4_TOKENS / 3600 for name, n in tokens.items()}
        return hours if parameters >= 1e9 else {}

    def _n_problems(self, *splits: tuple[str, str]) -> float:
        """The number of distinct problems in these (set, split) pairs; NaN if a set has not been fetched."""
        try:
            return len({problem.id for pair in splits for problem in self._task.load(*pair, check=False)})
        except NotFetchedError:
            return math.nan

    def _variants_per_root(self) -> int:
        """Variants written for each training problem, over all conditions."""
        shared = self._recipe.variants.first_per_root if layout.VARIANTS in self._stages else 0
        # Beyond the shared tree, a condition writes what it grows during training, or the whole of its own tree.
        own = (
            each.variants.per_root - (each.variants.first_per_root if shares_tree(self._recipe, name) else 0)
            for name, each in self._recipes.items()
            if condition_of(name).trains_on == "variants"
        )
        return shared + sum(own)

    def seconds_left(self, run: Path) -> float | None:
        """Seconds that the remaining steps would take at the median pace so far; None before two measured steps."""
        seconds: list[float] = []
        left = sum(self.steps.values())
        for name, training in self.trainings.items():
            is_ttrl = name in self._ttrl
            stage = run / (layout.problems(name) if is_ttrl else layout.train(name))
            n_done = 0
            for folder in stage.glob("*/") if is_ttrl else [stage]:
                rows = read_jsonl((folder / layout.TRAIN if is_ttrl else folder) / layout.METRICS)
                seconds += [row["seconds"] for row in rows]
                # A training run on a plateau and a solved problem are done before `max_steps`.
                n_done += _max_steps(training) if (folder / layout.DONE).exists() else len(rows)
            left -= self.steps[name] if (stage / layout.DONE).exists() else n_done
        # The median, so that a few slow steps do not count.
        return None if len(seconds) < 2 or math.isnan(left) else max(left, 0.0) * median(seconds)


def _max_steps(training: GrpoSettings) -> int:
    return int(training.trl["max_steps"])


def _tokens_per_step(training: GrpoSettings) -> int:
    return training.most_rollouts_per_step * int(training.trl["max_completion_length"])


def _card(recipe: Recipe, setups: Sequence[memory.Setup], card_gb: int, gib: float) -> dict[str, Any]:
    """The plan for one card.

    Batches are those of `grpo`, whose setup is the first; peaks are those of the setup that needs most. If nothing
    fits, the peaks are those of the smallest batches.
    """
    free_bytes = int(gib * memory.GIB)
    plans = [memory.plan(each, free_bytes) for each in setups]  # None where not even one completion fits
    chosen = plans[0]
    # Evaluation and variants are generated with other lengths and limits than rollouts, hence their own batches.
    batch = partial(memory.generation_batch, setups[0], free_bytes, recipe.model.max_prompt_length)
    eval_batch = batch(recipe.eval.max_new_tokens, recipe.eval.batch_size, recipe.eval.top_p)
    variants_batch = batch(recipe.variants.max_new_tokens, recipe.variants.batch_size)
    peaks = [
        (planned.train, planned.generate) if planned else memory.smallest_parts(each)
        for each, planned in zip(setups, plans, strict=True)
    ]
    # The largest peak of training and the largest of generating; they may come from different setups.
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
