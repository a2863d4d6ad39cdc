"""Three GRPO steps of the embedded model on the CPU, by TRL's own trainer or by the one that Unsloth makes of it.

    python tests/unsloth_steps.py plain|patched STEPS.json

Unsloth patches TRL for the whole process, which is why tests/test_unsloth.py runs this as a program. On a CPU, Unsloth
can be imported but leaves TRL alone; its patches are called here as it would call them with a GPU.
"""

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any


def patch_trl() -> None:
    """Import Unsloth and let it rewrite TRL's trainers."""
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    import unsloth

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    from unsloth.models.llama import FastLlamaModel
    from unsloth.models.rl import PatchFastRL
    from unsloth.trainer import _patch_trl_trainer

    PatchFastRL(FastLanguageModel=FastLlamaModel)
    _patch_trl_trainer()
    assert unsloth.__version__


def steps(patched: bool) -> list[dict[str, Any]]:
    """Train on replies that are graded by their letters, so that every group has signal; the steps' records."""
    if patched:
        patch_trl()
    import trl

    from ladder_lite import grpo
    from ladder_lite.backends import load_backend
    from ladder_lite.config import load_recipe
    from ladder_lite.problems import Problem
    from ladder_lite.tasks.integration import IntegrationTask
    from ladder_lite.verify import Grade, Reason

    assert ("Unsloth" in trl.GRPOTrainer.__name__) == patched

    class ByLetters(IntegrationTask):
        def grade(self, _problem: Problem, text: str) -> Grade:
            even = sum(text.encode()) % 2 == 0
            return Grade(float(even), Reason.CORRECT if even else Reason.WRONG, text)

    sizes = ["per_device_train_batch_size=4", "gradient_accumulation_steps=2", "num_generations=4", "max_steps=3"]
    settings = [*sizes, "max_completion_length=40", "beta=0.02"]
    recipe = load_recipe(
        "tiny",
        ["model.backend=transformers", "model.dtype=bfloat16", "grpo.rows=uniform"]
        + [f"grpo.trl.{setting}" for setting in settings],
    )
    backend = load_backend(recipe)
    model, _ = backend.trainable()
    # What FastLanguageModel gives the models that it loads, and the trainer calls.
    model.for_training = lambda *_, **__: model.train()
    model.for_inference = lambda *_, **__: model.eval()
    problems = [
        Problem.root("integration", {"integrand": f"cos({n}*x)", "variable": "x", "lower": None, "upper": None})
        for n in range(2, 9)
    ]
    grpo._has_to_probe = lambda _backend: True  # as on a GPU
    with tempfile.TemporaryDirectory() as folder:
        done = grpo.train(ByLetters(recipe.task), backend, problems, recipe.grpo, Path(folder), 0, lambda *_: False)
    return [asdict(step) for step in done]


if __name__ == "__main__":
    which, path = sys.argv[1:]
    Path(path).write_text(json.dumps(steps(which == "patched")), encoding="utf-8")
