"""GGUF files, the format of llama.cpp, as models that can be trained: converted once into a folder of plain weights.

transformers reads the quantized weights back as 16-bit ones. What it leaves wrong in the result, the end of a turn and
the mark of a quantization that is over, is put right here; then the folder is loaded like any other.
"""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ladder_lite.errors import UserError, first_line
from ladder_lite.install import cache_folder


def as_folder(file: Path) -> Path:
    """The folder with the model of a GGUF file, in the user's cache; the first call for a file converts it.

    UserError where the file cannot be read as a model.
    """
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"model.id {file}: cannot read this GGUF file ({error.strerror}); give its path") from error
    folder = cache_folder() / "gguf" / f"{file.stem}-{digest[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
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
    where: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float16)
    except (OSError, ValueError, KeyError) as error:  # KeyError: an architecture that transformers does not know
        reason = first_line(error)
        raise UserError(f"model.id {file}: cannot read this GGUF file ({reason}); take another conversion") from error
    # The tokenizer takes the beginning of a turn for its end, and has no padding.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id or model.config.eos_token_id)
    tokenizer.clean_up_tokenization_spaces = False  # or "x , y" would come out as "x, y"
    # The weights are plain ones by now: saved with these marks, they would be taken for GGUF's again.
    del model.config.quantization_config, model.hf_quantizer
    model.is_quantized = False
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
