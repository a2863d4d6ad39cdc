"""Evaluate models on problem sets: sample answers, verify them, summarize.

    python -m ladder_lite.evaluate runs/tiny-s0 --problems undergrad
    python -m ladder_lite.evaluate runs/llama3b-s0 --problems mine.jsonl --condition ladder --samples 20 --json

The command compares the adapters of a run with its base model on any problems. `sampling.py` has the sampler, which the
training loop uses too; `scores.py` defines the numbers.
"""

from ladder_lite.evaluate.of_run import Request, evaluate_run
from ladder_lite.evaluate.sampling import Sampler

__all__ = ["Request", "Sampler", "evaluate_run"]
