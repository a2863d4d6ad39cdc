"""Checks before a run loads its model: what would end in an error after minutes or hours is one line at once.

    demand(preflight(recipe, Path("runs/llama3b-s0"), **predict(recipe)))

A check that does not apply is left out rather than passed: without a GPU there is none of GPU memory. Nothing is
downloaded, but for the config of a model that no shipped recipe has. `python -m ladder_lite.doctor` prints the checks
too.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder_lite import models
from ladder_lite.config import EMBEDDED, ModelSettings, Recipe
from ladder_lite.errors import UserError, first_line, nearest
from ladder_lite.models import Backend, prepare_environment
from ladder_lite.models.memory import Setup, gib, smallest_parts, total
from ladder_lite.models.shape import read_shape

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement

    from ladder_lite.terminal import Live

_CHECKPOINTS = 3
"""Checkpoints on the disk at once: the two that are kept and the one being written."""
_CHECKPOINT_ADAPTERS = 3
"""A checkpoint in sizes of the adapter: its weights and Adam's two moments."""
_RESERVE_BYTES = 256 * 2**20
"""For what a run writes besides: attempts, metrics, reports."""
_SIDE = 256
"""Rows and columns of the matrices that are multiplied."""
_BFLOAT16_CAPABILITY = (8, 0)
_TRACKERS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("trackio", "wandb", "tensorboard", "mlflow", "comet_ml", "swanlab", "clearml")},
    **{name: (name,) for name in ("codecarbon", "dvclive", "neptune", "dagshub", "kubeflow")},
    "tensorboard": ("tensorboard", "tensorboardX"),
    "azure_ml": ("azureml-core", "azureml"),
    "flyte": ("flytekit",),
}
"""What TRL can report to: the package to install, whose module is called like it or has one of the other names."""
_OTHER_FOLDER = {"checkpoints": "choose another --run-dir", "the model": "set HF_HOME to a folder on another disk"}
_ELSEWHERE = "choose another accelerator (on Kaggle: T4 x2), or model.device=cpu to run on the CPU"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at and what was found; `remedy` is empty where it is well, or where `detail` ends in one."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    @staticmethod
    def of(name: str, ok: bool, detail: str, remedy: str) -> "Check":
        """The check, without the remedy where none is needed."""
        return Check(name, ok, detail, "" if ok else remedy)

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")


def preflight(
    recipe: Recipe,
    run_path: Path | None,
    needed_bytes: int | None = None,
    adapter_bytes: int | None = None,
    download_bytes: int | None = None,
) -> list[Check]:
    """Check versions, the device, its memory and the disks, in the order in which they matter.

    `needed_bytes` is the predicted peak of GPU memory besides the CUDA context, which is there once this has run;
    `adapter_bytes` is the adapter's size in float32 and `download_bytes` that of the model's files on the hub. What
    depends on an unknown one is left out. Without a `run_path` nothing is trained, so neither checkpoints nor trackers
    are looked at. Imports torch, and Unsloth where it is to load the model.
    """
    prepare_environment()
    loader, loading = _check_loader(recipe.model)
    checks = [_check_versions(with_unsloth=loader == "unsloth"), loading]
    if loader is not None:
        checks[1:1] = _check_gpu(recipe.model)  # a fault of the GPU explains what cannot be done without one
    if run_path is not None:
        checks += _check_trackers(recipe.grpo.trl.get("report_to"))
    if loader is not None:
        checks += _check_device(recipe.model, needed_bytes)
    folders = {} if run_path is None else {"checkpoints": run_path}
    n_adapters = _CHECKPOINTS * _CHECKPOINT_ADAPTERS + len(recipe.conditions)  # of one training, and of each condition
    needs = {"checkpoints": _RESERVE_BYTES + n_adapters * (adapter_bytes or 0)}
    if missing_bytes := to_download(recipe.model, download_bytes):
        from huggingface_hub.constants import HF_HUB_CACHE

        folders["the model"], needs["the model"] = Path(HF_HUB_CACHE), missing_bytes
    checks += [_check_writable(purpose, folder) for purpose, folder in folders.items()]
    return checks + _check_disks(folders, needs)


