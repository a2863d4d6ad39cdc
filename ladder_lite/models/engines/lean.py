"""A decoding loop for rollouts: what prompts and replies have in common is computed once, and free rows are refilled.

`generate` of transformers runs fixed batches. Each of the n samples of a prompt reads the whole prompt again, a batch
waits for its longest reply, and every step copies the cache. Here waiting requests start as soon as others have ended.
What all prompts begin with (the system prompt and the examples) is read once, and all replies attend to it in place.
The rest of a prompt is read once for all of its samples that are under way at the same time.

The samples of a prompt form a tree. As long as their replies are the same they share a row of the batch, and the row is
copied where they part. The more certain a policy is, the fewer rows there are: late in training of the tiny recipe, a
third of the tokens are computed.

Random numbers belong to requests: request i draws from a generator seeded with (seed, i). The size and the order of
batches therefore change replies through rounding errors only.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ladder_lite.errors import UserError
from ladder_lite.models.backend import Sampling
from ladder_lite.models.engines.engine import Reply, Request
from ladder_lite.models.engines.stopping import Stopping

_ATTENTION = "ladder_lite_rows"  # transformers finds `_Rows.attend` under this name
_PROMPTS_AT_ONCE = 8  # are read together; more gain little, and take memory
_SHORTEST_PREFIX = 8  # tokens; a shorter common prefix is not worth a forward pass


def obstacle(model: Any) -> str | None:
    """Return why this engine cannot sample from a model, or None if it can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return "it has layers without full attention"
    if not model._supports_attention_backend or model._is_stateful:
        return "transformers cannot replace its attention"
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "kv_lora_rank", None):
        return "its attention caps scores, or compresses keys and values"
    return None


class LeanEngine:
    """Samples from a causal language model with full attention in every layer."""

    name = "lean"

    def __init__(self, model: Any) -> None:
        self._model = model

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, stopping: Stopping, at_once: int
    ) -> Iterator[Reply]:
        """Yield a reply to each request as soon as it ends."""
        with torch.inference_mode():
            batch = _Batch(self._model, requests, sampling, stopping, at_once)
        while batch:
            with torch.inference_mode():  # left at each yield: it would hold for the caller too
                replies = batch.step()
            yield from replies


def _kind(request: Request) -> tuple[tuple[int, ...], float]:
    """What requests must have in common to share a row."""
    return tuple(request.prompt), request.temperature


class _Branch(NamedTuple):
    """Requests with one prompt and temperature whose replies are the same so far. They share a row of the batch."""

    prompt: tuple[int, ...]
    temperature: float
    tokens: list[int]
    logprobs: list[float]
    requests: list[tuple[int, list[float]]]  # id, and the uniform random numbers for its tokens

    def split(self, tokens: Sequence[int], logprobs: Sequence[float]) -> list["_Branch"]:
        """Extend the replies by one token for each request. Return a branch for each distinct token."""
        parts: dict[int, tuple[float, list[tuple[int, list[float]]]]] = {}
        for request, token, logprob in zip(self.requests, tokens, logprobs, strict=False):  # padding may follow
            parts.setdefault(token, (logprob, []))[1].append(request)
        return [
            _Branch(self.prompt, self.temperature, [*self.tokens, token], [*self.logprobs, logprob], requests)
            for token, (logprob, requests) in parts.items()
        ]


