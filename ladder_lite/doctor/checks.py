"""Checks before a run loads its model: problems that would stop it after minutes or hours are reported at once.

    require_passed(preflight(recipe, Path("runs/llama3b-s0"), **predict(recipe)))

A check that does not apply is left out rather than passed: without a GPU, there is no check of GPU memory. Nothing is
downloaded except the config of a model that no shipped recipe uses. `python -m ladder_lite.doctor` also prints the
checks.
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
"""Checkpoints on disk at the same time: the two that are kept and the one being written."""
_CHECKPOINT_ADAPTERS = 3
"""Size of a checkpoint as a multiple of the adapter's: its weights and Adam's two moments."""
_RESERVE_BYTES = 256 * 2**20
"""Disk space for a run's other files: attempts, metrics, reports."""
_SIDE = 256
"""Rows and columns of the matrices in test products."""
_BFLOAT16_CAPABILITY = (8, 0)  # Ampere, the first architecture with bfloat16
_TRACKERS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("trackio", "wandb", "tensorboard", "mlflow", "comet_ml", "swanlab", "clearml")},
    **{name: (name,) for name in ("codecarbon", "dvclive", "neptune", "dagshub", "kubeflow")},
    "tensorboard": ("tensorboard", "tensorboardX"),
    "azure_ml": ("azureml-core", "azureml"),
    "flyte": ("flytekit",),
}
"""The values of `report_to` in TRL: first the package to install, then further modules that show it is installed."""
_OTHER_FOLDER = {"checkpoints": "choose another --run-dir", "the model": "set HF_HOME to a folder on another disk"}
_ELSEWHERE = "choose another accelerator (on Kaggle: T4 x2), or model.device=cpu to run on the CPU"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check; `remedy` is empty if the check passed, or if `detail` already ends with one."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    @staticmethod
    def of(name: str, ok: bool, detail: str, remedy: str) -> "Check":
        """Make a check, whose remedy is dropped if the check passed."""
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
    """Check versions, the device, its memory and the disks, the causes of other failures first.

    `needed_bytes` is the predicted peak of GPU memory without the CUDA context, `adapter_bytes` the adapter's size in
    float32, and `download_bytes` the size of the model's files on the hub. A check that needs an unknown number is left
    out. Without a `run_path` nothing is trained, so checkpoints and trackers are not checked. Imports torch, and
    Unsloth if it is to load the model.
    """
    prepare_environment()
    loader, loading = _check_loader(recipe.model)
    checks = [_check_versions(with_unsloth=loader == "unsloth"), loading]
    # Before the loader's check: a fault of the GPU explains why Unsloth cannot load the model.
    if loader is not None:
        checks[1:1] = _check_gpu(recipe.model)
    if run_path is not None:
        checks += _check_trackers(recipe.grpo.trl.get("report_to"))
    if loader is not None:
        checks += _check_device(recipe.model, needed_bytes)
    folders = {} if run_path is None else {"checkpoints": run_path}
    # Checkpoints of one training run at a time, and at the end an adapter of each condition.
    n_adapters = _CHECKPOINTS * _CHECKPOINT_ADAPTERS + len(recipe.conditions)
    needs = {"checkpoints": _RESERVE_BYTES + n_adapters * (adapter_bytes or 0)}
    if missing_bytes := to_download(recipe.model, download_bytes):
        from huggingface_hub.constants import HF_HUB_CACHE

        folders["the model"], needs["the model"] = Path(HF_HUB_CACHE), missing_bytes
    checks += [_check_writable(purpose, folder) for purpose, folder in folders.items()]
    return checks + _check_disks(folders, needs)


def predict(recipe: Recipe) -> dict[str, int]:
    """Predict the minimum needs of a run, by the names of `preflight`'s arguments.

    The result is empty for a model of unknown shape, or if PyTorch is broken.
    """
    prepare_environment()
    try:
        from ladder_lite.models.loading import choose_loader
    except (ImportError, OSError, RuntimeError):  # torch cannot be imported, which `preflight` reports
        return {}
    try:
        shape = read_shape(recipe.model.id)
    except UserError:  # an unknown family of models, or no model at all, which loading it reports
        return {}
    # `preflight` starts CUDA before it measures the free memory, so the context is already subtracted there.
    setup = Setup.of(shape, recipe.model, recipe.grpo.trl, choose_loader(recipe.model), context_bytes=0)
    return {
        # Training with a micro-batch of one completion, or generating one: larger batches are made to fit later.
        "needed_bytes": max(map(total, smallest_parts(setup))),
        "adapter_bytes": 4 * setup.lora_weights,  # float32
        "download_bytes": 2 * shape.parameters,  # 16 bits
    }


