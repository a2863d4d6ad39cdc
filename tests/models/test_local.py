"""`LocalBackend` with the embedded model, in full precision and in 4 bits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ladder_lite.config.load import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.models import Backend, Rollout, Sampling, load_backend
from ladder_lite.models.engines import Reply
from ladder_lite.models.memory import GIB
from ladder_lite.problems.attempts import Completion
from ladder_lite.tasks import load_task
from ladder_lite.terminal import Live
from ladder_lite.variants import Writer
from ladder_lite.variants.transformations import open_library

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=60, batch_size=8, seed=3)


def _ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"solve integrate({text},x)"}]


def test_the_embedded_model_loads_like_any_model_of_the_hub() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import ladder_lite.tiny

    folder = Path(ladder_lite.tiny.__file__).parent
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(_ask("x**2"), add_generation_prompt=True, return_tensors="pt")
    ids = prompt["input_ids"] if isinstance(prompt, dict) or hasattr(prompt, "keys") else prompt
    reply = tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0][ids.shape[1] :])
    assert reply.startswith("<answer>")
    assert reply.endswith("</answer><end>")


def test_replies_come_in_the_order_of_the_prompts(backend: Backend) -> None:
    replies = backend.sample([_ask("5*sin(2*x)+x**3-exp(4*x)"), _ask("x**2")], 3, SAMPLING)
    assert [len(completions) for completions in replies] == [3, 3]
    assert all("x" in completion.text and not completion.truncated for part in replies for completion in part)
    assert all(len(long.text) > len(short.text) for long, short in zip(*replies, strict=True))


def test_replies_depend_on_the_seed_and_leave_the_global_generator_unchanged(backend: Backend) -> None:
    import torch

    prompts = [_ask("x**2+sin(3*x)")]
    torch.manual_seed(1)
    first = backend.sample(prompts, 4, SAMPLING)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert backend.sample(prompts, 4, SAMPLING) == first
    other = Sampling(1.0, 1.0, 60, 8, seed=4)
    assert backend.sample(prompts, 4, other) != first


def test_prompts_of_one_batch_can_have_different_temperatures(backend: Backend) -> None:
    prompts = [[{"role": "user", "content": f"solve integrate({n}*x**{n}+sin({n}*x),x)"}] for n in range(2, 8)]

    def texts(*temperatures: float) -> list[str]:
        temperature = temperatures if len(temperatures) > 1 else temperatures[0]
        sampling = replace(SAMPLING, temperature=temperature)
        return [completion.text for (completion,) in backend.sample(prompts, 1, sampling)]

    greedy = texts(0.0)
    assert texts(*[1e-4] * 6) == greedy  # so low that it equals greedy
    mixed = texts(1e-4, 5.0, 1e-4, 5.0, 1e-4, 5.0)
    assert mixed[::2] == greedy[::2]
    assert all(hot != best for hot, best in zip(mixed[1::2], greedy[1::2], strict=True))


def test_a_truncated_reply_is_marked(backend: Backend) -> None:
    (completion,) = backend.sample([_ask("x**2+sin(3*x)")], 1, Sampling(0.0, 1.0, 3, 8, 0))[0]
    assert (completion.truncated, completion.n_tokens) == (True, 3)


def test_the_error_names_a_word_that_is_not_in_the_vocabulary(backend: Backend) -> None:
    with pytest.raises(UserError, match="no word for 'q'"):
        backend.sample([_ask("q*x")], 1, SAMPLING)


def _disturb(backend: Backend) -> None:
    import torch

    model, _ = backend.trainable()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight))


@pytest.mark.parametrize("way", ["snapshot", "file"])
def test_an_adapter_is_restored_bit_by_bit(backend: Backend, way: str, tmp_path: Path) -> None:
    _disturb(backend)
    model, _ = backend.trainable()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    if way == "snapshot":
        adapter = backend.snapshot()
        restore: Callable[[], None] = lambda: backend.restore(adapter)  # noqa: E731
    else:
        backend.save(tmp_path)
        restore = lambda: backend.load(tmp_path)  # noqa: E731
    _disturb(backend)
    assert any(not weight.equal(before[name]) for name, weight in model.named_parameters())
    restore()
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())


def test_the_error_names_a_damaged_adapter(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        backend.load(tmp_path)
    backend.save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="--redo"):
        backend.load(tmp_path)


def test_ttrl_changes_no_weight(backend: Backend, tmp_path: Path) -> None:
    from ladder_lite import ttrl

    recipe = load_recipe("tiny", ["ttrl.per_root=6", "ttrl.depth=1", "ttrl.max_steps=2", "eval.samples=2", "eval.k=2"])
    task = load_task(recipe.task)
    tests = task.problems("test")
    model, _ = backend.trainable()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with Live() as live:
        library = open_library(task, recipe.variants, tmp_path)
        writer = Writer(task, backend, recipe.variants, library, {"tiny": tests}, recipe.seed)
        outcome = ttrl.train_on_problem(writer, tests[0], recipe, tmp_path, live)
    assert outcome.steps >= 1
    assert outcome.problem_id == tests[0].id
    assert (tmp_path / "train" / "metrics.jsonl").exists()
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        ("ablations.longer={grpo.trl.max_completion_length: 300}", 300),
        ("ablations.longer={variants.max_new_tokens: 301}", 301),
        ("ttrl.trl={max_completion_length: 302}", 302),
        ("ttrl.trl={max_completion_length: 20}", 120),  # shorter than those of grpo
        ("eval.max_new_tokens=303", 303),
    ],
)
def test_a_model_is_loaded_for_the_longest_reply_of_any_condition(change: str, tokens: int) -> None:
    from ladder_lite.models.local import _longest_reply

    assert _longest_reply(load_recipe("tiny", [change])) == tokens


# --- merging the adapter into the weights


def _first_layer(backend: Backend) -> Any:
    model, _ = backend.trainable()
    return model.base_model.model.model.layers[0].self_attn.q_proj


def _when_sampling(backend: Backend, monkeypatch: pytest.MonkeyPatch, hook: Callable[[], None]) -> None:
    """Call `hook` whenever the engine samples."""
    sample = backend._engine.sample

    def sample_after_hook(*args: Any) -> Any:
        hook()
        return sample(*args)

    monkeypatch.setattr(backend._engine, "sample", sample_after_hook)


@pytest.mark.parametrize("fails", [False, True])
def test_merging_puts_the_original_tensors_back(backend: Backend, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    _disturb(backend)
    model, _ = backend.trainable()
    before = {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in model.named_parameters()}
    base = _first_layer(backend).get_base_layer().weight
    is_merged = []

    def record() -> None:
        is_merged.append(not base.detach().equal(before[name][1]))
        if fails:
            raise KeyboardInterrupt

    (name,) = (name for name, weight in model.named_parameters() if weight is base)
    _when_sampling(backend, monkeypatch, record)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            backend.sample([_ask("x")], 1, SAMPLING)
    else:
        backend.sample([_ask("x")], 1, SAMPLING)
    assert is_merged == [True]
    for name, weight in model.named_parameters():
        assert weight.data_ptr() == before[name][0]
        assert weight.equal(before[name][1])
    assert not _first_layer(backend).merged


def test_a_merged_model_has_the_same_output(backend: Backend) -> None:
    import torch

    from ladder_lite.models.adapter import merged

    _disturb(backend)
    model, tokenizer = backend.trainable()
    ids = tokenizer("<answer>x**2+sin(3*x)</answer>", return_tensors="pt").input_ids
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with merged(model):
            with_merge = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
    assert torch.allclose(with_merge, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
    assert not torch.allclose(base, plain, rtol=1e-1, atol=1e-1 * float(plain.abs().max()))


@pytest.mark.parametrize("change", ["model.load_in_4bit=true", "model.dtype=bfloat16"])
def test_only_plain_adapters_on_float32_are_merged(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load_backend(load_recipe("tiny", [change]))
    merged = []
    _when_sampling(backend, monkeypatch, lambda: merged.append(_first_layer(backend).merged))
    backend.sample([_ask("x")], 1, SAMPLING)
    assert merged == [False]


def test_weights_that_are_shared_or_do_not_fit_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    from ladder_lite.models.adapter import _mergeable

    backend = load_backend(load_recipe("tiny", ['model.lora.target_modules=["lm_head","q_proj"]']))
    model, _ = backend.trainable()  # its head shares the weight of the embedding
    n_layers = model.config.num_hidden_layers
    assert len(_mergeable(model)) == n_layers
    size = 4 * model.config.hidden_size**2 * n_layers
    for times, merges in ((8.1, True), (7.9, False)):  # copies may take an eighth of the memory
        memory = SimpleNamespace(total=int(times * size), available=0)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        assert bool(_mergeable(model)) == merges


@pytest.mark.parametrize(("engine", "at_once"), [("lean", 70), ("generate", 32)])
def test_replies_that_a_cpu_generates_at_once(engine: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load_backend(load_recipe("tiny", [f"model.engine={engine}"]))
    tried = _fail_above(1000, monkeypatch, backend)
    backend.sample([_ask("x")], 70, replace(SAMPLING, batch_size=200, max_new_tokens=2))
    assert tried == [(70, at_once)]


@pytest.mark.parametrize(
    ("settings", "engine"),
    [([], "lean"), (["model.engine=lean", "model.load_in_4bit=true"], "lean"), (["model.engine=generate"], "generate")],
)
def test_engines_give_the_same_greedy_replies(backend: Backend, settings: list[str], engine: str) -> None:
    other = load_backend(load_recipe("tiny", settings))
    assert other._engine.name == engine
    if "model.load_in_4bit=true" in settings:  # other weights
        backend = load_backend(load_recipe("tiny", ["model.engine=generate", "model.load_in_4bit=true"]))
    texts = ["x**2+sin(3*x)", "x", "exp(2*x)", "5*sin(2*x)+x**3-exp(4*x)", "cos(x)/2+7"]
    greedy = replace(SAMPLING, temperature=0.0, stop=("</answer>",), batch_size=3)
    prompts = [_ask(text) for text in texts]
    assert other.roll_out(prompts, greedy) == backend.roll_out(prompts, greedy)


def test_lean_refuses_a_model_that_it_would_get_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from ladder_lite.models.engines import lean

    monkeypatch.setattr(lean, "obstacle", lambda _model: "it has layers without full attention")
    with pytest.raises(UserError, match=r"model\.engine lean: .* set model\.engine=generate"):
        load_backend(load_recipe("tiny", ["model.engine=lean"]))
    assert load_backend(load_recipe("tiny"))._engine.name == "generate"  # auto


def test_four_bit_weights_train(tmp_path: Path) -> None:
    from ladder_lite.train import grpo
    from ladder_lite.train.state import Training

    small = ["grpo.trl.max_steps=2", "grpo.rows=uniform", "grpo.trl.beta=0.05"]
    recipe = load_recipe("tiny", ["model.load_in_4bit=true", *small])
    task, backend = load_task(recipe.task), load_backend(recipe)
    before = backend.snapshot()
    steps = grpo.train(Training(task, backend, recipe.grpo, tmp_path, 0), task.problems("train"), lambda *_: False)
    assert [step.step for step in steps] == [1, 2]
    assert steps[0].kl == 0  # the frozen copy has the same dtype as the adapter
    assert {str(weight.dtype) for weight in backend.snapshot().values()} == {"torch.float32"}
    assert backend.snapshot().keys() == before.keys()


def test_four_bit_weights_have_gradients_after_sampling() -> None:
    """On some CPUs, bitsandbytes packs the weights for generation, in a form without gradients."""
    import torch

    model = load_backend(load_recipe("tiny", ["model.load_in_4bit=true"]))
    trained, tokenizer = model.trainable()
    ids = tokenizer("<answer>x**2+sin(3*x)</answer>", return_tensors="pt").input_ids
    for weight in trained.parameters():
        if weight.requires_grad:  # B begins at 0, and so does the gradient of A
            torch.nn.init.normal_(weight, std=0.02)

    def gradient() -> torch.Tensor:
        trained.train()
        trained.zero_grad()
        trained(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([weight.grad.flatten() for weight in trained.parameters() if weight.requires_grad])

    before = gradient()
    model.sample([_ask("x**2")], 1, SAMPLING)
    assert torch.equal(gradient(), before)


def test_memory_beyond_the_limit_of_the_process_is_not_counted(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(backend, "_device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (6 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: GIB)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: 1.0)
    settings = load_recipe("tiny").grpo
    assert backend.micro_batch(settings) == settings.trl["per_device_train_batch_size"]
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: 0.001)
    with pytest.raises(UserError, match=r"the 0\.0 GiB of free GPU memory"):
        backend.micro_batch(settings)


@pytest.mark.parametrize(
    ("variable", "limit", "threads"),
    [(None, 10**9, 1), (None, 10**6, 2), ("2", 10**9, 2)],
    ids=["small model", "large model", "number set by the user"],
)
def test_a_small_model_runs_on_one_thread(
    variable: str | None, limit: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ladder_lite.models import local

    monkeypatch.setattr(local, "_ONE_THREAD", limit)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        load_backend(load_recipe("tiny"))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# --- padding


@pytest.fixture(scope="module")
def generating() -> Backend:
    """A backend whose engine is `generate`."""
    return load_backend(load_recipe("tiny", ["model.engine=generate"]))


def test_a_model_that_attends_to_padding_is_an_error(generating: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """As models do that ignore the attention mask."""
    import torch

    _, tokenizer = generating.trainable()
    pad = type(tokenizer).pad

    def pad_without_mask(self: Any, *args: Any, **named: Any) -> Any:
        inputs = pad(self, *args, **named)
        inputs["attention_mask"] = torch.ones_like(inputs.input_ids)
        return inputs

    monkeypatch.setattr(type(tokenizer), "pad", pad_without_mask)
    with pytest.raises(UserError, match=r"model\.id: its replies .* probabilities"):
        generating.open_engine("generate")


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_logits_that_overflow_are_an_error(backend: Backend, number: float) -> None:
    import torch

    model, _ = backend.trainable()
    weight = model.get_output_embeddings().weight
    before = weight.detach().clone()
    try:
        weight.data.fill_(number)
        with pytest.raises(UserError, match=r"overflow in float32; set model\.dtype=bfloat16"):
            backend._check_overflow()
    finally:
        weight.data.copy_(before)
    assert torch.equal(weight, before)


def test_the_padding_side_of_the_tokenizer_does_not_matter(generating: Backend) -> None:
    backend = generating
    prompts = [_ask("5*sin(2*x)+x**3-exp(4*x)"), _ask("x**2")]
    _, tokenizer = backend.trainable()
    before = backend.sample(prompts, 2, SAMPLING)
    tokenizer.padding_side = "right"
    try:
        assert backend.sample(prompts, 2, SAMPLING) == before
    finally:
        tokenizer.padding_side = "left"


# --- the end of a reply


def test_the_generation_config_of_the_model_is_ignored(generating: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = generating
    prompts = [_ask("x**2+sin(3*x)")]
    plain = backend.sample(prompts, 4, SAMPLING)
    model, _ = backend.trainable()
    for name, value in {"repetition_penalty": 1.5, "temperature": 0.01, "top_p": 0.1, "top_k": 1}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert backend.sample(prompts, 4, SAMPLING) == plain


def test_the_padding_token_is_passed_as_a_keyword(generating: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth's `generate` pads with the config's first end token unless a keyword tells otherwise."""
    backend = generating
    model, tokenizer = backend.trainable()
    generate, seen = type(model).generate, []

    def record(self: Any, *args: Any, **named: Any) -> Any:
        seen.append(named["pad_token_id"])
        return generate(self, *args, **named)

    monkeypatch.setattr(type(model), "generate", record)
    backend.sample([_ask("x**2")], 1, SAMPLING)
    assert seen == [tokenizer.pad_token_id]


