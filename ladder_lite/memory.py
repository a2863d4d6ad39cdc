"""Memory: what a run has taken so far."""

import sys

import psutil


def peak_memory_bytes() -> int:
    """The most memory this process has held: the GPU's where one is in use, else the process's own (RSS)."""
    torch = sys.modules.get("torch")  # a process that never imported torch has used no GPU
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    info = psutil.Process().memory_info()
    if (peak := getattr(info, "peak_wset", None)) is not None:  # Windows
        return int(peak)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
