"""Exports of a run in every format: a random adapter on the embedded model."""

import inspect
import json
import shutil
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml

from ladder_lite import export as module
from ladder_lite.config.load import dump_recipe, load_recipe
from ladder_lite.errors import UserError
from ladder_lite.export import export, push
from ladder_lite.jsonl import read_jsonl, write_json
from ladder_lite.models import Sampling
from ladder_lite.solve import Solver
from ladder_lite.verify import verify
from tests.support.commands import run_command
from tests.support.finished_run import build_run
from tests.support.unsloth_names import GGUF_PARAMETERS

GREEDY = Sampling(0.0, 1.0, 60, 1, 0)
REPORT = {
    "conditions": {
        "base": {"pass@1": {"value": 0.01, "low": 0.0, "high": 0.05}, "n_problems": 100},
        "ladder": {"pass@1": {"value": 0.82, "low": 0.73, "high": 0.88}, "n_problems": 100},
    }
}


def _make_run(run: Path, *overrides: str, scale: float = 0.05) -> Path:
    """A run folder whose LADDER training left an adapter of random weights."""
    import torch

    from ladder_lite.models import load_backend

    recipe = load_recipe("tiny", overrides)
    run.mkdir()
    (run / "recipe.resolved.yaml").write_text(dump_recipe(recipe))
    backend = load_backend(recipe)
    model, _ = backend.trainable()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, scale)
    train = run / "conditions" / "ladder" / "train"
    backend.save(train / "adapter")
    write_json(train / "done.json", {})
    write_json(run / "report.json", REPORT)
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_run(tmp_path_factory.mktemp("runs") / "tiny-s0")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny-s0"))


