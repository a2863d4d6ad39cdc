"""Worker process of benchmarks/verifier.py: times one version of the package, the one on PYTHONPATH.

Each line on stdin is a block of jobs, {"job": "verify" or "read", "arguments": [[...], ...]}. For each block, a line on
stdout contains the results, [[milliseconds of processor time, result], ...].
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ladder_lite.verify import verify

try:
    from ladder_lite.verify.expressions.replies import Written, read_one
    from ladder_lite.verify.rules.validity import fault
except ModuleNotFoundError:  # a commit from before the package was divided into rooms
    from ladder_lite.tasks.replies import Written, read_one
    from ladder_lite.validity import fault


def graded(integrand: str, answer: str) -> float | None:
    """Return the reward of an answer."""
    return verify(integrand, answer).reward


def read(text: str) -> str | None:
    """Return why the integral in a text is refused, or None if it is accepted."""
    piece = read_one(text)
    if not isinstance(piece, Written):
        return "unread"
    return fault({name: getattr(piece, name) for name in ("integrand", "variable", "lower", "upper")})


JOBS: dict[str, Callable[..., Any]] = {"verify": graded, "read": read}

if __name__ == "__main__":
    for line in sys.stdin:
        block = json.loads(line)
        job, results = JOBS[block["job"]], []
        for arguments in block["arguments"]:
            started = time.process_time()
            result = job(*arguments)
            results.append([(time.process_time() - started) * 1e3, result])
        print(json.dumps(results), flush=True)
