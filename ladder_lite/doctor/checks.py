"""Checks before a run loads its model: problems that would stop it after minutes or hours are reported at once.

    require_passed(preflight(recipe, Path("runs/llama3b-s0")))

A check that does not apply is left out rather than passed: without a GPU, there is no check of GPU memory. Nothing is
downloaded except the config of a model that no shipped recipe uses. `python -m ladder_lite.doctor` also prints the
checks.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from ladder_lite import models
from ladder_lite.config import EMBEDDED, ModelSettings, Recipe, model_name, recipe_for
from ladder_lite.errors import UserError, first_line, nearest
from ladder_lite.models import Backend, prepare_environment
from ladder_lite.models.memory import Setup, gib, smallest_parts, total
from ladder_lite.models.shape import read_shape
from ladder_lite.terminal import Live, show

_CHECKPOINTS = 3
"""Checkpoints on disk at the same time: the two that are kept and the one being written."""
_CHECKPOINT_ADAPTERS = 3
"""Size of a checkpoint as a multiple of the adapter's: its weights and Adam's two moments."""
_RESERVE_BYTES = 256 * 2**20
"""Disk space for a run's other files: attempts, metrics, reports."""
_SIDE = 256
"""Rows and columns of the matrices in test products."""
_BFLOAT16_CAPABILITY = (8, 0)  # Ampere, the first architecture with bfloat16
_OTHER_FOLDER = {"checkpoints": "choose another --run-dir", "the model": "set HF_HOME to a folder on another disk"}
_CLOSE_OTHERS = "close other programs that use the GPU; nvidia-smi lists them"
_ELSEWHERE = "choose another accelerator (on Kaggle: T4 x2), or model.device=cpu to run on the CPU"


@dataclass(slots=True)
class Check:
    """The result of a check; `remedy` is empty if the check passed, or if `detail` already ends with one."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.ok:
            self.remedy = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")


def preflight(recipe: Recipe, run_path: Path | None) -> list[Check]:
    """Check versions, the device, its memory and the disks, the causes of other failures first.

    A check that needs an unknown number is left out. Without a `run_path` nothing is trained, so memory, checkpoints
    and trackers are not checked. Imports torch, and Unsloth if it is to load the model.
    """
    prepare_environment()
    loader, loading = _check_loader(recipe.model)
    needs = predict(recipe) if loader else {}
    checks = [_check_versions(with_unsloth=loader == "unsloth")]
    # Before the loader's check: a fault of the GPU explains why Unsloth cannot load the model.
    if loader is not None:
        checks += _check_gpu(recipe.model)
        checks += _check_device(recipe.model, needs.get("needed_bytes") if run_path else None)
        if run_path is not None:
            checks += _check_trackers(recipe.grpo.trl.get("report_to"))
            checks += _check_names(recipe)
    checks.append(loading)
    folders: dict[str, tuple[Path, int]] = {}  # with the bytes needed there
    if run_path is not None:
        # Checkpoints of one training run at a time, and at the end an adapter of each condition.
        n_adapters = _CHECKPOINTS * _CHECKPOINT_ADAPTERS + len(recipe.conditions)
        folders["checkpoints"] = run_path, _RESERVE_BYTES + n_adapters * needs.get("adapter_bytes", 0)
    if missing_bytes := to_download(recipe.model, needs):
        from huggingface_hub.constants import HF_HUB_CACHE

        folders["the model"] = Path(HF_HUB_CACHE), missing_bytes
    return checks + _check_disks(folders)


def predict(recipe: Recipe) -> dict[str, int]:
    """Predict the minimum needs of a run; the result is empty for a model of unknown shape.

    `needed_bytes` is the peak of GPU memory without the CUDA context, `adapter_bytes` the adapter's size in float32,
    and `download_bytes` the size of the model's files on the hub.
    """
    from ladder_lite.models.loading import choose_loader

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


def open_backend(recipe: Recipe, run_path: Path | None, live: Live) -> Backend:
    """Load the model of a recipe after the preflight checks. Raises UserError if one of them fails.

    Without a `run_path` the model is only sampled from, and the needs of training are not checked.
    """
    require_passed(preflight(recipe, run_path))
    if n_bytes := to_download(recipe.model, predict(recipe)):
        live.say(f"load {show(recipe.model.id)}: downloading about {n_bytes / 1e9:.1f} GB")
    with live.progress(f"load {model_name(recipe.model.id)}"):
        return models.load_backend(recipe)


def to_download(settings: ModelSettings, needs: Mapping[str, int]) -> int:
    """Return the number of bytes to download for the model, 0 if that is unknown or the model is cached or local."""
    return 0 if not on_hub(settings.id) or _cached(settings) else needs.get("download_bytes", 0)


def on_hub(model_id: str) -> bool:
    """Return whether a recipe's `model.id` names a model on the Hugging Face hub, rather than a folder or file."""
    is_local = model_id == EMBEDDED or model_id.endswith(".gguf") or Path(model_id).exists()
    # "gpt2" or "org/name"; not "../llama" or "/models/llama", even if these do not exist
    return not is_local and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", model_id) is not None


