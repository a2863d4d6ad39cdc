"""The base model of a run and its adapters on any problems."""

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
from ladder_lite.problems import notes
from ladder_lite.runs import layout, open_run, read_json
from ladder_lite.tasks import load_task
from ladder_lite.terminal import Live

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Request:
    """What to evaluate a run on; None: as the run's recipe has it, all its conditions, nothing kept."""

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
    """The base model of a run and its adapters on any problems; returns what `--json` prints.

    {"run", "problems", "split", "samples", "seed", "conditions": {name: summary}}, the summaries as `summarize` makes
    them, those of adapters with `over_base`: the difference of pass@1 to the base model, by `paired_bootstrap`. With
    `out`, attempts are kept there and sampled once. UserError where the run, its adapters, the problems or the numbers
    asked for cannot be used.
    """
    run = open_run(path)
    recipe, chosen = run.recipe(request.overrides), request.condition
    adapters = {"base": None, **(run.adapters if chosen is None else {chosen: run.adapter(chosen)})}
    settings, seed = _settings(recipe.eval, request), recipe.seed if request.seed is None else request.seed
    source = recipe.task.model_copy(update={"train": request.problems, "test": request.problems, "select": None})
    task = load_task(source)
    problems = task.problems(request.split)
    with nullcontext(request.out) if request.out else tempfile.TemporaryDirectory() as kept:
        backend = open_backend(recipe, None, live)
        backend.check([task.prompt(problem) for problem in problems])
        fresh = backend.snapshot()
        sampler = Sampler(task, backend, settings, seed)
        summaries: dict[str, Any] = {}
        rates: dict[str, Mapping[str, float]] = {}
        for name, adapter in adapters.items():
            folder = Path(kept) / name
            inputs = [source.model_dump(), recipe.model.model_dump(), settings.model_dump(), seed]
            _claim(folder, [*inputs, [problem.id for problem in problems], adapter and _digest_of(adapter)])
            if adapter is None:
                backend.restore(fresh)
            else:
                backend.load(adapter)
            with live.progress(f"evaluate {name}", len(problems)) as bar:
                attempts = sampler.evaluate(problems, folder, bar)
            best = attempts
            if not request.greedy_only:
                with live.progress(f"evaluate {name}, greedy", len(problems)) as bar:
                    best = sampler.greedy().evaluate(problems, folder / layout.GREEDY, bar)
            summaries[name] = summarize(
                attempts, settings.k, greedy=best, task=task, problems=problems, notes=notes(request.problems)
            )
            rates[name] = pass_rates(attempts)
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
    k = request.k or min(settings.k, samples)
    if k > samples:
        raise UserError(f"--k {k}: pass@{k} needs as many samples, and there are {samples}; raise --samples")
    return settings.model_copy(update={"samples": samples, "k": k})


def _digest_of(adapter: Path) -> str | None:
    try:
        with (adapter / layout.WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None  # loading it says what is wrong


def _claim(folder: Path, inputs: object) -> None:
    """Make the folder the one for these inputs; UserError where it holds answers of others."""
    mark, path = {"digest": digest(inputs)}, folder / layout.BEGUN
    if path.exists() and read_json(path, "name another --out") != mark:
        raise UserError(
            f"{folder}: holds answers to other problems, or of other weights or settings; name another --out"
        )
    write_json(path, mark)
