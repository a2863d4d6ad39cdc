"""Unsloth's own code, where it is installed: what its trainer computes, and what its functions take. No GPU is needed.

pip install --no-deps unsloth unsloth_zoo, and what their import then asks for
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_loading import GET_PEFT_MODEL, LOAD_MODEL

SPEC = importlib.util.find_spec("unsloth")
pytestmark = pytest.mark.skipif(SPEC is None, reason="Unsloth is not installed")


def _parameters(module: str, function: str) -> list[set[str]]:
    """Names of the parameters of every function of this name in the module, in the order of the file."""
    assert SPEC is not None
    assert SPEC.origin is not None
    tree = ast.parse((Path(SPEC.origin).parent / module).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    return [{argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]} for node in functions]


def test_its_functions_take_what_the_table_says() -> None:
    assert any(names >= LOAD_MODEL for names in _parameters("models/loader.py", "from_pretrained"))
    assert any(names >= GET_PEFT_MODEL for names in _parameters("models/llama.py", "get_peft_model"))


def test_the_engine_of_vllm_is_reached_by_the_names_we_use() -> None:
    source = Path(str(SPEC and SPEC.origin)).parent / "models"
    assert "model.load_lora = functools.partial(load_lora, model)" in (source / "_utils.py").read_text(encoding="utf-8")
    assert "model.fast_generate = model.vllm_engine.generate" in (source / "llama.py").read_text(encoding="utf-8")


def _train(which: str, folder: Path) -> list[dict[str, Any]]:
    """The steps of tests/unsloth_steps.py, without compilation, which takes minutes here."""
    result = folder / f"{which}.json"
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "TORCHDYNAMO_DISABLE": "1",
        "UNSLOTH_COMPILE_DISABLE": "1",
        "UNSLOTH_COMPILE_LOCATION": str(folder / "compiled"),
    }
    program = [sys.executable, str(Path(__file__).with_name("unsloth_steps.py")), which, str(result)]
    done = subprocess.run(program, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    steps: list[dict[str, Any]] = json.loads(result.read_text(encoding="utf-8"))
    return steps


@pytest.mark.timeout(900)
def test_its_trainer_takes_the_steps_of_trl(tmp_path: Path) -> None:
    plain, patched = _train("plain", tmp_path), _train("patched", tmp_path)
    assert len(plain) == len(patched) == 3
    for ours, theirs in zip(plain, patched, strict=True):
        assert theirs["n_tokens"] == ours["n_tokens"]  # the rollouts are the backend's, of the same weights
        assert theirs["reward"] == ours["reward"]
        assert abs(ours["loss"]) > 1e-3
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=2e-3)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=2e-2)
        assert theirs["kl"] == pytest.approx(ours["kl"], rel=0.5, abs=1e-6)  # its mean is one over replies, not tokens
    assert patched[-1]["kl"] > 1e-3
