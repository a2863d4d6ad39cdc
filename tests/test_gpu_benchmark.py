"""benchmarks/gpu.py as far as a CPU carries it: its arms, its models, a rehearsal, and what it makes of figures."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from ladder_lite.config import load_recipe
from ladder_lite.memory import GIB
from ladder_lite.shape import Shape, read_shape

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu

        return gpu
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# --- models and arms


@pytest.mark.parametrize("recipe", ["llama3b", "qwen7b"])
def test_models_have_the_shapes_of_the_recipes(gpu: Any, recipe: str) -> None:
    config = gpu.random_models._config(recipe, tiny=False)
    assert Shape.from_config(config) == read_shape(load_recipe(recipe).model.id)


@pytest.mark.parametrize("recipe", ["llama3b", "qwen7b"])
def test_a_random_model_is_loaded_as_any_other(gpu: Any, models: Path, recipe: str) -> None:
    import transformers

    folder = gpu.random_models.make(models, recipe, tiny=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert not any(info.values())
    assert sum(weight.numel() for weight in model.parameters()) == read_shape(str(folder)).parameters
    assert len(tokenizer) == model.config.vocab_size
    assert len(tokenizer.encode("integrate(x, x)", add_special_tokens=False)) == 15  # a letter, a token
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_model_is_made_once_and_never_half(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(gpu.random_models, "_write_weights", fail)
    with pytest.raises(OSError, match="no space"):
        gpu.random_models.make(tmp_path, "llama3b", tiny=True)
    monkeypatch.undo()
    folder = gpu.random_models.make(tmp_path, "llama3b", tiny=True)
    assert (folder / "config.json").exists()
    monkeypatch.setattr(gpu.random_models, "_write_weights", fail)
    assert gpu.random_models.make(tmp_path, "llama3b", tiny=True) == folder


def test_arms_are_the_recipes_but_for_what_forces_lengths(gpu: Any) -> None:
    arms = gpu._arms(Path("models"), 3, None, None, "unsloth", rehearse=False)
    assert len(arms) == 2 * (1 + 3 + 2)
    for name, arm in arms.items():
        recipe, shipped = load_recipe(arm.recipe, arm.changes), load_recipe(arm.recipe)
        same = {"max_completion_length", "num_generations", "beta", "optim", "gradient_checkpointing", "loss_type"}
        assert {key: recipe.grpo.trl[key] for key in same} == {key: shipped.grpo.trl[key] for key in same}
        assert recipe.model.model_copy(update={"backend": "auto"}) == shipped.model
        if name.startswith("speed"):
            assert recipe.grpo.completions_per_step == shipped.grpo.completions_per_step
        if name.startswith("memory"):
            assert recipe.grpo.trl["per_device_train_batch_size"] == int(name.rpartition("-")[2])
    assert [arms[f"fit-{recipe}"].cap_gib for recipe in ("llama3b", "qwen7b")] == [7.3, 14.5]


def test_a_measurement_leaves_the_first_import_to_unsloth() -> None:
    look = "import sys, gpu_arm; print(sorted({'transformers', 'trl', 'peft', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", look], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- runs


def test_a_rehearsal_takes_every_path(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "--models-dir", str(models)]
    command += ["--out", str(out), "--only", "speed-llama3b-*,memory-qwen7b-4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    steps = {line[0]: line[1:] for line in lines if len(line) == 9}
    assert steps.keys() == {"speed-llama3b-ours", "speed-llama3b-plain", "memory-qwen7b-4"}
    for row in steps.values():
        assert row[:4] == ["transformers float32", "4", "8", "24 + 16"]
        assert 0 < float(row[5]) < float(row[4])  # generation is a part of the step
    verdicts = [line for line in lines if len(line) == 4]
    assert len(verdicts) == 5
    assert {line[3] for line in verdicts} == {"not measured: no GPU"}
    assert not out.exists()


def test_an_arm_that_fails_is_a_row(gpu: Any) -> None:
    spec = json.dumps({"kind": "ours", "recipe": "llama3", "model": "models", "changes": []})
    row = gpu._run(spec, 1.0, rehearse=True)
    assert row.keys() == {"error"}
    assert 'unknown recipe "llama3"' in row["error"]


def test_figures_of_another_card_are_not_mixed_in(gpu: Any, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    figures = {"card": {"name": "T4"}, "versions": {"torch": "2.13"}, "arms": {"fit-llama3b": {"error": "OOM"}}}
    assert gpu._recorded(out, figures) == {}
    out.write_text(json.dumps(figures))
    assert gpu._recorded(out, figures) == figures["arms"]
    with pytest.raises(typer.BadParameter, match="another card"):
        gpu._recorded(out, figures | {"card": {"name": "L4"}})


# --- verdicts


def row(seconds: float, peak_gib: float, **more: Any) -> dict[str, Any]:
    peak = {"allocated": int(0.9 * peak_gib * GIB), "reserved": int(peak_gib * GIB)}
    median = {"seconds": seconds, "generate": 0.5 * seconds, "roll_out": 0.505 * seconds}
    return {
        "loader": "unsloth",
        "dtype": "bfloat16",
        "cap_gib": None,
        "micro_batch": 8,
        "completions": 64,
        "prompt_tokens": 512,
        "reply_tokens": 1024,
        "replies_at_once": 16,
        "said": [],
        "context_bytes": GIB // 2,
        "median": median | {"verify": 0.005 * seconds, "data": 0.0, "log": 0.001 * seconds},
        "peaks": {"generate": peak, "train": peak},
        "predicted": {"generate": {"kv_cache": 4 * GIB}, "train": {"logits": 5 * GIB}},
        **more,
    }


FAILED = {"error": "out of memory"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"fit-llama3b": row(60, 6.5, cap_gib=7.3)}, ["met"]),
        ({"fit-llama3b": row(60, 7.0, cap_gib=7.3)}, ["not met"]),  # CUDA's context comes on top
        ({"fit-llama3b": FAILED}, ["not met"]),
        ({"memory-qwen7b-4": row(60, 4.3)}, ["met", "not met"]),  # of 4 and of 5 predicted
        ({"memory-qwen7b-4": FAILED}, ["not measured"]),
        ({"speed-llama3b-ours": row(60, 5), "speed-llama3b-plain": row(90, 10)}, ["met", "met", "met"]),
        ({"speed-llama3b-ours": row(60, 7), "speed-llama3b-plain": row(80, 10)}, ["not met", "not met", "met"]),
        ({"speed-llama3b-ours": row(60, 5), "speed-llama3b-plain": FAILED}, ["not measured", "not measured", "met"]),
        ({"speed-llama3b-ours": row(60, 5)}, ["not measured", "not measured", "met"]),
        (
            {"speed-llama3b-ours": row(60, 5, micro_batch=4), "speed-llama3b-plain": row(90, 10)},
            ["not measured", "not measured", "met"],
        ),
        (
            {"speed-llama3b-ours": row(1, 5, median={**row(1, 5)["median"], "verify": 0.02})},
            ["not measured", "not measured", "not met"],
        ),
    ],
)
def test_bars(gpu: Any, rows: dict[str, Any], expected: list[str]) -> None:
    arms = gpu._arms(Path("models"), 3, None, None, "unsloth", rehearse=False)
    assert [verdict[-1] for verdict in gpu.judge(rows, arms)] == expected
    gpu._print({"card": {}, "arms": rows}, arms)
