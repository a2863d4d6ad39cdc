"""Predicted memory, compared with real models, with peaks measured on a CPU, and with a table of recorded values."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

from ladder_lite.config.load import load_recipe
from ladder_lite.errors import UserError
from ladder_lite.models.memory import (
    CARDS,
    GIB,
    USABLE,
    Loader,
    Setup,
    generate_parts,
    generation_batch,
    micro_batches,
    plan,
    smaller_micro_batch,
    total,
    train_parts,
)
from ladder_lite.models.shape import Shape, read_shape

LLAMA, QWEN = "meta-llama/Llama-3.2-3B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMALL = Shape(
    hidden_size=192,
    intermediate_size=448,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=64,
    tie_word_embeddings=True,
    qkv_bias=False,
    o_bias=False,
)


def _setup(model: str, new_tokens: int, loader: Loader = "unsloth", *more: str) -> Setup:
    """The paper's two experiments with regard to memory: NF4, LoRA of rank 16, groups of 8, 64 completions per step."""
    recipe = load_recipe(
        "smollm",
        [
            f"model.id={model}",
            "model.load_in_4bit=true",
            "model.max_prompt_length=512",
            "model.lora.r=16",
            "grpo.trl.gradient_checkpointing=true",
            "grpo.trl.beta=0.001",
            "grpo.trl.optim=adamw_8bit",
            "grpo.trl.per_device_train_batch_size=8",
            "grpo.trl.gradient_accumulation_steps=8",
            f"grpo.trl.max_completion_length={new_tokens}",
            *more,
        ],
    )
    return Setup.of(read_shape(model), recipe.model, recipe.grpo.trl, loader)


