"""What torch itself can do here, asked in its own process: `python -m studio.backend.selfcheck`.

Prints one JSON object. Owns a forward and backward pass through one 4-bit layer and the questions
to torch.cuda; knows nothing of models or runs. The doctor starts it, so that the asking process
stays light and survives a torch that cannot be imported.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch


def check_four_bit(device: str) -> str | None:
    """Run one NF4 layer forward and backward; what went wrong, None if it works.

    Covered: quantizing, unpacking, gradients to the input. Not covered: paged optimizers.
    """
    try:
        import bitsandbytes as bnb

        layer = bnb.nn.Linear4bit(
            64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        ).to(device)
        values = torch.randn(2, 64, device=device, requires_grad=True)
        layer(values).sum().backward()
    except (ImportError, RuntimeError, OSError, AttributeError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"[:200]
    if values.grad is None or not torch.isfinite(values.grad).all() or not values.grad.any():
        return "the layer gives no gradient"
    return None


def check() -> dict[str, Any]:
    """Facts about torch, its devices and 4-bit layers."""
    started = time.perf_counter()
    cuda = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    device = "cuda" if cuda else "cpu"
    return {
        "torch": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cuda": cuda,
        "devices": names if cuda else [],
        "bf16": bool(torch.cuda.is_bf16_supported()) if cuda else None,
        "mps": bool(torch.backends.mps.is_available()),
        "four_bit_device": device,
        "four_bit_problem": check_four_bit(device),
        "seconds": round(time.perf_counter() - started, 2),
    }


if __name__ == "__main__":
    json.dump(check(), sys.stdout)
