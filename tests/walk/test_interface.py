"""What the package names of Unsloth, looked up in the source of the installed one: its parameters and attributes."""

import ast
import importlib.util
from pathlib import Path
from typing import get_args

from ladder_lite.export import Quantization
from tests.support.unsloth_names import GET_PEFT_MODEL, GGUF_PARAMETERS, LOAD_MODEL


def _source(module: str) -> str:
    spec = importlib.util.find_spec("unsloth")
    assert spec is not None, "Unsloth is not installed; .ci/walk installs it"
    assert spec.origin is not None
    return (Path(spec.origin).parent / module).read_text(encoding="utf-8")


def _parameters(module: str, function: str) -> list[set[str]]:
    """Names of the parameters of every function of this name in the module, in the order of the file."""
    tree = ast.parse(_source(module))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    return [{argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]} for node in functions]


def test_its_functions_take_what_the_table_says() -> None:
    assert any(names >= LOAD_MODEL for names in _parameters("models/loader.py", "from_pretrained"))
    assert any(names >= GET_PEFT_MODEL for names in _parameters("models/llama.py", "get_peft_model"))


def test_the_engine_of_vllm_is_reached_by_the_names_we_use() -> None:
    assert "model.load_lora = functools.partial(load_lora, model)" in _source("models/_utils.py")
    assert "model.fast_generate = model.vllm_engine.generate" in _source("models/llama.py")


def test_copies_of_the_adapter_are_kept_under_the_name_we_drop() -> None:
    assert "lora_A._fast_lora = " in _source("kernels/utils.py")


def test_gguf_files_are_asked_for_in_its_own_words() -> None:
    tree = ast.parse(_source("save.py"))
    (function,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "unsloth_save_pretrained_gguf"
    )
    assert [argument.arg for argument in function.args.args] == ["self", *GGUF_PARAMETERS]
    (allowed,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ALLOWED_QUANTS"
    )
    assert set(get_args(Quantization)) == set(allowed) - {
        "not_quantized",
        "fast_quantized",
        "quantized",
    }  # other names of some