class _Batch:
    """The replies under way, as branches with one row each, and the requests that wait."""

    def __init__(
        self, model: Any, requests: Sequence[Request], sampling: Sampling, stopping: Stopping, n_slots: int
    ) -> None:
        self._model, self._sampling, self._stopping = model, sampling, stopping
        self._n_free = min(n_slots, len(requests))
        prompts = {tuple(request.prompt) for request in requests}
        # Samples of one prompt start together, because they share a row until they differ; but in chunks of at most a
        # quarter of the slots, so that few slots are idle until a chunk fits. Short prompts come first.
        ordered = sorted(requests, key=lambda each: (len(each.prompt), *_kind(each), each.id))
        n_together = max(1, self._n_free // 4)
        self._waiting = deque(
            samples[start : start + n_together]
            for samples in (list(same) for _, same in groupby(ordered, _kind))
            for start in range(0, len(samples), n_together)
        )
        self._branches: list[_Branch] = []
        self._prefix = self._read_common_prefix(prompts)
        self._n_prefix = self._prefix.get_seq_length()
        longest = max(map(len, prompts)) - self._n_prefix + sampling.max_new_tokens - 1
        self._rows = _Rows(model.device, self._n_free, longest, self._prefix)

    def _fill(self) -> None:
        """Start waiting requests if there is room."""
        started: list[Request] = []
        while self._waiting and len(self._waiting[0]) <= self._n_free - len(started):
            started += self._waiting.popleft()
        self._n_free -= len(started)
        new = [
            _Branch(prompt, temperature, [], [], [(each.id, self._draws(each.id)) for each in requests])
            for (prompt, temperature), requests in groupby(started, _kind)
        ]
        self._start(new)

    def __bool__(self) -> bool:
        """Whether there is another step."""
        return bool(self._branches or self._waiting)

    def step(self) -> list[Reply]:
        """Sample the next token of all replies, and return those that end with it."""
        self._fill()
        branches, rows = self._branches, self._rows
        tensor = partial(torch.tensor, device=rows.device)
        positions = [len(branch.prompt) - 1 + len(branch.tokens) for branch in branches]
        rows.begin_step([position - self._n_prefix for position in positions])
        draws = np.zeros((len(branches), max(len(branch.requests) for branch in branches)), np.float32)
        for row, branch in enumerate(branches):
            draws[row, : len(branch.requests)] = [own[len(branch.tokens)] for _, own in branch.requests]
        # Copied before the model is called: a later copy would wait for the GPU.
        draws_on_device = tensor(draws)
        is_greedy = not any(branch.temperature for branch in branches)
        temperatures = None if is_greedy else tensor([[branch.temperature] for branch in branches])
        with _attention(self._model, rows.attend):
            logits = self._model(
                input_ids=tensor([[(branch.tokens or branch.prompt)[-1]] for branch in branches]),
                position_ids=tensor(positions)[:, None],
                attention_mask=rows.no_mask,
                past_key_values=rows,
                use_cache=True,
            ).logits[:, -1]
        tokens, logprobs = _choose(logits.float(), temperatures, self._sampling, draws_on_device)
        return self._continue(tokens.tolist(), logprobs.tolist())

    def _continue(self, tokens: list[list[int]], logprobs: list[list[float]]) -> list[Reply]:
        """Give each branch that goes on a row, and return the replies that have ended."""
        sampling, ended = self._sampling, []
        stay: dict[int, _Branch] = {}  # by row
        rest: list[tuple[int, _Branch]] = []  # branches that need another row than this one, which has their keys
        if any(chosen[0] < 0 for chosen in tokens):
            raise UserError(
                f"the model's logits are not finite in {str(self._model.dtype).removeprefix('torch.')}; set "
                "model.dtype=float32, or lower grpo.trl.learning_rate if training has damaged the weights"
            )
        for row, (branch, chosen, their_logprobs) in enumerate(zip(self._branches, tokens, logprobs, strict=True)):
            for part in branch.split(chosen, their_logprobs):
                if len(part.tokens) == sampling.max_new_tokens or self._stopping.has_ended(part.tokens):
                    self._n_free += len(part.requests)
                    for number, _ in part.requests:
                        ended.append(Reply(number, [*part.tokens], [*part.logprobs] if sampling.logprobs else None))
                elif row in stay:
                    rest.append((row, part))
                else:
                    stay[row] = part
        # Rows have no gaps: what was split off, and the last rows, go to rows that have become free.
        n_rows = len(stay) + len(rest)
        self._rows.reserve(n_rows)
        rest += [(row, stay.pop(row)) for row in list(stay) if row >= n_rows]
        free = [row for row in range(n_rows) if row not in stay]
        moved = [branch for _, branch in rest]
        self._copy(moved, [row for row, _ in rest], free)
        stay |= zip(free, moved, strict=True)
        self._branches = [stay[row] for row in range(n_rows)]
        return ended

    def _copy(self, branches: list[_Branch], rows: list[int], to: list[int]) -> None:
        """Copy the keys and values of branches, those of all tokens but the last, to other rows."""
        if branches:
            end = max(len(branch.prompt) + len(branch.tokens) for branch in branches) - 1
            self._rows.copy_rows(rows, to, end - self._n_prefix)

    def _draws(self, number: int) -> list[float]:
        generator = np.random.default_rng([self._sampling.seed, number])
        return list(generator.random(self._sampling.max_new_tokens).tolist())

    def _start(self, branches: list[_Branch]) -> None:
        """Give new branches the rows after those of the others, with the keys and values of their prompts."""
        row_of = {branch.prompt: row for row, branch in enumerate(self._branches)}
        unread, known = [], {}
        for row, branch in enumerate(branches, len(self._branches)):
            if branch.prompt in row_of:
                known[row] = branch
            else:
                unread.append(row)
                row_of[branch.prompt] = row
        self._branches += branches
        self._rows.reserve(len(self._branches))
        for start in range(0, len(unread), _PROMPTS_AT_ONCE):
            rows, cache = unread[start : start + _PROMPTS_AT_ONCE], copy.deepcopy(self._prefix)
            self._read([self._branches[row].prompt[self._n_prefix : -1] for row in rows], cache)
            self._rows.write(rows, cache)
        self._copy(list(known.values()), [row_of[branch.prompt] for branch in known.values()], list(known))

    def _read_common_prefix(self, prompts: set[tuple[int, ...]]) -> transformers.DynamicCache:
        # What the first and the last prompt in lexicographic order have in common, all prompts have.
        first, last = min(prompts), max(prompts)
        length = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        shared = first[: min(length, *(len(prompt) - 1 for prompt in prompts))] if len(prompts) > 1 else ()
        cache = transformers.DynamicCache()
        self._read([shared if len(shared) >= _SHORTEST_PREFIX else ()], cache)
        return cache

    def _read(self, texts: list[tuple[int, ...]], cache: transformers.DynamicCache) -> None:
        """Extend a cache of one row to a row for each of these continuations. What exceeds a shorter one is padding."""
        cache.batch_repeat_interleave(len(texts))
        if longest := max(map(len, texts)):
            padded = [[*tokens, *[0] * (longest - len(tokens))] for tokens in texts]
            inputs = torch.tensor(padded, device=self._model.device)
            self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)


