"""What of a micro-batch has to go through the model: rows whose advantage is zero teach nothing.

Where all completions of a group earn the same, and where a reply is masked, every token's loss is zero whatever the
model says, and so is its gradient: without a KL term or a bonus on entropy, nothing else is in the loss. The loss of
the other rows alone is the same sum, divided by something else (TRL's grpo_trainer.py, `_compute_loss`), and
`teaching_part` says by which factor the two differ. With dropout in the adapter, other numbers are drawn for it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

_DIVIDED_BY: dict[str, Literal["rows", "tokens", "the step"]] = {
    **dict.fromkeys(("grpo", "dr_grpo", "sapo", "luspo"), "rows"),
    "bnpo": "tokens",
    **dict.fromkeys(("dapo", "cispo", "vespo"), "the step"),  # num_items_in_batch, which stays in the inputs
}
"""By how many of what the micro-batch has, if anything, each `loss_type` divides its sum over rows."""

_RELATIVE = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings in which only distances count; others also look at how long the padded sequence is."""


class Part(NamedTuple):
    """The rows that teach, as TRL's inputs, and what their loss is multiplied by to be that of all rows."""

    inputs: dict[str, Any]
    factor: float


def depends_on_advantage_only(trainer: Any) -> bool:
    """Whether a row without an advantage has no part in this trainer's gradient.

    KL, a bonus on entropy and the loss of a mixture's routers are of all rows; the quantile of the entropies is too.
    """
    return (
        trainer.loss_type in _DIVIDED_BY
        and trainer.beta == 0
        and trainer.top_entropy_quantile == 1
        and not getattr(trainer, "aux_loss_enabled", False)  # not all versions of TRL have these two
        and not getattr(trainer, "_entropy_bonus_enabled", False)
    )


def teaching_part(inputs: Mapping[str, Any], loss_type: str, *, trim_prompts: bool) -> Part | None:
    """The rows of TRL's micro-batch that have a gradient, without the padding that only others need; None if none has.

    `inputs` holds (n, prompt length) tensors named prompt_*, (n, completion length) ones, `advantages` of shape (n,)
    and scalars. `trim_prompts` cuts padding before the prompts too, which moves the positions of what follows.
    """
    mask = inputs["completion_mask"]
    if "tool_mask" in inputs:
        mask = mask * inputs["tool_mask"]
    teaches = (inputs["advantages"] != 0) & mask.any(dim=1)
    if not teaches.any():
        return None
    n = len(teaches)
    reply_length = int(inputs["completion_mask"][teaches].sum(dim=1).max())
    prompt_length = int(inputs["prompt_mask"][teaches].sum(dim=1).max())
    at = inputs["prompt_mask"].shape[1] - prompt_length if trim_prompts else 0

    def cut(name: str, value: "torch.Tensor") -> "torch.Tensor":
        if value.ndim < 2:
            return value[teaches]
        return value[teaches, at:] if name.startswith("prompt_") else value[teaches, :reply_length]

    part = {name: cut(name, value) if is_column(value, n) else value for name, value in inputs.items()}
    factor = {"rows": teaches.float().mean(), "tokens": mask[teaches].sum() / mask.sum(), "the step": 1.0}
    return Part(part, float(factor[_DIVIDED_BY[loss_type]]))


def positions_are_relative(model: Any) -> bool:
    """Whether the model says the same when padding before a prompt is cut away, up to rounding."""
    rotary = getattr(model.config, "rope_parameters", None) or {}
    return rotary.get("rope_type") in _RELATIVE


def is_column(value: Any, n: int) -> bool:
    """Whether this entry of TRL's inputs has a row for each of the n completions."""
    return getattr(value, "ndim", 0) > 0 and len(value) == n