def predict(recipe: Recipe) -> dict[str, int]:
    """What a run needs at least, under the names of `preflight`'s arguments.

    GPU memory is that of the smallest micro-batch and of one reply at a time: batches are made to fit later. Nothing is
    known of a model of unknown shape, or where PyTorch is broken, which `preflight` then says.
    """
    prepare_environment()
    try:
        from ladder_lite.models.loading import choose_loader
    except (ImportError, OSError, RuntimeError):
        return {}
    try:
        shape = read_shape(recipe.model.id)
    except UserError:  # another family of models, or none at all: loading it says so
        return {}
    setup = Setup.of(shape, recipe.model, recipe.grpo.trl, choose_loader(recipe.model), context_bytes=0)
    return {
        "needed_bytes": max(map(total, smallest_parts(setup))),
        "adapter_bytes": 4 * setup.lora_weights,
        "download_bytes": 2 * shape.parameters,
    }


def demand(checks: Sequence[Check]) -> None:
    """UserError with the first check that failed, if one did."""
    if failed := [check for check in checks if not check.ok]:
        raise UserError(str(failed[0]))


def open_backend(recipe: Recipe, run_path: Path | None, live: "Live") -> Backend:
    """Load the model of a recipe, after the checks that a run begins with; UserError where one of them fails.

    Without a `run_path` the model is only sampled from, and what training needs is not asked for.
    """
    from ladder_lite.terminal import show

    needs = predict(recipe)
    asked = needs if run_path else {name: needs[name] for name in needs if name == "download_bytes"}
    demand(preflight(recipe, run_path, **asked))
    if n_bytes := to_download(recipe.model, needs.get("download_bytes")):
        live.say(f"load {show(recipe.model.id)}: downloading about {n_bytes / 1e9:.1f} GB")
    with live.progress(f"load {recipe.model.id}"):
        return models.load_backend(recipe)


def to_download(settings: ModelSettings, download_bytes: int | None) -> int:
    """How many of the bytes that the model has on the hub, if known, must be fetched: all of them or none."""
    return 0 if download_bytes is None or not on_hub(settings.id) or _cached(settings) else download_bytes


def on_hub(model_id: str) -> bool:
    """Whether a recipe's `model.id` is one of the Hugging Face hub, and no folder or file."""
    is_local = model_id == EMBEDDED or model_id.endswith(".gguf") or Path(model_id).exists()
    return not is_local and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", model_id) is not None


def _check_versions(with_unsloth: bool) -> Check:
    """Whether the installed packages are within the ranges that ladder_lite itself asks for."""
    name, required = "versions", list(_requirements(with_unsloth))
    if not required:
        return Check(name, False, "ladder_lite's own metadata is missing", "reinstall ladder_lite")
    faults = {each: fault for each in required if (fault := _version_fault(each))}
    if faults:
        wanted = " ".join(f"'{each.name}{each.specifier}'" for each in faults)
        return Check(name, False, ", ".join(faults.values()), f"pip install {wanted}")
    return Check(name, True, f"{len(required)} packages, each within its range")


def _version_fault(requirement: "Requirement") -> str | None:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    is_within = requirement.specifier.contains(version, prereleases=True)
    return None if is_within else f"{requirement.name} {version} is not {requirement.specifier}"


