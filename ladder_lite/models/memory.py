"""Prediction of GPU memory: what generation and training need, and which batches fit, before a model is loaded.

    setup = Setup.of(read_shape(recipe.model.id), recipe.model, recipe.grpo.trl, loader="unsloth", dtype="bfloat16")
    train_parts(setup, micro_batch=4)  # {"weights_4bit": ..., "logits": ..., ...} in bytes; their sum is the peak
    plan(setup, free_bytes)            # the largest micro-batch and generation batch that fit, None if none does

Each part is a formula over the model's shape. The formulas were derived from the sources named beside them (Unsloth
2026.10.7, TRL 1.14.2, transformers 5.17, bitsandbytes 0.50). Those of the transformers loader are tested against what
a small model allocates on a CPU. A figure marked 'assumed' has not been compared with a GPU yet. In comments, T is the
number of tokens in a micro-batch, H the hidden size, I the intermediate size, Q and K the widths of queries and keys,
and V the vocabulary size.

A step has several moments of high memory use, one after another. A prediction is therefore the memory that is always
in use plus the largest of these moments: for training the loss or the backward pass of one layer, for generation
reading the prompts or writing the last token.

Not predicted:

- the reference's log-probabilities (beta > 0). They need less than training: they are computed without gradients, in
  the same micro-batches. Unsloth alone would use larger ones, up to most of the free memory; the trainer prevents this
  with `unsloth_grpo_mini_batch`.
- the engine `lean`. The prediction is that of `generate`, and should be an upper bound for more than a few replies at
  once: `lean` keeps what all prompts begin with once, but also holds the caches of up to eight prompts while it reads
  them. This has not been measured on a GPU.
- vLLM (`model.engine: vllm`).
- Unsloth's prefix grouper (UNSLOTH_GRPO_PREFIX_GROUPER=1), which reads the prompt of a group once, and compares its
  pass with the packed one while both are in memory. It is off unless the user turns it on.
- Unsloth's "dynamic" 4-bit copies of models (unsloth-bnb-4bit). They keep some layers in 16 bits and need more memory.
"""

import resource
import sys
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ladder_lite.config import ModelSettings
from ladder_lite.models.shape import Shape

GIB = 2**30

CARDS = {8: 7.3, 12: 11.0, 16: 14.5, 24: 22.5}
"""Nominal size of a card in GB -> GiB that one process can use, including its CUDA context."""

CUDA_CONTEXT_BYTES = int(0.45 * GIB)
"""Kernels and tables of CUDA, cuBLAS and Triton on a card of 8 to 24 GB; assumed. PyTorch does not count them."""

FRAGMENTATION = 0.05
"""Gaps and rounding in PyTorch's caching allocator with expandable segments, a share of temporary memory; assumed."""

USABLE = 0.95
"""Share of the free memory that batches may fill: a margin until the predictions have been compared with GPUs."""

Loader = Literal["unsloth", "transformers"]
Parts = dict[str, int]