def require_passed(checks: Sequence[Check]) -> None:
    """Raise UserError with the first check that failed, if any."""
    if failed := [check for check in checks if not check.ok]:
        raise UserError(str(failed[0]))


def open_backend(recipe: Recipe, run_path: Path | None, live: "Live") -> Backend:
    """Load the model of a recipe after the preflight checks. Raises UserError if one of them fails.

    Without a `run_path` the model is only sampled from, and the needs of training are not checked.
    """
    from ladder_lite.terminal import show

    needs = predict(recipe)
    checked = needs if run_path else {name: needs[name] for name in needs if name == "download_bytes"}
    require_passed(preflight(recipe, run_path, **checked))
    if n_bytes := to_download(recipe.model, needs.get("download_bytes")):
        live.say(f"load {show(recipe.model.id)}: downloading about {n_bytes / 1e9:.1f} GB")
    with live.progress(f"load {recipe.model.id}"):
        return models.load_backend(recipe)


def to_download(settings: ModelSettings, download_bytes: int | None) -> int:
    """Return the number of bytes to download for the model: its size on the hub, or 0 if it is cached or local."""
    return 0 if download_bytes is None or not on_hub(settings.id) or _cached(settings) else download_bytes


def on_hub(model_id: str) -> bool:
    """Return whether a recipe's `model.id` names a model on the Hugging Face hub, rather than a folder or file."""
    is_local = model_id == EMBEDDED or model_id.endswith(".gguf") or Path(model_id).exists()
    # "gpt2" or "org/name"; not "../llama" or "/models/llama", even if these do not exist
    return not is_local and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", model_id) is not None


def _check_versions(with_unsloth: bool) -> Check:
    """Check that the installed packages are within the ranges that ladder_lite requires."""
    name, required = "versions", list(_requirements(with_unsloth))
    if not required:
        return Check(name, False, "ladder_lite's own metadata is missing", "reinstall ladder_lite")
    faults = {requirement: fault for requirement in required if (fault := _version_fault(requirement))}
    if faults:
        # pip install 'trl>=1.16' 'datasets>=4.4'
        arguments = " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement in faults)
        return Check(name, False, ", ".join(faults.values()), f"pip install {arguments}")
    return Check(name, True, f"{len(required)} packages, each within its range")


def _version_fault(requirement: "Requirement") -> str | None:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    # Notebooks have builds such as 2.10.0rc1+cu128, which a range without pre-releases would exclude.
    is_within = requirement.specifier.contains(version, prereleases=True)
    return None if is_within else f"{requirement.name} {version} is not {requirement.specifier}"


def _requirements(with_unsloth: bool) -> "Iterator[Requirement]":
    """Yield the requirements of the installed ladder_lite, or those in the pyproject.toml of a checkout."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("ladder_lite") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
        checkout = Path(__file__).parents[2] / "pyproject.toml"
        project = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"] if checkout.exists() else {}
        extra = project.get("optional-dependencies", {}).get("gpu", [])
        lines = project.get("dependencies", []) + [f"{line}; extra == 'gpu'" for line in extra]
    for requirement in map(Requirement, lines):
        # "unsloth>=1; extra == 'gpu'" applies only with that extra; "numpy>=1" has no marker.
        if requirement.marker is None or requirement.marker.evaluate({"extra": "gpu" if with_unsloth else ""}):
            yield requirement


def _check_loader(settings: ModelSettings) -> tuple[str | None, Check]:
    """Return the loader that would load the model, with its check.

    The loader is None if PyTorch is broken, and "" if the loader of the recipe cannot run here.
    """
    name = "loader"
    try:
        from ladder_lite.models.loading import choose_loader, import_unsloth, unsloth_obstacle

        loader = choose_loader(settings)
        obstacle = unsloth_obstacle(settings)
        # Now, because Unsloth configures PyTorch's allocator, which must happen before the first use of the GPU.
        if loader == "unsloth":
            import_unsloth()
    except UserError as error:
        return "", Check(name, False, str(error))
    except (ImportError, OSError, RuntimeError) as error:
        return None, Check(name, False, f"PyTorch does not work here ({first_line(error)})", "reinstall torch")
    if loader == "unsloth":
        return loader, Check(name, True, "unsloth")
    reason = "set in the recipe" if settings.backend == "transformers" else f"not Unsloth: {obstacle}"
    return loader, Check(name, True, f"transformers ({reason})")


def _check_trackers(report_to: object) -> list[Check]:
    """Check that the trackers of `report_to` are installed."""
    # The trainer would notice only when training begins, which is hours later.
    name, values = "grpo.trl.report_to", report_to if isinstance(report_to, list) else [report_to]
    # "all" means those that are installed, so none can be missing.
    trackers = [value for value in values if isinstance(value, str) and value not in ("none", "all")]
    if unknown := [tracker for tracker in trackers if tracker not in _TRACKERS]:
        detail = f"{unknown[0]} is unknown{nearest(unknown[0], _TRACKERS)}"
        return [Check(name, False, detail, f"name one of {', '.join(_TRACKERS)}")]
    if missing := [tracker for tracker in trackers if not any(map(importlib.util.find_spec, _TRACKERS[tracker]))]:
        packages = " ".join(_TRACKERS[tracker][0] for tracker in missing)
        remedy = f"pip install {packages}, or set grpo.trl.report_to=none"
        return [Check(name, False, f"{', '.join(missing)}: not installed", remedy)]
    return [Check(name, True, f"{', '.join(trackers)}: installed")] if trackers else []


def _check_gpu(settings: ModelSettings) -> list[Check]:
    """Check the GPU if PyTorch can use it. Otherwise fail if there is a GPU or the recipe requires one."""
    import torch

    if settings.device == "cpu":
        return []
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        checks = [_check_capability(capability, settings)]
        # Builds for AMD have no CUDA version, and architectures with other names: gfx90a.
        if torch.version.cuda is not None:
            checks.insert(0, _check_build(capability, torch.cuda.get_arch_list(), torch.__version__))
        return checks
    # The user's way of hiding the GPUs from PyTorch, which nvidia-smi ignores.
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    cards = [] if hidden else nvidia_smi()
    on_cpu = "set model.device=cpu to run on the CPU, which takes far longer"
    # An unusable GPU fails also with model.device=auto: the run would silently take the CPU, and days.
    if cards:
        remedy = f"install a PyTorch for this driver and this card, or {on_cpu}"
        return [Check("GPU", False, f"PyTorch cannot use the {cards[0]['name']} ({_cuda_fault()})", remedy)]
    if settings.device == "auto":
        return []
    why = "CUDA_VISIBLE_DEVICES hides all GPUs" if hidden else "neither PyTorch nor nvidia-smi sees a GPU"
    return [Check("GPU", False, f"{why}, and model.device is cuda", on_cpu)]


def _cuda_fault() -> str:
    """Return PyTorch's reason why it cannot use the GPU: an old driver, or a build without CUDA."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "it finds no GPU"