def _requirements(with_unsloth: bool) -> "Iterator[Requirement]":
    """What the installed ladder_lite requires, or what the checkout says that it would."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("ladder_lite") or []
    except importlib.metadata.PackageNotFoundError:
        checkout = Path(__file__).parents[2] / "pyproject.toml"
        project = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"] if checkout.exists() else {}
        extra = project.get("optional-dependencies", {}).get("gpu", [])
        lines = project.get("dependencies", []) + [f"{line}; extra == 'gpu'" for line in extra]
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": "gpu" if with_unsloth else ""}):
            yield requirement


def _check_loader(settings: ModelSettings) -> tuple[str | None, Check]:
    """Who would load the model (None where PyTorch is broken) and why."""
    name = "loader"
    try:
        from ladder_lite.models.loading import choose_loader, import_unsloth, unsloth_obstacle

        loader = choose_loader(settings)
        obstacle = unsloth_obstacle(settings)
        if loader == "unsloth":  # before anything is put on the GPU: it says how memory is to be handed out there
            import_unsloth()
    except UserError as error:
        return "", Check(name, False, str(error))
    except (ImportError, OSError, RuntimeError) as error:
        return None, Check(name, False, f"PyTorch does not work here ({first_line(error)})", "reinstall torch")
    if loader == "unsloth":
        return loader, Check(name, True, "unsloth")
    why = "as the recipe says" if settings.backend == "transformers" else f"not Unsloth: {obstacle}"
    return loader, Check(name, True, f"transformers ({why})")


def _check_trackers(report_to: object) -> list[Check]:
    """Whether what `report_to` names is installed: the trainer asks once training begins, hours from now.

    "all" are those that are installed.
    """
    name, asked = "grpo.trl.report_to", report_to if isinstance(report_to, list) else [report_to]
    trackers = [each for each in asked if isinstance(each, str) and each not in ("none", "all")]
    if unknown := [each for each in trackers if each not in _TRACKERS]:
        detail = f"{unknown[0]} is unknown{nearest(unknown[0], _TRACKERS)}"
        return [Check(name, False, detail, f"name one of {', '.join(_TRACKERS)}")]
    if missing := [each for each in trackers if not any(map(importlib.util.find_spec, _TRACKERS[each]))]:
        packages = " ".join(_TRACKERS[each][0] for each in missing)
        remedy = f"pip install {packages}, or set grpo.trl.report_to=none"
        return [Check(name, False, f"{', '.join(missing)}: not installed", remedy)]
    return [Check(name, True, f"{', '.join(trackers)}: installed")] if trackers else []


def _check_gpu(settings: ModelSettings) -> list[Check]:
    """The GPU, if PyTorch can use it; otherwise whether one is there or the recipe asks for one."""
    import torch

    if settings.device == "cpu":
        return []
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        checks = [_check_capability(capability, settings)]
        if torch.version.cuda is not None:  # AMD's builds name their architectures otherwise
            checks.insert(0, _check_build(capability, torch.cuda.get_arch_list(), torch.__version__))
        return checks
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    cards = [] if hidden else nvidia_smi()
    on_cpu = "set model.device=cpu to run on the CPU, which takes far longer"
    if cards:
        remedy = f"install a PyTorch for this driver and this card, or {on_cpu}"
        return [Check("GPU", False, f"PyTorch cannot use the {cards[0]['name']} ({_cuda_fault()})", remedy)]
    if settings.device == "auto":
        return []
    why = "CUDA_VISIBLE_DEVICES hides all GPUs" if hidden else "neither PyTorch nor nvidia-smi sees a GPU"
    return [Check("GPU", False, f"{why}, and model.device is cuda", on_cpu)]


def _cuda_fault() -> str:
    """What PyTorch says when it is to use a GPU: that the driver is too old, or its own build without CUDA."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "it finds none"


def nvidia_smi() -> list[dict[str, Any]]:
    """The NVIDIA GPUs as their driver lists them, whether or not PyTorch works."""
    fields = ("name", "driver_version", "memory.total", "memory.free", "compute_cap")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    cards = []
    for line in listing.splitlines():
        name, driver, total, free, capability = (part.strip() for part in line.rsplit(",", 4))
        memory = {"memory_total_mib": _number(total), "memory_free_mib": _number(free)}
        cards.append({"name": name, "driver": driver, **memory, "capability": capability})
    return cards


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0  # "[N/A]" where a GPU shares the machine's memory


def _check_device(settings: ModelSettings, needed_bytes: int | None) -> list[Check]:
    """What the device computes, and whether its memory suffices."""
    import torch

    from ladder_lite.models.loading import choose_device, choose_dtype

    device = choose_device(settings)
    dtype = choose_dtype(settings, device)
    checks = [_check_product(device, dtype)]
    if settings.load_in_4bit:
        checks.append(_check_four_bit(device, dtype))
    if needed_bytes is not None and settings.device != "cpu" and torch.cuda.is_available():
        checks.append(_check_memory(needed_bytes))
    return checks


def _check_build(capability: tuple[int, int], architectures: Sequence[str], version: str) -> Check:
    """Whether PyTorch has code for the card."""
    name, code = "PyTorch's build", f"code for compute capability {_dotted(capability)}"
    if any(_can_run(architecture, capability) for architecture in architectures):
        return Check(name, True, f"torch {version} has {code}")
    return Check(name, False, f"torch {version} has no {code} (it has {', '.join(architectures)})", _ELSEWHERE)


