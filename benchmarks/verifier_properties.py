"""Test the verifier's properties (tests/support/properties.py) on a million random examples; tests use a few hundred.

    python benchmarks/verifier_properties.py                      # about an hour on one core
    python benchmarks/verifier_properties.py --examples 10000

Half of the examples are functions with their derivatives: F must be accepted as an antiderivative of F', and F with a
slip must be rejected. The other half are arbitrary texts: each must be graded within 100 ms of processor time, and
grading it again must give the same result. Writes benchmarks/results/verifier_properties.json: the number of examples
by outcome, and the examples that failed.
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

BATCH = 10_000  # examples of one run of hypothesis, which remembers all of them


def main(
    examples: Annotated[int, typer.Option(help="Total number of examples.")] = 1_000_000,
    out: Annotated[Path, typer.Option(help="File for the counts.")] = HERE / "results" / "verifier_properties.json",
) -> None:
    """Test the verifier's properties on random examples."""
    verify("sin(x)/x", "Si(x)")  # imports SciPy
    started = time.process_time()
    figures: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"one core of {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in ("numpy", "scipy", "hypothesis")},
        "functions": _test(judges_rightly, examples // 2, PAIRS, SLIPS),
        "texts": _test(grades_in_time, examples // 2, TEXTS),
    }
    figures["processor_minutes"] = round((time.process_time() - started) / 60, 1)
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def _test(check: Callable[..., str], examples: int, *strategies: SearchStrategy[Any]) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    distinct = set()
    failed: list[str] = []

    def test_one(example: tuple[Any, ...]) -> None:
        distinct.add(hash(example))
        try:
            outcomes[check(*example)] += 1
        except Exception as failure:  # any exception is a failed example; recorded here, it does not stop hypothesis
            outcomes["failed"] += 1
            failed.append(f"{example}: {failure!r}"[:1000])

    for batch, start in enumerate(range(0, examples, BATCH)):
        options = settings(
            max_examples=min(BATCH, examples - start),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(batch)(options(given(tuples(*strategies))(test_one)))()
        print(f"{check.__name__}: {outcomes.total():,}", flush=True)
    counts = dict(outcomes.most_common())
    return {"examples": outcomes.total(), "distinct": len(distinct), "outcomes": counts, "failed": failed}


if __name__ == "__main__":
    typer.run(main)
