"""Loading a model: the choice of the loader, its arguments, and the errors when a model cannot be loaded."""

import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import ladder_lite.tiny
from ladder_lite import models as backends
from ladder_lite.config.load import load_recipe
from ladder_lite.config.schema import ModelSettings
from ladder_lite.errors import UserError
from ladder_lite.models import load_backend, loading, prepare_environment
from ladder_lite.models.memory import Loader
from tests.support.commands import run_command
from tests.support.unsloth_names import GET_PEFT_MODEL, LOAD_MODEL

CPU = torch.device("cpu")
GPU = torch.device("cuda")
TINY = Path(ladder_lite.tiny.__file__).parent


def settings(*overrides: str) -> ModelSettings:
    usual = ("device=auto", "dtype=auto")
    return load_recipe("tiny", [f"model.{override}" for override in (*usual, *overrides)]).model


def load(chosen: ModelSettings, max_length: int = 300) -> loading.Loaded:
    return loading.load(chosen, "transformers", CPU, 0, max_length)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what the machine seems to have: a GPU of a compute capability (None for no GPU), and packages."""

    def have(capability: tuple[int, int] | None, *packages: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GTX 1080")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in packages else None)

    return have


# --- the choice of the loader


@pytest.mark.parametrize(
    ("capability", "packages", "obstacle"),
    [
        (None, ("unsloth",), "it needs a GPU, and PyTorch sees none"),
        ((6, 1), ("unsloth",), "it needs compute capability 7.0, and this GTX 1080 has 6.1"),
        ((7, 5), (), "it is not installed (pip install 'ladder_lite[gpu]')"),
        ((7, 0), ("unsloth",), None),
        ((12, 0), ("unsloth",), None),
    ],
)
def test_obstacles_to_unsloth(
    machine: Callable[..., None], capability: tuple[int, int] | None, packages: tuple[str, ...], obstacle: str | None
) -> None:
    machine(capability, *packages)
    assert loading.unsloth_obstacle() == obstacle
    expected = "transformers" if obstacle else "unsloth"
    assert loading.choose_loader(settings("backend=auto")) == expected
    assert loading.choose_loader(settings("backend=transformers")) == "transformers"
    if obstacle:
        with pytest.raises(UserError) as refused:
            loading.choose_loader(settings("backend=unsloth"))
        assert str(refused.value) == f"model.backend unsloth: {obstacle}; model.backend=transformers runs without it"
    else:
        assert loading.choose_loader(settings("backend=unsloth")) == "unsloth"


def test_the_device_cpu_is_respected(machine: Callable[..., None]) -> None:
    machine((8, 0), "unsloth")
    assert loading.choose_device(settings()) == GPU
    assert loading.choose_loader(settings("backend=auto")) == "unsloth"
    on_purpose = settings("device=cpu", "backend=auto")
    assert loading.choose_device(on_purpose) == CPU
    assert loading.choose_loader(on_purpose) == "transformers"
    machine(None, "unsloth")
    assert loading.choose_device(settings()) == CPU


def test_unsloth_is_not_chosen_for_float32(machine: Callable[..., None]) -> None:
    machine((8, 0), "unsloth")
    assert loading.choose_loader(settings("backend=auto", "dtype=float32")) == "transformers"
    with pytest.raises(UserError, match=r"trains in 16 bits, and model\.dtype is float32; model\.backend=transformers"):
        loading.choose_loader(settings("backend=unsloth", "dtype=float32"))


@pytest.mark.parametrize(
    ("overrides", "capability", "packages", "message"),
    [
        (
            ["backend=transformers"],
            (8, 0),
            ("unsloth", "vllm"),
            r"needs Unsloth: model\.backend is transformers; set model\.engine=auto",
        ),
        (["backend=auto"], None, (), r"needs Unsloth: it needs a GPU.*; set model\.engine=auto"),
        (["device=cpu"], (8, 0), ("unsloth", "vllm"), r"needs Unsloth: .* model\.device is cpu"),
    ],
)
def test_vllm_needs_unsloth(
    machine: Callable[..., None],
    overrides: list[str],
    capability: tuple[int, int] | None,
    packages: tuple[str, ...],
    message: str,
) -> None:
    machine(capability, *packages)
    with pytest.raises(UserError, match=rf"model\.engine vllm {message}"):
        loading.choose_loader(settings("backend=auto", "engine=vllm", *overrides))


@pytest.mark.parametrize(
    ("capability", "version", "packages", "four_bit", "refused"),
    [
        ((8, 0), None, (), "false", "vLLM is not installed"),
        ((8, 0), "0.33.0", (), "false", None),
        ((7, 5), "0.11.2", (), "true", None),
        ((7, 5), "0.11.2+cu128", (), "true", None),
        ((7, 5), "0.11.3", (), "false", "vLLM 0.11.3 does not run on this GTX 1080; install vllm==0.11.2"),
        ((8, 0), "0.27.1", (), "true", None),
        ((8, 0), "0.28.0", (), "true", "vLLM 0.28.0 reads 4-bit weights with a plugin only; install vllm-bnb-plugin"),
        ((8, 0), "0.28.0", ("vllm_bnb_plugin",), "true", None),
    ],
)
def test_a_vllm_that_cannot_sample_here_is_an_error(
    machine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    version: str | None,
    packages: tuple[str, ...],
    four_bit: str,
    refused: str | None,
) -> None:
    machine(capability, "unsloth", *packages, *(["vllm"] if version else []))
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: version)
    chosen = settings("backend=auto", "engine=vllm", f"load_in_4bit={four_bit}")
    if refused is None:
        assert loading.choose_loader(chosen) == "unsloth"
    else:
        with pytest.raises(UserError) as caught:
            loading.choose_loader(chosen)
        assert str(caught.value).startswith(f"model.engine vllm: {refused}")
        assert str(caught.value).endswith(", or set model.engine=auto")


def test_the_command_line_reports_that_unsloth_needs_a_gpu(tmp_path: Path) -> None:
    words = ("tiny", "model.device=auto", "model.backend=unsloth", "--run-dir", tmp_path / "run")
    done = run_command("recipe", *words, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "it needs a GPU, and PyTorch sees none" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("error", "reason"), [(NotImplementedError(), "NotImplementedError"), (OSError("a\nb"), "a")])
def test_a_broken_unsloth_gives_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "unsloth":
                raise error

    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(UserError, match=rf"cannot be imported \({reason}\); model\.backend=transformers"):
        loading.import_unsloth()


# --- the arguments for Unsloth


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Install a stand-in for Unsloth that loads with transformers and peft; return the arguments that it records."""
    recorded: dict[str, dict[str, Any]] = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(model_name: str, **named: Any) -> tuple[Any, Any]:
            print("==((====))==  a banner")
            recorded["load"] = {"model_name": model_name, **named}
            model = transformers.AutoModelForCausalLM.from_pretrained(model_name, dtype=named["dtype"])
            return model, transformers.AutoTokenizer.from_pretrained(model_name)

        @staticmethod
        def get_peft_model(model: Any, use_gradient_checkpointing: str, random_state: int, **lora: Any) -> Any:
            from peft import LoraConfig, get_peft_model

            checkpointing = {"use_gradient_checkpointing": use_gradient_checkpointing}
            recorded["adapt"] = {**lora, **checkpointing, "random_state": random_state}
            return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora), autocast_adapter_dtype=False)

        @staticmethod
        def for_inference(model: Any) -> None:
            model.eval()

        @staticmethod
        def for_training(model: Any) -> None:
            model.train()

    fake = types.ModuleType("unsloth")
    fake.FastLanguageModel = FastLanguageModel  # type: ignore[attr-defined]
    fake.__spec__ = importlib.machinery.ModuleSpec("unsloth", None)
    monkeypatch.setitem(sys.modules, "unsloth", fake)
    monkeypatch.setattr(loading, "unsloth_obstacle", lambda _device: None)
    return recorded


