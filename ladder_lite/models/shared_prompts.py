"""A forward pass for training that computes once what rows have in common: prompts, and beginnings of replies.

What all prompts begin with, such as few-shot examples, is read once for all of them. The replies to a prompt form a
tree, and each of its tokens is computed once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import transformers

_ITEMS = 8


@contextmanager
def sharing_prompts(model: Any, reply_length: int) -> Iterator[None]:
    """Let a causal language model, within the block, compute equal prompts and equal beginnings of replies once.

    Rows end with `reply_length` tokens of a reply and its padding. Hidden states of these and of the last token of each
    prompt, and their gradients, are those of the plain pass, up to rounding: the gradients of all replies flow into the
    keys and values of what they share. All other hidden states are zeros. With dropout, what is shared gets the same
    mask for all of them. Gradient checkpointing must be off, because it keeps no keys and values.
    """
    # The model below the LM head: depending on its version and settings, TRL calls the whole model or this part.
    backbone = model.base_model
    forward = backbone.forward

    def shared(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        # The last token of a prompt predicts the first one of the reply, so it belongs to the reply here.
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
        replies, is_reply = input_ids[:, length:], attention_mask[:, length:].bool()
        tree = _tree(replies, is_reply, prompt_of)
        if _cost(model, *tree.work(*ids.shape)) > _cost(
            model, input_ids.numel(), input_ids.numel() * input_ids.shape[1]
        ):
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
        packed = _pack(replies, tree)
        for layer in cache.layers:  # to rows with the keys and values of several prompts, one after another
            of_prompts = layer.keys[packed.prompts], layer.values[packed.prompts]
            layer.keys, layer.values = (each.transpose(1, 2).flatten(2, 3) for each in of_prompts)
        of_prompt = packed.owners[..., None] == packed.prompts[:, None]  # (lines, length, prompts)
        prompt_seen = of_prompt[..., None] & read.bool()[packed.prompts][:, None]
        seen = torch.cat([prompt_seen.flatten(2), packed.seen], dim=2)[:, None]
        output = forward(
            packed.tokens,
            torch.zeros(seen.shape, device=ids.device, dtype=model.dtype).masked_fill(~seen, -torch.inf),
            **(options | {"position_ids": read.sum(dim=1)[packed.owners] + packed.columns}),
        )
        states = output.last_hidden_state
        row, column = is_reply.nonzero(as_tuple=True)
        hidden = states.new_zeros(*input_ids.shape, states.shape[-1])
        of_replies = states.flatten(0, 1)[packed.places[row, column]]
        output.last_hidden_state = hidden.index_put((row, length + column), of_replies)
        return output

    # Afterwards, the model has its own forward again: that of its class, or one set by a library, as accelerate does.
    with patch.object(backbone, "forward", shared):
        yield


class _Tree(NamedTuple):
    """The tokens of the replies that have to be computed, in the order of their prompts."""

    first: torch.Tensor  # (rows, columns) of the replies: the row in which each token is computed
    row: torch.Tensor  # (n,) of each token to be computed
    column: torch.Tensor  # (n,)
    owner: torch.Tensor  # (n,): the number of its prompt
    sizes: list[int]  # tokens for each prompt
    lines: list[list[int]]  # the prompts of each line

    def work(self, n_prompts: int, prompt_length: int) -> tuple[int, int]:
        """Return how many tokens the packed pass computes at most, and how many pairs of them its attention."""
        of_prompts, length = n_prompts * prompt_length, max(self.sizes)
        of_replies = len(self.lines) * length
        keys = max(map(len, self.lines)) * prompt_length + length
        return of_prompts + of_replies, of_prompts * prompt_length + of_replies * keys


def _cost(model: Any, n_tokens: int, n_pairs: int) -> int:
    """Return the approximate cost of a forward pass through a layer, in products of a query with a key.

    For each token, the matrices of a layer cost about as much as 6 times its width of such products.
    """
    return 6 * int(model.config.get_text_config().hidden_size) * n_tokens + n_pairs


class _Packed(NamedTuple):
    """The replies in lines, without the padding between them and without what replies to a prompt repeat.

    A line has all replies to one or more prompts. So the keys of a prompt are copied once for its line, not for each
    reply, and a long reply does not make the others longer.
    """

    tokens: torch.Tensor  # (lines, length), padded on the right
    owners: torch.Tensor  # (lines, length): the number of each token's prompt, -1 for padding
    columns: torch.Tensor  # (lines, length): the column of each token in its reply
    seen: torch.Tensor  # (lines, length, length): the tokens that each token attends to, besides those of its prompt
    prompts: torch.Tensor  # (lines, n): the numbers of each line's prompts, and -1 in lines with fewer
    places: torch.Tensor  # (rows, columns) of the replies: where in the flattened lines each token is


def _tree(replies: torch.Tensor, is_reply: torch.Tensor, prompt_of: torch.Tensor) -> _Tree:
    """Find what the replies (rows, columns) to the prompts of these numbers (rows,) have in common."""
    first = _first_alike(replies, is_reply, prompt_of)
    numbers = torch.arange(len(replies), device=replies.device)
    row, column = (is_reply & (first == numbers[:, None])).nonzero(as_tuple=True)
    owner, order = prompt_of[row].sort(stable=True)
    sizes = owner.bincount().tolist()
    return _Tree(first, row[order], column[order], owner, sizes, _lines(sizes))


def _pack(replies: torch.Tensor, tree: _Tree) -> _Packed:
    """Pack the replies (rows, columns)."""
    first, row, column, owner, sizes, lines = tree
    length = max(sizes)
    starts = [0] * len(sizes)  # of each prompt's tokens in the flattened lines
    for number, line in enumerate(lines):
        for prompt, before in zip(line, accumulate([sizes[prompt] for prompt in line], initial=0), strict=False):
            starts[prompt] = number * length + before
    rank = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
    place = owner.new_tensor(starts)[owner] + rank

    def spread(values: torch.Tensor, filler: int) -> torch.Tensor:
        flat = values.new_full((len(lines) * length,), filler)
        flat[place] = values
        return flat.view(len(lines), length)

    rows, columns = spread(row, -1), spread(column, 0)
    # A token attends to those of its own reply up to itself, in whichever row they are computed; padding to itself.
    # In 32 bits: the largest temporary has one number for each pair of tokens in a line.
    seen = first.int()[rows[:, :, None], columns[:, None, :]] == rows.int()[:, None, :]
    seen &= columns[:, None, :] <= columns[:, :, None]
    seen |= torch.eye(length, dtype=torch.bool, device=replies.device)
    places = torch.zeros_like(replies)
    places[row, column] = place
    n_prompts = max(map(len, lines))
    return _Packed(
        tokens=spread(replies[row, column], 0),
        owners=spread(owner, -1),
        columns=columns,
        seen=seen,
        prompts=owner.new_tensor([line + [-1] * (n_prompts - len(line)) for line in lines]),
        places=places.gather(0, first),
    )


def _first_alike(replies: torch.Tensor, is_reply: torch.Tensor, prompt_of: torch.Tensor) -> torch.Tensor:
    """Return for each token (rows, columns) the first row with the same prompt and the same tokens up to there.

    Only the token of that row is computed.
    """
    alike = (replies[:, None] == replies) & is_reply & (prompt_of[:, None] == prompt_of)[..., None]
    return alike.cumprod(dim=2, dtype=torch.uint8).argmax(dim=1)


def _lines(sizes: list[int]) -> list[list[int]]:
    """Distribute items of these sizes over few lines, none of them longer than the largest item.

    Lines have at most `_ITEMS` items: each line gets copies of as many prompts as the one with the most.
    """
    lines: list[list[int]] = []
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        fitting = (
            line
            for line in lines
            if len(line) < _ITEMS and sum(sizes[other] for other in line) + sizes[item] <= max(sizes)
        )
        if (line := next(fitting, None)) is None:
            lines.append(line := [])
        line.append(item)
    return lines


def _common_tokens(ids: torch.Tensor, mask: torch.Tensor) -> int:
    """Return how many tokens all prompts begin with; ids and mask are (prompts, length), padded on the left."""
    # Roll each row so that its first token comes to column 0; the padding goes to the end.
    length = ids.shape[1]
    columns = (torch.arange(length, device=ids.device) + (length - mask.sum(dim=1))[:, None]) % length
    equal = (ids.gather(1, columns) == ids[:1].gather(1, columns[:1])).all(dim=0)
    shortest = int(mask.sum(dim=1).min())
    return int(equal[:shortest].cumprod(dim=0).sum())