def _can_run(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether a card can run this code: that of its own generation and no newer, or PTX of any older one."""
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        return False
    built = int(match[2]), int(match[3])
    same_generation = built[0] == capability[0] and built <= capability and match[4] != "a"
    return built == capability or same_generation or (match[1] == "compute" and not match[4] and built <= capability)


def _check_capability(capability: tuple[int, int], settings: ModelSettings) -> Check:
    name, detail = "compute capability", _dotted(capability)
    if settings.dtype == "bfloat16" and capability < _BFLOAT16_CAPABILITY:
        needed = _dotted(_BFLOAT16_CAPABILITY)
        return Check(name, False, f"bfloat16 needs {needed} and this card has {detail}", "set model.dtype=auto")
    return Check(name, True, detail)


def _check_product(device: "torch.device", dtype: "torch.dtype") -> Check:
    """A real product: on Kaggle's P100, `torch.cuda.is_available()` is true while nothing runs."""
    import torch

    name = f"matrix product ({device.type}, {_name(dtype)})"
    left, right = _matrices(dtype)
    try:
        found = (left.to(device) @ right.to(device)).cpu()
    except torch.OutOfMemoryError as error:
        return Check(name, False, first_line(error), "close what else uses the card; nvidia-smi lists it")
    except RuntimeError as error:  # torch.AcceleratorError is one
        return Check(name, False, f"this device does not work ({first_line(error)})", _ELSEWHERE)
    # TF32, which an environment variable can switch on for float32, rounds to a thousandth.
    return _compare(name, found, left.double() @ right.double(), max(4 * torch.finfo(dtype).eps, 2e-3))


def _check_four_bit(device: "torch.device", dtype: "torch.dtype") -> Check:
    """A product with NF4 weights: bitsandbytes brings a library for each version of CUDA, and may lack this one's."""
    name = f"4-bit product ({device.type}, {_name(dtype)})"
    left, right = _matrices(dtype)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel that only hurry would want
    try:
        bitsandbytes: Any = importlib.import_module("bitsandbytes")  # its types leave these two out
        packed, state = bitsandbytes.functional.quantize_4bit(right.T.contiguous().to(device), quant_type="nf4")
        found = bitsandbytes.matmul_4bit(left.to(device), packed.t(), quant_state=state).cpu()
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        remedy = "reinstall bitsandbytes, or set model.load_in_4bit=false"
        return Check(name, False, f"bitsandbytes does not work here ({first_line(error)})", remedy)
    return _compare(name, found, left.double() @ right.double(), 0.25)  # four bits; a wrong result is off by 1 and more


def _matrices(dtype: "torch.dtype") -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, _SIDE, _SIDE, generator=generator).to(dtype)
    return left, right


def _compare(name: str, found: "torch.Tensor", expected: "torch.Tensor", tolerance: float) -> Check:
    error = float((found.double() - expected).abs().max() / expected.abs().max())
    if error <= tolerance:
        return Check(name, True, f"right to {error:.1g}")
    return Check(name, False, f"the result is wrong by {error:.2g} of its size", _ELSEWHERE)


def _check_memory(needed: int) -> Check:
    import torch

    free, total = torch.cuda.mem_get_info()
    detail = f"{gib(free)} of {gib(total)} GiB are free, the run needs at least {gib(needed)}"
    remedy = "close what else uses the card (nvidia-smi lists it); --dry-run says what fits which card"
    return Check.of("GPU memory", needed <= free, detail, remedy)


def _check_writable(purpose: str, folder: Path) -> Check:
    name = f"folder for {purpose}"
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            file.write(b"ladder_lite")
            file.flush()
    except OSError as error:
        return Check(name, False, f"{folder} cannot be written to ({error.strerror})", _OTHER_FOLDER[purpose])
    return Check(name, True, f"{folder} can be written to")


def _check_disks(folders: dict[str, Path], needs: dict[str, int]) -> list[Check]:
    """One check for each disk: what shares one needs the room of all."""
    purposes: dict[int, list[str]] = {}
    for purpose, folder in folders.items():
        purposes.setdefault(_existing(folder).stat().st_dev, []).append(purpose)
    checks = []
    for shared in purposes.values():
        free = shutil.disk_usage(_existing(folders[shared[0]])).free
        needed = sum(needs[purpose] for purpose in shared)
        detail = f"{gib(free)} GiB are free at {folders[shared[0]]}, {gib(needed)} are needed"
        remedy = f"free some space, or {' or '.join(_OTHER_FOLDER[purpose] for purpose in shared)}"
        checks.append(Check.of(f"disk for {' and '.join(shared)}", needed <= free, detail, remedy))
    return checks


def _cached(settings: ModelSettings) -> bool:
    """Whether the model's weights lie in the hub's cache, all files of them."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(settings.id, "model.safetensors"), str):
        return True
    index = try_to_load_from_cache(settings.id, "model.safetensors.index.json")
    if not isinstance(index, str):
        return False
    files = set(json.loads(Path(index).read_bytes())["weight_map"].values())
    return all(isinstance(try_to_load_from_cache(settings.id, file), str) for file in files)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(above for above in (folder, *folder.parents) if above.exists())


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
