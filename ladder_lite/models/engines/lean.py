"""A decoding loop for rollouts: every prompt is read once, and freed slots are refilled.

`generate` of transformers runs fixed batches. Each of the n samples of a prompt reads the whole prompt again, a batch
waits for its longest reply, and every step copies the cache. Here a batch is a set of slots, and a slot takes the next
request as soon as its reply has ended. The keys and values of a prompt are computed once, and all of its samples attend
to them in place. The common beginning of all prompts (the system prompt and the examples) is read once for all of them.

Random numbers belong to requests: request i draws from a generator seeded with (seed, i). The size and the order of
batches therefore change replies through rounding errors only.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ladder_lite.models.backend import Sampling
from ladder_lite.models.engines.engine import Reply, Request
from ladder_lite.models.engines.stopping import Stopping

_ATTENTION = "ladder_lite_slots"  # transformers finds `_Slots.attend` under this name
_SHORTEST_PREFIX = 8  # tokens; a shorter common prefix is not worth a forward pass
_SHRINK_AT = 0.75  # share of busy slots: fewer copies of the cache than at 0.9, fewer idle rows than at 0.5


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
        batch = _Batch(self._model, requests, sampling, stopping, at_once)
        while batch.fill():
            yield from batch.step()


class _Active(NamedTuple):
    """A request under way: the uniform random numbers for its tokens, and its reply so far."""

    prompt: tuple[int, ...]
    request: Request
    draws: torch.Tensor
    tokens: list[int]
    logprobs: list[float]


class _Batch:
    """The replies under way, one in each busy slot, and the requests that wait."""

    def __init__(
        self, model: Any, requests: Sequence[Request], sampling: Sampling, stopping: Stopping, n_slots: int
    ) -> None:
        self._model, self._sampling, self._stopping = model, sampling, stopping
        # Samples of one prompt follow one another, so that few prompts are in use at a time. Short prompts come first.
        prompts = {tuple(request.prompt) for request in requests}
        self._waiting = deque(sorted(requests, key=lambda each: (len(each.prompt), tuple(each.prompt), each.id)))
        self._busy: list[_Active | None] = [None] * min(n_slots, len(requests))
        n_places = min(len(prompts), len(self._busy))
        longest = max(map(len, prompts)) - 1
        self._slots = _Slots(model.device, (len(self._busy), sampling.max_new_tokens), (n_places, longest))
        self._place: dict[tuple[int, ...], int] = {}  # where the keys and values of a prompt are
        self._prefix = self._read_common_prefix(prompts)

    def _arrange(self) -> None:
        """Build the tensors of a step, after slots have got other requests or have been dropped."""
        device, idle = self._slots.device, next(active for active in self._busy if active is not None)
        slots = [active or idle._replace(tokens=[]) for active in self._busy]  # an idle slot repeats another request

        def column(values: list[Any]) -> torch.Tensor:
            return torch.tensor(values, device=device)

        # (slots,): the token that each slot feeds to the model next, how many tokens it has fed so far, and the
        # position of the first token that it fed, the last one of its prompt.
        self._tokens = column([(active.tokens or active.prompt)[-1] for active in slots])
        self._lengths = column([len(active.tokens) for active in slots])
        self._starts = column([len(active.prompt) - 1 for active in slots])
        self._temperatures = column([active.request.temperature for active in slots])[:, None]  # (slots, 1)
        self._draws = torch.stack([active.draws for active in slots]).to(device)  # (slots, max_new_tokens)
        self._slots.arrange(column([self._place[active.prompt] for active in slots]))

    def fill(self) -> bool:
        """Give free slots to waiting requests, or drop slots if none wait. Return whether any slot is busy."""
        n_busy = sum(active is not None for active in self._busy)
        if self._waiting and n_busy < len(self._busy):
            for slot, active in enumerate(self._busy):
                if active is None and self._waiting:
                    self._busy[slot] = self._start(self._waiting.popleft())
            self._arrange()
        elif 0 < n_busy <= _SHRINK_AT * len(self._busy):
            kept = [slot for slot, active in enumerate(self._busy) if active is not None]
            self._busy = [self._busy[slot] for slot in kept]
            self._slots.keep(kept)
            self._arrange()
        return any(self._busy)

    def step(self) -> Iterator[Reply]:
        """Sample the next token of all slots, and yield the replies that end with it."""
        slots, sampling = self._slots, self._sampling
        slots.begin_step(self._lengths)
        with _attention(self._model, slots.attend):
            logits = self._model(
                input_ids=self._tokens[:, None],
                position_ids=(self._starts + self._lengths)[:, None],
                attention_mask=slots.no_mask,
                past_key_values=slots,
                use_cache=True,
            ).logits[:, -1]
        draws = self._draws.gather(1, self._lengths[:, None])
        self._tokens, logprobs = _choose(logits.float(), self._temperatures, sampling, draws)
        self._lengths = self._lengths + 1
        chosen = zip(self._busy, self._tokens.tolist(), logprobs.tolist(), strict=True)
        for slot, (active, token, logprob) in enumerate(chosen):
            if active is None:
                continue
            active.tokens.append(token)
            active.logprobs.append(logprob)
            if len(active.tokens) == sampling.max_new_tokens or self._stopping.has_ended(active.tokens):
                self._busy[slot] = None
                yield Reply(active.request.id, active.tokens, active.logprobs if sampling.logprobs else None)
        # Idle slots go on computing until the batch shrinks. They must not write beyond their buffers.
        self._lengths.clamp_(max=sampling.max_new_tokens - 1)

    def _start(self, request: Request) -> _Active:
        """Begin a reply; read its prompt unless an earlier request had the same one."""
        prompt = tuple(request.prompt)
        if prompt not in self._place:
            # Requests wait in the order of their prompts, so no other one needs a prompt that no slot is using now.
            in_use = {active.prompt for active in self._busy if active is not None}
            self._place = {old: place for old, place in self._place.items() if old in in_use}
            # The first free place, because attention covers all places up to the last one in use.
            self._place[prompt] = min(set(range(len(self._busy))).difference(self._place.values()))
            self._slots.write_prompt(self._place[prompt], self._read(prompt[:-1], copy.deepcopy(self._prefix)))
        generator = np.random.default_rng([self._sampling.seed, request.id])
        draws = torch.from_numpy(generator.random(self._sampling.max_new_tokens))
        return _Active(prompt, request, draws, [], [])

    def _read_common_prefix(self, prompts: set[tuple[int, ...]]) -> transformers.DynamicCache:
        # What the first and the last prompt in lexicographic order have in common, all prompts have.
        first, last = min(prompts), max(prompts)
        length = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        shared = first[: min(length, *(len(prompt) - 1 for prompt in prompts))] if len(prompts) > 1 else ()
        return self._read(shared if len(shared) >= _SHORTEST_PREFIX else (), transformers.DynamicCache())

    def _read(self, tokens: Sequence[int], cache: transformers.DynamicCache) -> transformers.DynamicCache:
        """Extend a cache, which has the keys and values of the first of these tokens, to all of them."""
        if rest := tokens[cache.get_seq_length() :]:
            inputs = torch.tensor([rest], device=self._slots.device)
            self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache


class _Slots(transformers.Cache):
    """Keys and values of replies and of their prompts, and attention to both.

    Each layer has two buffers of keys and values: `own` (2, slots, heads, length, size) for the tokens of the replies,
    `prompts` (2, places, heads, length, size) for those of the prompts.
    """

    def __init__(self, device: torch.device, own: tuple[int, int], prompts: tuple[int, int]) -> None:
        # The base class requires a kind of layer, of which none is made.
        super().__init__(layer_class_to_replicate=transformers.cache_utils.DynamicLayer)
        self.device = device
        self._shapes = own, prompts  # rows and length of the two buffers
        self._own: list[torch.Tensor] = []
        self._prompts: list[torch.Tensor] = []
        self._prompt_lengths = torch.zeros(prompts[0], dtype=torch.long, device=device)
        # transformers passes a mask with four dimensions on unchanged. `attend` ignores it and has its own.
        self.no_mask = torch.zeros(1, 1, 1, 1, device=device)

    def write_prompt(self, place: int, cache: transformers.DynamicCache) -> None:
        """Copy the keys and values of a prompt to its place."""
        length = cache.get_seq_length()
        self._prompt_lengths[place] = length
        for at, layer in enumerate(cache.layers if length else ()):
            self._allocate(at, layer.keys)
            self._prompts[at][0, place, :, :length] = layer.keys[0]
            self._prompts[at][1, place, :, :length] = layer.values[0]

    def _allocate(self, layer: int, keys: torch.Tensor) -> None:
        """Make the buffers of a layer when its first keys (rows, heads, length, size) show their shape and dtype."""
        if layer == len(self._own):
            for buffers, (rows, length) in zip((self._own, self._prompts), self._shapes, strict=True):
                # Zeros, not empty memory: masked entries get weight 0, and 0 * NaN would be NaN.
                buffers.append(keys.new_zeros(2, rows, keys.shape[1], length, keys.shape[3]))

    def keep(self, slots: list[int]) -> None:
        """Drop all slots but these."""
        for at, buffer in enumerate(self._own):
            self._own[at] = buffer.new_zeros(2, len(slots), *buffer.shape[2:])
            self._own[at][..., : self._own_end, :] = buffer[:, slots, :, : self._own_end]

    def arrange(self, place: torch.Tensor) -> None:
        """Prepare attention for slots whose prompts are at these places, (slots,)."""
        # Attention multiplies the queries of all slots with the same prompt by its keys as one matrix. `member`, with
        # one row per place, lists its slots; (place, rank) is where a slot is in it. For places [1, 0, 1]:
        #   member = [[1, 0], [0, 2]] (the 0 in the first row is filler), rank = [0, 0, 1]
        order, sizes = place.argsort(stable=True), place.bincount()
        self._n_places = len(sizes)
        self._rows = torch.arange(len(place), device=self.device)
        self._place, self._rank = place, torch.empty_like(place)
        self._rank[order] = self._rows - (sizes.cumsum(0) - sizes)[place[order]]
        self._member = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.long, device=self.device)
        self._member[place, self._rank] = self._rows
        lengths = self._prompt_lengths[place]
        self._prompt_end = int(lengths.max())
        self._after_prompt = torch.arange(self._prompt_end, device=self.device) >= lengths[:, None]

    def begin_step(self, lengths: torch.Tensor) -> None:
        """Prepare attention for the next token of each slot, which has fed `lengths` (slots,) tokens before."""
        self._lengths, self._own_end = lengths, int(lengths.max()) + 1
        after_own = torch.arange(self._own_end, device=self.device) > lengths[:, None]
        hidden = torch.cat([self._after_prompt, after_own], dim=1)
        # (slots, 1, 1, prompt + own), added to the scores
        self._mask = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)[:, None, None]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Write a layer's new keys and values, (slots, heads, 1, size), and return those of all own tokens."""
        self._allocate(layer_idx, keys)
        own = self._own[layer_idx]
        own[0, self._rows, :, self._lengths] = keys[:, :, 0]
        own[1, self._rows, :, self._lengths] = values[:, :, 0]
        return own[0, :, :, : self._own_end], own[1, :, :, : self._own_end]

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Return the number of tokens of the longest sequence, for models that ask."""
        return self._prompt_end + self._own_end - 1

    def attend(
        self, module: Any, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *_: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """Attention of the slots' queries, (slots, query heads, 1, size), to their prompts and to their own tokens."""
        # Several query heads may share a head of keys (grouped-query attention): (slots, heads, sharing, size).
        query = query.reshape(*keys.shape[:2], -1, query.shape[-1])
        prompt_keys, prompt_values = self._prompts[module.layer_idx][:, : self._n_places, :, : self._prompt_end]
        # Scores in 32 bits: in 16 bits they would be rounded, or overflow, before they are scaled.
        scaled = query.float() * options["scaling"]
        to_prompt = self._by_slot(self._by_place(scaled) @ prompt_keys.float().transpose(-1, -2))
        scores = torch.cat([to_prompt, scaled @ keys.float().transpose(-1, -2)], dim=-1)
        weights = (scores + self._mask).softmax(-1).to(query.dtype)
        to_prompt, to_own = weights.split([self._prompt_end, self._own_end], dim=-1)
        output = self._by_slot(self._by_place(to_prompt) @ prompt_values) + to_own @ values
        return output.reshape(len(query), 1, -1, output.shape[-1]), None

    def _by_place(self, rows: torch.Tensor) -> torch.Tensor:
        """(slots, heads, sharing, n) -> (places, heads, members * sharing, n)."""
        return rows[self._member].transpose(1, 2).flatten(2, 3)

    def _by_slot(self, groups: torch.Tensor) -> torch.Tensor:
        """(places, heads, members * sharing, n) -> (slots, heads, sharing, n)."""
        by_member: torch.Tensor = groups.unflatten(2, (self._member.shape[1], -1)).transpose(1, 2)
        return by_member[self._place, self._rank]


def _choose(
    logits: torch.Tensor, temperatures: torch.Tensor, sampling: Sampling, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose tokens from logits (slots, vocabulary) with uniform `draws` (slots, 1).

    Returns the tokens (slots,) and their log-probabilities (slots,) under the distribution before `top_p` cuts it; the
    latter have no meaning for greedy sampling, or if not asked for.
    """
    if not temperatures.any():
        tokens = logits.argmax(-1)
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
    draws = draws.to(cumulative.dtype).clamp(max=1 - 2**-24)
    tokens = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    if order is not None:
        tokens = order.gather(1, tokens)
    logprobs = logits.gather(1, tokens) - logits.logsumexp(-1, keepdim=True) if sampling.logprobs else tokens
    return tokens[:, 0], logprobs[:, 0]


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