def test_every_end_token_of_the_model_ends_a_turn() -> None:
    from ladder_lite.models.local import _end_token_ids

    def ends(of_model: int | list[int] | None, of_tokenizer: int | None) -> set[int]:
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=of_model))
        return set(_end_token_ids(model, SimpleNamespace(eos_token_id=of_tokenizer)))

    assert ends([128001, 128008, 128009], 128009) == {128001, 128008, 128009}
    assert ends(7, 9) == {7, 9}
    assert ends(None, 9) == {9}


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Any:
    """Byte-level BPE like that of Llama 3 and Qwen 2: a stop text has several tokens, and one may extend beyond it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["<answer>x**2</answer>\n", "an answer, </answer>\n\n"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>")


def _stops_after(tokenizer: Any, prompt: str, ids: list[int], stop: tuple[str, ...]) -> int | None:
    """Return after how many tokens of a reply generation would end, None if never."""
    import torch

    from ladder_lite.models.engines.generate import _StopTexts
    from ladder_lite.models.engines.stopping import Stopping

    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    stopping = Stopping(tokenizer, frozenset(), stop)
    in_batches = _StopTexts(stopping, len(prompt_ids))
    for n in range(1, len(ids) + 1):
        (ended,) = in_batches(torch.tensor([prompt_ids + ids[:n]]), torch.empty(0)).tolist()
        assert ended == stopping.has_ended(ids[:n])
        if ended:
            return n
    return None


@pytest.mark.parametrize(
    ("reply", "stop", "kept"),
    [
        ("<answer>x**2</answer> and more", ("</answer>",), "<answer>x**2</answer>"),
        ("so é </answer> and </b>", ("</b>", "</answer>"), "so é </answer>"),
        ("x</answer", ("</answer>",), None),
        ("<answer>", ("</answer>",), None),
    ],
)
def test_a_stop_text_of_several_tokens_ends_a_reply(
    bytes_tokenizer: Any, reply: str, stop: tuple[str, ...], kept: str | None
) -> None:
    assert len(bytes_tokenizer.encode("</answer>")) > 1
    ids = bytes_tokenizer.encode(reply, add_special_tokens=False)
    prompt = "end with </answer>"  # contains the stop text itself
    n = _stops_after(bytes_tokenizer, prompt, ids, stop)
    assert (None if n is None else bytes_tokenizer.decode(ids[:n])) == kept


def test_a_token_that_extends_beyond_a_stop_text_ends_a_reply(bytes_tokenizer: Any) -> None:
    import copy

    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(bytes_tokenizer)
    tokenizer.add_tokens([AddedToken(">\n\n", normalized=False)])
    ids = tokenizer.encode("x</answer>\n\nSo", add_special_tokens=False)
    n = _stops_after(tokenizer, "p", ids, ("</answer>",))
    assert tokenizer.decode(ids[:n]) == "x</answer>\n\n"


def test_a_token_id_that_the_tokenizer_lacks_does_not_end_a_reply(bytes_tokenizer: Any) -> None:
    """Models may have more token ids than their tokenizers; Qwen 2 has 399 more."""
    assert _stops_after(bytes_tokenizer, "p", [len(bytes_tokenizer) + 100], ("</answer>",)) is None


def _with_tokenizer(backend: Backend, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> Any:
    monkeypatch.setattr(backend, "_tokenizer", tokenizer)
    monkeypatch.setattr(backend, "_end_ids", frozenset({tokenizer.eos_token_id}))
    monkeypatch.setattr(backend, "_special_ids", frozenset({tokenizer.eos_token_id, tokenizer.pad_token_id}))
    return lambda prompt, ids, stop: backend._rollout(prompt, Reply(0, ids, None), stop)


def test_tokens_of_a_reply_exclude_its_padding(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, bytes_tokenizer: Any
) -> None:
    rollout = _with_tokenizer(backend, monkeypatch, bytes_tokenizer)
    pad, end = bytes_tokenizer.pad_token_id, bytes_tokenizer.eos_token_id
    ids = bytes_tokenizer.encode("x</answer>", add_special_tokens=False)
    stopped = Completion("x</answer>", len(ids), truncated=False)
    stop = ("</answer>",)
    assert rollout([5], [*ids, pad, pad], stop) == Rollout([5], ids, stopped)
    assert rollout([5], ids, stop) == Rollout([5], ids, stopped)
    ended = replace(stopped, n_tokens=len(ids) + 1)
    assert rollout([5], [*ids, end, pad], ()) == Rollout([5], [*ids, end], ended)
    cut = replace(stopped, truncated=True)
    assert rollout([5], ids, ()) == Rollout([5], ids, cut)


def test_a_reply_that_begins_with_padding_gets_an_end_token(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, bytes_tokenizer: Any
) -> None:
    rollout = _with_tokenizer(backend, monkeypatch, bytes_tokenizer)
    pad, end = bytes_tokenizer.pad_token_id, bytes_tokenizer.eos_token_id
    assert rollout([5], [pad, 7, 8], ()) == Rollout([5], [end], Completion("", 0, truncated=True))
    assert rollout([5], [end, pad, pad], ()) == Rollout([5], [end], Completion("", 1, truncated=False))


def test_padding_with_the_end_of_turn_is_distinguished_from_an_end_of_turn(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, bytes_tokenizer: Any
) -> None:
    import copy

    tokenizer = copy.deepcopy(bytes_tokenizer)
    tokenizer.pad_token = "<end>"
    rollout = _with_tokenizer(backend, monkeypatch, tokenizer)
    end = tokenizer.eos_token_id
    ids = tokenizer.encode("x</answer>", add_special_tokens=False)
    assert (
        rollout([5], [*ids, end, end], ("</answer>",)).completion_ids == ids
    )  # ended by the stop text: padding follows
    assert rollout([5], [*ids, end, end], ()).completion_ids == [*ids, end]  # ended by the first end of turn


@pytest.mark.parametrize("temperature", [1.0, 0.5, (0.5, 1.5)])
def test_log_probabilities_equal_those_of_a_forward_pass(backend: Backend, temperature: Any) -> None:
    import torch

    model, _ = backend.trainable()
    prompts = [_ask("x**2+sin(3*x)"), _ask("x")]
    each = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    for rollout, value in zip(
        backend.roll_out(prompts, replace(SAMPLING, temperature=temperature, logprobs=True)), each, strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])).logits[0]
        start, ids = len(rollout.prompt_ids), torch.tensor(rollout.completion_ids)
        expected = (logits[start - 1 : -1] / value).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
        assert rollout.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(rollout.logprobs is None for rollout in backend.roll_out(prompts, SAMPLING))


def test_a_stop_text_ends_a_reply_of_the_model(backend: Backend) -> None:
    prompts = [_ask("x**2+sin(3*x)"), _ask("x")]
    sampling = replace(SAMPLING, temperature=0.0, stop=("sin", "</answer>"))
    _, tokenizer = backend.trainable()
    for rollout in backend.roll_out(prompts, sampling):
        assert rollout.completion.text.endswith(sampling.stop)
        assert not rollout.completion.truncated
        assert rollout.completion.n_tokens == len(rollout.completion_ids)
        assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & set(rollout.completion_ids)
        assert tokenizer.decode(rollout.completion_ids) == rollout.completion.text


# --- out of memory


def _fail_above(largest: int, monkeypatch: pytest.MonkeyPatch, backend: Backend) -> list[tuple[int, int]]:
    """Let the engine fail for more than `largest` replies at once; return a list that records (requests, at once)."""
    import torch

    sample, tried = backend._engine.sample, []

    def fail(requests: Any, sampling: Sampling, stopping: Any, at_once: int) -> Any:
        tried.append((len(requests), at_once))
        replies = sample(requests, sampling, stopping, at_once)
        if at_once > largest:
            yield next(replies)  # one ends before memory does
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from replies

    monkeypatch.setattr(backend._engine, "sample", fail)
    return tried


def test_replies_that_do_not_fit_are_generated_in_smaller_batches(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["x**2+sin(3*x)", "x", "exp(2*x)", "x**2", "5*sin(2*x)+x**3-exp(4*x)", "cos(x)", "x+1"]
    greedy = replace(SAMPLING, temperature=0.0)
    whole = backend.sample([_ask(text) for text in texts], 1, greedy)
    tried = _fail_above(3, monkeypatch, backend)
    assert backend.sample([_ask(text) for text in texts], 1, greedy) == whole
    assert tried == [(7, 7), (6, 3)]


def test_a_single_reply_that_does_not_fit_is_an_error(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _fail_above(0, monkeypatch, backend)
    with pytest.raises(UserError, match=r"not even one reply of 60 tokens .* lower grpo\.trl\.max_completion_length"):
        backend.sample([_ask("x"), _ask("x**2")], 2, SAMPLING)
    assert tried == [(4, 4), (3, 2), (2, 1)]


# --- copies that Unsloth keeps


@pytest.mark.parametrize("way", ["restore", "load"])
def test_copies_that_unsloth_generates_with_are_dropped(backend: Backend, way: str, tmp_path: Path) -> None:
    backend.save(tmp_path)
    adapter = backend.snapshot()
    model, _ = backend.trainable()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight._fast_lora = weight.detach().half()  # as unsloth/kernels/utils.py does
    backend.restore(adapter) if way == "restore" else backend.load(tmp_path)
    assert not any(hasattr(weight, "_fast_lora") for weight in weights)


# --- vLLM


def test_the_requests_to_vllm(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for the engine records its requests, and reads the adapter from the folder while it generates."""
    import sys
    from types import ModuleType

    from safetensors.torch import load_file

    from ladder_lite.models.engines.vllm import VllmEngine

    model, tokenizer = backend.trainable()
    requests: dict[str, Any] = {}
    reply = [*tokenizer.encode("x</answer>", add_special_tokens=False), tokenizer.eos_token_id]

    def fast_generate(prompts: list[Any], parameters: list[Any], lora_request: str, use_tqdm: bool) -> list[Any]:
        requests.update(prompts=prompts, parameters=parameters, use_tqdm=use_tqdm)
        requests["adapter"] = load_file(Path(lora_request) / "adapter_model.safetensors")
        logprobs = [{token: SimpleNamespace(logprob=-float(token))} for token in reply]
        given = logprobs if parameters[0].logprobs is not None else None
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(reply), logprobs=given)]) for _ in prompts]

    fake = ModuleType("vllm")
    fake.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(model, "fast_generate", fast_generate, raising=False)
    monkeypatch.setattr(model, "load_lora", lambda folder: folder, raising=False)
    monkeypatch.setattr(backend, "_engine", VllmEngine(model))
    _disturb(backend)
    sampling = replace(SAMPLING, temperature=(0.5, 1.5), stop=("</b>",))
    prompts = [_ask("x"), _ask("x**2")]
    replies = backend.sample(prompts, 2, sampling)
    text = tokenizer.decode(reply, skip_special_tokens=True)
    assert replies == [[Completion(text, len(reply), truncated=False)] * 2] * 2
    assert requests["prompts"] == [{"prompt_token_ids": backend._encode(p)} for p in prompts for _ in range(2)]
    assert [each.temperature for each in requests["parameters"]] == [0.5, 0.5, 1.5, 1.5]
    assert len({each.seed for each in requests["parameters"]}) == 4
    assert {(each.max_tokens, each.top_p, *each.stop) for each in requests["parameters"]} == {(60, 1.0, "</b>")}
    assert {each.logprobs for each in requests["parameters"]} == {None}
    (rollout,) = backend.roll_out([_ask("x")], replace(sampling, temperature=1.0, logprobs=True))
    assert rollout.logprobs == [-float(token) for token in reply]
    assert {name.removeprefix("base_model.model.") for name in requests["adapter"]} == {
        name.replace(".default", "").removeprefix("base_model.model.") for name in backend.snapshot()
    }
    assert sorted(float(w.sum()) for w in requests["adapter"].values()) == pytest.approx(
        sorted(float(w.sum()) for w in backend.snapshot().values())
    )
