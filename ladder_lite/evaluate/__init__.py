"""How many problems a model solves: answers sampled, verified, and summed up.

    python -m ladder_lite.evaluate runs/tiny-s0 --problems undergrad
    python -m ladder_lite.evaluate runs/llama3b-s0 --problems mine.jsonl --condition ladder --samples 20 --json

The command compares a run's adapters with its base model, on any problems. What the numbers are is told in
`ladder_lite.evaluate.scores`.
"""

import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ladder_lite.budget import Deadline
from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import EvalSettings, Recipe
from ladder_lite.errors import UserError, nearest
from ladder_lite.evaluate.scores import paired_bootstrap, pass_rates, summarize
from ladder_lite.jsonl import append_jsonl, digest, read_jsonl, truncate_jsonl, write_json
from ladder_lite.models import Backend, Sampling, load_backend
from ladder_lite.problems import Problem, notes
from ladder_lite.problems.attempts import Attempt
from ladder_lite.tasks import Task, load_task
from ladder_lite.terminal import Bar, Live, percent, plain

Split = Literal["train", "test"]

CHUNK = 50
"""Problems sampled at a time, at most: a kill loses at most one chunk."""

CHUNK_TOKENS = 200_000
"""Tokens of a chunk, at most, where it has more than one problem: minutes of work, also for a model that thinks."""


def evaluate(
    task: Task,
    backend: Backend,
    problems: Sequence[Problem],
    settings: EvalSettings,
    folder: Path,
    seed: int,
    bar: Bar,
    deadline: Deadline | None = None,
) -> list[Attempt]:
    """Sample `settings.samples` answers to each problem and grade them; `attempts.jsonl` holds what is done so far.

    OutOfTime before a chunk of problems that would not be done in time.
    """
    deadline = deadline or Deadline.never()
    path = folder / "attempts.jsonl"
    size = chunk_size(settings)
    chunks = {start: problems[start : start + size] for start in range(0, len(problems), size)}
    # A kill can leave a part of a chunk behind: sampled anew as a whole, it comes out as it would have.
    n_rows = Counter(row["problem_id"] for row in read_jsonl(path))
    complete = {
        start for start, chunk in chunks.items() if all(n_rows[problem.id] == settings.samples for problem in chunk)
    }
    kept = {problem.id for start in complete for problem in chunks[start]}
    truncate_jsonl(path, lambda row: row["problem_id"] in kept)
    attempts = [Attempt.from_row(row) for row in read_jsonl(path)]
    for start, chunk in chunks.items():
        if start not in complete:
            with deadline.piece("evaluation", len(chunk) * settings.samples):
                new = sample(task, backend, chunk, settings, settings.samples, seed * 1000 + start)
                append_jsonl(path, [attempt.to_row() for attempt in new])
            attempts += new
        bar.set(start + len(chunk))
    return attempts


