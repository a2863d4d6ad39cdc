"""The results of Unsloth's self-checks, which its GRPO loss stores as attributes of the model that is trained.

If possible, Unsloth 2026.10 packs a micro-batch into one row without padding (unsloth_zoo/rl_replacements.py,
grpo_accumulated_loss). It compares the packed pass with a padded one once, and then trusts it up to that size. It stops
packing for good if the two disagree or memory runs out. A result is not valid for another trainer or micro-batch.
"""

from typing import Any

_PREFIXES = ("_unsloth_seq_packing_", "_unsloth_prefix_grouper_")  # of the names of the attributes


def forget_self_checks(model: Any) -> None:
    """Delete the results, so that the next batch is checked again."""
    for name in [name for name in vars(model) if name.startswith(_PREFIXES)]:  # a list, as the loop changes vars
        delattr(model, name)


def training_pass(model: Any) -> str:
    """Return the pass that the last step was trained with: "packed", or "padded" with the reason or the limit."""
    # Results with "nograd" in their name concern passes without gradients, and are not needed here.
    agrees = getattr(model, "_unsloth_seq_packing_grad_ok", None)  # None: it never packed
    limit = getattr(model, "_unsloth_seq_packing_grad_unsafe_T", None)  # tokens of a row from which it is padded
    if limit is not None:
        return f"padded from {limit} tokens on, where the packed pass ran out of memory or disagreed with it"
    if agrees is False:
        return "padded, as the packed pass failed or disagreed with it"
    if getattr(model, "_unsloth_prefix_grouper_grad_verified", None):
        return "packed, with one prompt for each group"
    return "packed" if agrees else "padded"
