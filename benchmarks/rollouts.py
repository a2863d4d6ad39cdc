"""How fast each engine samples a GRPO step's rollouts, and whether the engines agree.

    python benchmarks/rollouts.py                                                     # the embedded model, a minute
    python benchmarks/rollouts.py smollm task.select=null model.id=FILE.gguf          # minutes
    python benchmarks/rollouts.py --run runs/tiny-s0                                  # with the adapter of that run
    python benchmarks/rollouts.py --lengths                                           # replies of very different length

All engines sample the same prompts 8 times each, in one process, in turns: 8 prompts, or 32 with `--lengths`.
`generate` is the baseline. Times are CPU seconds on a CPU, which other processes disturb less than a clock, and seconds
on a GPU; `elapsed` is by the clock. `tokens_computed` counts what goes through the model: prompts, replies, and the
rows of a batch that wait for others. The more certain a policy is, the longer samples of a prompt are the same, and
`lean` computes those parts once: so a trained one (`--run`) is another case than the base model.

With `--lengths`, a small random model gets replies whose lengths are exponential, with a mean of 100 tokens and a limit
of 1,024, as those of reasoning models are. Writes benchmarks/results/rollouts-RECIPE.json.
"""

import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import torch
import transformers
import typer

from ladder_lite.config import load_recipe
from ladder_lite.models import Backend, Rollout, Sampling, load_backend
from ladder_lite.models.engines import Engine, Request
from ladder_lite.models.engines.generate import GenerateEngine
from ladder_lite.models.engines.lean import LeanEngine
from ladder_lite.runs.finished import open_run
from ladder_lite.tasks import load_task

HERE = Path(__file__).parent
PROMPTS, SAMPLES = 8, 8
MEAN, LIMIT = 100, 1024
TIE = 1e-4  # greedy replies may differ where the logits of the two best tokens are closer than this


