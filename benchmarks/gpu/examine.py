"""Examine card, bandwidth, 4-bit kernels and Unsloth, with a finding for each: python benchmarks/gpu/examine.py"""

import os
from contextlib import redirect_stdout
from io import StringIO

from workload import Finding, Findings, bandwidth

from ladder_lite.models import prepare_environment


def card() -> Finding:
    """Return the GPU's properties as reported by PyTorch."""
    import torch

    finding = {"cores": os.cpu_count(), "cuda": torch.version.cuda, "bandwidth": bandwidth()}
    if torch.cuda.is_available():
        gpu, (free, total) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()
        finding |= {"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "total": total, "free": free}
    return finding


def four_bits() -> Finding:
    """Return the relative errors of NF4 (expected: 0.09) and of products with NF4 weights (bfloat16: below 0.01)."""
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
    finding: Finding = {"library": str(getattr(getattr(lib, "_lib", lib), "_name", lib)), "quantization_error": error}
    for rows in (1, 8, 300):  # a single row uses a different kernel
        x = torch.randn(rows, 1024, dtype=torch.bfloat16, device=device)
        expected = x.float().cpu() @ unpacked.T  # in float32, with the weights as dequantized
        finding[f"product_error_{rows}"] = float((layer(x).float().cpu() - expected).norm() / expected.norm())
    return finding


def unsloth() -> Finding:
    """Return Unsloth's version and output. If it cannot be imported, all later stages use transformers instead."""
    prepare_environment()
    with redirect_stdout(StringIO()) as output:
        import unsloth
    import trl  # after Unsloth, which patches it

    return {"version": unsloth.__version__, "trainer": trl.GRPOTrainer.__name__, "said": output.getvalue()[-1500:]}


def attention() -> Finding:
    """Return the attention backends that Unsloth selects for packed and for padded batches."""
    from unsloth.utils import attention_dispatch as dispatch

    return {f"varlen_{varlen}": dispatch.select_attention_backend(use_varlen=varlen) for varlen in (True, False)}


if __name__ == "__main__":
    for examination in (card, four_bits, unsloth, attention):
        Findings().attempt(examination.__name__, 0, examination)
