"""The model on this machine: the embedded one, in full precision and in 4 bits."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ladder_lite.backends import Backend, Sampling, load_backend
from ladder_lite.config import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.live import Live
from ladder_lite.memory import GIB
from ladder_lite.tasks import load_task
from ladder_lite.transformations import open_library
from ladder_lite.variants import Writer

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=60, batch_size=8, seed=3)


@pytest.fixture(scope="module")
def loaded() -> Backend:
    return load_backend(load_recipe("tiny"))


@pytest.fixture
def backend(loaded: Backend) -> Iterator[Backend]:
    fresh = loaded.snapshot()
    yield loaded
    loaded.restore(fresh)


def _ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"solve integrate({text},x)"}]


def test_it_loads_as_any_model_of_the_hub_does() -> None:
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


def test_the_seed_decides_and_leaves_the_global_generator_alone(backend: Backend) -> None:
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


def test_each_prompt_has_its_own_temperature_in_one_batch(backend: Backend) -> None:
    prompts = [[{"role": "user", "content": f"solve integrate({n}*x**{n}+sin({n}*x),x)"}] for n in range(2, 8)]

    def texts(*temperatures: float) -> list[str]:
        own = temperatures if len(temperatures) > 1 else temperatures[0]
        sampling = replace(SAMPLING, temperature=own)
        return [completion.text for (completion,) in backend.sample(prompts, 1, sampling)]

    greedy = texts(0.0)
    assert texts(*[1e-4] * 6) == greedy  # as good as greedy
    mixed = texts(1e-4, 5.0, 1e-4, 5.0, 1e-4, 5.0)
    assert mixed[::2] == greedy[::2]
    assert all(wild != best for wild, best in zip(mixed[1::2], greedy[1::2], strict=True))


def test_a_cut_reply_says_so(backend: Backend) -> None:
    (completion,) = backend.sample([_ask("x**2+sin(3*x)")], 1, Sampling(0.0, 1.0, 3, 8, 0))[0]
    assert (completion.truncated, completion.n_tokens) == (True, 3)


def test_a_word_the_model_does_not_know_is_named(backend: Backend) -> None:
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
def test_an_adapter_comes_back_bit_by_bit(backend: Backend, way: str, tmp_path: Path) -> None:
    _disturb(backend)
    model, _ = backend.trainable()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    if way == "snapshot":
        adapter = backend.snapshot()
        back: Callable[[], None] = lambda: backend.restore(adapter)  # noqa: E731
    else:
        backend.save(tmp_path)
        back = lambda: backend.load(tmp_path)  # noqa: E731
    _disturb(backend)
    assert any(not weight.equal(before[name]) for name, weight in model.named_parameters())
    back()
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())


def test_a_damaged_adapter_is_named(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        backend.load(tmp_path)
    backend.save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="--redo"):
        backend.load(tmp_path)


def test_ttrl_leaves_every_weight_as_it_was(backend: Backend, tmp_path: Path) -> None:
    from ladder_lite import ttrl

    recipe = load_recipe("tiny", ["ttrl.per_root=6", "ttrl.depth=1", "ttrl.max_steps=2", "eval.samples=2", "eval.k=2"])
    task = load_task(recipe.task)
    tests = task.problems("test")
    model, _ = backend.trainable()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with Live() as live:
        library = open_library(recipe.variants, tmp_path)
        writer = Writer(task, backend, recipe.variants, library, {"tiny": tests}, recipe.seed)
        outcome = ttrl.learn(writer, tests[0], recipe, tmp_path, live)
    assert outcome.steps >= 1
    assert outcome.problem_id == tests[0].id
    assert (tmp_path / "train" / "metrics.jsonl").exists()
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())


def test_four_bit_weights_train(tmp_path: Path) -> None:
    from ladder_lite import grpo

    small = ["grpo.trl.max_steps=2", "grpo.rows=uniform", "grpo.trl.beta=0.05"]
    recipe = load_recipe("tiny", ["model.load_in_4bit=true", *small])
    task, backend = load_task(recipe.task), load_backend(recipe)
    before = backend.snapshot()
    steps = grpo.train(task, backend, task.problems("train"), recipe.grpo, tmp_path, 0, lambda *_: False)
    assert [step.step for step in steps] == [1, 2]
    assert steps[0].kl == 0  # the frozen copy has the adapter's own type
    assert backend.snapshot().keys() == before.keys()


def test_gradients_pass_four_bit_weights_after_sampling_too() -> None:
    """Bitsandbytes packs the weights for generation on some CPUs, and what it packs it cannot differentiate."""
    import torch

    model = load_backend(load_recipe("tiny", ["model.load_in_4bit=true"]))
    trained, tokenizer = model.trainable()
    ids = tokenizer("<answer>x**2+sin(3*x)</answer>", return_tensors="pt").input_ids
    for weight in trained.parameters():
        if weight.requires_grad:  # the second matrices begin at 0, and hide the first ones' gradients
            torch.nn.init.normal_(weight, std=0.02)

    def gradient() -> torch.Tensor:
        trained.train()
        trained.zero_grad()
        trained(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([weight.grad.flatten() for weight in trained.parameters() if weight.requires_grad])

    before = gradient()
    model.sample([_ask("x**2")], 1, SAMPLING)
    assert torch.equal(gradient(), before)


def test_memory_that_the_process_may_not_take_is_not_counted(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(backend, "_device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (6 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: GIB)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: 1.0)
    settings = load_recipe("tiny").grpo
    assert backend.micro_batch(settings) == settings.trl["per_device_train_batch_size"]
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: 0.001)
    with pytest.raises(UserError, match=r"the 0\.0 GiB of free GPU memory do not suffice"):
        backend.micro_batch(settings)
