"""The forward pass that reads each prompt once, against the plain one."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers

from ladder_lite.models.shared_prompts import _lines, sharing_prompts

SIZES = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
}
PROMPTS = [[0, 0, 5, 6, 7], [1, 2, 3, 4, 5], [0, 0, 0, 0, 9]]  # 0 is padding, on the left
REPLIES = 4


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param](), attn_implementation="sdpa").train()


def _rows(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a prompt and a reply of four tokens, one of them shorter, and their attention mask."""
    torch.manual_seed(1)
    ids = torch.cat([torch.tensor(prompts), torch.randint(1, 30, (len(prompts), REPLIES))], dim=1)
    mask = (ids != 0).long()
    mask[0, -1] = ids[0, -1] = 0
    return ids, mask


def _logprobs_and_gradients(model: Any, ids: torch.Tensor, mask: torch.Tensor, shares: bool) -> list[torch.Tensor]:
    model.zero_grad()
    with sharing_prompts(model, REPLIES) if shares else nullcontext():
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=REPLIES + 1, use_cache=False).logits
    assert logits.shape == (len(ids), REPLIES + 1, 30)
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, -REPLIES:, None]).squeeze(-1) * mask[:, -REPLIES:]
    (logprobs * torch.arange(len(ids))[:, None]).sum().backward()  # other weights for the replies of a prompt
    return [logprobs.detach(), *(weight.grad.clone() for weight in model.parameters())]


def _n_tokens(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> int:
    """Tokens that go through the layers when prompts are shared."""
    seen: list[int] = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0][..., 0].numel()))
    with torch.no_grad(), sharing_prompts(model, REPLIES):
        model(input_ids=ids, attention_mask=mask, logits_to_keep=REPLIES + 1, use_cache=False)
    hook.remove()
    return sum(seen)


def _n_packed(ids: torch.Tensor) -> int:
    """Tokens of the lines if each has one prompt: all are as long as the one with the most distinct beginnings."""
    beginnings: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for row in ids.tolist():
        length = len(row) - REPLIES  # of the padded prompt; its last token counts as the first one of the reply
        tokens = [token for token in row[length:] if token]
        found = beginnings.setdefault(tuple(row[:length]), set())
        found.update(tuple(tokens[:end]) for end in range(len(tokens) + 1))
    return len(beginnings) * max(map(len, beginnings.values()))


def test_logits_and_gradients_are_those_of_the_plain_pass(model: Any) -> None:
    ids, mask = _rows([prompt for prompt in PROMPTS for _ in range(3)])
    plain, shared = (_logprobs_and_gradients(model, ids, mask, shares) for shares in (False, True))
    for one, other in zip(plain, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-6 + 1e-5 * float(one.abs().max()))
    assert all(bool(gradient.any()) for gradient in shared[1:])


def test_hidden_states_have_their_full_length(model: Any) -> None:
    """TRL 1.16 calls the model below the LM head, and expects a hidden state for each token."""
    ids, mask = _rows([prompt for prompt in PROMPTS for _ in range(2)])
    plain = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    with sharing_prompts(model, REPLIES):
        shared = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert shared.shape == plain.shape
    of_replies = mask.bool() & (torch.arange(ids.shape[1]) >= ids.shape[1] - REPLIES - 1)
    assert torch.allclose(shared[of_replies], plain[of_replies], atol=1e-5)


def test_each_prompt_is_read_once(model: Any) -> None:
    ids, mask = _rows([prompt for prompt in PROMPTS for _ in range(3)])
    # All but the last token of each prompt, then that token and the replies.
    assert _n_tokens(model, ids, mask) == 3 * 4 + _n_packed(ids) < 3 * 4 + 9 * (REPLIES + 1)


def test_what_replies_begin_with_is_read_once(model: Any) -> None:
    ids, mask = _rows([PROMPTS[at] for at in (0, 1, 0, 0, 1, 0)])
    ids[2, -REPLIES:-1] = ids[0, -REPLIES:-1]  # row 2 goes on after row 0, which has a token less
    ids[3, -REPLIES:] = ids[2, -REPLIES:]  # equal replies, with different advantages
    ids[5, -REPLIES] = ids[0, -REPLIES]
    ids[4, -REPLIES:] = ids[0, -REPLIES:]  # the same reply to another prompt
    ids[4, -1] = 7
    plain, shared = (_logprobs_and_gradients(model, ids, mask, shares) for shares in (False, True))
    for one, other in zip(plain, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-6 + 1e-5 * float(one.abs().max()))
    # Of each prompt four tokens; the first prompt's last one, three of row 0, the last of row 2, three of row 5. Those
    # of the second prompt, with two different replies, are more.
    assert _n_packed(ids) == 2 * max(1 + 3 + 1 + 3, 1 + 4 + 4)
    assert _n_tokens(model, ids, mask) == 2 * 4 + _n_packed(ids)


def test_long_replies_with_nothing_in_common_are_computed_in_the_plain_way(model: Any) -> None:
    """Packed, each token would look for those that it attends to among the tokens of all replies."""
    n, length = 8, 400
    prompt = torch.tensor([[3, 4, 5]]).expand(n, -1)
    replies = torch.arange(n * length).view(n, length) % 29 + 1
    for same, width in ((0, 3 + length), (length - 1, 1 + length + n - 1)):
        replies[:, :same] = replies[0, :same]
        ids = torch.cat([prompt, replies], dim=1)
        widths: list[int] = []
        hook = model.model.layers[0].register_forward_pre_hook(
            lambda _, args, seen=widths: seen.append(args[0].shape[1])
        )
        with torch.no_grad(), sharing_prompts(model, length):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        hook.remove()
        assert widths[-1] == width


