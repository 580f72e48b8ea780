"""What the machine can do, and what a command line entry asks of it before it computes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

CPUINFO = Path("/proc/cpuinfo")
PRECISION = "SELFSIGHT_PRECISION"  # auto, fp32 or bf16: what matrix products are computed in
SYSTEM_MALLOC = "SELFSIGHT_SYSTEM_MALLOC"  # set to anything: the C library frees memory as it likes
TOP_PAD, TRIM_THRESHOLD, MMAP_THRESHOLD = -2, -1, -3  # of malloc.h


def keep_memory() -> bool:
    """Have glibc keep freed blocks: it gives large ones back and asks for them again at every step, page by page.

    Whether that was possible: not on other C libraries, nor where SELFSIGHT_SYSTEM_MALLOC is set.
    """
    if SYSTEM_MALLOC in os.environ:
        return False
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is None:
        return False
    return all(tune(what, to) for what, to in ((TOP_PAD, 2**28), (TRIM_THRESHOLD, 2**31 - 1), (MMAP_THRESHOLD, 2**30)))


def repeat_exactly() -> None:
    """Have a GPU find the same bits whenever it computes the same: no sums in the order of arrival.

    To be called before the GPU is first used. Where an operator has no such form torch says so and goes on; so does
    flash attention's backward pass, of which a ViT on a GPU is made.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003
    # a help to find mistakes, at the price of a write
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def setting(name: str, allowed: tuple[str, ...]) -> str:
    """Returns the value of an environment variable, the first of `allowed` where it is not set.

    Raises ValueError if it has another value.
    """
    value = os.environ.get(name) or allowed[0]
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    return value


def has_bf16() -> bool:
    """Returns True if matrix products are to be computed in bf16: as SELFSIGHT_PRECISION says, else by the chip.

    Without units that multiply in bf16 it is emulated, hundreds of times slower than fp32.
    """
    precision = setting(PRECISION, ("auto", "fp32", "bf16"))
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return "amx_bf16" in CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False


def compile_blocks(module: nn.Module, backend: str = "inductor") -> None:
    """In place, for fixed shapes, by torch.compile: ResNets, and blocks of ViTs, which are alike, so that one program
    serves them all; and what calls itself `compiled_whole`. A GPU's small operators cost more to start than to run.

    One program more for each size of views, and for where no gradient is wanted. Names of weights stay. Where there is
    no C compiler torch says so and goes on without; TORCH_COMPILE_DISABLE=1 turns it off.
    """
    from torchvision.models import ResNet
    from transformers.models.vit.modeling_vit import ViTLayer

    _configure()
    for part in module.modules():
        if isinstance(part, ViTLayer | ResNet) or getattr(part, "compiled_whole", False):
            part.compile(backend=backend, dynamic=False, options=_options(backend))


def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """The function, as `compile_blocks` does it with blocks."""
    _configure()
    return _compiled(function, backend)


@cache
def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return torch.compile(function, backend=backend, dynamic=False, options=_options(backend))


def _options(backend: str) -> dict[str, Any] | None:
    """In a fixed order, or timings would choose between sums of another one. As an option it also reaches the backward
    pass, which a thread of autograd's compiles."""
    return {"deterministic": True} if backend == "inductor" else None


def _configure() -> None:
    """For this thread: torch keeps settings of each apart."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64