def nvidia_smi() -> list[dict[str, Any]]:
    """Return the NVIDIA GPUs that the driver lists, whether or not PyTorch can use them."""
    fields = ("name", "driver_version", "memory.total", "memory.free", "compute_cap")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    cards = []
    for line in listing.splitlines():
        # "Tesla T4, 550.54.15, 15360, 15095, 7.5"; split from the right, in case a name contains a comma
        name, driver, total, free, capability = (part.strip() for part in line.rsplit(",", 4))
        memory = {"memory_total_mib": _number(total), "memory_free_mib": _number(free)}
        cards.append({"name": name, "driver": driver, **memory, "capability": capability})
    return cards


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0  # "[N/A]" if the GPU shares the machine's memory


def _check_device(settings: ModelSettings, needed_bytes: int | None) -> list[Check]:
    """Check that the device computes correctly and that its memory is sufficient."""
    import torch

    from ladder_lite.models.loading import choose_device, choose_dtype

    device = choose_device(settings)
    dtype = choose_dtype(settings, device)
    checks = [_check_product(device, dtype)]
    if settings.load_in_4bit:
        checks.append(_check_four_bit(device, dtype))
    # After the products: they have started CUDA, so that its context is no longer part of the free memory.
    if needed_bytes is not None and settings.device != "cpu" and torch.cuda.is_available():
        checks.append(_check_memory(needed_bytes))
    return checks


def _check_build(capability: tuple[int, int], architectures: Sequence[str], version: str) -> Check:
    """Check that PyTorch was built with code for the GPU."""
    name, code = "PyTorch's build", f"code for compute capability {_dotted(capability)}"
    if any(_can_run(architecture, capability) for architecture in architectures):
        return Check(name, True, f"torch {version} has {code}")
    return Check(name, False, f"torch {version} has no {code} (it has {', '.join(architectures)})", _ELSEWHERE)


def _can_run(architecture: str, capability: tuple[int, int]) -> bool:
    """Return whether a GPU can run code that was compiled for this architecture."""
    # "sm_86" is machine code, "compute_86" is PTX, which the driver compiles for any newer GPU. The suffix a restricts
    # code to this very capability, f to its family.
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        return False
    built = int(match[2]), int(match[3])
    # Machine code also runs on newer GPUs with the same major version: sm_86 on an 8.9.
    same_generation = built[0] == capability[0] and built <= capability and match[4] != "a"
    return built == capability or same_generation or (match[1] == "compute" and not match[4] and built <= capability)


