"""A decoding loop for rollouts: what prompts and replies have in common is computed once, and free slots are refilled.

`generate` of transformers runs fixed batches. Each of the n samples of a prompt reads the whole prompt again, a batch
waits for its longest reply, and every step copies the cache. Here waiting requests start as soon as others have ended.
The keys and values of a prompt are computed once, and all of its samples attend to them in place. The common beginning
of all prompts (the system prompt and the examples) is read once for all of them.

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
from itertools import count, groupby
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ladder_lite.models.backend import Sampling
from ladder_lite.models.engines.engine import Reply, Request
from ladder_lite.models.engines.stopping import Stopping

_ATTENTION = "ladder_lite_slots"  # transformers finds `_Slots.attend` under this name
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
        # Samples of one prompt start together, because they share rows until they differ. But at most a quarter of the
        # slots waits to be filled at once. Short prompts come first.
        ordered = sorted(requests, key=lambda each: (len(each.prompt), *_kind(each), each.id))
        n_together = max(1, self._n_free // 4)
        self._waiting = deque(
            samples[start : start + n_together]
            for samples in (list(same) for _, same in groupby(ordered, _kind))
            for start in range(0, len(samples), n_together)
        )
        self._branches: list[_Branch] = []
        n_places, longest = min(len(prompts), self._n_free), max(map(len, prompts)) - 1
        self._slots = _Slots(model.device, (self._n_free, sampling.max_new_tokens), (n_places, longest))
        self._place: dict[tuple[int, ...], int] = {}  # where the keys and values of a prompt are
        self._prefix = self._read_common_prefix(prompts)

    def _fill(self) -> None:
        """Start waiting requests if there is room."""
        started: list[Request] = []
        while self._waiting and len(self._waiting[0]) <= self._n_free - len(started):
            started += self._waiting.popleft()
        self._n_free -= len(started)
        for (prompt, temperature), requests in groupby(started, _kind):
            draws = [(each.id, self._draws(each.id)) for each in requests]
            self._branches.append(_Branch(prompt, temperature, [], [], draws))
        if started:
            self._read_prompts()

    def __bool__(self) -> bool:
        """Whether there is another step."""
        return bool(self._branches or self._waiting)

    def step(self) -> list[Reply]:
        """Sample the next token of all replies, and return those that end with it."""
        self._fill()
        branches, slots = self._branches, self._slots
        tensor = partial(torch.tensor, device=slots.device)
        lengths = [len(branch.tokens) for branch in branches]
        slots.begin_step(lengths, [self._place[branch.prompt] for branch in branches])
        with _attention(self._model, slots.attend):
            logits = self._model(
                input_ids=tensor([[(branch.tokens or branch.prompt)[-1]] for branch in branches]),
                position_ids=tensor([[len(branch.prompt) - 1 + len(branch.tokens)] for branch in branches]),
                attention_mask=slots.no_mask,
                past_key_values=slots,
                use_cache=True,
            ).logits[:, -1]
        draws = np.zeros((len(branches), max(len(branch.requests) for branch in branches)))
        for row, (branch, length) in enumerate(zip(branches, lengths, strict=True)):
            draws[row, : len(branch.requests)] = [of_request[length] for _, of_request in branch.requests]
        temperatures = tensor([[branch.temperature] for branch in branches])
        tokens, logprobs = _choose(logits.float(), temperatures, self._sampling, torch.from_numpy(draws))
        return self._continue(tokens.tolist(), logprobs.tolist())

    def _continue(self, tokens: list[list[int]], logprobs: list[list[float]]) -> list[Reply]:
        """Give each branch that goes on a row, and return the replies that have ended."""
        sampling, ended = self._sampling, []
        stay: dict[int, _Branch] = {}  # by row
        rest: list[tuple[int, _Branch]] = []  # branches that need another row than this one, which has their keys
        for row, (branch, chosen, their_logprobs) in enumerate(zip(self._branches, tokens, logprobs, strict=True)):
            for part in branch.split(chosen, their_logprobs):
                if len(part.tokens) == sampling.max_new_tokens or self._stopping.has_ended(part.tokens):
                    self._n_free += len(part.requests)
                    own = part.logprobs if sampling.logprobs else None
                    ended += [Reply(number, part.tokens, own) for number, _ in part.requests]
                elif row in stay:
                    rest.append((row, part))
                else:
                    stay[row] = part
        # Rows have no gaps: what was split off, and the last rows, go to rows that have become free.
        n_rows = len(stay) + len(rest)
        rest += [(row, stay.pop(row)) for row in list(stay) if row >= n_rows]
        free = [row for row in range(n_rows) if row not in stay]
        if rest:
            self._slots.copy_rows([row for row, _ in rest], free)
        stay |= zip(free, (branch for _, branch in rest), strict=True)
        self._branches = [stay[row] for row in range(n_rows)]
        self._drop_prompts()
        return ended

    def _drop_prompts(self) -> None:
        """Give up the places of prompts that are no longer needed. Leave no gaps: attention covers all places."""
        needed = {branch.prompt for branch in self._branches}
        if self._waiting:  # in the order of their prompts, so only the next one can have a place already
            needed.add(tuple(self._waiting[0][0].prompt))
        self._place = {prompt: place for prompt, place in self._place.items() if prompt in needed}
        n_places = len(self._place)
        free = set(range(n_places)).difference(self._place.values())
        for prompt, place in self._place.items():
            if place >= n_places:
                self._place[prompt] = free.pop()
                self._slots.move_prompt(place, self._place[prompt])

    def _draws(self, number: int) -> list[float]:
        generator = np.random.default_rng([self._sampling.seed, number])
        return list(generator.random(self._sampling.max_new_tokens).tolist())

    def _read_prompts(self) -> None:
        """Compute the keys and values of the branches' prompts that have no place yet."""
        new = [
            prompt for prompt in dict.fromkeys(branch.prompt for branch in self._branches) if prompt not in self._place
        ]
        self._place |= zip(new, count(len(self._place)), strict=False)
        for start in range(0, len(new), _PROMPTS_AT_ONCE):
            prompts, cache = new[start : start + _PROMPTS_AT_ONCE], copy.deepcopy(self._prefix)
            self._read([prompt[cache.get_seq_length() : -1] for prompt in prompts], cache)
            for row, prompt in enumerate(prompts):
                self._slots.write_prompt(self._place[prompt], cache, row, len(prompt) - 1)

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
            inputs = torch.tensor(padded, device=self._slots.device)
            self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)


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
        self._prompt_lengths = [0] * prompts[0]
        self._places: list[int] = []  # the place of each row's prompt
        # transformers passes a mask with four dimensions on unchanged. `attend` ignores it and has its own.
        self.no_mask = torch.zeros(1, 1, 1, 1, device=device)

    def write_prompt(self, place: int, cache: transformers.DynamicCache, row: int, length: int) -> None:
        """Copy the keys and values of a prompt, the first `length` in a row of a cache, to its place."""
        self._prompt_lengths[place], self._places = length, []
        for at, layer in enumerate(cache.layers if length else ()):
            self._allocate(at, layer.keys)
            self._prompts[at][0, place, :, :length] = layer.keys[row, :, :length]
            self._prompts[at][1, place, :, :length] = layer.values[row, :, :length]

    def move_prompt(self, place: int, to: int) -> None:
        """Copy the keys and values of a prompt to another place."""
        self._prompt_lengths[to], self._places = self._prompt_lengths[place], []
        for prompts in self._prompts:
            prompts[:, to] = prompts[:, place]

    def _allocate(self, layer: int, keys: torch.Tensor) -> None:
        """Make the buffers of a layer when its first keys (rows, heads, length, size) show their shape and dtype."""
        if layer == len(self._own):
            for buffers, (rows, length) in zip((self._own, self._prompts), self._shapes, strict=True):
                # Zeros, not empty memory: masked entries get weight 0, and 0 * NaN would be NaN.
                buffers.append(keys.new_zeros(2, rows, keys.shape[1], length, keys.shape[3]))

    def copy_rows(self, rows: list[int], to: list[int]) -> None:
        """Copy the keys and values of the tokens of replies from rows to other rows."""
        for own in self._own:
            own[:, to, :, : self._own_end] = own[:, rows, :, : self._own_end]

    def begin_step(self, lengths: list[int], places: list[int]) -> None:
        """Prepare attention for the next token of each row, by its number of earlier ones and its prompt's place."""
        tensor = partial(torch.tensor, device=self.device)
        if places != self._places:
            self._arrange(places)
        self._lengths, self._own_end = tensor(lengths), max(lengths) + 1
        after_own = torch.arange(self._own_end, device=self.device) > self._lengths[:, None]
        hidden = torch.cat([self._after_prompt, after_own], dim=1)
        # (rows, 1, 1, prompt + own), added to the scores
        self._mask = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)[:, None, None]

    def _arrange(self, places: list[int]) -> None:
        # Attention multiplies the queries of all rows with the same prompt by its keys as one matrix. `member`, with
        # one line per place, lists its rows; (place, rank) is where a row is in it. For places [1, 0, 1]:
        #   member = [[1, 0], [0, 2]] (the 0 in the first line is filler), rank = [0, 0, 1]
        tensor = partial(torch.tensor, device=self.device)
        members: list[list[int]] = [[] for _ in range(max(places) + 1)]
        rank = []
        for row, place in enumerate(places):
            rank.append(len(members[place]))
            members[place].append(row)
        most = max(map(len, members))
        self._places, self._place, self._rank = places, tensor(places), tensor(rank)
        self._member = tensor([rows + [0] * (most - len(rows)) for rows in members])
        self._rows = torch.arange(len(places), device=self.device)
        lengths = [self._prompt_lengths[place] for place in places]
        self._prompt_end = max(lengths)
        self._after_prompt = torch.arange(self._prompt_end, device=self.device) >= tensor(lengths)[:, None]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Write a layer's new keys and values, (slots, heads, 1, size), and return those of all own tokens."""
        self._allocate(layer_idx, keys)
        own = self._own[layer_idx]
        own[0, self._rows, :, self._lengths] = keys[:, :, 0]
        own[1, self._rows, :, self._lengths] = values[:, :, 0]
        keys, values = own[:, : len(self._places), :, : self._own_end]
        return keys, values

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Return the number of tokens of the longest sequence, for models that ask."""
        return self._prompt_end + self._own_end - 1

    def attend(
        self, module: Any, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *_: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """Attention of the slots' queries, (slots, query heads, 1, size), to their prompts and to their own tokens."""
        # Several query heads may share a head of keys (grouped-query attention): (slots, heads, sharing, size).
        query = query.reshape(*keys.shape[:2], -1, query.shape[-1])
        prompt_keys, prompt_values = self._prompts[module.layer_idx][:, : len(self._member), :, : self._prompt_end]
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
    """Choose tokens from logits (rows, vocabulary) with uniform `draws` (rows, n).

    Returns the tokens (rows, n) and their log-probabilities (rows, n) under the distribution before `top_p` cuts it;
    the latter have no meaning for greedy sampling, or if not asked for.
    """
    if not temperatures.any():
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
    draws = draws.to(cumulative).clamp(max=1 - 2**-24)
    tokens = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    if order is not None:
        tokens = order.gather(1, tokens)
    logprobs = logits.gather(1, tokens) - logits.logsumexp(-1, keepdim=True) if sampling.logprobs else tokens
    return tokens, logprobs


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
