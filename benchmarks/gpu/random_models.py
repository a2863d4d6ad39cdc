"""Write models with the exact shapes of the recipes' models and random weights, so that nothing has to be downloaded.

    python benchmarks/gpu/random_models.py MODELS llama3b qwen7b    # 6.4 and 15.2 GB; with --tiny, for a CPU

Time and memory depend on the shape of a model, not on the values of its weights. Prompts and replies have exact
lengths, because each ASCII letter of a prompt is one token and `generation_config.json` suppresses the end token.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ladder_lite.config.load import load_recipe
from ladder_lite.models.shape import read_shape

# The contents of each model's config.json on the hub, except sizes and token ids.
FAMILIES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("families.json").read_text())
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
TINY = dict(zip(SIZES, (64, 128, 2, 4, 2), strict=True)) | {"vocab_size": 500}
TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<end>"}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make(models: Path, recipe: str, tiny: bool = False) -> Path:
    """Write MODELS/RECIPE unless it exists, and return it. A folder of this name is always complete."""
    folder = models.absolute() / recipe
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished, config_of(recipe, tiny))
        unfinished.rename(folder)
    return folder


def config_of(recipe: str, tiny: bool = False) -> dict[str, Any]:
    """Return the config.json of a recipe's model, or of a tiny one of the same family."""
    shape = read_shape(load_recipe(recipe).model.id)
    sizes = {key: getattr(shape, key) for key in (*SIZES, "vocab_size", "tie_word_embeddings")} | (TINY if tiny else {})
    sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    common = {"hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 131072, "use_cache": True}
    return FAMILIES[recipe] | common | sizes | IDS | {"torch_dtype": "bfloat16"}


def write(folder: Path, config: dict[str, Any]) -> None:
    """Write weights, configurations and tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    text = json.dumps(config, indent=1) + "\n"
    (folder / "config.json").write_text(text)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="1GB")
    (folder / "config.json").write_text(text)  # `save_pretrained` rewrites it; loaders must read the hub's form
    suppressed = {"suppress_tokens": [IDS["pad_token_id"], IDS["eos_token_id"]]}
    (folder / "generation_config.json").write_text(json.dumps(IDS | suppressed) + "\n")
    tokenizer_of(config["vocab_size"]).save_pretrained(folder)


def tokenizer_of(vocab_size: int) -> Any:
    """Return a byte-level BPE tokenizer without merges, so that each ASCII letter is one token.

    Transformers reads every Qwen2 tokenizer as byte-level BPE.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*TOKENS.values(), "<system>", "<user>", "<assistant>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"w{number}" for number in range(len(words), vocab_size)]  # fills the vocabulary
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = TOKENS | {"additional_special_tokens": words[4:7], "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **options)


if __name__ == "__main__":
    for name in sorted({*sys.argv[2:]} - {"--tiny"}):
        make(Path(sys.argv[1]), name, "--tiny" in sys.argv)
