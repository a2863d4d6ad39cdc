"""Wrong answers composed by benchmarks/verifier_attacks.py: none is accepted, and each is graded in time.

Of 100,000 such answers, 5 are accepted (benchmarks/results/verifier_attacks.json), and these are right
after all. The seeds below give none of them.
"""

from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ladder_lite.verify import verify

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "verifier_attacks.py"
_spec = spec_from_file_location("verifier_attacks", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
verifier_attacks = module_from_spec(_spec)
_spec.loader.exec_module(verifier_attacks)

EACH = 500  # attacks per seed
BUDGET_MS = verifier_attacks.SLOW_MS


@pytest.fixture(scope="module", autouse=True)
def _import_scipy() -> None:
    verify("sin(x)/x", "Si(x)")  # so that no test measures the time of this import


@pytest.mark.parametrize("seed", range(1001, 1005))
def test_no_attack_is_accepted_or_slow(seed: int) -> None:
    accepted: list[Any] = []
    slow: list[Any] = []
    for attack in islice(verifier_attacks.attacks(seed), EACH):
        outcome = verifier_attacks.tried(attack)
        if outcome.verdict == "accepted":
            accepted.append(attack)
        if outcome.ms > BUDGET_MS:
            slow.append((outcome.ms, attack))
    assert accepted == []
    assert slow == []


def test_the_independent_check_tells_right_from_wrong() -> None:
    problem = verifier_attacks.Problem("1/(2+cos(x))", None, None, None)
    right = "2*sqrt(3)*(atan(tan(x/2)/sqrt(3))+pi*floor((x/2-pi/2)/pi)+10**9)/3"
    assert verifier_attacks.is_right(problem, right)
    for slip in ("+x/10**6", "+sign(x-3)/10**5", "+atan(10**9*(x-3))/10**5", "+floor(10**6*x)/10**9"):
        assert not verifier_attacks.is_right(problem, right + slip), slip
    on_one_component = verifier_attacks.Problem("sec(x)**2", None, None, None)
    assert verifier_attacks.is_right(on_one_component, "tan(x)+Heaviside(x-4)")
    assert not verifier_attacks.is_right(on_one_component, "tan(x)+floor(x)")
