"""Models: the `Backend` that the loop needs, and `load_backend`, which makes one of a recipe.

`local.py` holds the one backend there is, a model on this machine; `loading.py` says who loads it.
"""

import gc
import logging
import os

from ladder_lite.config import Recipe
from ladder_lite.install import cache_folder
from ladder_lite.models.backend import Adapter, Backend, Rollout, Sampling

__all__ = ["Adapter", "Backend", "Rollout", "Sampling", "load_backend", "prepare_environment", "release_memory"]

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "0",  # transformers' trainer would spread itself over all cards
    "DO_NOT_TRACK": "1",  # what several libraries agree on, vLLM among them
    "HF_HUB_DISABLE_TELEMETRY": "1",  # the hub's, and that of the libraries that call it
    "TRL_EXPERIMENTAL_SILENCE": "1",  # rollout_func is new
    "UNSLOTH_COMPILE_LOCATION": str(cache_folder() / "unsloth"),  # else in the current folder
    "UNSLOTH_DISABLE_STATISTICS": "1",
    # Its FlexAttention kernel wants 128 KiB of shared memory a block, an RTX 3090 has 99 and a T4 64, and Unsloth's own
    # check runs no backward pass. Off until it has been measured on each kind of card.
    "UNSLOTH_GRPO_PREFIX_GROUPER": "0",
    "UNSLOTH_GRPO_LOGPROB_RECOMPUTE": "1",  # logits once more in the backward pass, and no gigabytes of them between
    "VLLM_NO_USAGE_STATS": "1",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # rollouts of many lengths would leave gaps in the memory
    "TOKENIZERS_PARALLELISM": "false",  # or it warns of every process that is forked
}


def load_backend(recipe: Recipe) -> Backend:
    """Load the model that a recipe names, with a fresh adapter initialised from the recipe's seed."""
    prepare_environment()
    # When it is imported, bitsandbytes warns of a kernel that only hurry would want.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from ladder_lite.models.loading import choose_loader, import_unsloth

    loader = choose_loader(recipe.model)
    if loader == "unsloth":  # before transformers, peft and TRL, which it patches
        import_unsloth()
    from ladder_lite.models.local import LocalBackend

    return LocalBackend(recipe, loader)


def release_memory() -> None:
    """Give back what was just deleted, for the next model or trainer to have room: they hold themselves in circles."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def prepare_environment() -> None:
    """Tell the libraries, before they are imported, what they read from the environment; a user's own settings stay."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