# Shapes.


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (LLAMA, 3_212_749_824),
        ("unsloth/Llama-3.2-3B-Instruct", 3_212_749_824),
        (QWEN, 7_615_616_512),
        ("unsloth/DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512),
        (SMOLLM, 134_515_008),
        ("embedded", 1_789_248),
    ],
)
def test_shapes_have_the_published_number_of_weights(model: str, parameters: int) -> None:
    assert read_shape(model).parameters == parameters


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma3"}, ["llama and qwen2", "gemma3"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"vocab_size": "many"}, ["vocab_size"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
    ],
)
def test_the_error_names_what_is_not_supported_in_a_config(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    config = json.loads((Path(__file__).parents[2] / "ladder_lite/tiny/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError) as error:
        read_shape(str(tmp_path))
    assert all(word in str(error.value) for word in [str(tmp_path), *words])


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_the_error_names_a_config_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot read its config"):
        read_shape(str(tmp_path))


def test_the_error_names_a_hub_model_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=r"nobody/nothing.*no network"):
        read_shape("nobody/nothing")


def test_a_gguf_file_has_the_shape_of_its_model(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(192)
    writer.add_feed_forward_length(448)
    writer.add_block_count(4)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_key_length(64)
    writer.add_tensor("token_embd.weight", numpy.zeros((64, 192), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_shape(str(path)) == SMALL
    with pytest.raises(UserError, match=r"absent\.gguf"):
        read_shape(str(tmp_path / "absent.gguf"))


# Compared with real models on the meta device, which allocates no memory for weights.


def _built(shape: Shape) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes = {name: getattr(shape, name) for name in shape.__slots__ if not name.endswith("_bias")}
    if shape.qkv_bias:
        return Qwen2ForCausalLM(Qwen2Config(**sizes))
    return LlamaForCausalLM(LlamaConfig(**sizes))


@pytest.mark.parametrize("model", [LLAMA, QWEN, SMOLLM])
@pytest.mark.parametrize("target_modules", ["all-linear", ["q_proj", "down_proj"], r".*self_attn\.[kv]_proj"])
def test_numbers_of_weights_equal_those_of_the_real_model(model: str, target_modules: Any) -> None:
    from peft import LoraConfig, get_peft_model

    shape = read_shape(model)
    with torch.device("meta"):
        built = _built(shape)
        linear = sum(
            module.weight.numel()
            for name, module in built.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        )
        assert linear == shape.linear_weights
        assert sum(weight.numel() for weight in built.parameters()) == shape.parameters
        peft = get_peft_model(built, LoraConfig(r=16, target_modules=target_modules, task_type="CAUSAL_LM"))
    trained = sum(weight.numel() for weight in peft.parameters() if weight.requires_grad)
    assert trained == shape.lora_weights(16, target_modules)


def test_the_key_value_cache_has_the_size_of_a_real_one() -> None:
    setup = replace(_setup("embedded", 24, "transformers"), load_in_4bit=False, dtype_bytes=4, shape=SMALL)
    sequences, length = 3, 40
    with torch.no_grad():
        cache = _built(SMALL)(input_ids=torch.zeros(sequences, length, dtype=torch.long)).past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert generate_parts(setup, sequences, 16, 24)["kv_cache"] == size


def test_nf4_weights_have_the_size_of_those_of_bitsandbytes() -> None:
    from bitsandbytes.functional import quantize_4bit

    shape = read_shape(SMOLLM)
    size = 0
    for inputs, outputs in shape.linears.values():
        packed, state = quantize_4bit(torch.randn(outputs, inputs), quant_type="nf4", compress_statistics=True)
        size += packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    predicted = train_parts(_setup(SMOLLM, 64), 1)["weights_4bit"]
    assert predicted == pytest.approx(shape.num_hidden_layers * size, rel=0.001)


# Compared with what a training step allocates on a CPU. The vocabulary is small, because TRL's kernel for the loss runs
# on GPUs only. The loss is measured separately, with a stand-in that allocates what the kernel allocates.


def _small_peft(load_in_4bit: bool, folder: Path) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = _built(SMALL)
    if load_in_4bit:
        model.to(torch.bfloat16).save_pretrained(folder)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=quantization)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    peft = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    peft.enable_input_require_grads()
    return peft.train()


def _step_peak(model: Any, micro_batch: int, length: int, autocast: bool) -> int:
    ids = torch.randint(0, SMALL.vocab_size, (micro_batch, length))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # padded, as batches of prompts are

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=9).logits
        logits.float().log_softmax(-1)[..., 0].sum().backward()

    return _measured_peak(step)


def _measured_peak(step: Callable[[], None]) -> int:
    """Return the peak of a second step, in bytes beyond what the first one left, from the allocator's records."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ("load_in_4bit", "gradient_checkpointing"), [(False, True), (False, False), (True, True), (True, False)]
)
def test_activations_equal_the_measured_ones(tmp_path: Path, load_in_4bit: bool, gradient_checkpointing: bool) -> None:
    model = _small_peft(load_in_4bit, tmp_path)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    setup = replace(
        _setup("embedded", 8, "transformers"),
        shape=SMALL,
        load_in_4bit=load_in_4bit,
        dtype_bytes=2 if load_in_4bit else 4,
        gradient_checkpointing=gradient_checkpointing,
        max_prompt_length=120,
    )
    parts = train_parts(setup, 8)
    predicted = sum(parts.get(name, 0) for name in ("activations", "checkpoints", "one_layer"))
    assert "one_layer" in parts  # the moment that is measured
    assert predicted == pytest.approx(_step_peak(model, 8, 128, load_in_4bit), rel=0.1)


class _Kernel(torch.autograd.Function):
    """Keeps the logits and allocates their gradient, as trl.kernels.selective_log_softmax_and_entropy does."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits)
        return logits.new_zeros(logits.shape[:-1])

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> torch.Tensor:
        (logits,) = ctx.saved_tensors
        return torch.zeros_like(logits, memory_format=torch.contiguous_format)


def test_logits_of_trl_equal_the_measured_ones() -> None:
    from accelerate.utils import convert_outputs_to_fp32

    setup = replace(_setup("embedded", 128, "transformers"), shape=replace(SMALL, vocab_size=20_000))
    head = torch.randn(20_000, SMALL.hidden_size)  # 32 bits, as prepare_model_for_kbit_training leaves it
    hidden = torch.randn(4, 129, SMALL.hidden_size, requires_grad=True)

    @convert_outputs_to_fp32
    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.nn.functional.linear(hidden, head)

    def step() -> None:
        _Kernel.apply(forward()[:, :-1, :][:, -128:, :]).sum().backward()
        hidden.grad = None

    assert train_parts(setup, 4)["logits"] == pytest.approx(_measured_peak(step), rel=0.05)


# Recorded predictions.


@pytest.mark.parametrize(
    ("model", "new_tokens", "loader", "micro_batch", "gib"),
    [
        (LLAMA, 1024, "unsloth", 1, 3.30),
        (LLAMA, 1024, "unsloth", 4, 3.74),
        (LLAMA, 1024, "unsloth", 8, 4.51),
        (LLAMA, 1024, "transformers", 1, 6.05),
        (QWEN, 2048, "unsloth", 1, 7.16),
        (QWEN, 2048, "unsloth", 4, 8.45),
        (QWEN, 4096, "unsloth", 1, 7.86),
        (QWEN, 4096, "unsloth", 4, 10.06),
        (QWEN, 2048, "transformers", 1, 12.97),
        (SMOLLM, 64, "unsloth", 8, 0.76),
    ],
)
def test_predicted_peaks_of_training(model: str, new_tokens: int, loader: Loader, micro_batch: int, gib: float) -> None:
    assert total(train_parts(_setup(model, new_tokens, loader), micro_batch)) / GIB == pytest.approx(gib, abs=0.01)


@pytest.mark.parametrize(
    ("model", "new_tokens", "card_gb", "micro_batch"),
    [
        (LLAMA, 1024, 8, 8),
        (LLAMA, 1024, 16, 8),
        (QWEN, 2048, 8, None),
        (QWEN, 2048, 12, 4),
        (QWEN, 4096, 12, 4),
        (QWEN, 4096, 16, 8),
        (QWEN, 4096, 24, 8),
    ],
)
def test_what_fits_on_a_card(model: str, new_tokens: int, card_gb: int, micro_batch: int | None) -> None:
    chosen = plan(_setup(model, new_tokens), int(CARDS[card_gb] * GIB))
    assert (chosen and chosen.micro_batch) == micro_batch
    if chosen:
        assert chosen.micro_batch * chosen.accumulation == 64
        assert total(chosen.train) <= CARDS[card_gb] * GIB
        assert total(chosen.generate) <= CARDS[card_gb] * GIB


def test_weights_equal_values_derived_by_hand() -> None:
    parts = train_parts(_setup(LLAMA, 1024), 1)
    # 2.82e9 linear weights at 4.13 bits, 128,256 x 3,072 embeddings at 16 bits.
    assert parts["weights_4bit"] == pytest.approx(2.818572288e9 * 4.127 / 8, rel=0.001)
    assert parts["embeddings_and_norms"] == pytest.approx(128256 * 3072 * 2, rel=0.001)
    in_32_bits = train_parts(_setup(LLAMA, 1024, "transformers"), 1)
    assert in_32_bits["embeddings_and_norms"] == 2 * parts["embeddings_and_norms"]


@pytest.mark.parametrize("loader", ["unsloth", "transformers"])
def test_more_of_anything_takes_more_memory(loader: Loader) -> None:
    setup = _setup(QWEN, 1024, loader)
    peak = total(train_parts(setup, 2))
    assert total(train_parts(setup, 3)) > peak
    assert total(train_parts(replace(setup, max_completion_length=1025), 2)) > peak
    assert total(train_parts(replace(setup, max_prompt_length=600), 2)) > peak
    assert total(train_parts(replace(setup, lora_weights=2 * setup.lora_weights), 2)) > peak
    assert total(train_parts(replace(setup, gradient_checkpointing=False), 2)) > peak
    assert total(train_parts(replace(setup, reference=False), 2)) < peak
    peak = total(generate_parts(setup, 8, 512, 1024))
    assert total(generate_parts(setup, 9, 512, 1024)) > peak
    assert total(generate_parts(setup, 8, 513, 1024)) > peak
    assert total(generate_parts(setup, 8, 512, 1600)) > peak
    assert total(generate_parts(setup, 8, 512, 1024, top_p=0.9)) > peak


def test_the_loss_needs_one_chunk_of_logits_for_any_micro_batch() -> None:
    setup = replace(_setup(LLAMA, 1024), max_prompt_length=1)  # so that the loss is the peak
    assert train_parts(setup, 1)["logits"] == train_parts(setup, 2)["logits"] == 128256 * 8 * 256


def test_the_generation_batch_is_the_largest_that_fits() -> None:
    setup = _setup(LLAMA, 1024)
    free_bytes = ceil(total(generate_parts(setup, 5, 512, 1024)) / USABLE)
    assert generation_batch(setup, free_bytes, 512, 1024, 64) == 5
    assert generation_batch(setup, free_bytes - 2, 512, 1024, 64) == 4
    assert generation_batch(setup, free_bytes, 512, 1024, 3) == 3
    assert generation_batch(setup, total(generate_parts(setup, 1, 512, 1024)), 512, 1024, 64) == 0


def test_the_generation_batch_of_a_plan_is_that_of_the_backend() -> None:
    setup = _setup(QWEN, 4096)
    chosen = plan(setup, 12 * GIB)
    assert chosen is not None
    assert chosen.generation_batch == generation_batch(setup, 12 * GIB, 512, 4096, setup.completions_per_step)
    assert chosen.generation_batch < setup.completions_per_step


def test_a_step_is_split_into_equal_micro_batches() -> None:
    assert micro_batches(24, 12) == [12, 8, 6, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("completions", "micro_batch", "smaller"),
    [(64, 8, 4), (24, 12, 6), (9, 9, 3), (10, 10, 5), (64, 3, 1), (64, 1, None)],
)
def test_the_next_smaller_micro_batch_also_divides_a_step(
    completions: int, micro_batch: int, smaller: int | None
) -> None:
    assert smaller_micro_batch(completions, micro_batch) == smaller


def test_the_cuda_context_is_not_counted_after_cuda_has_started() -> None:
    setup = _setup(LLAMA, 1024)
    started = replace(setup, context_bytes=0)
    assert total(train_parts(setup, 1)) - total(train_parts(started, 1)) == setup.context_bytes > 0