def test_unsloth_gets_the_settings_of_the_recipe(
    arguments: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("tiny", ["model.backend=auto", "model.dtype=bfloat16", "model.load_in_4bit=true", "seed=11"])
    backend = load_backend(recipe)
    assert arguments["load"] == {
        "model_name": str(TINY),
        "max_seq_length": 512,  # twice a prompt and its reply, at most the context length
        "dtype": torch.bfloat16,
        "load_in_4bit": True,
        "use_exact_model_name": True,
        "offload_embedding": False,
        "fast_inference": False,
        "max_lora_rank": 32,
    }
    lora = {"r": 32, "lora_alpha": 32, "target_modules": "all-linear"}
    assert arguments["adapt"] == lora | {"use_gradient_checkpointing": "unsloth", "random_state": 11}
    assert arguments["load"].keys() <= LOAD_MODEL
    assert arguments["adapt"].keys() <= GET_PEFT_MODEL
    assert backend.dtype == torch.bfloat16
    model, tokenizer = backend.trainable()
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert tokenizer.padding_side == "left"
    assert capsys.readouterr().out == ""


def test_without_a_rank_both_loaders_use_the_default_of_peft(arguments: dict[str, dict[str, Any]]) -> None:
    chosen = settings().model_copy(update={"lora": {"target_modules": "all-linear"}})
    by_peft = load(chosen).model.peft_config["default"]
    loading.load(chosen, "unsloth", CPU, 0, 300)
    assert (arguments["adapt"]["r"], arguments["adapt"]["lora_alpha"]) == (by_peft.r, by_peft.lora_alpha)


def test_unsloth_is_back_in_training_mode_after_generation_ran_out_of_memory(
    arguments: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = load_backend(load_recipe("tiny", ["model.backend=auto"]))
    model, _ = backend.trainable()
    monkeypatch.setenv("UNSLOTH_RETURN_HIDDEN_STATES", "1")  # which its trainer does not reset when memory runs out
    monkeypatch.setattr(type(model), "generate", _out_of_memory)
    model.train()
    sampling = backends.Sampling(1.0, 1.0, 4, 1, 0)
    with pytest.raises(UserError, match="out of memory"):
        backend.sample([[{"role": "user", "content": "solve integrate(x,x)"}]], 1, sampling)
    assert model.training
    assert backends.os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] == "0"
    assert arguments["load"]["model_name"] == str(TINY)


def _out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


# --- models that cannot be loaded


def _hub_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let each download from the hub fail with this error, which transformers translates."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(transformers.utils.hub, "hf_hub_download", fail)


@pytest.mark.parametrize("loader", ["transformers", "unsloth"])
def test_a_gated_model_gives_the_address_of_its_licence(
    arguments: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, loader: Loader
) -> None:
    import httpx
    from huggingface_hub.errors import GatedRepoError

    url = "https://huggingface.co/meta-llama/Llama-3.2-3B-Instruct"
    response = httpx.Response(403, request=httpx.Request("GET", f"{url}/resolve/main/config.json"))
    _hub_fails(monkeypatch, GatedRepoError("403 Client Error.", response=response))
    chosen = load_recipe("llama3b").model
    with pytest.raises(UserError) as refused:
        loading.load(chosen, loader, CPU, 0, 1000)
    facts = ("gated repo", url, "`hf auth login` or HF_TOKEN", f"an ungated copy: model.id={chosen.mirror}")
    assert all(fact in str(refused.value) for fact in facts)
    assert arguments == {}


def test_a_hub_that_cannot_be_reached_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    _hub_fails(monkeypatch, LocalEntryNotFoundError("no network"))
    with pytest.raises(UserError) as refused:
        load(load_recipe("llama3b").model)
    message = str(refused.value)
    assert message.startswith("model.id meta-llama/Llama-3.2-3B-Instruct: cannot load this model (We couldn't connect")
    assert message.endswith("model.id=unsloth/Llama-3.2-3B-Instruct")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "Repo id must be"),
        ({}, "Unrecognized model"),
        ({"config.json": '{"model_type": "xyz"}'}, "model type `xyz`"),
        ({"config.json": "{"}, "not a valid JSON file"),
        ({"config.json": '{"model_type": "llama", "hidden_size": null}'}, "hidden_size"),
    ],
)
def test_the_error_names_a_folder_without_a_model(tmp_path: Path, files: dict[str, str] | None, reason: str) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    with pytest.raises(UserError, match=reason) as refused:
        load(settings(f"id={folder}"))
    assert str(refused.value).startswith(f"model.id {folder}: cannot load this model")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may damage."""
    ignore = shutil.ignore_patterns("*.py", "__pycache__")
    return Path(shutil.copytree(TINY, tmp_path / "copy", ignore=ignore))


def test_damaged_weights_give_one_line(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load this model"):
        load(settings(f"id={copy}"))


def test_a_context_that_is_too_short_is_an_error() -> None:
    load(settings(), 512)
    with pytest.raises(UserError, match=r"context has 512 tokens, .* 513; lower model\.max_prompt_length"):
        load(settings(), 513)


def test_an_adapter_that_does_not_fit_the_model_is_an_error() -> None:
    chosen = settings().model_copy(update={"lora": {"target_modules": ["c_attn"]}})
    with pytest.raises(UserError, match=r"model\.lora: .*c_attn.* not found"):
        load(chosen)


@pytest.mark.parametrize(("four_bit", "remedy"), [("false", "load_in_4bit=true"), ("true", "a smaller model")])
def test_a_model_larger_than_the_card_is_an_error(monkeypatch: pytest.MonkeyPatch, four_bit: str, remedy: str) -> None:
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", _out_of_memory)
    with pytest.raises(UserError, match=rf"does not fit on the GPU \(CUDA out of memory\); .*{remedy}"):
        load(settings(f"load_in_4bit={four_bit}"))


# --- the loaded model


@pytest.mark.parametrize(
    ("named", "device", "has_bfloat16", "dtype"),
    [
        ("auto", CPU, False, torch.float32),
        ("auto", GPU, True, torch.bfloat16),
        ("auto", GPU, False, torch.float16),
        ("float32", GPU, True, torch.float32),
        ("float16", GPU, True, torch.float16),
        ("bfloat16", CPU, False, torch.bfloat16),
    ],
)
def test_the_dtype_depends_on_recipe_and_device(
    monkeypatch: pytest.MonkeyPatch, named: str, device: torch.device, has_bfloat16: bool, dtype: torch.dtype
) -> None:
    def supported(including_emulation: bool) -> bool:
        return has_bfloat16 or including_emulation  # a T4 only emulates it, slowly

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert loading.choose_dtype(settings(f"dtype={named}"), device) == dtype


@pytest.mark.parametrize(
    ("pad", "eos", "expected"),
    [
        ("<pad>", "<end>", "<pad>"),  # its own
        (None, "<end>", "<pad>"),
        ("<end>", "<end>", "<pad>"),
        ("<pad>", "<pad>", "<unk>"),
    ],
)
def test_padding_is_not_the_end_of_turn(pad: str | None, eos: str, expected: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    tokenizer.eos_token, tokenizer.pad_token = eos, pad
    loading._set_padding_token(tokenizer)
    assert tokenizer.pad_token == expected
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_padding_is_the_end_of_turn_if_there_is_no_other_token() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"x": 0, "<end>": 1}, unk_token="x"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    loading._set_padding_token(tokenizer)
    assert tokenizer.pad_token == "<end>"


@pytest.mark.parametrize("four_bit", ["false", "true"])
def test_the_adapter_is_float32_and_depends_only_on_the_seed(four_bit: str) -> None:
    chosen = settings(f"load_in_4bit={four_bit}", "dtype=bfloat16")
    models = [loading.load(chosen, "transformers", CPU, seed, 300).model for seed in (1, 1, 2)]
    adapters = [{n: w for n, w in model.named_parameters() if w.requires_grad} for model in models]
    assert {weight.dtype for weight in adapters[0].values()} == {torch.float32}
    assert all(weight.equal(adapters[1][name]) for name, weight in adapters[0].items())
    assert not all(weight.equal(adapters[2][name]) for name, weight in adapters[0].items())
    kinds = {type(module).__name__ for module in models[0].modules()}
    assert ("Linear4bit" in kinds) == (four_bit == "true")


# --- the environment


def test_the_environment_is_set_but_keeps_the_users_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in backends._ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", "/elsewhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    prepare_environment()
    of_user = {"UNSLOTH_COMPILE_LOCATION": "/elsewhere", "CUDA_VISIBLE_DEVICES": "1"}
    assert {
        variable: backends.os.environ[variable] for variable in backends._ENVIRONMENT
    } == backends._ENVIRONMENT | of_user


@pytest.mark.parametrize(("of_user", "expected"), [(None, "0"), ("1", "1")])
def test_the_prefix_grouper_is_off_unless_the_user_sets_it(
    monkeypatch: pytest.MonkeyPatch, of_user: str | None, expected: str
) -> None:
    monkeypatch.delenv("UNSLOTH_GRPO_PREFIX_GROUPER", raising=False)
    if of_user is not None:
        monkeypatch.setenv("UNSLOTH_GRPO_PREFIX_GROUPER", of_user)
    prepare_environment()
    assert backends.os.environ["UNSLOTH_GRPO_PREFIX_GROUPER"] == expected


@functools.cache
def _imported(module: str) -> set[str]:
    program = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["recipe", "models", "train.grpo", "doctor.checks", "recipe.dry_run", "verify"])
def test_importing_the_package_imports_no_torch(module: str) -> None:
    heavy = {"torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "vllm", "datasets"}
    assert not heavy & _imported(f"ladder_lite.{module}")