def _check_versions(with_unsloth: bool) -> Check:
    """Check that the installed packages are within the ranges that ladder_lite requires."""
    required = _requirements(with_unsloth)
    faults = {requirement: fault for requirement in required if (fault := _version_fault(requirement))}
    # pip install 'trl>=1.16' 'datasets>=4.4'
    arguments = " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement in faults)
    detail = ", ".join(faults.values()) or f"{len(required)} packages, each within its range"
    return Check("versions", not faults, detail, f"pip install {arguments}")


def _version_fault(requirement: Requirement) -> str | None:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    # Notebooks have builds such as 2.10.0rc1+cu128, which a range without pre-releases would exclude.
    is_within = requirement.specifier.contains(version, prereleases=True)
    return None if is_within else f"{requirement.name} {version} is not {requirement.specifier}"


def _requirements(with_unsloth: bool) -> list[Requirement]:
    """Return the requirements of the installed ladder_lite, or those in the pyproject.toml of a checkout."""
    try:
        lines = importlib.metadata.requires("ladder_lite") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
        checkout = Path(__file__).parents[2] / "pyproject.toml"
        project = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"] if checkout.exists() else {}
        extra = project.get("optional-dependencies", {}).get("gpu", [])
        lines = project.get("dependencies", []) + [f"{line}; extra == 'gpu'" for line in extra]
    # "unsloth>=1; extra == 'gpu'" applies only with that extra; "numpy>=1" has no marker.
    environment = {"extra": "gpu" if with_unsloth else ""}
    return [line for line in map(Requirement, lines) if line.marker is None or line.marker.evaluate(environment)]


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
    reason = "set in the recipe" if settings.backend == "transformers" else f"not Unsloth: {obstacle}"
    return loader, Check(name, True, loader if loader == "unsloth" else f"{loader} ({reason})")


def _check_trackers(report_to: Any) -> list[Check]:
    """Check that the trackers of `report_to` are installed: TRL would notice only when training begins, hours later."""
    if report_to in (None, "none", "all", ["none"], []):  # "all" means those that are installed
        return []
    from transformers.integrations import get_reporting_integration_callbacks

    name, remedy = "grpo.trl.report_to", "or set grpo.trl.report_to=none"
    try:
        for callback in get_reporting_integration_callbacks(report_to):
            callback()
    except (ValueError, ImportError, RuntimeError) as error:  # unknown, or not installed
        return [Check(name, False, first_line(error), remedy)]
    return [Check(name, True, f"{report_to}: installed")]


def _check_names(recipe: Recipe) -> list[Check]:
    """Return a failed check for each name that transformers would refuse only when training begins."""
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    places = {"grpo.trl": recipe.grpo.trl, "ttrl.trl": recipe.ttrl.trl}
    for ablation in recipe.ablations:
        changed = recipe_for(recipe, ablation)
        places |= {
            f"ablations.{ablation}: grpo.trl": changed.grpo.trl,
            f"ablations.{ablation}: ttrl.trl": changed.ttrl.trl,
        }
    checks = []
    for name, kind in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
        valid = [member.value for member in kind]
        for place, settings in places.items():
            if (value := settings.get(name, valid[0])) not in valid:
                hint = nearest(value, valid).removeprefix("; ") or f"known are {', '.join(valid)}"
                checks.append(Check(f"{place}.{name}", False, f'"{value}" is unknown', hint))
    return checks


def _check_gpu(settings: ModelSettings) -> list[Check]:
    """Check the GPU if PyTorch can use it. Otherwise fail if there is a GPU or the recipe requires one."""
    import torch

    if settings.device == "cpu":
        return []
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        ok = settings.dtype != "bfloat16" or capability >= _BFLOAT16_CAPABILITY
        detail = f"{capability[0]}.{capability[1]}" + ("" if ok else ", and bfloat16 needs 8.0")
        return [Check("compute capability", ok, detail, "set model.dtype=auto")]
    # The user's way of hiding the GPUs from PyTorch, which nvidia-smi ignores.
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    cards = [] if hidden else nvidia_smi()
    # An unusable GPU fails also with model.device=auto: the run would silently take the CPU, and days.
    if not cards and settings.device == "auto":
        return []
    remedy = "set model.device=cpu to run on the CPU, which takes far longer"
    if cards:
        try:
            torch.cuda.init()  # raises PyTorch's reason: an old driver, or a build without CUDA
            fault = "it finds no GPU"
        except (RuntimeError, AssertionError) as error:
            fault = first_line(error)
        detail = f"PyTorch cannot use the {cards[0]['name']} ({fault})"
        remedy = f"install a PyTorch for this driver and this card, or {remedy}"
    else:
        why = "CUDA_VISIBLE_DEVICES hides all GPUs" if hidden else "neither PyTorch nor nvidia-smi sees a GPU"
        detail = f"{why}, and model.device is cuda"
    return [Check("GPU", False, detail, remedy)]


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
        name, driver, *memory, capability = (part.strip() for part in line.rsplit(",", 4))
        # "[N/A]" if the GPU shares the machine's memory
        total_mib, free_mib = (int(text) if text.isdigit() else 0 for text in memory)
        card = {"name": name, "driver": driver, "memory_total_mib": total_mib, "memory_free_mib": free_mib}
        cards.append({**card, "capability": capability})
    return cards


