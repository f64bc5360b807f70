"""How fast this machine multiplies matrices."""

import time

import torch

_SIDE = 1024
_SIDE_ON_GPU = 8192


@torch.no_grad()
def measured_flops_per_second(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Returns the FLOP/s of products of square matrices in `dtype`, on the GPU if there is one: the best of a few."""
    on_gpu = torch.cuda.is_available()
    device, side = ("cuda", _SIDE_ON_GPU) if on_gpu else ("cpu", _SIDE)
    matrix = torch.randn(side, side, device=device).to(dtype)
    best, began = 0.0, None
    while began is None or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        matrix @ matrix
        if on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if began is None:  # the first one also loads what is needed
            began = now
        else:
            best = max(best, 2 * side**3 / (now - start))
    return best or 2 * side**3 / (now - start)
