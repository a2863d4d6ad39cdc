"""The shape of a language model: the sizes that its memory depends on, read from its config without its weights.

    shape = read_shape("meta-llama/Llama-3.2-3B-Instruct")
    print(shape.parameters)  # 3212749824

Supports models of the Llama and the Qwen2 families. known.json has the sizes of the models in the shipped recipes, so
for those neither torch nor a network is needed.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladder_lite.config import EMBEDDED
from ladder_lite.errors import UserError, first_line

_FAMILIES = ("llama", "qwen2")
_KEYS = (  # required in every config; `head_dim` and the biases have defaults
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    "vocab_size",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a causal language model of the Llama or Qwen2 family, named as in its transformers config.

    `qkv_bias` and `o_bias` tell which linear layers of the attention have biases; those of the MLP have none.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool

    @staticmethod
    def from_config(config: Mapping[str, Any], source: str) -> "Shape":
        """Read a transformers config. Raises UserError, with the source, if keys are missing or not supported."""
        family = config.get("model_type")
        if family not in _FAMILIES:
            raise UserError(
                f"{source}: memory is predicted for models of type {' and '.join(_FAMILIES)} only; this one is {family}"
            )
        if missing := [key for key in _KEYS if not isinstance(config.get(key), int) or config[key] <= 0]:
            raise UserError(f"{source}: {', '.join(missing)} must be a positive integer; give the config of a model")
        if config.get("mlp_bias"):
            raise UserError(f"{source}: models with mlp_bias are not supported; choose one without")
        # Qwen2 always has biases on q, k and v, and never on o. Llama has them on all four or on none.
        bias = family == "qwen2" or bool(config.get("attention_bias"))
        return Shape(
            **{key: config[key] for key in _KEYS},
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias,
            o_bias=bias and family == "llama",
        )

    @property
    def q_width(self) -> int:
        """Width of one token's queries: all heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of one token's keys in one layer, which is also that of its values.

        It is smaller than `q_width` in models with grouped-query attention, where several query heads share a key head.
        """
        return self.num_key_value_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers in each decoder layer, by module name within the layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (hidden, self.q_width),
            "self_attn.k_proj": (hidden, self.kv_width),
            "self_attn.v_proj": (hidden, self.kv_width),
            "self_attn.o_proj": (self.q_width, hidden),
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        }

    @property
    def linear_weights(self) -> int:
        """Number of weights in the linear layers of all decoder layers: those that 4-bit loading quantizes."""
        return self.num_hidden_layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def other_weights(self) -> int:
        """Number of weights that are never quantized: embeddings, an untied head, norms and biases."""
        vocabulary = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        biases = self.qkv_bias * (self.q_width + 2 * self.kv_width) + self.o_bias * self.hidden_size
        # Each layer has two norms, and there is one more before the head.
        return vocabulary + self.num_hidden_layers * (2 * self.hidden_size + biases) + self.hidden_size

    @property
    def parameters(self) -> int:
        """Number of all weights of the model, without an adapter."""
        return self.linear_weights + self.other_weights

    def lora_weights(self, rank: int, target_modules: list[str] | str | None) -> int:
        """Number of weights of a LoRA adapter, with `target_modules` as peft.LoraConfig takes it.

        An adapter on the embeddings or the head is not counted.
        """
        targets = [size for name, size in self.linears.items() if _is_target(f"model.layers.0.{name}", target_modules)]
        # For a layer of shape (outputs, inputs), A is (rank, inputs) and B is (outputs, rank).
        return self.num_hidden_layers * rank * sum(inputs + outputs for inputs, outputs in targets)


def read_shape(model_id: str) -> Shape:
    """Return the shape of a model that a recipe names: "embedded", a local folder, a GGUF file or a hub id.

    Raises UserError if the model's config cannot be read.
    """
    path = Path(__file__).parents[1] / "tiny" if model_id == EMBEDDED else Path(model_id)
    if not path.is_dir():
        for entry in json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8")):
            if model_id in entry["ids"]:
                return Shape.from_config(entry["config"], model_id)
    try:
        config = _gguf_config(path) if path.suffix == ".gguf" else _config(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.id {model_id}: cannot read its config ({first_line(error)}); give the id of a hub model that can "
            f'be reached, a local folder, a GGUF file, or "{EMBEDDED}"'
        ) from error
    return Shape.from_config(config, str(path))


def _config(path: Path) -> dict[str, Any]:
    """Return the config of a model in a folder or on the hub. Raises OSError or ValueError if it cannot be read."""
    file = path / "config.json"
    # Only models that no shipped recipe uses need the hub, or its cache.
    if not path.is_dir():
        from huggingface_hub import hf_hub_download

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its five retries
        file = Path(hf_hub_download(str(path), file.name))
    config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{file} has no mapping of settings")
    return config


def _is_target(name: str, target_modules: list[str] | str | None) -> bool:
    """Return whether peft adds an adapter to this module, as its `check_target_module_exists` decides.

    `name` is a full module name, such as "model.layers.0.self_attn.q_proj".
    """
    # A string is a regular expression for the full name, a list has the last parts of names, such as "q_proj".
    if isinstance(target_modules, str):
        return target_modules == "all-linear" or re.fullmatch(target_modules, name) is not None
    # For None, peft looks the modules up in a table by architecture. Counting all of them gives an upper bound.
    return target_modules is None or any(name.endswith(f".{target}") for target in target_modules)


def _gguf_config(path: Path) -> dict[str, Any]:
    """Return the config that a GGUF file has in its metadata. Raises OSError or ValueError if it cannot be read."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(f"{path}: reading GGUF files needs the package gguf; pip install gguf") from error
    reader = GGUFReader(path)

    def field(name: str) -> Any:
        return None if (value := reader.get_field(name)) is None else value.contents()

    # GGUF prefixes its fields with the architecture: "llama.embedding_length".
    family = field("general.architecture")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    embedding = tensors.get("token_embd.weight")
    return {
        "model_type": family,
        "hidden_size": field(f"{family}.embedding_length"),
        "intermediate_size": field(f"{family}.feed_forward_length"),
        "num_hidden_layers": field(f"{family}.block_count"),
        "num_attention_heads": field(f"{family}.attention.head_count"),
        "num_key_value_heads": field(f"{family}.attention.head_count_kv"),
        "head_dim": field(f"{family}.attention.key_length"),
        # GGUF stores shapes with the dimensions reversed: the embedding is (hidden size, vocabulary).
        "vocab_size": None if embedding is None else int(embedding.shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,  # a tied head is not stored
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }
