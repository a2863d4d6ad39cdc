"""A forward pass for training that reads each distinct prompt once, instead of once for every reply to it.

What all prompts begin with, such as few-shot examples, is read once for all of them.
"""

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
    keys and values of their prompt. All other hidden states are zeros. With dropout, all replies to a prompt get the
    same mask for it. Gradient checkpointing must be off, because it keeps no keys and values.
    """
    # The model below the LM head: depending on its version and settings, TRL calls the whole model or this part.
    backbone = model.base_model
    forward = backbone.forward

    def shared(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        # The last token of a prompt predicts the first one of the reply, so each row computes it for itself.
        length = input_ids.shape[1] - reply_length - 1
        if length < 1:
            return forward(input_ids, attention_mask, **options)
        rows = torch.cat([input_ids[:, :length], attention_mask[:, :length]], dim=1)
        prompts, prompt_of = rows.unique(dim=0, return_inverse=True)
        ids, mask = prompts.split(length, dim=1)
        # Prompts are padded on the left. Without the padding, they have their first `n_common` tokens in common.
        starts, n_common = length - mask.sum(dim=1), _common_tokens(ids, mask)
        if len(prompts) == len(rows) and (len(rows) == 1 or 2 * n_common < length):  # there is little to share
            return forward(input_ids, attention_mask, **options)
        cache = transformers.DynamicCache()
        options |= {"use_cache": True, "past_key_values": cache}
        if n_common:
            first = ids[:1, starts[0] :][:, :n_common]
            forward(first, torch.ones_like(first), **options)
            cache.batch_repeat_interleave(len(prompts))
        # The rest of each prompt, padded on the left to the longest one; `left` is the column at which that one begins.
        left = int(starts.min()) + n_common
        is_rest = (torch.arange(length, device=ids.device) >= starts[:, None] + n_common).to(mask.dtype)[:, left:]
        read = torch.cat([mask.new_ones(len(mask), n_common), is_rest], dim=1)
        if left < length:
            # The padding now comes after the common tokens, so positions are given: they count what is not padding.
            positions = (read.cumsum(dim=1) - 1)[:, n_common:].clamp(min=0)
            forward(ids[:, left:], read, **(options | {"position_ids": positions}))
        if cache.get_seq_length() != read.shape[1]:
            raise RuntimeError("the model kept no keys and values of the prompts: gradient checkpointing must be off")
        # The tokens of all replies to a prompt follow one another in its row, without the padding between replies. So
        # the prompt's keys are not copied for each reply, and a long reply does not make the others longer.
        reply, column = attention_mask[:, length:].nonzero(as_tuple=True)
        owner, order = prompt_of[reply].sort(stable=True)
        reply, column = reply[order], column[order]
        place = torch.arange(len(owner), device=ids.device) - torch.searchsorted(owner, owner)  # within the row
        # By row and place. The rows' own padding is a reply of number -1, which attends to itself.
        shape = len(prompts), int(place.max()) + 1
        reply_at, column_at, packed = (ids.new_full(shape, filler) for filler in (-1, 0, 0))
        reply_at[owner, place], column_at[owner, place] = reply, column
        packed[owner, place] = input_ids[:, length:][reply, column]
        # A token attends to its prompt, and to those of its own reply up to itself.
        own = reply_at[:, :, None] == reply_at[:, None, :]
        own &= column_at[:, None, :] <= column_at[:, :, None]
        seen = torch.cat([read.bool()[:, None].expand(-1, shape[1], -1), own], dim=2)[:, None]
        output = forward(
            packed,
            torch.zeros(seen.shape, device=ids.device, dtype=model.dtype).masked_fill(~seen, -torch.inf),
            **(options | {"position_ids": read.sum(dim=1)[:, None] + column_at}),
        )
        states = output.last_hidden_state
        hidden = states.new_zeros(*input_ids.shape, states.shape[-1])
        output.last_hidden_state = hidden.index_put((reply, length + column), states[owner, place])
        return output

    # Afterwards, the model has its own forward again: that of its class, or one set by a library, as accelerate does.
    with patch.object(backbone, "forward", shared):
        yield


def _common_tokens(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """Return how many tokens all prompts begin with; ids and mask are (prompts, length), padded on the left."""
    # Roll each row so that its first token comes to column 0; the padding goes to the end.
    length = ids.shape[1]
    columns = (torch.arange(length, device=ids.device) + (length - mask.sum(dim=1))[:, None]) % length
    equal = (ids.gather(1, columns) == ids[:1].gather(1, columns[:1])).all(dim=0)
    shortest = int(mask.sum(dim=1).min())
    return int(equal[:shortest].cumprod(dim=0).sum())