def main(
    recipe: Annotated[str, typer.Argument(help="Recipe whose model, prompts and sampling settings are used.")] = "tiny",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings to change.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; the ratio is the median over them.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
    run: Annotated[Path | None, typer.Option(help="Folder of a run; sample with the adapter of its LADDER.")] = None,
    lengths: Annotated[bool, typer.Option("--lengths", help="Replies of exponential length instead.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # loading a model leaves a number set by the user as it is
    name = "lengths" if lengths else f"{recipe}-trained" if run else recipe
    figures: dict[str, Any] = {
        "command": re.sub(r"(?<=[=\s])/\S*/", "", " ".join(["python", *sys.argv])),
        "machine": f"{psutil.cpu_count()} cores, {threads} used, {platform.machine()}",
        "versions": {module.__name__: module.__version__ for module in (torch, transformers)},
        **(_exponential(rounds) if lengths else _rollouts(recipe, overrides or [], rounds, run)),
    }
    path = out or HERE / "results" / f"rollouts-{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
    for engine, row in figures["engines"].items():
        print(
            f"{engine}: {row['tokens_per_second']:.0f} tokens a second, {row['over_generate']:.2f} times generate, "
            f"{row['tokens_computed']} computed for {row['tokens']} sampled, {row['elapsed']:.2f} s a round"
        )
    for key in ("greedy_replies_equal", "greedy_ties", "largest_logprob_error"):
        if key in figures:
            print(f"{key}: {figures[key]}")


def _rollouts(name: str, overrides: list[str], rounds: int, run: Path | None) -> dict[str, Any]:
    recipe = load_recipe(name, overrides)
    backend: Any = load_backend(recipe)
    if run is not None:
        backend.load(open_run(run).adapter("ladder"))
    task = load_task(recipe.task)
    model, _ = backend.trainable()
    engines = {choice: backend.open_engine(choice) for choice in ("generate", "lean")}
    prompts = [task.prompt(problem) for problem in task.problems("test")[:PROMPTS] for _ in range(SAMPLES)]
    trl = recipe.grpo.trl
    sampling = Sampling(
        float(trl.get("temperature", 1.0)), 1.0, int(trl["max_completion_length"]), len(prompts), 0, task.stop
    )
    rows: dict[str, list[dict[str, float]]] = {choice: [] for choice in engines}
    for seed in range(rounds + 1):  # the first round warms up
        for choice, engine in engines.items():
            backend._engine = engine
            with _count(model) as computed:
                began, started = _now(model), time.perf_counter()
                rollouts = backend.roll_out(prompts, replace(sampling, seed=seed))
                seconds, elapsed = _now(model) - began, time.perf_counter() - started
            sampled = sum(rollout.completion.n_tokens for rollout in rollouts)
            if seed:
                row = {"seconds": seconds, "elapsed": elapsed, "tokens": sampled, "tokens_computed": sum(computed)}
                rows[choice].append(row | _peak(model))
    return {"engines": _summarize(rows), **_agreement(backend, engines, prompts, sampling)}


def _agreement(backend: Any, engines: dict[str, Engine], prompts: Sequence[Any], sampling: Sampling) -> dict[str, Any]:
    """Compare greedy replies between engines, and the log-probabilities of `lean` with those of forward passes."""
    distinct = prompts[::SAMPLES]
    greedy: list[list[Rollout]] = []
    for engine in engines.values():
        backend._engine = engine
        greedy.append(backend.roll_out(distinct, replace(sampling, temperature=0.0)))
    different = [(a, b) for a, b in zip(*greedy, strict=True) if a.completion_ids != b.completion_ids]
    ties = sum(_margin(backend, a, b) < TIE for a, b in different)
    errors = []
    for rollout in backend.roll_out(distinct, replace(sampling, logprobs=True)):
        logits = _logits(backend, [*rollout.prompt_ids, *rollout.completion_ids])[len(rollout.prompt_ids) - 1 : -1]
        expected = (logits / sampling.temperature).log_softmax(-1)
        expected = expected.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
        errors.append(float((torch.tensor(rollout.logprobs) - expected).abs().max()))
    return {
        "greedy_replies_equal": f"{len(distinct) - len(different)} of {len(distinct)}",
        "greedy_ties": f"{ties} of {len(different)} that differ",
        "largest_logprob_error": max(errors),
    }


def _margin(backend: Backend, one: Rollout, other: Rollout) -> float:
    """The difference of the two best logits where two greedy replies part."""
    both = zip(one.completion_ids, other.completion_ids, strict=False)
    at = next((at for at, (a, b) in enumerate(both) if a != b), 0)
    best, second = _logits(backend, [*one.prompt_ids, *one.completion_ids[:at]])[-1].topk(2).values.tolist()
    return float(best - second)


def _logits(backend: Backend, ids: list[int]) -> torch.Tensor:
    model, _ = backend.trainable()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().cpu()
    return logits


class _Exponential:
    """Ends replies at lengths drawn by their first four tokens."""

    def has_ended(self, tokens: Sequence[int]) -> bool:
        return len(tokens) >= 4 and len(tokens) >= self._length(tokens[:4])

    completes_stop_text = has_ended
    stop, tail_length = ("",), LIMIT  # `generate` then looks at whole replies

    @staticmethod
    def _length(first: Sequence[int]) -> int:
        draw = int.from_bytes(sha256(repr(list(first)).encode()).digest()[:6]) / 2**48
        return max(4, min(LIMIT, round(-MEAN * math.log(1 - draw))))


def _exponential(rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
    config = transformers.LlamaConfig(vocab_size=512, max_position_embeddings=LIMIT + 64, **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    tokenizer = load_backend(load_recipe("tiny")).trainable()[1]  # pads, and nothing else
    prompts = [torch.randint(10, 500, (40,)).tolist() for _ in range(4 * PROMPTS)]
    requests = [Request(at, prompts[at // SAMPLES], 1.0) for at in range(len(prompts) * SAMPLES)]
    engines: dict[str, Any] = {
        "generate": GenerateEngine(model, tokenizer, frozenset({512})),
        "lean": LeanEngine(model),
    }
    rows: dict[str, list[dict[str, float]]] = {choice: [] for choice in engines}
    for seed in range(rounds + 1):  # the first round warms up
        sampling = Sampling(1.0, 1.0, LIMIT, 32, seed)
        for choice, engine in engines.items():
            with _count(model) as computed, torch.no_grad():
                began, started = _now(model), time.perf_counter()
                replies = list(engine.sample(requests, sampling, _Exponential(), 32))
                seconds, elapsed = _now(model) - began, time.perf_counter() - started
            stops = _Exponential()
            sampled = sum(
                next((n for n in range(4, len(each.tokens) + 1) if stops.has_ended(each.tokens[:n])), len(each.tokens))
                for each in replies
            )
            if seed:
                row = {"seconds": seconds, "elapsed": elapsed, "tokens": sampled, "tokens_computed": sum(computed)}
                rows[choice].append(row)
    return {"engines": _summarize(rows)}


def _summarize(rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    rates = {choice: [row["tokens"] / row["seconds"] for row in found] for choice, found in rows.items()}
    return {
        choice: {
            "tokens_per_second": median(rates[choice]),
            "over_generate": median(a / b for a, b in zip(rates[choice], rates["generate"], strict=True)),
            "elapsed": median(row["elapsed"] for row in found),
            "tokens": sum(row["tokens"] for row in found),
            "tokens_computed": sum(row["tokens_computed"] for row in found),
            "rounds": found,
        }
        for choice, found in rows.items()
    }


@contextmanager
def _count(model: Any) -> Iterator[list[int]]:
    """Collect the number of tokens of each forward pass."""
    computed: list[int] = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _module, args: computed.append(args[0].numel()))
    try:
        yield computed
    finally:
        hook.remove()


def _peak(model: Any) -> dict[str, float]:
    """Peak GPU memory since the last call, in GiB; nothing on a CPU."""
    if model.device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gib": peak}


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    typer.run(main)
