"""What a process asks of the machine: memory that stays, repeatable results, compiled blocks, readable files."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

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


def use_deterministic_algorithms() -> None:
    """Have a GPU find the same bits whenever it computes the same: no sums in the order of arrival.

    To be called before the GPU is first used. Where an operator has no such form torch says so and goes on; so does
    flash attention's backward pass, of which a ViT on a GPU is made.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003
    # a help to find mistakes, at the price of a write
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_readable(folder: Path) -> None:
    """Give weights in `folder` the file mode of config.json beside them: safetensors lets the owner alone read them."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


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
    """Returns the function, compiled as `compile_blocks` compiles blocks."""
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