@pytest.mark.parametrize("prompts", [[[0, 0, 8, 9, 4, 5], [8, 9, 1, 2, 3, 5], [0, 8, 9, 1, 6, 5]], [[0, 8, 9, 4]]])
def test_what_all_prompts_begin_with_is_read_once(model: Any, prompts: list[list[int]]) -> None:
    ids, mask = _rows([prompt for prompt in prompts for _ in range(2)])
    plain, shared = (_logprobs_and_gradients(model, ids, mask, shares) for shares in (False, True))
    for one, other in zip(plain, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-6 + 1e-5 * float(one.abs().max()))
    # Two common tokens and, of the longest prompt, three others; a single prompt is common as a whole.
    assert _n_tokens(model, ids, mask) == (2 + 3 * 3 if len(prompts) == 3 else 2) + _n_packed(ids)


def test_a_long_reply_does_not_lengthen_the_others(model: Any) -> None:
    ids, mask = _rows([PROMPTS[0]] * 6)
    for row, n_tokens in enumerate((3, 1, 1, 2, 0, 1)):  # 0: its completion is left out of the loss
        ids[row, len(PROMPTS[0]) + n_tokens :] = mask[row, len(PROMPTS[0]) + n_tokens :] = 0
    plain, shared = (_logprobs_and_gradients(model, ids, mask, shares) for shares in (False, True))
    for one, other in zip(plain, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-6 + 1e-5 * float(one.abs().max()))
    assert _n_tokens(model, ids, mask) == 2 + _n_packed(ids) < 2 + 6 + (3 + 1 + 1 + 2 + 1)


@pytest.mark.parametrize("prompts", [[PROMPTS[at] for at in (2, 0, 1, 0, 2, 2)], [[7], [7], [8]]])
def test_rows_in_any_order_and_prompts_of_one_token(model: Any, prompts: list[list[int]]) -> None:
    ids, mask = _rows(prompts)
    plain, shared = (_logprobs_and_gradients(model, ids, mask, shares) for shares in (False, True))
    for one, other in zip(plain, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-6 + 1e-5 * float(one.abs().max()))


def test_few_replies_to_a_prompt_share_a_line_with_those_to_another(model: Any) -> None:
    ids, mask = _rows([PROMPTS[at] for at in (0, 0, 0, 0, 1, 1, 2, 2)])
    ids[:, -REPLIES:] = torch.arange(1, 1 + len(ids) * REPLIES).view(-1, REPLIES) % 30  # all tokens differ
    ids[7, -REPLIES:] = ids[6, -REPLIES:]
    mask = (ids != 0).long()
    plain, shared = (_logprobs_and_gradients(model, ids, mask, shares) for shares in (False, True))
    for one, other in zip(plain, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-6 + 1e-5 * float(one.abs().max()))
    # 17 tokens of the first prompt, then 9 and 5 of the others: two lines
    assert _n_tokens(model, ids, mask) == 3 * 4 + 2 * 17


@pytest.mark.parametrize("n_of_each", [(4, 2, 2), (1, 3, 1), (5, 1, 1)])
def test_prompts_that_begin_alike_share_lines(model: Any, n_of_each: tuple[int, ...]) -> None:
    prompts = [[0, 8, 9, 7, 4, 5], [0, 0, 8, 9, 7, 6], [8, 9, 7, 1, 2, 3]]
    ids, mask = _rows([prompt for prompt, n in zip(prompts, n_of_each, strict=True) for _ in range(n)])
    plain, shared = (_logprobs_and_gradients(model, ids, mask, shares) for shares in (False, True))
    for one, other in zip(plain, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-6 + 1e-5 * float(one.abs().max()))


def test_lines_are_no_longer_than_the_largest_item() -> None:
    sizes = [3, 1, 7, 2, 2, 4, 1]
    lines = _lines(sizes)
    assert sorted(item for line in lines for item in line) == list(range(7))
    assert [sum(sizes[item] for item in line) for line in lines] == [7, 7, 6]
    assert [len(line) for line in _lines([30] + [1] * 20)] == [1, 8, 8, 4]


def test_prompts_that_differ_take_the_plain_pass(model: Any) -> None:
    ids, mask = _rows(PROMPTS)
    assert _n_tokens(model, ids, mask) == ids.numel()


def test_prompts_that_differ_at_their_ends_share_their_beginning(model: Any) -> None:
    """With one row left of each group, as when few rows have a nonzero advantage, examples are still read once."""
    ids, mask = _rows([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7, 6]])
    plain, shared = (_logprobs_and_gradients(model, ids, mask, shares) for shares in (False, True))
    for one, other in zip(plain, shared, strict=True):
        assert torch.allclose(one, other, atol=1e-6 + 1e-5 * float(one.abs().max()))
    assert _n_tokens(model, ids, mask) == 4 + 2 + 2 * (REPLIES + 1)
    assert _n_tokens(model, ids[:1], mask[:1]) == ids[:1].numel()  # a single row has nothing to share


def test_gradient_checkpointing_is_an_error(model: Any) -> None:
    model.gradient_checkpointing_enable()
    ids, mask = _rows(PROMPTS * 2)
    with pytest.raises(RuntimeError, match="gradient checkpointing"):
        _logprobs_and_gradients(model, ids, mask, shares=True)


def test_the_models_own_forward_is_back_afterwards(model: Any) -> None:
    backbone = model.base_model
    forward = backbone.forward
    with sharing_prompts(model, REPLIES):
        assert backbone.forward != forward
    assert backbone.forward == forward
    assert "forward" not in vars(backbone)
    backbone.forward = wrapped = lambda **named: forward(**named)  # as accelerate does
    with sharing_prompts(model, REPLIES):
        pass
    assert backbone.forward is wrapped
