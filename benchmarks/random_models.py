"""Models of the shapes of the recipes' models, with random weights, for measurements where lengths are forced.

    folder = make(Path("models"), "llama3b")            # 6.4 GB, a minute
    folder = make(Path("models"), "qwen7b", tiny=True)  # the same family, small enough for a CPU

Time and memory depend on a model's shape and on how much it reads and writes, not on what its weights say. So weights
are drawn at random, an ASCII letter of a prompt is one token, and generation never draws the tokens that would end a
reply (`suppress_tokens` in generation_config.json, which fills in what a caller of `generate` leaves open).
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder_lite.config import load_recipe
from ladder_lite.shape import Shape, read_shape

if TYPE_CHECKING:
    import torch

_FAMILIES: dict[str, dict[str, Any]] = {  # as the hub's config.json of each has it, but for what models.json knows
    "llama3b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "qwen7b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "use_sliding_window": False,
    },
}
_SHAPE_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "tie_word_embeddings"),
)
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}
_SPECIAL = ("<pad>", "<unk>", "<bos>", "<end>", "<user>", "<assistant>")
_PAD, _BOS, _END = 0, 2, 3
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def folder(models: Path, recipe: str, tiny: bool = False) -> Path:
    """Where the model of a recipe's shape is, or will be."""
    return models.absolute() / (f"{recipe}-tiny" if tiny else recipe)


def make(models: Path, recipe: str, tiny: bool = False) -> Path:
    """The folder with the model of a recipe's shape below `models`; it is written where it is not there yet."""
    made = folder(models, recipe, tiny)
    if made.exists():
        return made
    config = _config(recipe, tiny)
    unfinished = made.with_name(f"{made.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_tokenizer(unfinished, config["vocab_size"])
    _write_weights(unfinished, Shape.from_config(config))
    _write_json(unfinished / "config.json", config)
    generation = {"bos_token_id": _BOS, "eos_token_id": _END, "pad_token_id": _PAD, "suppress_tokens": [_PAD, _END]}
    _write_json(unfinished / "generation_config.json", generation)
    unfinished.rename(made)
    return made


def _config(recipe: str, tiny: bool) -> dict[str, Any]:
    shape = read_shape(load_recipe(recipe).model.id)
    sizes = {key: getattr(shape, key) for key in _SHAPE_KEYS} | (_TINY if tiny else {})
    sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    tokens = {"bos_token_id": _BOS, "eos_token_id": _END, "pad_token_id": _PAD}
    common = {"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16"}
    return _FAMILIES[recipe] | common | sizes | tokens | {"use_cache": True}


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Bytes, without merges, and fillers: transformers reads any tokenizer of a Qwen2 as one of bytes and merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"w{number}" for number in range(len(words), vocab_size)]
    tokenizer = Tokenizer(models.BPE({text: at for at, text in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=_CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _write_weights(folder: Path, shape: Shape) -> None:
    """One file for each layer and one for the rest; of so many layers as there are threads, weights are in memory."""
    from safetensors.torch import save_file

    parts: dict[str, Callable[[], dict[str, torch.Tensor]]] = {"other.safetensors": lambda: _other(shape)}
    for layer in range(shape.num_hidden_layers):
        parts[f"layer-{layer:03d}.safetensors"] = lambda layer=layer: _layer(shape, layer)

    def write(name: str) -> dict[str, str]:
        tensors = parts[name]()
        save_file(tensors, folder / name, metadata={"format": "pt"})
        return dict.fromkeys(tensors, name)

    where: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for written in threads.map(write, parts):
            where |= written
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": 2 * shape.parameters}, "weight_map": where},
    )


def _other(shape: Shape) -> "dict[str, torch.Tensor]":
    import torch

    draw = _drawer(seed=0)
    tensors = {
        "model.embed_tokens.weight": draw(shape.vocab_size, shape.hidden_size),
        "model.norm.weight": torch.ones(shape.hidden_size, dtype=torch.bfloat16),
    }
    if not shape.tie_word_embeddings:
        tensors["lm_head.weight"] = draw(shape.vocab_size, shape.hidden_size)
    return tensors


def _layer(shape: Shape, layer: int) -> "dict[str, torch.Tensor]":
    import torch

    draw, prefix = _drawer(seed=1 + layer), f"model.layers.{layer}"
    tensors = {f"{prefix}.{name}.weight": draw(outputs, inputs) for name, (inputs, outputs) in shape.linears.items()}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{prefix}.{norm}.weight"] = torch.ones(shape.hidden_size, dtype=torch.bfloat16)
    if shape.qkv_bias:
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            tensors[f"{prefix}.{name}.bias"] = torch.zeros(shape.linears[name][1], dtype=torch.bfloat16)
    return tensors


def _drawer(seed: int) -> "Callable[[int, int], torch.Tensor]":
    """Draws matrices (outputs, inputs) as a fresh model has them, with a generator of its own."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return lambda rows, columns: torch.empty(rows, columns, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
