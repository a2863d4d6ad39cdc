"""One version of the package, timed by benchmarks/verifier.py beside another: the one that PYTHONPATH names.

A line on stdin is a block of jobs, {"job": "verify" or "read", "arguments": [[...], ...]}; a line on stdout is its
results, [[milliseconds of the processor, what came of it], ...].
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
except ModuleNotFoundError:  # a commit before there were rooms
    from ladder_lite.tasks.replies import Written, read_one
    from ladder_lite.validity import fault


def graded(integrand: str, answer: str) -> float | None:
    """The reward of an answer."""
    return verify(integrand, answer).reward


def read(text: str) -> str | None:
    """Why the integral that a text writes out is refused; None if it is not."""
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
