"""Evaluate the base model of a run and its adapters on any problems."""

import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ladder_lite.config import EvalSettings
from ladder_lite.doctor.checks import open_backend
from ladder_lite.errors import UserError
from ladder_lite.evaluate.sampling import Sampler, greedy
from ladder_lite.evaluate.scores import paired_bootstrap, pass_rates, summarize
from ladder_lite.jsonl import digest, write_json
from ladder_lite.runs import layout, open_run, read_json
from ladder_lite.tasks import load_task
from ladder_lite.terminal import Live

Split = Literal["train", "test", "probe"]


@dataclass(frozen=True, slots=True)
class Request:
    """What to evaluate a run on.

    None stands for the recipe's value (`samples`, `k`, `seed`), all adapters (`condition`), and answers that are not
    kept (`out`). `overrides` are changes to the recipe, "KEY=VALUE".
    """

    problems: str
    split: Split = "test"
    condition: str | None = None
    samples: int | None = None
    k: int | None = None
    greedy_only: bool = False
    seed: int | None = None
    out: Path | None = None
    overrides: tuple[str, ...] = ()


def evaluate_run(path: Path, request: Request, live: Live) -> dict[str, Any]:
    """Evaluate the base model of a run and its adapters; returns what `--json` prints.

    That is {"run", "problems", "split", "samples", "seed", "conditions": {name: summary}}, with the summaries of
    `summarize`. Those of adapters also have `over_base`, the difference in pass@1 from the base model by
    `paired_bootstrap`. Answers kept in `out` are not sampled again. Raises UserError if the run, its adapters, the
    problems or the requested numbers cannot be used.
    """
    run = open_run(path)
    recipe, chosen = run.recipe_with(request.overrides), request.condition
    # The base model always comes first: every adapter is compared with it. Its adapter is None.
    adapters = {"base": None, **(run.adapters if chosen is None else {chosen: run.adapter(chosen)})}
    settings, seed = _settings(recipe.eval, request), recipe.seed if request.seed is None else request.seed
    # The run's task (prompts, protocol) on other problems. No selection: all problems of the set are evaluated.
    sets = dict.fromkeys(("train", "test", "probe"), request.problems)
    source = recipe.task.model_copy(update={**sets, "select": None})
    task = load_task(source)
    problems, set_notes = task.problems(request.split), task.notes(request.problems)
    with nullcontext(request.out) if request.out else tempfile.TemporaryDirectory() as kept:
        backend = open_backend(recipe, None, live)  # None: nothing is trained, so less is asked of the machine
        backend.check([task.prompt(problem) for problem in problems])
        fresh = backend.snapshot()  # a new LoRA adapter changes nothing: with it the model is the base model
        sampler = Sampler(task, backend, settings, seed)
        summaries: dict[str, Any] = {}
        rates: dict[str, Mapping[str, float]] = {}
        for name, adapter in adapters.items():
            folder = Path(kept) / name
            inputs = [source.model_dump(), recipe.model.model_dump(), settings.model_dump(), seed]
            if adapter is None:
                backend.restore(fresh)
            else:
                backend.load(adapter)
            # The digest of the weights too: the run may have been trained again since the answers were kept.
            _check_inputs(folder, [*inputs, [problem.id for problem in problems], adapter and _digest_of(adapter)])
            title = f"evaluate {name}"
            # With --greedy-only the sampler itself is greedy, and its answers serve as both.
            greedy_attempts = attempts = sampler.evaluate(problems, folder, live, title)
            if not request.greedy_only:
                greedy_attempts = sampler.greedy().evaluate(problems, folder / layout.GREEDY, live, f"{title}, greedy")
            summaries[name] = summarize(
                attempts, settings.k, greedy=greedy_attempts, task=task, problems=problems, notes=set_notes
            )
            rates[name] = pass_rates(attempts)
            # Paired, since both answered the same problems: much of the spread is between problems and cancels.
            if adapter is not None:
                summaries[name]["over_base"] = paired_bootstrap(rates["base"], rates[name])
    return {
        "run": str(path),
        "problems": request.problems,
        "split": request.split,
        "samples": settings.samples,
        "seed": seed,
        "conditions": summaries,
    }


def _settings(settings: EvalSettings, request: Request) -> EvalSettings:
    if request.greedy_only:
        return greedy(settings)
    samples = request.samples or settings.samples
    # The recipe's k gives way to a smaller --samples; a --k that is too large is a mistake.
    k = request.k or min(settings.k, samples)
    if k > samples:
        raise UserError(f"--k {k}: pass@{k} needs {k} samples, but there are {samples}; raise --samples")
    return settings.model_copy(update={"samples": samples, "k": k})


def _digest_of(adapter: Path) -> str:
    with (adapter / layout.WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_inputs(folder: Path, inputs: object) -> None:
    """Mark the folder as belonging to these inputs; raises UserError if it belongs to others."""
    # As a stage of a run does: answers of different weights, settings or problems must never be mixed.
    marker, path = {"digest": digest(inputs)}, folder / layout.BEGUN
    if path.exists() and read_json(path, "name another --out") != marker:
        raise UserError(f"{folder}: has answers from other problems, weights or settings; name another --out")
    write_json(path, marker)
