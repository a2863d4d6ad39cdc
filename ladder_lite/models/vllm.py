"""Sampling by vLLM inside the process that trains, as `model.fast_inference` gets it from Unsloth. NEVER RUN YET.

Written from the sources of Unsloth 2026.10.7: its engine shares the base weights with the model that is trained, and
each call hands it the adapter as it is then, as files. It makes batches by itself, and half of the GPU's memory is its
own, which `ladder_lite.models.memory` does not predict. TRL's correction for what vLLM rounds otherwise is off.
"""

from collections.abc import Sequence
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from ladder_lite.models import adapter
from ladder_lite.models.backend import Sampling


def generate(
    model: Any, prompts: Sequence[list[int]], sampling: Sampling
) -> list[tuple[list[int], list[float] | None]]:
    """The tokens of one reply to each prompt, in their order, with their log-probabilities where they are asked for.

    A reply that was not cut ends in what ended it.
    """
    from vllm import SamplingParams

    own = sampling.temperature
    temperatures = own if isinstance(own, tuple) else (own,) * len(prompts)
    seeds = Random(sampling.seed)
    parameters = [
        SamplingParams(
            temperature=temperature,
            top_p=sampling.top_p,
            repetition_penalty=1.0,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stop),
            seed=seeds.getrandbits(31),
            logprobs=0 if sampling.logprobs else None,  # 0: of the sampled token alone
        )
        for temperature in temperatures
    ]
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=[adapter.TRAINED])
        outputs = model.fast_generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            parameters,
            lora_request=model.load_lora(folder),
            use_tqdm=False,
        )
    replies = [output.outputs[0] for output in outputs]
    return [(list(reply.token_ids), _logprobs(reply) if sampling.logprobs else None) for reply in replies]


def _logprobs(reply: Any) -> list[float]:
    """Those of the sampled tokens; vLLM gives a mapping from tokens for each position."""
    return [at[token].logprob for token, at in zip(reply.token_ids, reply.logprobs, strict=True)]
