"""Engines that sample replies from a loaded model: `lean`, `generate` and `vllm`.

`lean` is this package's own loop, 1.7 to 8 times as fast as `generate` of transformers in benchmarks/rollouts.py on a
CPU. `generate` works for every model.
`vllm` comes with Unsloth. Import an engine's module only when it is used: each imports torch and a library.
"""

from typing import TYPE_CHECKING, Any

from ladder_lite.errors import UserError
from ladder_lite.models.engines.engine import Engine, Reply, Request

if TYPE_CHECKING:
    import torch

__all__ = ["Engine", "Reply", "Request", "open_engine"]


def open_engine(
    choice: str, loader: str, model: Any, tokenizer: Any, end_ids: frozenset[int], dtype: "torch.dtype"
) -> Engine:
    """Return the engine of `model.engine` for a loaded peft model; UserError if it cannot sample from this model.

    "auto" is `lean` for the models and the loader it supports, else `generate`.
    """
    if choice == "vllm":
        from ladder_lite.models.engines.vllm import VllmEngine

        return VllmEngine(model)
    if choice != "generate":
        from ladder_lite.models.engines.lean import LeanEngine, obstacle
        from ladder_lite.models.engines.stopping import Stopping
        from ladder_lite.models.guard import TOLERANCE

        lean = LeanEngine(model.get_base_model())
        why_not = "it does not use Unsloth's kernels" if loader == "unsloth" else obstacle(model.get_base_model())
        if why_not is None:
            # Two prompts of different lengths. Models with an unknown kind of attention show here.
            prompts = [tokenizer.encode(text, add_special_tokens=False) for text in ("solve integrate(x,x)", "x")]
            if lean.error(prompts, Stopping(tokenizer, end_ids, ())) <= TOLERANCE[dtype]:
                return lean
            why_not = "its replies do not have the model's own probabilities"
        if choice == "lean":
            raise UserError(f"model.engine lean: {why_not}; set model.engine=generate")
    from ladder_lite.models.engines.generate import GenerateEngine

    engine = GenerateEngine(model, tokenizer, end_ids)
    engine.check_padding(dtype)
    return engine