def _logits(model: Any, tokenizer: Any) -> Any:
    import torch

    prompt = [{"role": "user", "content": "solve integrate(x**2+sin(3*x),x)"}]
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    with torch.no_grad():
        return model.eval()(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits


def _base() -> Any:
    from transformers import AutoModelForCausalLM

    import ladder_lite.tiny

    return AutoModelForCausalLM.from_pretrained(Path(ladder_lite.tiny.__file__).parent, dtype="float32")


def test_peft_loads_an_exported_adapter(run: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    out = tmp_path / "out"
    assert export(run, "adapter", "ladder", out, "q4_k_m") == []
    tokenizer = AutoTokenizer.from_pretrained(out)
    base = _logits(_base(), tokenizer)
    found = _logits(PeftModel.from_pretrained(_base(), out), tokenizer)
    expected = _logits(PeftModel.from_pretrained(_base(), run / "conditions/ladder/train/adapter"), tokenizer)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, base, atol=0.1)
    assert load_recipe(str(out / "recipe.yaml")) == load_recipe("tiny")


def test_the_adapter_of_an_ablation_is_exported(run: Path, tmp_path: Path) -> None:
    (run / "conditions/ladder").rename(run / "conditions/ladder_static")
    assert export(run, "adapter", "ladder_static", tmp_path / "out", "q4_k_m") == []
    assert (tmp_path / "out/adapter_model.safetensors").stat().st_size > 0


def test_transformers_loads_a_merged_model(run: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    (line,) = export(run, "merged", "ladder", out, "q4_k_m")
    assert line.startswith("checked on 4 prompts in float32: logits differ from base and adapter by at most")
    tokenizer = AutoTokenizer.from_pretrained(out)
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert not hasattr(merged, "peft_config")
    adapted = PeftModel.from_pretrained(_base(), run / "conditions/ladder/train/adapter")
    assert torch.allclose(_logits(merged, tokenizer), _logits(adapted, tokenizer), atol=1e-3)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_four_bit_training_merges_into_full_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = _make_run(tmp_path / "run", "model.load_in_4bit=true")
    out = tmp_path / "out"
    checked, note = export(run, "merged", "ladder", out, "q4_k_m")
    assert "float32" in checked
    assert "4-bit weights" in note
    assert "float32" in note
    assert float(note.rsplit(" ", 1)[1]) > 0.01  # NF4 rounds more than any merging
    assert not hasattr(AutoModelForCausalLM.from_pretrained(out).config, "quantization_config")
    assert "4-bit (NF4) weights" in (out / "README.md").read_text()


def test_half_precision_is_merged_within_its_tolerance(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", "model.dtype=bfloat16")
    (line,) = export(run, "merged", "ladder", tmp_path / "out", "q4_k_m")
    assert "in bfloat16" in line


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_16_bit_model_is_written_in_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    import ladder_lite.tiny

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    AutoTokenizer.from_pretrained(Path(ladder_lite.tiny.__file__).parent).save_pretrained(tmp_path / "base")
    _base().to(getattr(torch, dtype)).save_pretrained(tmp_path / "base")
    run = _make_run(tmp_path / "run", f"model.id={tmp_path / 'base'}", "model.dtype=auto")  # a CPU trains it in float32
    (line,) = export(run, "merged", "ladder", tmp_path / "out", "q4_k_m")
    assert f"in {dtype}:" in line
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, dtype)}


def test_an_adapter_lost_in_rounding_is_noted(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run", "model.dtype=bfloat16", scale=1e-5)
    _, note = export(run, "merged", "ladder", tmp_path / "out", "q4_k_m")
    assert "bfloat16 rounds" in note
    assert "--format adapter" in note


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("fault", "which"), [("lost", "all"), ("doubled", "all"), ("lost", 5)])
def test_an_adapter_that_was_not_merged_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, fault: str, which: object
) -> None:
    from peft.tuners.lora import Linear

    real = Linear.merge
    n_merged = count(1)

    def merge(layer: Any, *_: object, **__: object) -> None:
        if layer.merged:
            return
        if which in ("all", next(n_merged)):
            if fault == "lost":
                layer.merged_adapters.append("default")
                return
            real(layer)
            layer.merged_adapters.clear()
        real(layer)

    run = _make_run(tmp_path / "run", f"model.dtype={dtype}", scale=2e-3)
    monkeypatch.setattr(Linear, "merge", merge)
    with pytest.raises(UserError, match=r"_proj of the merged model is not the sum of base and adapter; nothing was"):
        export(run, "merged", "ladder", tmp_path / "exports" / "out", "q4_k_m")
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("model.layers.1.self_attn.q_proj.weight", r"layers\.1\.self_attn\.q_proj of the merged model is not the sum"),
        ("model.norm.weight", r"merged model's logits differ by up to .* nothing was written"),
        ("model.embed_tokens.weight", r"merged model's logits differ by up to nan"),
    ],
)
def test_a_merge_that_does_not_match_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: str, message: str
) -> None:
    import torch
    from peft.tuners.lora import LoraModel

    real = LoraModel.merge_and_unload

    def tampered(model: Any) -> Any:
        plain = real(model)
        with torch.no_grad():
            plain.get_parameter(weight).mul_(float("nan") if "embed" in weight else 1.01)
        return plain

    monkeypatch.setattr(LoraModel, "merge_and_unload", tampered)
    with pytest.raises(UserError, match=message):
        export(run, "merged", "ladder", tmp_path / "exports" / "out", "q4_k_m")
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize("format_", ["adapter", "merged"])
def test_a_full_disk_is_noticed_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: module.Format
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    with pytest.raises(UserError, match=r"exports: .* GiB are needed and 0\.06 are free; .* --out"):
        export(run, format_, "ladder", tmp_path / "exports" / "out", "q4_k_m")
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_gpu_too_small_for_the_merged_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ladder_lite.export import merging

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(merging, "load_backend", refuse)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES= merges it on the CPU"):
        export(run, "merged", "ladder", tmp_path / "out", "q4_k_m")


