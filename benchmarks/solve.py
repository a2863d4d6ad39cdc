"""Compare `solve --ttrl` with plain sampling at equal tokens, on ten integrals that LADDER's model does not solve.

    python -m ladder_lite.recipe tiny              # makes runs/tiny-s0
    python benchmarks/solve.py                     # about half an hour on 2 cores

No integral is picked by hand. Sums of 5 to 8 terms are drawn with a fixed seed, in the same way as the test problems of
the tiny recipe. The benchmark takes the first ten that `solve` without `--ttrl` does not solve with all its samples.
With other seeds, sampling alone would solve some of them. The control therefore samples from the same model, with other
seeds, until it has generated as many tokens as TTRL did for the same integral (first samples, variants, rollouts and
tries).

Rewrites benchmarks/results/solve.json after each integral. With `--processor-time`, the budget is counted in processor
seconds instead of wall-clock time, for a busy machine; with OMP_NUM_THREADS=1 that is about the time on an idle core.
"""

import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
import tiny_corpus as corpus
import typer

from ladder_lite.budget import Deadline
from ladder_lite.errors import run as run_command
from ladder_lite.evaluate import Sampler
from ladder_lite.solve import Solver
from ladder_lite.verify import verify

HERE = Path(__file__).parent
SEED = 6
N_TERMS = (5, 8)
CONTROL_SEED = 1_000  # not used by `solve`


class CountingBackend:
    """A backend that counts the tokens it generates."""

    def __init__(self, backend: Any) -> None:
        self.n_tokens = 0
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def sample(self, *arguments: Any) -> Any:
        """Sample with the wrapped backend."""
        replies = self._backend.sample(*arguments)
        self.n_tokens += sum(completion.n_tokens for completions in replies for completion in completions)
        return replies

    def roll_out(self, *arguments: Any) -> Any:
        """Roll out with the wrapped backend."""
        rollouts = self._backend.roll_out(*arguments)
        self.n_tokens += sum(rollout.completion.n_tokens for rollout in rollouts)
        return rollouts


def main(
    run: Annotated[Path, typer.Option(help="A finished run of the tiny recipe.")] = Path("runs/tiny-s0"),
    n: Annotated[int, typer.Option("--n", min=1, help="Number of integrals.")] = 10,
    budget: Annotated[str, typer.Option(help="Time budget of TTRL for each integral.")] = "3m",
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of GRPO steps for each integral.")] = 40,
    processor_time: Annotated[
        bool, typer.Option("--processor-time", help="Count the budget in processor seconds.")
    ] = False,
    out: Annotated[Path, typer.Option(help="File for the figures.")] = HERE / "results" / "solve.json",
) -> None:
    """Compare `solve --ttrl` with plain sampling at equal tokens."""
    solver = Solver(str(run))
    solver.backend = CountingBackend(solver.backend)
    chosen: list[tuple[int, str]] = []
    n_drawn = 0
    for terms in draw():
        n_drawn += 1
        integrand = corpus.integrand(terms)
        if not solver.solve(integrand).verified:  # sampling only, without TTRL
            chosen.append((len(terms), integrand))
            print(f"{len(chosen)} of {n_drawn} drawn: {integrand}", flush=True)
        if len(chosen) == n:
            break
    clock = time.process_time if processor_time else time.monotonic
    problems: list[dict[str, Any]] = []
    figures = {
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "run": run.name,
        "budget": f"{budget} of the {'processor' if processor_time else 'clock'}",
        "max_steps": steps,
        "samples_at_first": solver.recipe.eval.samples,
        "drawn": n_drawn,
        "problems": problems,
    }
    out.parent.mkdir(exist_ok=True)
    for n_terms, integrand in chosen:
        problems.append({"n_terms": n_terms, **measure(solver, integrand, Deadline.after(budget, clock), steps)})
        print(describe(problems[-1]), flush=True)
        figures |= {
            "tried": len(problems),
            "solved": sum(problem["verified"] for problem in problems),
            "solved_by_sampling_on": sum(problem["control"]["n_right"] > 0 for problem in problems),
        }
        out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"of {n}, TTRL solved {figures['solved']} and more samples {figures['solved_by_sampling_on']}")


def draw() -> Iterator[corpus.Terms]:
    """Yield sums of terms endlessly, none of them a training or test problem of the tiny recipe."""
    rng = Random(SEED)
    excluded = {corpus.key(terms) for _, terms in corpus.benchmark()}
    while True:
        terms = corpus.draw_terms(rng, rng.randint(*N_TERMS))
        if corpus.key(terms) not in excluded:
            yield terms


def measure(solver: Solver, integrand: str, deadline: Deadline, steps: int) -> dict[str, Any]:
    """Run TTRL for one integral, and the control at equal tokens."""
    tokens_before, started = solver.backend.n_tokens, time.process_time()
    solution = solver.solve(integrand, ttrl=True, deadline=deadline, steps=steps)
    processor_s = time.process_time() - started
    if solution.verified and not verify(integrand, solution.answer or "").reward:  # a bug of the solver
        sys.exit(f"{integrand}: the verifier rejects the answer {solution.answer}, which `solve` reported as verified")
    n_tokens = solver.backend.n_tokens - tokens_before
    with TemporaryDirectory() as scratch:
        sampler = Sampler(solver.task, solver.backend, solver.recipe.eval, CONTROL_SEED)
        attempts = sampler.sample_tokens(solver.read(integrand), Path(scratch), 1, n_tokens)
    right = [attempt.index for attempt in attempts if attempt.correct]
    control = {
        "n_samples": len(attempts),
        "n_tokens": sum(attempt.completion.n_tokens for attempt in attempts),
        "n_right": len(right),
        "first_right": min(right, default=None),
    }
    return {**solution.to_row(), "processor_s": processor_s, "n_tokens": n_tokens, "control": control}


def describe(problem: dict[str, Any]) -> str:
    control, steps = problem["control"], problem["steps"]
    verdict = f"solved in {steps} steps" if problem["verified"] else f"not solved in {steps} steps"
    return (
        f"{problem['integrand']}: {verdict}, {problem['seconds']:.0f} s ({problem['processor_s']:.0f} s of the "
        f"processor), {problem['n_tokens']} tokens; control: {control['n_right']} of {control['n_samples']} right"
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    run_command(app)
