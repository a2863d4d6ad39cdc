"""Card, bandwidth, 4-bit kernels and Unsloth, a finding for each: python benchmarks/gpu/examine.py"""

import os
from contextlib import redirect_stdout
from io import StringIO

from workload import Finding, Findings, bandwidth

from ladder_lite.models import prepare_environment


def card() -> Finding:
    """The GPU as PyTorch sees it."""
    import torch

    found = {"cores": os.cpu_count(), "cuda": torch.version.cuda, "bandwidth": bandwidth()}
    if torch.cuda.is_available():
        own, (free, total) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()
        found |= {"name": own.name, "capability": f"{own.major}.{own.minor}", "total": total, "free": free}
    return found


def four_bits() -> Finding:
    """Errors of NF4 (expected: 0.09) and of products with NF4 weights (bfloat16: below 0.01), against arithmetic."""
    import torch
    from bitsandbytes.cextension import lib
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(3072, 1024, dtype=torch.bfloat16)
    layer = Linear4bit(1024, 3072, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.weight.data = weight.clone()
    layer = layer.to(device)
    unpacked = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().cpu().view(3072, 1024)
    error = float((unpacked - weight.float()).norm() / weight.float().norm())
    found: Finding = {"library": str(getattr(getattr(lib, "_lib", lib), "_name", lib)), "quantization_error": error}
    for rows in (1, 8, 300):  # one row has a kernel of its own
        x = torch.randn(rows, 1024, dtype=torch.bfloat16, device=device)
        expected = x.float().cpu() @ unpacked.T
        found[f"product_error_{rows}"] = float((layer(x).float().cpu() - expected).norm() / expected.norm())
    return found


def unsloth() -> Finding:
    """Unsloth's version; every stage does without it if it cannot be imported."""
    prepare_environment()
    with redirect_stdout(StringIO()) as said:
        import unsloth
    import trl

    return {"version": unsloth.__version__, "trainer": trl.GRPOTrainer.__name__, "said": said.getvalue()[-1500:]}


def attention() -> Finding:
    """The attention that Unsloth takes for packed and for padded batches."""
    from unsloth.utils import attention_dispatch as dispatch

    return {f"varlen_{varlen}": dispatch.select_attention_backend(use_varlen=varlen) for varlen in (True, False)}


if __name__ == "__main__":
    for examination in (card, four_bits, unsloth, attention):
        Findings().attempt(examination.__name__, 0, examination)