# PyTorch's largest workspace, on Hopper GPUs (see its documentation of CUBLAS_WORKSPACE_CONFIG); 8 MiB on others.
_CUBLAS_WORKSPACE_BYTES = 32 * 2**20
# Per weight: 4 bits, an 8-bit scale for each 64 weights, and a 32-bit scale for each 256 of these scales. About 0.516.
_NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
_KV_INCREMENT_TOKENS = 512  # unsloth/models/llama.py, KV_CACHE_INCREMENT
_DTYPE_BYTES = {"auto": 2, "float32": 4, "bfloat16": 2, "float16": 2}  # "auto" means 16 bits on every GPU
# Optimizer state per weight. Optimizers that are not listed count as AdamW with two 32-bit states, 8 bytes.
_OPTIMIZER_BYTES = {
    "sgd": 0,
    # bitsandbytes: two 8-bit states, and for each of them a 32-bit scale per 256 weights.
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), 2 + 2 * 4 / 256),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """A model and everything about its loading and training that memory depends on.

    `context_bytes` is 0 if free memory is measured after CUDA has started.
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
        """Create the setup from a recipe's `model` and `grpo.trl` sections.

        `dtype` is the one that the backend chose, or "auto" for the recipe's. Settings that the recipe leaves out get
        the defaults of TRL or peft.
        """
        batch = int(trl["per_device_train_batch_size"])
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
            max_completion_length=int(trl["max_completion_length"]),
            top_p=float(trl["top_p"]),
            completions_per_step=batch * int(trl.get("gradient_accumulation_steps") or 1),
            largest_micro_batch=batch,
            context_bytes=context_bytes,
        )

    @property
    def residual_bytes(self) -> int:
        """Bytes per value of the hidden states between layers, and per weight that is not quantized."""
        # peft's prepare_model_for_kbit_training casts these weights to 32 bits, embeddings included, so the hidden
        # states have 32 bits, too. Unsloth does not.
        return 4 if self.loader == "transformers" and self.load_in_4bit else self.dtype_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Batch sizes that fit, with the predicted parts of the peaks in training and in generation of rollouts."""

    micro_batch: int
    accumulation: int
    generation_batch: int
    train: Parts
    generate: Parts


