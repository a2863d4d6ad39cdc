"""GPU memory: what generation and training will take, and the batches that fit, before anything is loaded.

    setup = Setup.of(read_shape(recipe.model.id), recipe.model, recipe.grpo.trl, loader="unsloth", dtype="bfloat16")
    train_parts(setup, micro_batch=4)  # {"weights_4bit": ..., "logits": ..., ...}, in bytes; their sum is the peak
    plan(setup, free_bytes)            # the largest micro-batch and generation chunk that fit, None where none does

Every part is a formula over the model's shape. The formulas were read from the sources named beside them (Unsloth
2026.10.7, TRL 1.14.2, transformers 5.17, bitsandbytes 0.50); those of the transformers loader are checked against what
a small model allocates on a CPU. A figure marked 'assumed' has not been compared with a GPU yet. T is tokens of a
micro-batch, H the hidden size, I the intermediate size, Q and K the widths of queries and of keys, V the vocabulary.

Peaks come one after the other, so a prediction is what stays plus the largest moment: for training the loss or one
layer's backward pass, for generation reading the prompts or writing the last token. The reference's scores (beta > 0)
are computed in the same micro-batches without gradients and need less. Unsloth would size the reference's batches by
itself, to most of what is free, unless `unsloth_grpo_mini_batch` is set. Its vLLM (`fast_inference`) is not predicted.
Its "dynamic" 4-bit copies of models (unsloth-bnb-4bit) keep some layers in 16 bits and take somewhat more.
"""

import os
import sys
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import psutil

from ladder_lite.config import ModelSettings
from ladder_lite.models.shape import Shape as Shape
from ladder_lite.models.shape import read_shape as read_shape

GIB = 2**30
MIB = 2**20

CARDS = {8: 7.3, 12: 11.0, 16: 14.5, 24: 22.5}
"""GiB that a card of so many GB really leaves to one process, its CUDA context included."""

CUDA_CONTEXT_BYTES = int(0.45 * GIB)
"""Kernels and tables of CUDA, cuBLAS and Triton on a card of 8 to 24 GB; assumed. PyTorch's counters leave it out."""

FRAGMENTATION = 0.05
"""Of what comes and goes: gaps and rounding of PyTorch's caching allocator with expandable segments; assumed."""

USABLE = 0.95
"""Of the memory that is free, the share that batches are chosen for, until predictions were compared with GPUs."""

Loader = Literal["unsloth", "transformers"]
Parts = dict[str, int]