def _check_capability(capability: tuple[int, int], settings: ModelSettings) -> Check:
    name, detail = "compute capability", _dotted(capability)
    if settings.dtype == "bfloat16" and capability < _BFLOAT16_CAPABILITY:
        needed = _dotted(_BFLOAT16_CAPABILITY)
        return Check(name, False, f"bfloat16 needs {needed} and this card has {detail}", "set model.dtype=auto")
    return Check(name, True, detail)


def _check_product(device: "torch.device", dtype: "torch.dtype") -> Check:
    """Check a matrix product against one in float64."""
    # `torch.cuda.is_available()` is not enough: on Kaggle's P100 it is true, but no kernel runs.
    import torch

    name = f"matrix product ({device.type}, {_name(dtype)})"
    left, right = _matrices(dtype)
    try:
        product = (left.to(device) @ right.to(device)).cpu()
    except torch.OutOfMemoryError as error:  # a subclass of RuntimeError, so it comes first
        return Check(name, False, first_line(error), "close other programs that use the GPU; nvidia-smi lists them")
    except RuntimeError as error:  # includes torch.AcceleratorError
        return Check(name, False, f"this device does not work ({first_line(error)})", _ELSEWHERE)
    # At least 2e-3: an environment variable can switch on TF32 for float32, which rounds to a thousandth.
    return _compare(name, product, left.double() @ right.double(), max(4 * torch.finfo(dtype).eps, 2e-3))


def _check_four_bit(device: "torch.device", dtype: "torch.dtype") -> Check:
    """Check a product with NF4 weights."""
    # bitsandbytes is shipped with one library per CUDA version, and may lack the one for this version.
    name = f"4-bit product ({device.type}, {_name(dtype)})"
    left, right = _matrices(dtype)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its warning about a missing kernel concerns speed only
    try:
        bitsandbytes: Any = importlib.import_module("bitsandbytes")  # its type hints lack these two functions
        # Linear layers store the transposed matrix, hence right.T here and packed.t() below.
        packed, state = bitsandbytes.functional.quantize_4bit(right.T.contiguous().to(device), quant_type="nf4")
        product = bitsandbytes.matmul_4bit(left.to(device), packed.t(), quant_state=state).cpu()
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        remedy = "reinstall bitsandbytes, or set model.load_in_4bit=false"
        return Check(name, False, f"bitsandbytes does not work here ({first_line(error)})", remedy)
    # Four bits are coarse, but a wrong result is off by 1 or more.
    return _compare(name, product, left.double() @ right.double(), 0.25)


def _matrices(dtype: "torch.dtype") -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, _SIDE, _SIDE, generator=generator).to(dtype)
    return left, right


def _compare(name: str, product: "torch.Tensor", expected: "torch.Tensor", tolerance: float) -> Check:
    # The largest error, as a share of the largest entry.
    error = float((product.double() - expected).abs().max() / expected.abs().max())
    if error <= tolerance:  # false for NaN
        return Check(name, True, f"right to {error:.1g}")
    return Check(name, False, f"the result is wrong by {error:.2g} of its size", _ELSEWHERE)


def _check_memory(needed: int) -> Check:
    import torch

    free, total = torch.cuda.mem_get_info()
    detail = f"{gib(free)} of {gib(total)} GiB are free, the run needs at least {gib(needed)}"
    remedy = "close other programs that use the GPU (nvidia-smi lists them); --dry-run shows what fits on which GPU"
    return Check.of("GPU memory", needed <= free, detail, remedy)


def _check_writable(purpose: str, folder: Path) -> Check:
    name = f"folder for {purpose}"
    # Permissions alone do not tell: the file system may be read-only, or the quota used up.
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            file.write(b"ladder_lite")
            file.flush()
    except OSError as error:
        return Check(name, False, f"{folder} cannot be written to ({error.strerror})", _OTHER_FOLDER[purpose])
    return Check(name, True, f"{folder} can be written to")


def _check_disks(folders: dict[str, Path], needs: dict[str, int]) -> list[Check]:
    """Make one check per disk, which needs enough space for all folders on it."""
    # By device number: {64769: ["checkpoints", "the model"]}
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
    """Return whether the hub's cache contains all files of the model's weights."""
    from huggingface_hub import try_to_load_from_cache

    # It returns a path, None for a file that is not cached, or a marker for one that the hub does not have.
    if isinstance(try_to_load_from_cache(settings.id, "model.safetensors"), str):
        return True
    index = try_to_load_from_cache(settings.id, "model.safetensors.index.json")
    if not isinstance(index, str):
        return False
    # A large model is split into files, which the index lists by weight: {"lm_head.weight": "model-2.safetensors"}
    files = set(json.loads(Path(index).read_bytes())["weight_map"].values())
    return all(isinstance(try_to_load_from_cache(settings.id, file), str) for file in files)


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(candidate for candidate in (folder, *folder.parents) if candidate.exists())


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