class _Rows(transformers.Cache):
    """Keys and values of what all prompts begin with, and in each row those of the rest of a prompt and of its reply.

    Each layer has a buffer (2, rows, heads, length, size) for the keys and values of the rows.
    """

    def __init__(self, device: torch.device, most: int, length: int, prefix: transformers.DynamicCache) -> None:
        # The base class requires a kind of layer, of which none is made.
        super().__init__(layer_class_to_replicate=transformers.cache_utils.DynamicLayer)
        self.device, self._most, self._length, self._prefix = device, most, length, prefix
        # On a GPU, a lack of memory should show at once. Elsewhere, rows are added when samples part.
        self._n_rows = most if device.type == "cuda" else 1
        self._n_prefix: int = prefix.get_seq_length()
        self._buffers: list[torch.Tensor] = []
        # transformers passes a mask with four dimensions on unchanged. `attend` ignores it and has its own.
        self.no_mask = torch.zeros(1, 1, 1, 1, device=device)

    def write(self, rows: list[int], cache: transformers.DynamicCache) -> None:
        """Copy the keys and values of prompts, without what all begin with, from the rows of a cache to these rows."""
        for at, layer in enumerate(cache.layers):
            for part, source in enumerate((layer.keys, layer.values)):
                own = source[:, :, self._n_prefix :]
                self._allocate(at, own)
                self._buffers[at][part, rows, :, : own.shape[2]] = own

    def copy_rows(self, rows: list[int], to: list[int], end: int) -> None:
        """Copy the keys and values of rows, up to a column, to other rows."""
        source, target = (torch.tensor(each, device=self.device) for each in (rows, to))
        for buffer in self._buffers:
            buffer[:, target, :, :end] = buffer[:, source, :, :end]

    def reserve(self, n_rows: int) -> None:
        """Make room for this many rows."""
        if n_rows <= self._n_rows:
            return
        self._n_rows = min(max(n_rows, 2 * self._n_rows), self._most)
        for layer, buffer in enumerate(self._buffers):
            self._buffers[layer] = buffer.new_zeros(2, self._n_rows, *buffer.shape[2:])
            self._buffers[layer][:, : buffer.shape[1]] = buffer

    def begin_step(self, columns: list[int]) -> None:
        """Prepare for a token in each row, which goes to this column of the row's buffer."""
        self._at = torch.arange(len(columns), device=self.device), torch.tensor(columns, device=self.device)
        self._end = max(columns) + 1
        # (rows, 1, 1, columns)
        self._is_seen = (torch.arange(self._end, device=self.device) <= self._at[1][:, None])[:, None, None]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Write a layer's new keys and values, (rows, heads, 1, size), and return those of all columns."""
        self._allocate(layer_idx, keys)
        rows, columns = self._at
        buffer = self._buffers[layer_idx]
        buffer[0, rows, :, columns] = keys[:, :, 0]
        buffer[1, rows, :, columns] = values[:, :, 0]
        keys, values = buffer[:, : len(rows), :, : self._end]
        return keys, values

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Return the number of tokens of the longest sequence, for models that ask."""
        return self._n_prefix + self._end - 1

    def attend(
        self, module: Any, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *_: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """Attention of the rows' queries, (rows, query heads, 1, size), to the prefix and to their own columns."""
        # Several query heads may share a head of keys (grouped-query attention): (rows, heads, sharing, size).
        query = query.reshape(*keys.shape[:2], -1, query.shape[-1])
        if self._n_prefix:
            output = self._with_prefix(module.layer_idx, query, keys, values, options["scaling"])
        else:
            output = scaled_dot_product_attention(query, keys, values, self._is_seen, scale=options["scaling"])
        return output.reshape(len(query), 1, -1, output.shape[-1]), None

    def _with_prefix(
        self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        prefix = self._prefix.layers[layer]
        # Scores in 32 bits: in 16 bits they would be rounded, or overflow, before they are scaled.
        scaled = query.float() * scaling
        # All queries are multiplied by the prefix as one matrix: (heads, rows * sharing, size).
        to_prefix = scaled.transpose(0, 1).flatten(1, 2) @ prefix.keys[0].float().transpose(-1, -2)
        to_own = (scaled @ keys.float().transpose(-1, -2)).masked_fill(~self._is_seen, -torch.inf)
        scores = torch.cat([to_prefix.unflatten(1, (len(query), -1)).transpose(0, 1), to_own], dim=-1)
        to_prefix, to_own = scores.softmax(-1).to(query.dtype).split([self._n_prefix, self._end], dim=-1)
        from_prefix = to_prefix.transpose(0, 1).flatten(1, 2) @ prefix.values[0]
        output: torch.Tensor = from_prefix.unflatten(1, (len(query), -1)).transpose(0, 1) + to_own @ values
        return output

    def _allocate(self, layer: int, keys: torch.Tensor) -> None:
        """Make the buffer of a layer when its first keys (rows, heads, length, size) show its shape and dtype."""
        if layer == len(self._buffers):
            # Zeros, not empty memory: masked entries get weight 0, and 0 * NaN would be NaN.
            self._buffers.append(keys.new_zeros(2, self._n_rows, keys.shape[1], self._length, keys.shape[3]))


def _choose(
    logits: torch.Tensor, temperatures: torch.Tensor | None, sampling: Sampling, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose tokens from logits (rows, vocabulary) with uniform `draws` (rows, n); greedily without `temperatures`.

    Returns the tokens (rows, n) and their log-probabilities (rows, n) under the distribution before `top_p` cuts it. A
    token is -1 if probabilities are not finite. Log-probabilities have no meaning if greedy, or if not asked for.
    """
    if temperatures is None:
        tokens = logits.argmax(-1, keepdim=True).expand(draws.shape)
        return tokens, torch.zeros_like(tokens)
    logits = logits / temperatures
    probabilities, order = logits.softmax(-1), None
    if sampling.top_p < 1:
        probabilities, order = probabilities.sort(descending=True)
        # Keep the smallest set of likeliest tokens whose probabilities reach top_p, as transformers does.
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    # Inverting the cumulative distribution takes one random number per token, whatever the size of the vocabulary. In
    # 32 bits a draw may round up to 1, which would choose a token beyond the last one.
    cumulative = probabilities.cumsum(-1)
    draws = draws.clamp(max=1 - 2**-24)
    tokens = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    is_finite = cumulative[:, -1:].isfinite()
    tokens = tokens.where(is_finite, 0)
    if order is not None:
        tokens = order.gather(1, tokens)
    logprobs = logits.gather(1, tokens) - logits.logsumexp(-1, keepdim=True) if sampling.logprobs else tokens
    return tokens.where(is_finite, -1), logprobs


@contextmanager
def _attention(model: Any, attend: Any) -> Iterator[None]:
    """Let the model call `attend` in place of its own attention."""
    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[_ATTENTION] = attend
    model.config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[_ATTENTION]  # it would keep the buffers alive
