"""Sampling with vLLM inside the training process, which `model.fast_inference` gets from Unsloth. NEVER RUN YET.

Written from the sources of Unsloth 2026.10.7. Its engine shares the base weights with the model that is trained; each
call passes it the current adapter as files. The engine forms batches by itself. It reserves half of the GPU's memory,
which `ladder_lite.models.memory` does not predict. TRL's importance-sampling correction, for rounding differences
between vLLM and the trainer, is switched off.
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
    """Return the token ids of one reply to each prompt, in order, and their log-probabilities if requested.

    A reply that was not truncated ends with its end token or stop text.
    """
    from vllm import SamplingParams

    temperature = sampling.temperature
    temperatures = temperature if isinstance(temperature, tuple) else (temperature,) * len(prompts)
    # vLLM takes a seed for each request. With a common one, copies of a prompt would all get the same reply.
    seeds = Random(sampling.seed)
    parameters = [
        SamplingParams(
            temperature=temperature,
            top_p=sampling.top_p,
            repetition_penalty=1.0,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stop),
            seed=seeds.getrandbits(31),
            logprobs=0 if sampling.logprobs else None,  # 0: those of the sampled tokens only, no alternatives
        )
        for temperature in temperatures
    ]
    # A new folder for each call, with the weights as they are now.
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=[adapter.TRAINED])
        outputs = model.fast_generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            parameters,
            lora_request=model.load_lora(folder),
            use_tqdm=False,
        )
    replies = [output.outputs[0] for output in outputs]  # one output for each request
    return [(list(reply.token_ids), _logprobs(reply) if sampling.logprobs else None) for reply in replies]


def _logprobs(reply: Any) -> list[float]:
    # vLLM gives a mapping from token id to log-probability for each position.
    return [by_token[token].logprob for token, by_token in zip(reply.token_ids, reply.logprobs, strict=True)]
