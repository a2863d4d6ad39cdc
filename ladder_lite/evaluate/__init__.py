"""How many problems a model solves: answers sampled, verified, and summed up.

    python -m ladder_lite.evaluate runs/tiny-s0 --problems undergrad
    python -m ladder_lite.evaluate runs/llama3b-s0 --problems mine.jsonl --condition ladder --samples 20 --json

The command compares a run's adapters with its base model, on any problems. `sampling.py` has the sampler that the
loop uses too, `scores.py` says what the numbers are.
"""

from ladder_lite.evaluate.of_run import Request, evaluate_run
from ladder_lite.evaluate.sampling import Sampler

__all__ = ["Request", "Sampler", "evaluate_run"]
