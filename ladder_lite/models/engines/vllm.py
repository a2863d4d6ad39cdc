"""Sampling with vLLM inside the training process, which Unsloth provides (`model.engine: vllm`). NEVER RUN YET.

Written from the sources of Unsloth 2026.10.7. Its engine shares the base weights with the model that is trained; each
call passes it the current adapter as files. The engine forms batches by itself. It reserves half of the GPU's memory,
which `ladder_lite.models.memory` does not predict. TRL's importance-sampling correction, for rounding differences
between vLLM and the trainer, is switched off. By default, vLLM's log-probabilities are those at temperature 1; unless
Unsloth changes that, the rollout guard refuses other temperatures.
"""

from collections.abc import Iterator, Sequence
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from ladder_lite.models import adapter
from ladder_lite.models.backend import Sampling
from ladder_lite.models.engines.engine import Reply, Request
from ladder_lite.models.engines.stopping import Stopping


class VllmEngine:
    """Unsloth's vLLM, which holds the same base weights as the peft model that is trained."""

    name = "vllm"

    def __init__(self, model: Any) -> None:
        self._model = model

    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stopping: Stopping,  # noqa: ARG002 (vLLM knows the end tokens, and gets the stop texts)
        at_once: int,  # noqa: ARG002 (it decides by itself)
    ) -> Iterator[Reply]:
        """Yield a reply to each request; one that was not truncated ends with its end token or stop text."""
        from vllm import SamplingParams

        # vLLM takes a seed for each request. With a common one, copies of a prompt would all get the same reply.
        seeds = Random(sampling.seed)
        parameters = [
            SamplingParams(
                temperature=request.temperature,
                top_p=sampling.top_p,
                repetition_penalty=1.0,
                max_tokens=sampling.max_new_tokens,
                stop=list(sampling.stop),
                seed=seeds.getrandbits(31),
                logprobs=0 if sampling.logprobs else None,  # 0: those of the sampled tokens only, no alternatives
            )
            for request in requests
        ]
        # A new folder for each call, with the weights as they are now.
        with TemporaryDirectory() as folder:
            self._model.save_pretrained(folder, selected_adapters=[adapter.TRAINED])
            outputs = self._model.fast_generate(
                [{"prompt_token_ids": list(request.prompt)} for request in requests],
                parameters,
                lora_request=None if sampling.from_base else self._model.load_lora(folder),
                use_tqdm=False,
            )
        for request, output in zip(requests, outputs, strict=True):
            reply = output.outputs[0]
            yield Reply(request.id, list(reply.token_ids), _logprobs(reply) if sampling.logprobs else None)


def _logprobs(reply: Any) -> list[float]:
    # vLLM gives a mapping from token id to log-probability for each position.
    return [by_token[token].logprob for token, by_token in zip(reply.token_ids, reply.logprobs, strict=True)]
