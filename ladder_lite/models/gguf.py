"""GGUF files, the format of llama.cpp, as models that can be trained.

A file is converted once into a folder of ordinary weights, which is then loaded like any other model. transformers
converts the quantized weights back to 16 bits; this module corrects what it gets wrong in the tokenizer and config.
"""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ladder_lite.errors import UserError, first_line
from ladder_lite.install import cache_folder


def as_folder(file: Path) -> Path:
    """Return the folder in the user's cache with the model of a GGUF file, which is converted on the first call.

    Raises UserError if the file cannot be read as a model.
    """
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"model.id {file}: cannot read this GGUF file ({error.strerror}); give its path") from error
    # Named by content, such as "SmolLM2-135M-Instruct.Q4_1-0123456789ab": a changed file is converted again.
    folder = cache_folder() / "gguf" / f"{file.stem}-{digest[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Convert beside the target and rename: after a kill, no half-written folder is mistaken for a finished one.
        with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
            _convert(file, Path(temporary) / "model")
            (Path(temporary) / "model").rename(folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise UserError(f"model.id {file}: reading GGUF files needs a package; pip install 'ladder_lite[gguf]'")
    source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float16)
    except (OSError, ValueError, KeyError) as error:  # KeyError: an architecture that transformers does not know
        reason = first_line(error)
        raise UserError(f"model.id {file}: cannot read this GGUF file ({reason}); take another conversion") from error
    # transformers sets the token that begins a turn as the one that ends it, and sets no padding token.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id or model.config.eos_token_id)
    tokenizer.clean_up_tokenization_spaces = False  # otherwise "x , y" would be decoded as "x, y"
    # The weights are no longer quantized. With these marks in the saved config, transformers would expect GGUF again.
    del model.config.quantization_config, model.hf_quantizer
    model.is_quantized = False
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