def _check_device(settings: ModelSettings, needed_bytes: int | None) -> Iterator[Check]:
    """Check the device's matrix products against one in float64, and that its memory is sufficient."""
    # `torch.cuda.is_available()` is not enough: on Kaggle's P100 it is true, but no kernel runs.
    import torch

    from ladder_lite.models.loading import choose_device, choose_dtype

    device = choose_device(settings)
    dtype = choose_dtype(settings, device)
    left, right = torch.randn(2, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = left.double() @ right.double()

    def plain() -> Any:
        # Times 1: cuBLAS may have code for a GPU for which this build of PyTorch has none.
        return left.to(device) @ right.to(device) * 1

    def four_bit() -> Any:
        bitsandbytes: Any = importlib.import_module("bitsandbytes")  # its type hints lack these two functions
        # Linear layers store the transposed matrix, hence right.T here and packed.t() below.
        packed, state = bitsandbytes.functional.quantize_4bit(right.T.contiguous().to(device), quant_type="nf4")
        return bitsandbytes.matmul_4bit(left.to(device), packed.t(), quant_state=state)

    # At least 2e-3: an environment variable can switch on TF32 for float32, which rounds to a thousandth.
    products = [("matrix product", plain, max(4 * torch.finfo(dtype).eps, 2e-3), _ELSEWHERE)]
    if settings.load_in_4bit:
        # bitsandbytes is shipped with one library per CUDA version, and may lack the one for this version. Four bits
        # are coarse, but a wrong result is off by 1 or more.
        remedy = "reinstall bitsandbytes, or set model.load_in_4bit=false"
        products.append(("4-bit product", four_bit, 0.25, remedy))
    for product, multiply, tolerance, remedy in products:
        name = f"{product} ({device.type}, {str(dtype).removeprefix('torch.')})"
        try:
            # The largest error, as a share of the largest entry.
            share = float((multiply().cpu().double() - expected).abs().max() / expected.abs().max())
        except torch.OutOfMemoryError as error:  # a subclass of RuntimeError, so it comes first
            yield Check(name, False, first_line(error), _CLOSE_OTHERS)
        except (ImportError, OSError, RuntimeError) as error:  # includes torch.AcceleratorError
            yield Check(name, False, f"does not work on this device ({first_line(error)})", remedy)
        else:
            yield Check(name, share <= tolerance, f"the error is {share:.1g} of the result", _ELSEWHERE)  # NaN fails
    # After the products: they have started CUDA, so that its context is no longer part of the free memory.
    if needed_bytes is not None and settings.device != "cpu" and torch.cuda.is_available():
        free, installed = torch.cuda.mem_get_info()
        detail = f"{gib(free)} of {gib(installed)} GiB are free, the run needs at least {gib(needed_bytes)}"
        remedy = f"{_CLOSE_OTHERS}; --dry-run shows what fits on which GPU"
        yield Check("GPU memory", needed_bytes <= free, detail, remedy)


def _check_disks(folders: Mapping[str, tuple[Path, int]]) -> list[Check]:
    """Make one check per disk, which needs enough space for all folders on it."""
    # By device number: {64769: ["checkpoints", "the model"]}
    purposes: defaultdict[int, list[str]] = defaultdict(list)
    for purpose, (folder, _) in folders.items():
        purposes[_existing(folder).stat().st_dev].append(purpose)
    checks = []
    for shared in purposes.values():
        folder, needed = folders[shared[0]][0], sum(folders[purpose][1] for purpose in shared)
        free = shutil.disk_usage(_existing(folder)).free
        detail = f"{gib(free)} GiB are free at {folder}, {gib(needed)} are needed"
        remedy = f"free some space, or {' or '.join(_OTHER_FOLDER[purpose] for purpose in shared)}"
        checks.append(Check(f"disk for {' and '.join(shared)}", needed <= free, detail, remedy))
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
