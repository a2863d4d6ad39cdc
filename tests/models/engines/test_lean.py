"""The lean engine against plain forward passes and against `generate`, on small random models."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from scipy.stats import chisquare
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ladder_lite.config import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.models import load_backend
from ladder_lite.models.backend import Sampling
from ladder_lite.models.engines import Reply, Request, engine_error, lean
from ladder_lite.models.engines.lean import LeanEngine, obstacle
from ladder_lite.models.guard import TOLERANCE

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries
    "initializer_range": 0.3,  # peaked distributions
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),  # not hidden_size / heads
    "one head": lambda: transformers.LlamaConfig(**SIZES | {"num_attention_heads": 1, "num_key_value_heads": 1}),
}
END, STOP = 0, 39
PREFIX = (7, 3, 9, 9, 2, 14, 21, 8, 8, 30, 11)
PROMPTS = [(*PREFIX, 5), (*PREFIX, 5, 6, 7), (*PREFIX, 1, 2, 3, 4, 5, 6, 7, 8), (*PREFIX, 5, 6, 8), (13,), (4, 4)]
BEGIN_ALIKE = [(*PREFIX, *(at // 2 for at in range(4, 4 + n))) for n in range(1, 12)]
PROMPT_LISTS = pytest.mark.parametrize("prompts", [PROMPTS, BEGIN_ALIKE], ids=["any", "begin alike"])
SAMPLING = Sampling(temperature=0.9, top_p=1.0, max_new_tokens=12, batch_size=8, seed=5, logprobs=True)


class Stop:
    """Ends replies at two tokens."""

    def has_ended(self, tokens: list[int]) -> bool:
        return tokens[-1] in (END, STOP)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    torch.manual_seed(1)
    with torch.inference_mode():
        yield transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param](), attn_implementation="sdpa").eval()


def _requests(temperature: float | None = None, n: int = 6, prompts: list[tuple[int, ...]] = PROMPTS) -> list[Request]:
    """Requests for n samples of each prompt, half of them at another temperature."""
    prompts = [prompt for prompt in prompts for _ in range(n)]
    own = [
        0.5 + 0.2 * (index % 2) + 0.05 * (index // n) if temperature is None else temperature
        for index in range(len(prompts))
    ]
    return [Request(index, prompt, own[index]) for index, prompt in enumerate(prompts)]


def _sample(model: Any, requests: list[Request], slots: int, **changes: Any) -> list[Reply]:
    replies = LeanEngine(model).sample(requests, replace(SAMPLING, **changes), Stop(), slots)  # type: ignore[arg-type]
    return sorted(replies, key=lambda reply: reply.id)


def lean_error(model: Any) -> float:
    return engine_error(LeanEngine(model), model, PROMPTS[:4], Stop())  # type: ignore[arg-type]


def _logits(model: Any, tokens: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits


@PROMPT_LISTS
@pytest.mark.parametrize("slots", [1, 4, 64])
def test_greedy_replies_are_those_of_forward_passes(model: Any, slots: int, prompts: list[tuple[int, ...]]) -> None:
    for reply in _sample(model, requests := _requests(0.0, n=2, prompts=prompts), slots):
        tokens = list(requests[reply.id].prompt)
        for token in reply.tokens:
            assert token == int(_logits(model, tokens)[-1].argmax())
            tokens.append(token)
        assert reply.tokens[-1] in (END, STOP) or len(reply.tokens) == SAMPLING.max_new_tokens
        assert not {END, STOP}.intersection(reply.tokens[:-1])


@PROMPT_LISTS
@pytest.mark.parametrize("slots", [5, 23])
def test_log_probabilities_are_those_of_a_forward_pass(model: Any, slots: int, prompts: list[tuple[int, ...]]) -> None:
    requests = _requests(prompts=prompts)
    for reply in _sample(model, requests, slots):
        prompt, temperature = list(requests[reply.id].prompt), requests[reply.id].temperature
        logits = _logits(model, prompt + reply.tokens)[len(prompt) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(reply.tokens)[:, None])[:, 0]
        assert reply.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@PROMPT_LISTS
def test_replies_depend_neither_on_the_number_of_slots_nor_on_the_order_of_requests(
    model: Any, prompts: list[tuple[int, ...]]
) -> None:
    requests = _requests(prompts=prompts)
    replies = [reply.tokens for reply in _sample(model, requests, 64)]
    assert [reply.tokens for reply in _sample(model, requests, 3)] == replies
    assert [reply.tokens for reply in _sample(model, requests[::-1], 7)] == replies
    assert [reply.tokens for reply in _sample(model, requests, 64, seed=6)] != replies
    assert len({tuple(tokens) for tokens in replies[:6]}) > 1  # samples of one prompt differ


def test_its_own_attention_is_gone_after_an_exception(model: Any) -> None:
    before = _logits(model, [*PROMPTS[2]])
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 9:
            raise KeyError

    hook = model.base_model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        _sample(model, _requests(), 4)
    hook.remove()
    assert torch.equal(_logits(model, [*PROMPTS[2]]), before)
    assert lean._ATTENTION not in ALL_ATTENTION_FUNCTIONS.valid_keys()


@pytest.mark.parametrize("prompts", [PROMPTS[:4], PROMPTS[-2:]])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_computed_in_32_bits(dtype: torch.dtype, prompts: list[tuple[int, ...]]) -> None:
    """Large biases of queries and keys make scores that 16 bits cannot hold before they are scaled."""
    torch.manual_seed(6)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["qwen2"](), attn_implementation="sdpa").eval()
    with torch.inference_mode():
        for layer in model.base_model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.bias.data.normal_(std=100)
        error = engine_error(LeanEngine(model.to(dtype)), model, prompts, Stop())  # type: ignore[arg-type]
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("of", ["_with_prefix", "attend"])
def test_a_wrong_attention_is_noticed_when_a_model_is_loaded(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = load_backend(load_recipe("tiny"))
    attend = getattr(lean._Rows, of)
    assert backend.open_engine("lean").name == "lean"

    def wrong(*arguments: Any, **options: Any) -> Any:
        output = attend(*arguments, **options)
        return (2 * output[0], None) if isinstance(output, tuple) else 2 * output

    monkeypatch.setattr(lean._Rows, of, wrong)
    assert backend.open_engine("auto").name == "generate"
    with pytest.raises(UserError, match=r"model\.engine lean: .*probabilities"):
        backend.open_engine("lean")


def test_the_caller_does_not_compute_in_inference_mode() -> None:
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    replies = LeanEngine(model.eval()).sample(_requests(), SAMPLING, Stop(), 8)  # type: ignore[arg-type]
    for _ in range(3):
        tokens = next(replies).tokens
        assert not torch.is_inference_mode_enabled()
        model(input_ids=torch.tensor([tokens])).logits.sum().backward()


def test_the_error_shows_an_attention_of_another_kind(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lean_error(model) < 1e-6
    attend = lean._Rows.attend
    monkeypatch.setattr(
        lean._Rows, "attend", lambda self, *args, **named: attend(self, *args, **named | {"scaling": 0.1})
    )
    assert lean_error(model) > 1e-3


def test_a_draw_that_rounds_up_to_one_chooses_a_token_that_exists() -> None:
    logits, draws = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[1 - 1e-12]], dtype=torch.double)
    tokens, _ = lean._choose(logits, torch.ones(1, 1), SAMPLING, draws)
    assert tokens.tolist() == [[1]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_one_line(model: Any, temperature: float) -> None:
    """Not a token that does not exist, which on a GPU would end the process."""
    model.lm_head.weight.data.fill_(torch.nan)
    if temperature:
        with pytest.raises(UserError, match="logits are not finite"):
            _sample(model, _requests(temperature), 4)
    else:
        assert all(0 <= token < 30 for reply in _sample(model, _requests(0.0), 4) for token in reply.tokens)


@pytest.fixture
def small() -> Iterator[Any]:
    torch.manual_seed(2)
    with torch.inference_mode():
        yield transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | {"vocab_size": 12})).eval()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.6, 0.8), (1.0, 0.35)])
def test_tokens_have_the_distribution_that_was_asked_for(small: Any, temperature: float, top_p: float) -> None:
    prompt, n = [3, 1, 4, 1, 5], 3000
    requests = [Request(index, prompt, temperature) for index in range(n)]
    counts = Counter(
        reply.tokens[0] for reply in _sample(small, requests, 512, max_new_tokens=1, top_p=top_p, temperature=1.0)
    )
    probabilities = (_logits(small, prompt)[-1].double() / temperature).softmax(-1)
    # The smallest set of likeliest tokens whose probabilities reach top_p, counted here one by one.
    expected, total = {}, 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if total >= top_p:
            break
        expected[token] = float(probabilities[token])
        total += expected[token]
    assert set(counts) == {token for token in expected if counts[token]} != set()
    if len(expected) == 1:
        return
    likely = [token for token, share in expected.items() if n * share / total >= 5]
    rest = n - sum(counts[token] for token in likely)
    shares = [n * expected[token] / total for token in likely]
    observed = [counts[token] for token in likely]
    if (left := n - sum(shares)) > 1:
        observed, shares = [*observed, rest], [*shares, left]
    assert chisquare(observed, [share * sum(observed) / sum(shares) for share in shares]).pvalue > 1e-4


def test_all_tokens_of_a_reply_use_fresh_random_numbers(small: Any) -> None:
    """Second tokens, given the first, are distributed as the model says: a draw used twice would tie them together."""
    requests = [Request(index, [3, 1], 1.0) for index in range(3000)]
    pairs = [tuple(reply.tokens) for reply in _sample(small, requests, 512, max_new_tokens=2) if len(reply.tokens) == 2]
    (first, _), *_ = Counter(first for first, _ in pairs).most_common(1)
    seconds = Counter(second for one, second in pairs if one == first)
    expected = _logits(small, [3, 1, first])[-1].softmax(-1) * seconds.total()
    likely = [token for token in range(12) if expected[token] >= 5]
    observed = torch.tensor([seconds[token] for token in likely]).double()
    shares = expected[likely].double()
    assert chisquare(observed, shares * observed.sum() / shares.sum()).pvalue > 1e-4


def test_each_prompt_and_the_prefix_of_all_is_read_once(model: Any) -> None:
    read: list[tuple[int, ...]] = []

    def count(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        if inputs["past_key_values"].__class__ is transformers.DynamicCache:
            read.append(tuple(inputs["input_ids"].shape))

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    prompts = PROMPTS[:4]  # those with the common prefix
    # Two temperatures: those of the second copy the prompt from the row of the first.
    requests = [Request(index, prompts[index % 4], 1.0 + 0.1 * (index % 8 // 4)) for index in range(40)]
    _sample(model, requests, 64)
    handle.remove()
    # The last token of a prompt is fed with its replies. The prefix of the four has one token more than PREFIX, less
    # the last token of the shortest prompt, which is not read ahead.
    assert read == [(1, len(PREFIX)), (4, max(map(len, prompts)) - 1 - len(PREFIX))]


@pytest.mark.parametrize("prompts", [[PREFIX, (*PREFIX, 4)], [(*PREFIX, 4), (*PREFIX, 4, 5), (*PREFIX, 9)]])
def test_a_prompt_may_begin_another_one(model: Any, prompts: list[tuple[int, ...]]) -> None:
    requests = [Request(number, prompt, 0.0) for number, prompt in enumerate(prompts)]
    for reply in _sample(model, requests, 4, max_new_tokens=3):
        tokens = [*prompts[reply.id], *reply.tokens]
        assert [int(at) for at in _logits(model, tokens).argmax(-1)][-len(reply.tokens) - 1 : -1] == reply.tokens


@pytest.mark.parametrize("slots", [8, 80])
def test_what_replies_begin_with_is_computed_once(model: Any, slots: int) -> None:
    """Rows of all steps are the distinct beginnings of replies, if the samples of a prompt start together."""
    rows: list[int] = []
    handle = model.register_forward_pre_hook(lambda _m, _a, kw: rows.append(kw["input_ids"].shape[0]), with_kwargs=True)
    prompts = [(13,), (14,)]  # which nothing is read of before the replies begin
    requests = [Request(index, prompts[index // 8 % 2], 0.3 + 0.1 * (index // 16)) for index in range(48)]
    replies = _sample(model, requests, slots)
    handle.remove()
    beginnings = {
        (requests[reply.id].prompt, requests[reply.id].temperature, tuple(reply.tokens[:end]))
        for reply in replies
        for end in range(len(reply.tokens))
    }
    assert len(beginnings) < 0.9 * sum(len(reply.tokens) for reply in replies)
    if slots == 80:
        assert sum(rows) == len(beginnings)
    else:  # two samples of a prompt start together
        assert len(beginnings) < sum(rows) < sum(len(reply.tokens) for reply in replies)


def test_freed_slots_are_refilled(small: Any) -> None:
    class Lengths:
        """The first token of a reply decides how long it gets: one in twelve has 40 tokens."""

        def has_ended(self, tokens: list[int]) -> bool:
            return len(tokens) >= (40 if tokens[0] == 5 else 2)

    rows: list[int] = []
    handle = small.register_forward_pre_hook(lambda _m, _a, kw: rows.append(kw["input_ids"].shape[0]), with_kwargs=True)
    requests, sampling = [Request(index, [3], 3.0) for index in range(80)], replace(SAMPLING, max_new_tokens=40)
    replies = list(LeanEngine(small).sample(requests, sampling, Lengths(), 4))  # type: ignore[arg-type]
    handle.remove()
    lengths = [len(reply.tokens) for reply in sorted(replies, key=lambda reply: reply.id)]
    assert set(lengths) == {2, 40}
    # Slots are idle only while the last replies end. In fixed batches they wait for the longest reply of each batch.
    assert sum(rows) <= sum(lengths) + 4 * 40
    assert sum(4 * max(lengths[start : start + 4]) for start in range(0, 80, 4)) > 1.5 * sum(rows)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: transformers.MistralConfig(**SIZES, sliding_window=8), "full attention"),
        (lambda: transformers.Gemma2Config(**SIZES, head_dim=8), "full attention"),
        (
            lambda: transformers.DeepseekV3Config(**SIZES | {"num_hidden_layers": 1, "num_key_value_heads": 4}),
            "compresses",
        ),
        (lambda: transformers.MambaConfig(vocab_size=12, hidden_size=16, num_hidden_layers=1), "full attention"),
        (lambda: transformers.BloomConfig(vocab_size=12, hidden_size=16, n_layer=1, n_head=2), "replace its attention"),
        (lambda: transformers.Gemma2Config(**SIZES, head_dim=8, layer_types=["full_attention"] * 3), "caps scores"),
    ],
)
def test_models_that_it_would_get_wrong_are_refused(config: Any, reason: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config())
    assert reason in (obstacle(model) or "")


def test_models_that_it_knows_are_not_refused(model: Any) -> None:
    assert obstacle(model) is None