def plan(setup: Setup, free_bytes: int) -> Plan | None:
    """Return the largest micro-batch and generation batch that fit in USABLE of `free_bytes`, None if none does.

    The micro-batch divides the completions of a step and is at most the recipe's. Lengths and group size never change,
    as they would change what is learned.
    """
    usable_bytes = int(USABLE * free_bytes)
    sizes = micro_batches(setup.completions_per_step, setup.largest_micro_batch)
    micro_batch = next((size for size in sizes if total(train_parts(setup, size)) <= usable_bytes), None)
    lengths = setup.max_prompt_length, setup.max_completion_length
    sequences = generation_batch(setup, free_bytes, *lengths, setup.completions_per_step, setup.top_p)
    if micro_batch is None or sequences == 0:
        return None
    train, generate = train_parts(setup, micro_batch), generate_parts(setup, sequences, *lengths, setup.top_p)
    return Plan(micro_batch, setup.completions_per_step // micro_batch, sequences, train, generate)


def micro_batches(completions_per_step: int, largest: int) -> list[int]:
    """Return the sizes of equal micro-batches that a step can be split into, largest first."""
    # (24, 12) -> [12, 8, 6, 4, 3, 2, 1]
    return [size for size in range(largest, 0, -1) if completions_per_step % size == 0]


def smaller_micro_batch(completions_per_step: int, micro_batch: int) -> int | None:
    """Return the largest micro-batch of at most half the size, for when memory runs out; None if there is none."""
    return next(iter(micro_batches(completions_per_step, micro_batch // 2)), None)


def smallest_parts(setup: Setup) -> tuple[Parts, Parts]:
    """Return the parts for training on one completion and for generating one: the least that any batch needs."""
    lengths = setup.max_prompt_length, setup.max_completion_length
    return train_parts(setup, 1), generate_parts(setup, 1, *lengths, setup.top_p)


def generation_batch(
    setup: Setup, free_bytes: int, prompt_length: int, new_tokens: int, at_most: int, top_p: float = 1.0
) -> int:
    """Return how many sequences, up to `at_most`, can be generated at once in USABLE of `free_bytes`; 0 if none."""

    def needed_bytes(sequences: int) -> int:
        return total(generate_parts(setup, sequences, prompt_length, new_tokens, top_p))

    # Memory grows with the number of sequences, so bisection finds the first number that needs at least one byte more
    # than there is. Its index in range(1, ...) is the last number that fits.
    return bisect_left(range(1, at_most + 1), int(USABLE * free_bytes) + 1, key=needed_bytes)


def total(parts: Parts) -> int:
    """Return the peak in bytes: the sum of the parts."""
    return sum(parts.values())


def train_parts(setup: Setup, micro_batch: int) -> Parts:
    """Predict the peak of training on `micro_batch` completions of full length with full prompts, in bytes by part."""
    permanent = _weights(setup) | _adapter(setup) | {"lora_gradients": 4 * setup.lora_weights}  # 32-bit gradients
    loss, layer = _loss_moment(setup, micro_batch), _layer_moment(setup, micro_batch)
    return _with_overheads(setup, permanent, max(loss, layer, key=total))


def generate_parts(setup: Setup, sequences: int, prompt_length: int, new_tokens: int, top_p: float = 1.0) -> Parts:
    """Predict the peak of generating `sequences` replies at once between two training steps, in bytes by part."""
    # Between steps there are no gradients, but the optimizer's state stays (it is part of `_adapter`).
    permanent = _weights(setup) | _adapter(setup)
    if setup.loader == "unsloth":  # fast_linear_forward keeps a copy of the adapter in the model's dtype
        permanent["lora_16bit_copy"] = setup.dtype_bytes * setup.lora_weights
    prefill = _prefill_moment(setup, sequences, prompt_length)
    decode = _decode_moment(setup, sequences, prompt_length, new_tokens, top_p)
    return _with_overheads(setup, permanent, max(prefill, decode, key=total))


def _with_overheads(setup: Setup, permanent: Parts, moment: Parts) -> Parts:
    # Permanent tensors are allocated once and leave no gaps.
    fragmentation = int(FRAGMENTATION * total(moment))
    return permanent | moment | {"fragmentation": fragmentation, "cuda_context": setup.context_bytes}


def _weights(setup: Setup) -> Parts:
    """The base model's weights, and the workspaces for computing with them."""
    shape = setup.shape
    if not setup.load_in_4bit:
        return {"weights": setup.dtype_bytes * shape.parameters, "workspaces": _CUBLAS_WORKSPACE_BYTES}
    # A 4-bit matrix is unpacked to the compute dtype before each product. bitsandbytes unpacks one matrix at a time
    # (MatMul4Bit). Unsloth keeps a buffer for the largest one (kernels/utils.py, WEIGHT_BUFFERS) and takes a second in
    # the backward pass (fast_lora.py, LoRA_MLP.backward).
    matrix_bytes = setup.dtype_bytes * max(inputs * outputs for inputs, outputs in shape.linears.values())
    return {
        "weights_4bit": int(_NF4_BYTES * shape.linear_weights),
        "embeddings_and_norms": setup.residual_bytes * shape.other_weights,
        "workspaces": _CUBLAS_WORKSPACE_BYTES + matrix_bytes * (2 if setup.loader == "unsloth" else 1),
    }


def _adapter(setup: Setup) -> Parts:
    """The 32-bit adapter, its frozen copy "ref" if beta > 0, and the optimizer's state."""
    parts = {"lora": 4 * setup.lora_weights, "optimizer": int(setup.optimizer_bytes * setup.lora_weights)}
    return parts | ({"lora_reference": 4 * setup.lora_weights} if setup.reference else {})


def _loss_moment(setup: Setup, micro_batch: int) -> Parts:
    """The loss and the start of its backward pass: activations of all layers, and logits."""
    # The last layer's output and its norm for all tokens; those of the completions again, with their gradient.
    tokens = 2 * _tokens(setup, micro_batch) + 2 * micro_batch * setup.max_completion_length
    last_hidden = setup.residual_bytes * tokens * setup.shape.hidden_size
    activations = _kept_activations(setup, micro_batch)
    return activations | {"last_hidden": last_hidden, "logits": _logits(setup, micro_batch)}


def _layer_moment(setup: Setup, micro_batch: int) -> Parts:
    """The backward pass of one layer. With gradient checkpointing, its forward pass is recomputed first."""
    tokens, layer = _tokens(setup, micro_batch), _layer_backward(setup)
    if setup.gradient_checkpointing:
        # The recomputed activations except the layer's input, which is a checkpoint and counted there.
        layer += _layer_forward(setup) - setup.residual_bytes * setup.shape.hidden_size
    return _kept_activations(setup, micro_batch) | {"one_layer": tokens * layer + _mask(setup, micro_batch)}


def _tokens(setup: Setup, micro_batch: int) -> int:
    """The number of tokens of a micro-batch, with a prompt for each reply (T in the formulas)."""
    return micro_batch * (setup.max_prompt_length + setup.max_completion_length)


def _kept_activations(setup: Setup, micro_batch: int) -> Parts:
    """What the forward pass leaves on the GPU for the backward pass, without the loss."""
    shape, tokens = setup.shape, _tokens(setup, micro_batch)
    if not setup.gradient_checkpointing:
        return {"activations": tokens * shape.num_hidden_layers * _layer_forward(setup) + _mask(setup, micro_batch)}
    # Gradient checkpointing keeps the input of each layer, T * H values. Unsloth moves them to CPU memory. On the GPU
    # remain the last layer's input and two buffers for copying the others back (unsloth_zoo/gradient_checkpointing.py,
    # UnslothCheckpointFunction).
    inputs = 3 if setup.loader == "unsloth" else shape.num_hidden_layers
    return {"checkpoints": tokens * inputs * setup.residual_bytes * shape.hidden_size}


def _layer_forward(setup: Setup) -> int:
    """Bytes per token that one layer's forward pass saves for its backward pass, including the layer's input."""
    shape, narrow, wide = setup.shape, setup.dtype_bytes, setup.residual_bytes
    hidden, inner, q_width, kv_width = shape.hidden_size, shape.intermediate_size, shape.q_width, shape.kv_width
    if setup.loader == "unsloth":
        # fast_lora.py. 4 H: the input, the outputs of both norms, and the sum between them. 4 Q + 2 K: queries, keys
        # and values, the attention's output, and keys and values repeated for all heads, if the card's attention
        # kernel needs that. 2 I: gate and up.
        return narrow * (4 * hidden + 4 * q_width + 2 * kv_width + 2 * inner)
    # transformers: what torch.autograd.graph.saved_tensors_hooks records for a peft layer, first in float32 throughout,
    # then with autocast, whose 16-bit copies are included.
    if narrow == 4:
        return 4 * (4 * hidden + 4 * q_width + 4 * inner)
    return 2 * 4 * hidden + 5 * narrow * hidden + 5 * narrow * q_width + 3 * wide * inner + narrow * inner


def _layer_backward(setup: Setup) -> int:
    """Bytes per token that one layer's backward pass needs in addition, mostly for gradients."""
    shape = setup.shape
    if setup.loader == "unsloth":
        # The gradient of the layer's output, the recomputed output, and the gradient of gate * up. Unsloth computes the
        # other gradients in place.
        return setup.dtype_bytes * (2 * shape.hidden_size + shape.intermediate_size)
    # transformers: fitted to the measured peaks of a small model on a CPU.
    if setup.dtype_bytes == 4:
        return 4 * (shape.hidden_size + 2 * shape.intermediate_size)
    return 14 * shape.hidden_size + 10 * shape.intermediate_size


def _mask(setup: Setup, micro_batch: int) -> int:
    """Bytes of the attention mask of a padded batch, (micro-batch, 1, length, length), which transformers creates."""
    if setup.loader == "unsloth":  # packs the sequences and needs no mask
        return 0
    length = setup.max_prompt_length + setup.max_completion_length
    return setup.dtype_bytes * micro_batch * length * length


def _logits(setup: Setup, micro_batch: int) -> int:
    """Bytes of the logits of the completions and of their gradients."""
    vocabulary, new_tokens = setup.shape.vocab_size, setup.max_completion_length
    if setup.loader == "transformers":
        # TRL (grpo_trainer.py, _full_logits_logps) computes all logits of the micro-batch, one position more than
        # needed, and accelerate casts them to 32 bits. Beside them is a gradient of the same size. If the head has 32
        # bits, autocast also keeps a 16-bit copy of it.
        cast_bytes = setup.dtype_bytes if setup.residual_bytes > setup.dtype_bytes else 0
        return 2 * 4 * micro_batch * (new_tokens + 1) * vocabulary + cast_bytes * vocabulary * setup.shape.hidden_size
    # Unsloth (unsloth_zoo/rl_replacements.py, grpo_accumulated_loss) splits each sequence into max(4, length // 4096)
    # chunks. With UNSLOTH_GRPO_LOGPROB_RECOMPUTE=1, its compiled loss keeps no logits. For the current chunk it needs 4
    # bytes per logit, or 8 if the temperature is not 1, as measured with the compiled function on a CPU; 8 are counted
    # here. `-(-a // b)` rounds the quotient up.
    chunk_tokens = -(-new_tokens // max(4, (setup.max_prompt_length + new_tokens) // 4096))
    return 8 * vocabulary * chunk_tokens


def _prefill_moment(setup: Setup, sequences: int, prompt_length: int) -> Parts:
    """Reading the prompts: their key-value cache, and the widest moment of one layer."""
    # The widest moment is in the MLP, T * (3 H + 3 I), or in the attention, T * (3 H + 4 Q + 2 K).
    shape, tokens = setup.shape, sequences * prompt_length
    attention = 4 * shape.q_width + 2 * shape.kv_width
    one_layer = setup.residual_bytes * (3 * shape.hidden_size + max(3 * shape.intermediate_size, attention))
    # Two attention masks of shape (sequences, 1, prompt, prompt): a boolean one and one in the model's dtype.
    mask_bytes = (1 + setup.dtype_bytes) * tokens * prompt_length
    return {
        "kv_cache": sequences * prompt_length * shape.num_hidden_layers * _kv_bytes(setup),
        "one_layer": tokens * one_layer + mask_bytes,
    }


def _decode_moment(setup: Setup, sequences: int, prompt_length: int, new_tokens: int, top_p: float) -> Parts:
    """Writing the last token: the whole key-value cache, one layer's attention over it, and the logits."""
    shape, length = setup.shape, prompt_length + new_tokens
    if setup.loader == "unsloth":
        # Unsloth's cache grows by 512 tokens at a time and has a row of attention weights for each head. Its attention
        # over padded prompts may be PyTorch's plain implementation, with keys and values for all heads in 32 bits
        # (assumed: cards with cuDNN's attention need less).
        length = prompt_length + 1 + _KV_INCREMENT_TOKENS * -(-new_tokens // _KV_INCREMENT_TOKENS)
        cache = length * shape.num_hidden_layers * (_kv_bytes(setup) + setup.dtype_bytes * shape.num_attention_heads)
        attention = 4 * (3 * shape.q_width + 2 * shape.kv_width)
    else:
        # transformers concatenates one layer's cache with each new token, and repeats its keys and values for all
        # heads.
        cache = length * shape.num_hidden_layers * _kv_bytes(setup)
        attention = _kv_bytes(setup) + 2 * setup.residual_bytes * shape.q_width
    return {
        "kv_cache": sequences * cache,
        "attention": sequences * length * attention,
        "logits": sequences * shape.vocab_size * _sampling_bytes(setup, top_p),
    }


def _kv_bytes(setup: Setup) -> int:
    """Bytes of the keys and values of one token in one layer."""
    return 2 * setup.residual_bytes * setup.shape.kv_width


def _sampling_bytes(setup: Setup, top_p: float) -> int:
    """Bytes per logit while a token is drawn (GenerationMixin._sample in transformers)."""
    # The logit itself, its 32-bit copy, that divided by the temperature, the probability, and torch.multinomial's copy.
    # With top_p also the sorted logit, its 64-bit index, softmax and cumulative sum, and two boolean masks.
    return setup.residual_bytes + 4 * 4 + (4 + 8 + 2 * 4 + 2 if top_p < 1 else 0)


def gib(n_bytes: int) -> str:
    """Format bytes as GiB with one decimal, without the unit."""
    return f"{n_bytes / GIB:.1f}"


def peak_memory_bytes() -> int:
    """Return this process's peak memory: that of the GPU if it is in use, else its resident set size."""
    torch = sys.modules.get("torch")  # a process that never imported torch has used no GPU
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, Linux KiB
