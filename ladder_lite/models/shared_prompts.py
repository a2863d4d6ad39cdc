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
    keys and values of their prompt. Hidden states before them are zeros. With dropout, all replies to a prompt get the
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
        # Replies to the same prompt stand side by side in its row, so that its keys are not copied for each of them.
        # `member`, with one row per prompt, lists its replies; (prompt_of, rank) is where a reply is in it.
        rank = (prompt_of[:, None] == prompt_of).tril(-1).sum(dim=1)
        member = prompt_of.new_zeros(len(prompts), int(rank.max()) + 1)
        member[prompt_of, rank] = torch.arange(len(rows), device=ids.device)
        columns = torch.arange(reply_length + 1, device=ids.device)
        positions = (read.sum(dim=1)[:, None, None] + columns).expand(*member.shape, -1)
        # A token attends to its prompt, and to those of its own reply up to itself: (prompts, replies, token, token).
        own = attention_mask[:, length:].bool()[member][..., None, :] & (columns <= columns[:, None])
        # (prompts, replies * tokens, replies * tokens), with the replies as blocks on the diagonal
        own = torch.stack([torch.block_diag(*blocks) for blocks in own.unbind()])
        seen = torch.cat([read.bool()[:, None].expand(-1, own.shape[1], -1), own], dim=2)[:, None]
        output = forward(
            input_ids[:, length:][member].flatten(1),
            torch.zeros(seen.shape, device=ids.device, dtype=model.dtype).masked_fill(~seen, -torch.inf),
            **(options | {"position_ids": positions.flatten(1)}),
        )
        hidden = output.last_hidden_state.unflatten(1, (-1, len(columns)))[prompt_of, rank]
        output.last_hidden_state = torch.nn.functional.pad(hidden, (0, 0, length, 0))
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
