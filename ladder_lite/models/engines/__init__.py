"""Engines that sample replies from a loaded model: `lean`, `generate` and `vllm`.

`lean` is this package's own loop, on a CPU 2 to 9 times as fast as `generate` of transformers (benchmarks/rollouts.py).
`generate` works for every model. `vllm` comes with Unsloth.

Import an engine's module only when it is used: each imports torch and a library.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ladder_lite.errors import UserError
from ladder_lite.models.backend import Sampling
from ladder_lite.models.engines.engine import Engine, Reply, Request
from ladder_lite.models.engines.stopping import Stopping

if TYPE_CHECKING:
    import torch

__all__ = ["Engine", "Reply", "Request", "engine_error", "open_engine"]

_WRONG_REPLIES = "its replies do not have the model's own probabilities"


def open_engine(
    choice: str, loader: str, model: Any, tokenizer: Any, end_ids: frozenset[int], dtype: "torch.dtype"
) -> Engine:
    """Return the engine of `model.engine` for a loaded peft model; UserError if it cannot sample from this model.

    "auto" is `lean` for the models and the loader it supports, else `generate`.
    """
    if choice == "vllm":
        from ladder_lite.models.engines.vllm import VllmEngine

        return VllmEngine(model)
    from ladder_lite.models.engines.generate import GenerateEngine
    from ladder_lite.models.engines.lean import LeanEngine, obstacle
    from ladder_lite.models.guard import TOLERANCE

    # Two prompts of different lengths, so that one of them is padded; the second two begin alike.
    problem, long = "solve integrate(x,x)", " ".join(["solve integrate(x,x)"] * 4)
    batches = [
        [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        for texts in ((problem, "x"), (long, f"{long} x"))
    ]

    def is_right(engine: Engine) -> bool:
        stopping = Stopping(tokenizer, end_ids, ())
        return all(engine_error(engine, model, prompts, stopping) <= TOLERANCE[dtype] for prompts in batches)

    if choice != "generate":
        lean = LeanEngine(model.get_base_model())
        why_not = "it does not use Unsloth's kernels" if loader == "unsloth" else obstacle(model.get_base_model())
        if why_not is None and is_right(lean):
            return lean
        if choice == "lean":
            raise UserError(f"model.engine lean: {why_not or _WRONG_REPLIES}; set model.engine=generate")
    engine = GenerateEngine(model, tokenizer, end_ids)
    if not is_right(engine):
        raise UserError(f"model.id: {_WRONG_REPLIES}; try another version of transformers or unsloth")
    return engine


def engine_error(engine: Engine, model: Any, prompts: Sequence[Sequence[int]], stopping: Stopping) -> float:
    """Return the KL divergence of an engine's short replies from forward passes of the model, in nats per token.

    It shows padding that changes the next token, and an unknown kind of attention; neither would raise an error.
    """
    import torch

    from ladder_lite.models.guard import divergence

    requests = [Request(number, prompt, 1.0) for number, prompt in enumerate([*prompts] * 4)]
    sampled, expected = [], []
    for reply in engine.sample(requests, Sampling(1.0, 1.0, 4, 8, 0, logprobs=True), stopping, len(requests)):
        # A prompt with its reply, alone and without padding.
        tokens = torch.tensor([[*requests[reply.id].prompt, *reply.tokens]], device=model.device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, -len(reply.tokens) - 1 : -1].float()
        expected.append(logits.log_softmax(-1).gather(-1, tokens[0, -len(reply.tokens) :, None])[:, 0].cpu())
        sampled.append(torch.tensor(reply.logprobs))
    return divergence(torch.cat(sampled), torch.cat(expected))
