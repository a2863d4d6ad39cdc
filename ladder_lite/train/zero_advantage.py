"""Skipping the rows of a micro-batch that have no gradient: those whose advantage is zero.

If all completions of a group earn the same reward, or if a reply is masked, the loss of each of their tokens is zero
whatever the model predicts, and so is its gradient. Without a KL term or an entropy bonus, the loss has no other part.
So only the other rows have to go through the model. Their loss is the same sum with a different denominator (TRL's
grpo_trainer.py, `_compute_loss`), and `drop_zero_advantage_rows` returns the factor between the two.

The gradient is the same only without dropout in the adapter: with dropout, fewer rows draw other random numbers.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

# What each `loss_type` divides its sum over rows by, in so far as it depends on the micro-batch:
# - "rows": their number;
# - "tokens": the number of unmasked completion tokens;
# - "the step": `num_items_in_batch`, which counts the tokens of the whole step and is passed on unchanged.
_DENOMINATOR: dict[str, Literal["rows", "tokens", "the step"]] = {
    **dict.fromkeys(("grpo", "dr_grpo", "sapo", "luspo"), "rows"),
    "bnpo": "tokens",
    **dict.fromkeys(("dapo", "cispo", "vespo"), "the step"),
}

_RELATIVE_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings that depend only on distances between tokens. Others, such as "dynamic", scale with the length of
the padded sequence."""


class Reduced(NamedTuple):
    """TRL's inputs for the rows with a gradient, and the factor that turns their loss into that of all rows."""

    inputs: dict[str, Any]
    factor: float


def depends_on_advantage_only(trainer: Any) -> bool:
    """Return whether rows with zero advantage contribute nothing to this trainer's gradient."""
    return (
        trainer.loss_type in _DENOMINATOR  # an unknown loss type could normalise in another way
        and trainer.beta == 0  # KL pulls on every row
        and trainer.top_entropy_quantile == 1  # the threshold is a quantile of the entropies of all rows
        # The load-balancing loss of a mixture of experts and the entropy bonus are sums over all rows. Not every
        # version of TRL has these two attributes.
        and not getattr(trainer, "aux_loss_enabled", False)
        and not getattr(trainer, "_entropy_bonus_enabled", False)
    )


def drop_zero_advantage_rows(inputs: Mapping[str, Any], loss_type: str, *, trim_prompts: bool) -> Reduced | None:
    """Select the rows of TRL's micro-batch that have a gradient, without padding that only other rows need.

    `inputs` contains prompt_* tensors of shape (n, prompt length), completion tensors of shape (n, completion length),
    `advantages` of shape (n,), and scalars. `trim_prompts` removes padding before the prompts too, which shifts the
    positions of all tokens. Returns None if no row has a gradient.
    """
    mask = inputs["completion_mask"]  # (n, completion length)
    if "tool_mask" in inputs:  # the trainer's `env_mask`: 0 for replies that must not be trained on
        mask = mask * inputs["tool_mask"]
    has_gradient = (inputs["advantages"] != 0) & mask.any(dim=1)  # (n,)
    if not has_gradient.any():
        return None
    n = len(has_gradient)
    # The longest reply and the longest prompt of the rows that are kept. Replies are padded on the right and prompts on
    # the left, so the excess is cut from the end of the former and from the start of the latter.
    reply_length = int(inputs["completion_mask"][has_gradient].sum(dim=1).max())
    prompt_length = int(inputs["prompt_mask"][has_gradient].sum(dim=1).max())
    start = inputs["prompt_mask"].shape[1] - prompt_length if trim_prompts else 0

    def select(name: str, value: "torch.Tensor") -> "torch.Tensor":
        if value.ndim < 2:
            return value[has_gradient]
        return value[has_gradient, start:] if name.startswith("prompt_") else value[has_gradient, :reply_length]

    selected = {name: select(name, value) if has_rows(value, n) else value for name, value in inputs.items()}
    # For example, the mean over k kept rows is sum / k. Times k / n, it is sum / n, the mean over all n rows.
    factor = {"rows": has_gradient.float().mean(), "tokens": mask[has_gradient].sum() / mask.sum(), "the step": 1.0}
    return Reduced(selected, float(factor[_DENOMINATOR[loss_type]]))


def positions_are_relative(model: Any) -> bool:
    """Return whether removing padding before a prompt leaves the model's output unchanged, up to rounding."""
    rotary = getattr(model.config, "rope_parameters", None) or {}
    return rotary.get("rope_type") in _RELATIVE_ROPE_TYPES


def has_rows(value: Any, n: int) -> bool:
    """Return whether this entry of TRL's inputs is a tensor with one row for each of the n completions."""
    return getattr(value, "ndim", 0) > 0 and len(value) == n
