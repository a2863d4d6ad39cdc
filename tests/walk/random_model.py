"""Small random models of the recipes' families whose next token depends on all tokens before it.

benchmarks/gpu/random_models.py draws weights so small that all tokens are about equally likely. Here they are larger: a
token that attends to another sequence by mistake changes its log-probability by more than 1.5, the difference from
which Unsloth's self-check gives up packing.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))

from random_models import make

_CONFIG = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "torch_dtype": "float32"}
"""The same weights in fewer heads, as interpreted kernels take time by the head."""

_SHORT = 16
"""Positions that Llama's rotary embedding was "trained" for: with the 8192 of the real model, its scaling would not
show in sequences as short as these."""

_LOGITS_STD = 3.0


def write(models: Path, recipe: str) -> Path:
    """The folder of a float32 model of the recipe's family, made below `models`."""
    folder = make(models, recipe, tiny=True)
    generator = torch.Generator().manual_seed(0)
    for file in sorted(folder.glob("*.safetensors")):
        weights = {name: _drawn(name, weight, generator) for name, weight in sorted(load_file(file).items())}
        save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "rope_scaling" in config:
        config["rope_scaling"]["original_max_position_embeddings"] = _SHORT
    (folder / "config.json").write_text(json.dumps(config | _CONFIG), encoding="utf-8")
    return folder


def _drawn(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if name.endswith("bias"):
        return noise
    if weight.dim() == 1:  # of a norm
        return 1 + 0.2 * noise
    size = _LOGITS_STD if name.startswith(("lm_head", "model.embed_tokens")) else 1.5
    return size * noise / weight.shape[1] ** 0.5
