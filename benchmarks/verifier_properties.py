"""A million random examples against the verifier's properties (tests/support/properties.py); tests try a few hundred.

    python benchmarks/verifier_properties.py                      # about an hour on one core
    python benchmarks/verifier_properties.py --examples 10000

Half of the examples are functions with their derivatives: F must be accepted for F', F with a slip must not. The other
half are texts of all kinds: each must be graded within 250 ms of processor time, the same when graded again. Writes
benchmarks/results/verifier_properties.json: how many came out how, and the examples that failed.
"""

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy, tuples

from ladder_lite.verify import verify

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.support.properties import PAIRS, SLIPS, TEXTS, grades_in_time, judges_rightly  # noqa: E402

BATCH = 10_000  # hypothesis remembers what it tried


def main(
    examples: Annotated[int, typer.Option(help="Examples in all.")] = 1_000_000,
    out: Annotated[Path, typer.Option(help="File for the counts.")] = HERE / "results" / "verifier_properties.json",
) -> None:
    verify("sin(x)/x", "Si(x)")  # imports SciPy
    started = time.process_time()
    figures: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"one core of {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in ("numpy", "scipy", "hypothesis")},
        "functions": _try(judges_rightly, examples // 2, PAIRS, SLIPS),
        "texts": _try(grades_in_time, examples // 2, TEXTS),
    }
    figures["processor_minutes"] = round((time.process_time() - started) / 60, 1)
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def _try(holds: Callable[..., str], examples: int, *strategies: SearchStrategy[Any]) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    distinct = set()
    failed: list[str] = []

    def tried(example: tuple[Any, ...]) -> None:
        distinct.add(hash(example))
        try:
            outcomes[holds(*example)] += 1
        except Exception as failure:  # whatever it is, it must not happen, and is counted
            outcomes["failed"] += 1
            failed.append(f"{example}: {failure!r}"[:1000])

    for batch, start in enumerate(range(0, examples, BATCH)):
        unhurried = settings(
            max_examples=min(BATCH, examples - start),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(batch)(unhurried(given(tuples(*strategies))(tried)))()
        print(f"{holds.__name__}: {outcomes.total():,}", flush=True)
    counts = dict(outcomes.most_common())
    return {"examples": outcomes.total(), "distinct": len(distinct), "outcomes": counts, "failed": failed}


if __name__ == "__main__":
    typer.run(main)
