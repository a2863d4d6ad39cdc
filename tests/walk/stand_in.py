"""Unsloth's CUDA path on a CPU: a stand-in for the parts of torch.cuda and of Unsloth that need a device.

    stand_in.prepare(folder)    # before torch is imported
    stand_in.import_unsloth()   # in place of `import unsloth`

Triton's interpreter runs Unsloth's kernels, and Unsloth's own switch for machines without a GPU keeps its branches for
CUDA. What is left is replaced here. Each replacement checks that what it replaces exists, so a version of Unsloth that
has changed there fails at once and does not walk another path.

Not covered: 4-bit weights, 16-bit types, FlashAttention, FlexAttention (Unsloth's PrefixGrouper) and torch.compile.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TORCHDYNAMO_DISABLE": "1",  # compilation takes minutes, and the interpreter's kernels cannot be compiled
    "TRITON_INTERPRET": "1",
    "UNSLOTH_ALLOW_CPU": "1",  # DEVICE_TYPE is "cuda" although torch.cuda.is_available() is False
    "UNSLOTH_COMPILE_DISABLE": "1",
    "UNSLOTH_GRPO_PREFIX_GROUPER": "0",  # needs FlexAttention's backward pass, which PyTorch has for GPUs only
    "UNSLOTH_RMSNORM_MULTIROW": "0",  # differs in the last bit under the interpreter, so Unsloth would drop it anyway
}

_CARD = SimpleNamespace(
    name="stand-in",
    major=9,
    minor=0,
    total_memory=80 * 2**30,
    multi_processor_count=132,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
)


def prepare(folder: Path) -> None:
    """Set the environment; `folder` receives the trainers that Unsloth generates."""
    assert "torch" not in sys.modules, "the environment is read when torch, Triton and Unsloth are imported"
    os.environ.update(_ENVIRONMENT, UNSLOTH_COMPILE_LOCATION=str(folder))


def import_unsloth() -> None:
    """Import Unsloth by the package's own function and let it patch TRL as it does where there is a GPU."""
    _stand_in_for_cuda()
    from ladder_lite.models.loading import import_unsloth

    import_unsloth()
    _patch_trl()
    _count_one_device()


def with_large_stack(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a frame of several megabytes.

    Python keeps frames in chunks of 16 KiB and returns a chunk to the system as soon as it is empty. An interpreted
    kernel that runs at the border of a chunk maps and unmaps memory in each of its operations, which doubles the time
    of the walk. A frame this large gets a chunk with room for all the calls below it.
    """
    code = function.__code__.replace(co_stacksize=300_000)  # 8 bytes each, in a chunk of 4 MiB
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def replace(owner: Any, **values: Any) -> None:
    """Set attributes that the owner has."""
    for name, value in values.items():
        assert hasattr(owner, name), f"{owner.__name__} has no {name} any more"
        setattr(owner, name, value)


def _stand_in_for_cuda() -> None:
    import torch

    def on_cpu(create: Callable[..., Any]) -> Callable[..., Any]:
        """The function without pinned memory, and on the CPU where a GPU is asked for."""

        def run(*args: Any, pin_memory: bool = False, **options: Any) -> Any:  # noqa: ARG001
            device = options.get("device")
            if isinstance(device, int) or str(device).startswith("cuda"):
                options["device"] = "cpu"
            return create(*args, **options)

        return run

    replace(torch, empty=on_cpu(torch.empty))  # the buffers of gradient checkpointing and of rotary embeddings

    class Stream:
        """Streams and events, which order nothing where everything runs at once."""

        cuda_stream = _as_parameter_ = 0

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def wait_stream(self, _stream: Any) -> None: ...

        def wait_event(self, _event: Any) -> None: ...

        def record(self, _stream: Any = None) -> None: ...

        def synchronize(self) -> None: ...

    replace(
        torch.cuda,
        # What kernels and plans of memory depend on.
        get_device_properties=lambda _device=None: _CARD,
        get_device_capability=lambda _device=None: (_CARD.major, _CARD.minor),
        get_device_name=lambda _device=None: _CARD.name,
        mem_get_info=lambda _device=None: (_CARD.total_memory, _CARD.total_memory),
        # Streams: Unsloth's gradient checkpointing copies activations in one of its own.
        Stream=Stream,
        Event=Stream,
        current_stream=lambda _device=None: Stream(),
        default_stream=lambda _device=None: Stream(),
        stream=lambda _stream: contextlib.nullcontext(),
        synchronize=lambda _device=None: None,
        # The current device, where Unsloth's rotary embeddings ask for it.
        current_device=lambda: 0,
    )


def _patch_trl() -> None:
    """Do what Unsloth does on import where there is a GPU, and leaves out under UNSLOTH_ALLOW_CPU."""
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    import trl
    from unsloth.models.llama import FastLlamaModel
    from unsloth.models.rl import PatchFastRL
    from unsloth.trainer import _patch_trl_trainer

    PatchFastRL(FastLanguageModel=FastLlamaModel)
    _patch_trl_trainer()
    assert "Unsloth" in trl.GRPOTrainer.__name__, "Unsloth has not patched TRL's GRPOTrainer"


def _count_one_device() -> None:
    """One device, the CPU, where Unsloth keeps a table by device."""
    import torch
    from unsloth.models import llama

    def build_rope_cache(cache: Any, device_index: int) -> None:
        """The method with a device of this index on the CPU in place of torch.device(device_index)."""
        current_rope_size = cache.current_rope_size
        device = torch.device("cpu", device_index)
        cache._set_cos_sin_cache(seq_len=cache._rope_cache_rows(), device=device, dtype=cache._rope_cache_dtype)
        cache.current_rope_size = current_rope_size
        cache._rope_cache_versions[device_index] = cache._rope_cache_version

    replace(llama, DEVICE_COUNT=1, DEVICE_TYPE_TORCH="cpu")
    replace(llama._PerDeviceRopeCache, _build_rope_cache=build_rope_cache)