class FakeUnslothModel:
    """Exports like Unsloth's model: it writes files beside the folder that it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error = error

    def save_pretrained_gguf(self, *args: object, **kwargs: object) -> dict[str, Any]:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind, default=value) for name, value in GGUF_PARAMETERS.items()]
        call = inspect.Signature(parameters).bind(*args, **kwargs).arguments
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        merged, beside = Path(call["save_directory"]), Path(f"{call['save_directory']}_gguf")
        for folder in (merged, beside):
            folder.mkdir()
        (merged / "model.safetensors").write_text("16 bits")
        (beside / "tiny.Q4_K_M.gguf").write_text("GGUF")
        (beside / "Modelfile").write_text("FROM tiny.Q4_K_M.gguf")
        return {"gguf_files": [str(beside / "tiny.Q4_K_M.gguf")], "modelfile_location": str(beside / "Modelfile")}


def _with_unsloth(monkeypatch: pytest.MonkeyPatch, model: FakeUnslothModel) -> list[Any]:
    from ladder_lite.export import merging

    loaded: list[Any] = []

    def load(recipe: Any) -> Any:
        loaded.append(recipe.model.backend)
        return SimpleNamespace(
            load=lambda adapter, check: loaded.append((adapter, check)), trainable=lambda: (model, "a tokenizer")
        )

    monkeypatch.setattr(merging, "unsloth_obstacle", lambda: None)
    monkeypatch.setattr(merging, "load_backend", load)
    return loaded


def test_gguf_is_written_by_unsloth(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = FakeUnslothModel(), tmp_path / "out"
    loaded = _with_unsloth(monkeypatch, model)
    lines = export(run, "gguf", "ladder", out, "q8_0")
    assert loaded == ["unsloth", (run / "conditions/ladder/train/adapter", False)]  # nothing is sampled
    (call,) = model.calls
    assert (call["tokenizer"], call["quantization_method"]) == ("a tokenizer", "q8_0")
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "README.md", "recipe.yaml", "tiny.Q4_K_M.gguf"]
    assert [line.split(":")[0] for line in lines] == ["tiny.Q4_K_M.gguf", "Modelfile"]


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, OSError])
def test_a_failed_gguf_export_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    _with_unsloth(monkeypatch, FakeUnslothModel(kind("Unsloth: GGUF conversion failed: no cmake\nmore")))
    with pytest.raises(UserError, match=r"\(Unsloth: GGUF conversion failed: no cmake\); --format merged"):
        export(run, "gguf", "ladder", tmp_path / "exports" / "out", "q4_k_m")
    assert list((tmp_path / "exports").iterdir()) == []


def test_gguf_needs_five_bytes_per_parameter(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _with_unsloth(monkeypatch, FakeUnslothModel())
    free = SimpleNamespace(free=64 * 2**20 + 5 * sum(weight.numel() for weight in _base().parameters()))
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    export(run, "gguf", "ladder", tmp_path / "out", "q8_0")
    free.free -= 1
    loaded.clear()
    with pytest.raises(UserError, match=r"exports: 0\.07 GiB are needed and 0\.07 are free; .* --out"):
        export(run, "gguf", "ladder", tmp_path / "exports" / "out", "q8_0")
    assert loaded == []


def test_gguf_without_unsloth_is_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="needs a GPU, and PyTorch sees none; --format merged"):
        export(run, "gguf", "ladder", tmp_path / "out", "q4_k_m")


def test_an_existing_folder_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UserError, match=r"out: already exists; .* --out"):
        export(run, "adapter", "ladder", out, "q4_k_m")
    (out / "mine").unlink()
    export(run, "adapter", "ladder", out, "q4_k_m")  # an empty folder is a fine one
    assert (out / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("ladder_ttrl", "TTRL rolls its own back after each problem"),
        ("base", "the base model has no adapter"),
        ("ladder_pass100", "trains none"),
        ("lader", "did you mean ladder?"),
        ("rl_without_variants", "has no such adapter; it has base, ladder"),
    ],
)
def test_conditions_without_an_adapter(run: Path, tmp_path: Path, condition: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        export(run, "adapter", condition, tmp_path / "out", "q4_k_m")
    assert message in str(raised.value)


def test_a_training_run_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    (run / "conditions/ladder/train/done.json").unlink()
    with pytest.raises(UserError, match=r"train: training is not finished; .* --condition"):
        export(run, "adapter", "ladder", tmp_path / "out", "q4_k_m")


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        export(tmp_path, "adapter", "ladder", tmp_path / "out", "q4_k_m")


def test_a_damaged_adapter(run: Path, tmp_path: Path) -> None:
    (run / "conditions/ladder/train/adapter/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: missing"):
        export(run, "adapter", "ladder", tmp_path / "out", "q4_k_m")


@pytest.mark.parametrize(
    ("model_id", "format_", "expected"),
    [
        ("meta-llama/Llama-3.2-3B-Instruct", "adapter", {"base_model": True, "library": "peft"}),
        ("embedded", "merged", {"base_model": False, "library": "transformers"}),
    ],
)
def test_the_model_card(run: Path, model_id: str, format_: module.Format, expected: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(module._card(run, load_recipe("tiny", [f"model.id={model_id}"]), "ladder", format_))
    assert card.data.base_model == (model_id if expected["base_model"] else None)
    assert card.data.library_name == expected["library"]
    assert "82.0% (95 % interval 73.0% to 88.0%)" in card.text
    assert "pass@1 of the base model on 100 test problems of `tiny`: 1.0%" in card.text
    (run / "report.json").unlink()
    assert "pass@1" not in module._card(run, load_recipe("tiny"), "ladder", format_)


@pytest.mark.parametrize("format_", ["adapter", "merged"])
def test_solve_opens_an_export(run: Path, tmp_path: Path, format_: Any) -> None:
    export(run, format_, "ladder", tmp_path / "out", "")
    solver = Solver(str(tmp_path / "out"), seed=7)
    assert (solver.recipe.name, solver.recipe.seed) == ("tiny", 7)
    prompts = [solver.task.prompt(problem) for problem in solver.task.problems("test")[:8]]
    texts = [
        [reply.text for (reply,) in each.backend.sample(prompts, 1, GREEDY)]
        for each in (solver, Solver(str(run)), Solver("tiny"))
    ]
    assert texts[0] == texts[1] != texts[2]  # the trained model, not the base model
    assert solver.solve("5*exp(3*x)", samples=1).attempts == 1


def test_variants_become_a_data_set_with_verified_answers(tmp_path: Path) -> None:
    build_run(tmp_path / "run", full=True)
    train = tmp_path / "run/conditions/ladder/train"
    tree = [row for place in (tmp_path / "run", train) for row in read_jsonl(place / "variants/problems.jsonl")]
    (line,) = export(tmp_path / "run", "variants", "ladder", tmp_path / "out", "")
    rows = read_jsonl(tmp_path / "out/variants.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in tree]
    assert [row["integrand"] for row in rows] == [row["data"]["integrand"] for row in tree]
    answered = [row for row in rows if row["answer"] is not None]
    assert f"{len(rows)} variants, {len(answered)} of them" in line
    assert 0 < len(answered) < len(rows)
    assert all(verify(row["integrand"], row["answer"]).reward == 1 for row in answered)
    rates = {row["problem_id"]: row for row in read_jsonl(train / "pass_rates.jsonl")}
    for row in rows:
        rate = rates[row["id"]]
        assert (row["tries"], row["right"]) == ((rate["tries"], rate["right"]) if rate["tries"] else (None, None))
        assert (row["pass_rate"] is None) == (not rate["tries"])
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["configs"] == [{"config_name": "default", "data_files": "variants.jsonl"}]
    assert "seed 3" in card
    assert (tmp_path / "out/recipe.yaml").exists()
    with pytest.raises(UserError, match="rl_without_variants was not trained on variants"):
        export(tmp_path / "run", "variants", "rl_without_variants", tmp_path / "other", "")
    assert not (tmp_path / "other").exists()


class FakeHub:
    """A client of the hub that records its calls, or fails."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012
    error: Exception | None = None

    def create_repo(self, repo_id: str, **options: object) -> str:
        if self.error is not None:
            raise self.error
        self.calls.append((repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **options: object) -> None:
        self.calls.append(("upload", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    return FakeHub


def test_a_push_is_private(hub: type[FakeHub], tmp_path: Path) -> None:
    assert push(tmp_path, "me/mine") == "https://huggingface.co/me/mine"
    (repo, created), (_, uploaded) = hub.calls
    assert (repo, created) == ("me/mine", {"repo_type": "model", "private": True, "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/mine", tmp_path)
    push(tmp_path, "me/variants", "dataset")
    assert {options["repo_type"] for _, options in hub.calls[2:]} == {"dataset"}


def test_the_hub_accepts_our_arguments(hub: type[FakeHub], tmp_path: Path) -> None:
    from huggingface_hub.hf_api import HfApi

    push(tmp_path, "me/mine")
    (repo, created), (_, uploaded) = hub.calls
    inspect.signature(HfApi.create_repo).bind(None, repo, **created)
    inspect.signature(HfApi.upload_folder).bind(None, **uploaded)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("Name or service not known"), ConnectionError("offline mode is enabled")]
)
def test_an_unreachable_hub(
    hub: type[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(hub, "error", error)
    with pytest.raises(UserError, match=rf"--push me/mine: .* \({error}\); .* is complete, .*`hf upload me/mine"):
        push(tmp_path, "me/mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "merge"], "'merge' is not one of 'adapter', 'merged', 'gguf', 'variants'"),
        (["--format", "gguf", "--quantization", "q4_m"], "'q4_m' is not one of"),
        (["--format", "adapter", "--quantization", "q8_0"], "only GGUF files are quantized"),
        (["--format", "adapter", "--push", "me/mine"], "no Hugging Face token"),
        (["--format", "adapter", "--push", "me/mi ne"], "not a valid repository name"),
    ],
)
def test_wrong_usage_is_one_line(run: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run_command("export", run, *arguments, HF_HOME=str(tmp_path), HF_TOKEN="")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (run / "export").exists()


def test_the_command(run: Path) -> None:
    result = run_command("export", run, "--format", "adapter")
    assert (result.returncode, result.stderr) == (0, "")
    out = run / "export" / "ladder-adapter"
    assert result.stdout == f"written: {out}\n"
    config = json.loads((out / "adapter_config.json").read_bytes())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", None)