def chunk_size(settings: EvalSettings) -> int:
    """Problems of a chunk. The settings alone decide, as it decides the seeds: never what memory there is."""
    return max(1, min(CHUNK, CHUNK_TOKENS // (settings.samples * settings.max_new_tokens)))


def sample(
    task: Task, backend: Backend, problems: Sequence[Problem], settings: EvalSettings, n: int, seed: int
) -> list[Attempt]:
    """`n` graded attempts at each problem, sampled as the settings say."""
    sampling = Sampling(
        settings.temperature, settings.top_p, settings.max_new_tokens, settings.batch_size, seed, task.stop
    )
    replies = backend.sample([task.prompt(problem) for problem in problems], n, sampling)
    return [
        Attempt(problem.id, index, completion, task.grade(problem, completion.text))
        for problem, completions in zip(problems, replies, strict=True)
        for index, completion in enumerate(completions)
    ]


def greedy(settings: EvalSettings) -> EvalSettings:
    """The settings for one answer to each problem, of the likeliest token each time."""
    return settings.model_copy(update={"samples": 1, "k": 1, "temperature": 0.0})


def sample_tokens(
    task: Task,
    backend: Backend,
    problem: Problem,
    settings: EvalSettings,
    folder: Path,
    seed: int,
    n: int,
    n_tokens: int,
    deadline: Deadline | None = None,
) -> list[Attempt]:
    """Graded attempts at one problem, until they are `n` at least and have `n_tokens` tokens at least.

    `attempts.jsonl` in the folder holds what is done so far, in chunks of `settings.batch_size` or less, each with a
    seed of its own; called again after a kill it goes on, and ends with the same attempts. OutOfTime before a chunk
    that would not be done in time.
    """
    deadline = deadline or Deadline.never()
    path = folder / "attempts.jsonl"
    attempts = [Attempt.from_row(row) for row in read_jsonl(path)]
    done: list[Attempt] = []
    chunk = 0
    while size := _missing(done, n, n_tokens, settings.batch_size):
        new = attempts[len(done) : len(done) + size]
        if len(new) < size:  # sampled anew as a whole, a part of a chunk comes out as it would have
            truncate_jsonl(path, lambda row: row["index"] < len(done))
            with deadline.piece("evaluation", size):
                sampled = sample(task, backend, [problem], settings, size, seed * 1_000 + chunk)
                new = [replace(attempt, index=len(done) + attempt.index) for attempt in sampled]
                append_jsonl(path, [attempt.to_row() for attempt in new])
            attempts = [*done, *new]
        done.extend(new)
        chunk += 1
    return done


def _missing(attempts: Sequence[Attempt], n: int, n_tokens: int, most: int) -> int:
    """How many more attempts to sample at once: what is missing, by the tokens of those so far; 0 at the end."""
    if len(attempts) < n or not attempts:
        return min(most, max(1, n - len(attempts)))
    so_far = sum(max(1, attempt.completion.n_tokens) for attempt in attempts)  # an empty reply took one to end
    if so_far >= n_tokens:
        return 0
    return min(most, -(-(n_tokens - so_far) * len(attempts) // so_far))


# --- a run's conditions on other problems ----------------------------------------------------------------------------


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


def evaluate_run(run: Path, request: Request, live: Live) -> dict[str, Any]:
    """The base model of a run and its adapters on any problems; returns what `--json` prints.

    {"run", "problems", "split", "samples", "seed", "conditions": {name: summary}}, the summaries as `summarize` makes
    them, those of adapters with `over_base`: the difference of pass@1 to the base model, by `paired_bootstrap`. With
    `out`, attempts are kept there and sampled once. UserError where the run, its adapters, the problems or the numbers
    asked for do not do.
    """
    recipe, adapters = _read_run(run, request.condition)
    settings, seed = _settings(recipe.eval, request), recipe.seed if request.seed is None else request.seed
    source = recipe.task.model_copy(update={"train": request.problems, "test": request.problems, "select": None})
    task = load_task(source)
    problems = task.problems(request.split)
    with live.stage(f"load {recipe.model.id}"):
        backend = load_backend(recipe)
    backend.check([task.prompt(problem) for problem in problems])
    fresh = backend.snapshot()
    summaries: dict[str, Any] = {}
    rates: dict[str, Mapping[str, float]] = {}
    with nullcontext(request.out) if request.out else tempfile.TemporaryDirectory() as kept:
        for name, adapter in adapters.items():
            inputs = [source.model_dump(), recipe.model.model_dump(), settings.model_dump(), seed]
            folder = Path(kept) / name
            _claim(folder, [*inputs, [problem.id for problem in problems], adapter and _digest_of(adapter)])
            if adapter is None:
                backend.restore(fresh)
            else:
                backend.load(adapter)
            with live.stage(f"evaluate {name}", len(problems)) as bar:
                attempts = evaluate(task, backend, problems, settings, folder, seed, bar)
            greedily = attempts
            if not request.greedy_only:
                with live.stage(f"evaluate {name}, greedy", len(problems)) as bar:
                    greedily = evaluate(task, backend, problems, greedy(settings), folder / "greedy", seed, bar)
            summaries[name] = summarize(
                attempts, settings.k, greedy=greedily, task=task, problems=problems, notes=notes(request.problems)
            )
            rates[name] = pass_rates(attempts)
            if adapter is not None:
                summaries[name]["over_base"] = paired_bootstrap(rates["base"], rates[name])
    return {
        "run": str(run),
        "problems": request.problems,
        "split": request.split,
        "samples": settings.samples,
        "seed": seed,
        "conditions": summaries,
    }


def _read_run(run: Path, condition: str | None) -> tuple[Recipe, dict[str, Path | None]]:
    """The run's recipe, and the adapters by condition, base first, which has none."""
    path = run / "recipe.resolved.yaml"
    if not path.exists():
        raise UserError(f"{run}: not a run folder (no {path.name}); name one, such as runs/tiny-s0")
    recipe = load_recipe(str(path))
    trained = {found.parent.parent.name: found for found in sorted(run.glob("conditions/*/train/adapter"))}
    names = sorted(trained, key=[*recipe.conditions, *trained].index)
    if condition not in (None, "base", *names):
        hint = nearest(str(condition), names) or f"; those with one are {', '.join(['base', *names])}"
        raise UserError(f"--condition {condition}: this run has no such adapter{hint}")
    chosen = names if condition is None else [condition]
    return recipe, {"base": None} | {name: trained[name] for name in chosen if name != "base"}


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
        with (adapter / "adapter_model.safetensors").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None  # loading it says what is wrong


def _claim(folder: Path, inputs: object) -> None:
    """Make the folder the one for these inputs; UserError where it holds answers of others."""
    mark, path = {"digest": digest(inputs)}, folder / "begun.json"
    try:
        if path.exists() and json.loads(path.read_bytes()) != mark:
            raise UserError(
                f"{folder}: holds answers to other problems, of other weights or settings; choose another --out"
            )
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); choose another --out") from error
    write_json(path, mark)


def summary_table(result: Mapping[str, Any]) -> Table:
    """What `evaluate_run` returns, for a terminal of 80 columns; ASCII only."""
    summaries = result["conditions"]
    base = summaries["base"]
    pass_k = [key for key in base if key.startswith("pass@") and key != "pass@1"]
    others = [*pass_k, "greedy", "majority"] if result["samples"] > 1 else []  # of one answer each, pass@1 says all
    table = Table(
        title=f"{base['n_problems']} problems of {plain(result['problems'], 40)}, seed {result['seed']}",
        caption=f"answers to each: {result['samples']}; in brackets 95 % intervals",
        box=box.ASCII,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_style="bold",
    )
    table.add_column("condition", no_wrap=True, overflow="crop")
    for heading in ("pass@1", *others, "over base"):
        table.add_column(heading, justify="right", no_wrap=True, overflow="crop")
    for name, summary in summaries.items():
        table.add_row(
            plain(name, 22),
            _with_interval(summary["pass@1"]),
            *(percent(summary[key]["value"]) for key in others),
            _with_interval(summary["over_base"], signed=True) if "over_base" in summary else "",
        )
    return table


def _with_interval(interval: Mapping[str, float], signed: bool = False) -> str:
    """81 % (73 to 88), or +81 % (73 to 88) of a difference, in points."""
    value, low, high = (f"{100 * interval[key]:.0f}" for key in ("value", "low", "high"))
    return f"{'+' if signed and interval['value'] > 0 else ''}{value} % ({low} to {high})"


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/tiny-s0.")],
    problems: Annotated[str, typer.Option(help="JSON lines with an integrand each, or the name of a set.")],
    condition: Annotated[str | None, typer.Option(help="One adapter beside the base model; else all.")] = None,
    split: Annotated[str, typer.Option(help="Of the problems: test or train.")] = "test",
    samples: Annotated[int | None, typer.Option(min=1, help="Answers to each problem; else as in the recipe.")] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Of pass@k; else as in the recipe.")] = None,
    greedy_only: Annotated[
        bool, typer.Option("--greedy-only", help="One answer each, of the likeliest token each time.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Of the sampling; else that of the recipe.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for programs.")] = False,
    out: Annotated[Path | None, typer.Option(help="Keep the answers there, and go on with those kept.")] = None,
) -> None:
    """Evaluate the base model and the adapters of a run on any problems."""
    if split not in get_args(Split):
        raise UserError(f"--split {split}: must be {' or '.join(get_args(Split))}")
    chosen: Split = next(known for known in get_args(Split) if known == split)
    if greedy_only and (samples or k):
        raise UserError("--greedy-only is one answer to each problem; leave out --samples and --k")
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"{out}: not a folder; name another --out")
    request = Request(problems, chosen, condition, samples, k, greedy_only, seed, out)
    console = Console(highlight=False, stderr=True) if json_ else None
    with redirect_stdout(sys.stderr) if json_ else nullcontext(), Live(console) as live:
        result = evaluate_run(run, request, live)
    if json_:
        print(json.dumps(result))
    else:
        Console(highlight=False).print(summary_table(result))
