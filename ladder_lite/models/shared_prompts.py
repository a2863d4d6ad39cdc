"""A forward pass for training that reads each distinct prompt once, instead of once for every reply to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import transformers


@contextmanager
def sharing_prompts(model: Any, reply_length: int) -> Iterator[None]:
    """Let a causal language model, within the block, compute equal prompts of its rows once.

    Rows end with `reply_length` tokens of a reply and its padding. Hidden states of these and of the last token of each
    prompt, and their gradients, are those of the plain pass, up to rounding: the gradients of all replies flow into the
    keys and values of their prompt. Hidden states before them are zeros. With dropout, all replies to a prompt get the
    same mask for it. Gradient checkpointing must be off, because it keeps no keys and values.
    """
    # The model below the LM head: depending on its version and settings, TRL calls the whole model or this part.
    backbone = model.base_model
    forward = backbone.forward

    def shared(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        # The last token of a prompt predicts the first one of the reply, so each row computes it for itself.
        length = input_ids.shape[1] - reply_length - 1
        rows = torch.cat([input_ids[:, :length], attention_mask[:, :length]], dim=1)
        prompts, prompt_of = rows.unique(dim=0, return_inverse=True) if length > 0 else (rows, None)
        if len(prompts) == len(rows):
            return forward(input_ids, attention_mask, **options)
        cache, ids_and_mask = transformers.DynamicCache(), prompts.split(length, dim=1)
        options |= {"use_cache": True, "past_key_values": cache}
        forward(*ids_and_mask, **options)
        if cache.get_seq_length() != length:
            raise RuntimeError("the model kept no keys and values of the prompts: gradient checkpointing must be off")
        for layer in cache.layers:  # (prompts, heads, length, size) -> (rows, heads, length, size)
            layer.keys, layer.values = layer.keys[prompt_of], layer.values[prompt_of]
        output = forward(input_ids[:, length:], attention_mask, **options)
        output.last_hidden_state = torch.nn.functional.pad(output.last_hidden_state, (0, 0, length, 0))
        return output

    # Afterwards, the model has its own forward again: that of its class, or one set by a library, as accelerate does.
    with patch.object(backbone, "forward", shared):
        yield