_CUBLAS_WORKSPACE_BYTES = 32 * MIB  # PyTorch's largest, that of Hopper (docs: CUBLAS_WORKSPACE_CONFIG); 8 MiB elsewhere
_NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)  # 4 bits; an 8-bit scale for 64 weights; a 32-bit scale for 256 scales
_KV_INCREMENT_TOKENS = 512  # unsloth/models/llama.py, KV_CACHE_INCREMENT
_DTYPE_BYTES = {"auto": 2, "float32": 4, "bfloat16": 2, "float16": 2}  # auto is 16 bits on every GPU
_OPTIMIZER_BYTES = {  # a weight, beside the weight itself; other optimizers count as AdamW in 32 bits
    "sgd": 0,
    # bitsandbytes: two 8-bit states, a 32-bit scale for 256 of each
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), 2 + 2 * 4 / 256),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """A model and how it is loaded and trained, as far as memory depends on it.

    `recompute_logits` is Unsloth's UNSLOTH_GRPO_LOGPROB_RECOMPUTE=1: the backward pass computes the logits again, chunk
    by chunk, instead of keeping them all. `prefix_grouper` is its UNSLOTH_GRPO_PREFIX_GROUPER=1: a group's prompt goes
    through the model once. `context_bytes` is 0 where memory is counted after CUDA was started.
    """

    shape: Shape
    loader: Loader
    dtype_bytes: int
    load_in_4bit: bool
    lora_weights: int
    optimizer_bytes: float
    reference: bool
    gradient_checkpointing: bool
    max_prompt_length: int
    max_completion_length: int
    top_p: float
    completions_per_step: int
    largest_micro_batch: int
    group_size: int = 1
    prefix_grouper: bool = False
    recompute_logits: bool = True
    context_bytes: int = CUDA_CONTEXT_BYTES

    @staticmethod
    def of(
        shape: Shape,
        model: ModelSettings,
        trl: Mapping[str, Any],
        loader: Loader,
        dtype: str = "auto",
        context_bytes: int = CUDA_CONTEXT_BYTES,
    ) -> "Setup":
        """The setup of a recipe's `model` and `grpo.trl` sections; `dtype` is the one that the backend chose.

        Settings that the recipe leaves out have the values that TRL gives them.
        """
        batch = int(trl.get("per_device_train_batch_size") or 8)
        return Setup(
            shape=shape,
            loader=loader,
            dtype_bytes=_DTYPE_BYTES[model.dtype if dtype == "auto" else dtype],
            load_in_4bit=model.load_in_4bit,
            lora_weights=shape.lora_weights(int(model.lora.get("r", 8)), model.lora.get("target_modules")),
            optimizer_bytes=_OPTIMIZER_BYTES.get(str(trl.get("optim")), 8),
            reference=bool(trl.get("beta", 0.0)),
            gradient_checkpointing=bool(trl.get("gradient_checkpointing", True)),
            max_prompt_length=model.max_prompt_length,
            max_completion_length=int(trl.get("max_completion_length") or 256),
            top_p=float(trl.get("top_p", 1.0)),
            completions_per_step=batch * int(trl.get("gradient_accumulation_steps") or 1),
            largest_micro_batch=batch,
            group_size=int(trl.get("num_generations") or 8),
            prefix_grouper=loader == "unsloth"
            and not model.fast_inference
            and _is_on("UNSLOTH_GRPO_PREFIX_GROUPER", "0")
            and _is_on("UNSLOTH_GRPO_SEQ_PACKING", "1"),
            context_bytes=context_bytes,
        )

    @property
    def residual_bytes(self) -> int:
        """Bytes of a value that passes from layer to layer, and of the weights that are not quantised.

        peft's prepare_model_for_kbit_training turns these weights to 32 bits, and what the embeddings give out with
        them; Unsloth leaves them as they are.
        """
        return 4 if self.loader == "transformers" and self.load_in_4bit else self.dtype_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Batches that fit. `generation_batch` is for rollouts; `train` and `generate` are the parts of the peaks."""

    micro_batch: int
    accumulation: int
    generation_batch: int
    train: Parts
    generate: Parts


def plan(setup: Setup, free_bytes: int) -> Plan | None:
    """The largest micro-batch and generation chunk that fit in USABLE of `free_bytes`, None where nothing fits.

    The micro-batch divides the completions of a step and is at most the recipe's; lengths and group size stay.
    """
    usable_bytes = int(USABLE * free_bytes)
    sizes = micro_batches(setup.completions_per_step, setup.largest_micro_batch)
    micro_batch = next((size for size in sizes if total(train_parts(setup, size)) <= usable_bytes), None)
    lengths = setup.max_prompt_length, setup.max_completion_length
    chunk = generation_batch(setup, free_bytes, *lengths, setup.completions_per_step, setup.top_p)
    if micro_batch is None or chunk == 0:
        return None
    train, generate = train_parts(setup, micro_batch), generate_parts(setup, chunk, *lengths, setup.top_p)
    return Plan(micro_batch, setup.completions_per_step // micro_batch, chunk, train, generate)


def micro_batches(completions_per_step: int, largest: int) -> list[int]:
    """The micro-batches that a step can be cut into, the largest first."""
    return [size for size in range(largest, 0, -1) if completions_per_step % size == 0]


def smaller_micro_batch(completions_per_step: int, micro_batch: int) -> int | None:
    """The largest micro-batch of at most half the size, for when memory runs out; None where there is none."""
    return next(iter(micro_batches(completions_per_step, micro_batch // 2)), None)


def smallest_parts(setup: Setup) -> tuple[Parts, Parts]:
    """The parts of training on one completion and of generating one: no batches take less."""
    lengths = setup.max_prompt_length, setup.max_completion_length
    return train_parts(setup, 1), generate_parts(setup, 1, *lengths, setup.top_p)


def generation_batch(
    setup: Setup, free_bytes: int, prompt_length: int, new_tokens: int, at_most: int, top_p: float = 1.0
) -> int:
    """The most sequences, up to `at_most`, whose generation fits in USABLE of `free_bytes`; 0 where not one does."""

    def needed_bytes(sequences: int) -> int:
        return total(generate_parts(setup, sequences, prompt_length, new_tokens, top_p))

    return bisect_left(range(1, at_most + 1), int(USABLE * free_bytes) + 1, key=needed_bytes)


def total(parts: Parts) -> int:
    """The peak that the parts add up to, in bytes."""
    return sum(parts.values())


def train_parts(setup: Setup, micro_batch: int) -> Parts:
    """Peak of training on `micro_batch` completions of full length with full prompts, in bytes by part."""
    stays = _weights(setup) | _adapter(setup) | {"lora_gradients": 4 * setup.lora_weights}
    moments = [_loss_moment(setup, micro_batch), _layer_moment(setup, micro_batch)]
    if _tokens(setup, micro_batch) < _tokens(replace(setup, prefix_grouper=False), micro_batch):
        moments.append(_comparing_moment(setup, micro_batch))
    return _with_overheads(setup, stays, max(moments, key=total))


def generate_parts(setup: Setup, sequences: int, prompt_length: int, new_tokens: int, top_p: float = 1.0) -> Parts:
    """Peak of generating `sequences` replies at once between two steps of training, in bytes by part.

    Gradients are gone by then; the optimizer's state is not.
    """
    stays = _weights(setup) | _adapter(setup)
    if setup.loader == "unsloth":  # fast_linear_forward keeps the adapter in the model's type while it generates
        stays["lora_16bit_copy"] = setup.dtype_bytes * setup.lora_weights
    moments = (
        _prefill_moment(setup, sequences, prompt_length),
        _decode_moment(setup, sequences, prompt_length, new_tokens, top_p),
    )
    return _with_overheads(setup, stays, max(moments, key=total))


def _with_overheads(setup: Setup, stays: Parts, moment: Parts) -> Parts:
    fragmentation = int(FRAGMENTATION * total(moment))
    return stays | moment | {"fragmentation": fragmentation, "cuda_context": setup.context_bytes}


def _weights(setup: Setup) -> Parts:
    """NF4 for the linear layers; 16 or 32 bits for embeddings, head, norms and biases; room for one matrix unpacked.

    Unsloth keeps a buffer of the largest matrix (kernels/utils.py, WEIGHT_BUFFERS) and takes a second in the backward
    pass (fast_lora.py, LoRA_MLP.backward); bitsandbytes unpacks one matrix at a time (MatMul4Bit).
    """
    shape = setup.shape
    if not setup.load_in_4bit:
        return {"weights": setup.dtype_bytes * shape.parameters, "workspaces": _CUBLAS_WORKSPACE_BYTES}
    matrix_bytes = setup.dtype_bytes * max(inputs * outputs for inputs, outputs in shape.linears.values())
    return {
        "weights_4bit": int(_NF4_BYTES * shape.linear_weights),
        "embeddings_and_norms": setup.residual_bytes * shape.other_weights,
        "workspaces": _CUBLAS_WORKSPACE_BYTES + matrix_bytes * (2 if setup.loader == "unsloth" else 1),
    }


def _adapter(setup: Setup) -> Parts:
    """LoRA in 32 bits, TRL's frozen copy of it named "ref" where beta > 0, and the optimizer's state."""
    parts = {"lora": 4 * setup.lora_weights, "optimizer": int(setup.optimizer_bytes * setup.lora_weights)}
    return parts | ({"lora_reference": 4 * setup.lora_weights} if setup.reference else {})


def _loss_moment(setup: Setup, micro_batch: int) -> Parts:
    """The loss and the first part of its backward pass: kept activations of all layers, and logits."""
    activations = _kept_activations(setup, micro_batch)
    return activations | {"last_hidden": _last_hidden(setup, micro_batch), "logits": _logits(setup, micro_batch)}


def _layer_moment(setup: Setup, micro_batch: int) -> Parts:
    """The backward pass of one layer, computed again before it where activations are checkpointed."""
    tokens, layer = _tokens(setup, micro_batch), _layer_backward(setup)
    if setup.gradient_checkpointing:  # whose input is among the checkpoints
        layer += _layer_forward(setup) - setup.residual_bytes * setup.shape.hidden_size
    return _kept_activations(setup, micro_batch) | {"one_layer": tokens * layer + _mask(setup, micro_batch)}


def _comparing_moment(setup: Setup, micro_batch: int) -> Parts:
    """Unsloth's check of its prefix grouper: a pass without gradients, beside all that the packed one keeps."""
    kept = _loss_moment(replace(setup, prefix_grouper=False), micro_batch)
    widest = setup.dtype_bytes * 3 * (setup.shape.hidden_size + setup.shape.intermediate_size)
    return kept | {"one_layer": _tokens(setup, micro_batch) * widest}


