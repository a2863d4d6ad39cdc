"""Models: the `Backend` protocol that the training loop needs, and `load_backend`, which creates one from a recipe.

`local.py` implements the only backend, a model on this machine; `loading.py` decides which library loads it.
"""

import gc
import logging
import os

from ladder_lite.config import Recipe
from ladder_lite.install import cache_folder
from ladder_lite.models.backend import Adapter, Backend, Rollout, Sampling

__all__ = ["Adapter", "Backend", "Rollout", "Sampling", "load_backend", "prepare_environment", "release_memory"]

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "0",  # with several GPUs visible, transformers' Trainer wraps the model in DataParallel
    "DO_NOT_TRACK": "1",  # honoured by several libraries, vLLM among them
    "HF_HUB_DISABLE_TELEMETRY": "1",  # covers the hub client and the libraries that call it
    "TRL_EXPERIMENTAL_SILENCE": "1",  # TRL warns that `rollout_func` is experimental
    "UNSLOTH_COMPILE_LOCATION": str(cache_folder() / "unsloth"),  # otherwise it writes into the current folder
    "UNSLOTH_DISABLE_STATISTICS": "1",
    # The FlexAttention kernel behind the prefix grouper needs 128 KiB of shared memory per block. An RTX 3090 has 99
    # and a T4 has 64, and Unsloth's own check runs no backward pass. Off until it has been measured on each kind of
    # card.
    "UNSLOTH_GRPO_PREFIX_GROUPER": "0",
    # Recompute the logits in the backward pass instead of keeping gigabytes of them after the forward pass.
    "UNSLOTH_GRPO_LOGPROB_RECOMPUTE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # OpenMP threads that spin while they wait take the cores from everything else: 3 to 20 times slower beside another
    # process. libgomp reads this when torch is imported.
    "OMP_WAIT_POLICY": "passive",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # rollouts of varying length would fragment the memory
    "TOKENIZERS_PARALLELISM": "false",  # otherwise tokenizers warns whenever the process is forked
}


def load_backend(recipe: Recipe) -> Backend:
    """Load the model that a recipe names, with a fresh adapter initialised from the recipe's seed."""
    prepare_environment()
    from ladder_lite.models.loading import choose_loader, import_unsloth

    loader = choose_loader(recipe.model)
    # Unsloth patches transformers, peft and TRL when it is imported, so it must come before them.
    if loader == "unsloth":
        import_unsloth()
    from ladder_lite.models.local import LocalBackend

    return LocalBackend(recipe, loader)


def release_memory() -> None:
    """Free the memory of models and trainers that were just deleted, so that the next ones have room."""
    import torch

    gc.collect()  # models and trainers contain reference cycles, so `del` alone frees nothing
    torch.cuda.empty_cache()


def prepare_environment() -> None:
    """Set what the libraries read on import: environment variables that the user has not set, and a log level."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # On import, bitsandbytes warns about a missing kernel that would only make it faster.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
