"""What Unsloth's GRPO loss concludes about its own passes, kept as attributes of the model that is trained.

Unsloth 2026.10 reads a micro-batch as one packed row where it can (unsloth_zoo/rl_replacements.py,
grpo_accumulated_loss). It compares the packed pass with a padded one once, trusts it up to that size, and gives it up
for good where the two disagree or memory runs out. A conclusion says nothing about another trainer or micro-batch.
"""

from typing import Any

_CONCLUSIONS = ("_unsloth_seq_packing_", "_unsloth_prefix_grouper_")


def forget_self_checks(model: Any) -> None:
    """Drop the conclusions, so that the next batch is checked again."""
    for name in [name for name in vars(model) if name.startswith(_CONCLUSIONS)]:
        delattr(model, name)


def training_pass(model: Any) -> str:
    """The pass that the last step was trained with: "packed", or "padded" with the reason or the limit."""
    agrees = getattr(model, "_unsloth_seq_packing_grad_ok", None)
    limit = getattr(model, "_unsloth_seq_packing_grad_unsafe_T", None)
    if limit is not None:
        return f"padded from {limit} tokens on, where the packed pass ran out of memory or disagreed with it"
    if agrees is False:
        return "padded, as the packed pass failed or disagreed with it"
    if getattr(model, "_unsloth_prefix_grouper_grad_verified", None):
        return "packed, with one prompt for each group"
    return "packed" if agrees else "padded"