def _tokens(setup: Setup, micro_batch: int) -> int:
    """Tokens that go through the layers.

    The prefix grouper reads a prompt once for all replies of its group, where groups are whole and it saves enough
    (unsloth/utils/prefix_grouper.py).
    """
    replies = micro_batch * setup.max_completion_length
    each, shared = (n * setup.max_prompt_length + replies for n in (micro_batch, micro_batch // setup.group_size))
    is_grouped = setup.prefix_grouper and micro_batch % setup.group_size == 0 and each >= 1.3 * shared
    return shared if is_grouped else each


def _kept_activations(setup: Setup, micro_batch: int) -> Parts:
    """What the forward pass leaves on the GPU for the backward pass, without the loss.

    Checkpointing keeps each layer's input, T * H. Unsloth moves them to the CPU: on the GPU are two buffers for the way
    back and the last layer's, which stays (unsloth_zoo/gradient_checkpointing.py, UnslothCheckpointFunction).
    """
    shape, tokens = setup.shape, _tokens(setup, micro_batch)
    if not setup.gradient_checkpointing:
        return {"activations": tokens * shape.num_hidden_layers * _layer_forward(setup) + _mask(setup, micro_batch)}
    inputs = 3 if setup.loader == "unsloth" else shape.num_hidden_layers
    return {"checkpoints": tokens * inputs * setup.residual_bytes * shape.hidden_size}


def _layer_forward(setup: Setup) -> int:
    """Bytes a token that one layer's forward pass saves, its input included.

    Unsloth (fast_lora.py): input, two norms' outputs and the sum between; Q, K, V, the attention's output, and K and V
    repeated for all heads where the card's attention kernel needs it; gate and up. transformers: what
    torch.autograd.graph.saved_tensors_hooks sees of a peft layer, autocast's copies included.
    """
    shape, narrow, wide = setup.shape, setup.dtype_bytes, setup.residual_bytes
    hidden, inner, q_width, kv_width = shape.hidden_size, shape.intermediate_size, shape.q_width, shape.kv_width
    if setup.loader == "unsloth":
        return narrow * (4 * hidden + 4 * q_width + 2 * kv_width + 2 * inner)
    if narrow == 4:
        return 4 * (4 * hidden + 4 * q_width + 4 * inner)
    return 2 * 4 * hidden + 5 * narrow * hidden + 5 * narrow * q_width + 3 * wide * inner + narrow * inner


def _layer_backward(setup: Setup) -> int:
    """Bytes a token that one layer's backward pass holds besides: the gradients under way.

    Unsloth: those of the layer's output, its recomputed output, and of gate times up; the others go in place.
    transformers: fitted to the peaks of a small model on a CPU.
    """
    shape = setup.shape
    if setup.loader == "unsloth":
        return setup.dtype_bytes * (2 * shape.hidden_size + shape.intermediate_size)
    if setup.dtype_bytes == 4:
        return 4 * (shape.hidden_size + 2 * shape.intermediate_size)
    return 14 * shape.hidden_size + 10 * shape.intermediate_size


def _mask(setup: Setup, micro_batch: int) -> int:
    """transformers' attention mask of a padded batch, T * length; Unsloth packs the sequences and needs none."""
    if setup.loader == "unsloth":
        return 0
    length = setup.max_prompt_length + setup.max_completion_length
    return setup.dtype_bytes * micro_batch * length * length


def _last_hidden(setup: Setup, micro_batch: int) -> int:
    """The last layer's output and its norm, for all tokens; that of the completions once more with its gradient."""
    tokens = 2 * _tokens(setup, micro_batch) + 2 * micro_batch * setup.max_completion_length
    return setup.residual_bytes * tokens * setup.shape.hidden_size


def _logits(setup: Setup, micro_batch: int) -> int:
    """Logits of the completions and their gradients.

    Unsloth (unsloth_zoo/rl_replacements.py, grpo_accumulated_loss) goes through max(4, length // 4096) chunks a
    sequence. Its compiled loss keeps all of them in 16 bits, or none with `recompute_logits`, and 4 bytes a logit of
    one chunk besides, 8 where the temperature is not 1 (measured with the compiled function on a CPU; we count 8).
    TRL (grpo_trainer.py, _full_logits_logps) has accelerate turn all of them to 32 bits; with them or a copy without
    the last position lives a gradient of that size. Autocast keeps a 16-bit copy of a 32-bit head.
    """
    vocabulary, new_tokens = setup.shape.vocab_size, setup.max_completion_length
    if setup.loader == "transformers":
        cast_bytes = setup.dtype_bytes if setup.residual_bytes > setup.dtype_bytes else 0
        return 2 * 4 * micro_batch * (new_tokens + 1) * vocabulary + cast_bytes * vocabulary * setup.shape.hidden_size
    chunk_tokens = -(-new_tokens // max(4, (setup.max_prompt_length + new_tokens) // 4096))
    kept_tokens = 0 if setup.recompute_logits else micro_batch * new_tokens
    return vocabulary * (setup.dtype_bytes * kept_tokens + 8 * chunk_tokens)


def _prefill_moment(setup: Setup, sequences: int, prompt_length: int) -> Parts:
    """Reading the prompts: their cache, and one layer's widest moment, T * (3 H + 3 I) or T * (3 H + 4 Q + 2 K)."""
    shape, tokens = setup.shape, sequences * prompt_length
    attention = 4 * shape.q_width + 2 * shape.kv_width
    one_layer = setup.residual_bytes * (3 * shape.hidden_size + max(3 * shape.intermediate_size, attention))
    mask_bytes = (1 + setup.dtype_bytes) * tokens * prompt_length
    return {
        "kv_cache": sequences * prompt_length * shape.num_hidden_layers * _kv_bytes(setup),
        "one_layer": tokens * one_layer + mask_bytes,
    }


def _decode_moment(setup: Setup, sequences: int, prompt_length: int, new_tokens: int, top_p: float) -> Parts:
    """Writing the last token: the whole cache, one layer's attention over it, and the logits that are sampled from.

    Unsloth's cache grows by 512 tokens at a time and comes with a row of attention weights a head; its attention over
    padded prompts may be PyTorch's plain one, with keys and values for all heads in 32 bits (assumed: cards with
    cuDNN's attention need less). transformers rebuilds one layer's cache for each token and repeats its keys
    and values for all heads.
    """
    shape, length = setup.shape, prompt_length + new_tokens
    if setup.loader == "unsloth":
        length = prompt_length + 1 + _KV_INCREMENT_TOKENS * -(-new_tokens // _KV_INCREMENT_TOKENS)
        cache = length * shape.num_hidden_layers * (_kv_bytes(setup) + setup.dtype_bytes * shape.num_attention_heads)
        attention = 4 * (3 * shape.q_width + 2 * shape.kv_width)
    else:
        cache = length * shape.num_hidden_layers * _kv_bytes(setup)
        attention = _kv_bytes(setup) + 2 * setup.residual_bytes * shape.q_width
    return {
        "kv_cache": sequences * cache,
        "attention": sequences * length * attention,
        "logits": sequences * shape.vocab_size * _sampling_bytes(setup, top_p),
    }


def _kv_bytes(setup: Setup) -> int:
    """Keys and values of one token in one layer."""
    return 2 * setup.residual_bytes * setup.shape.kv_width


def _sampling_bytes(setup: Setup, top_p: float) -> int:
    """Bytes of one logit while a token is drawn (transformers' GenerationMixin._sample).

    As it comes, in 32 bits, divided by the temperature, as a probability, and torch.multinomial's copy; with top_p also
    sorted, its 64-bit place, softmax and sum over it, and two masks.
    """
    return setup.residual_bytes + 4 * 4 + (4 + 8 + 2 * 4 + 2 if top_p < 1 else 0)


def _is_on(variable: str, default: str) -> bool:
    """A switch in the environment, as Unsloth reads it."""
    return os.environ.get(variable, default).lower() not in ("0", "false", "no", "off")


def gib(n_bytes: int) -> str:
    """The bytes in GiB, to one decimal, without the unit."""
    return f"{n_bytes / GIB:.1f}"


def peak_memory_bytes() -> int:
    """The most memory this process has held: the GPU's where one is in use, else the process's own (RSS)."""
    torch = sys.modules.get("torch")  # a process that never imported torch has used no GPU
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
