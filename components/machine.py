"""Settings of a process: kept memory, deterministic algorithms, compiled blocks, and file modes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

SYSTEM_MALLOC = "SELFSIGHT_SYSTEM_MALLOC"  # if it is set, to any value, `keep_memory` does nothing
TOP_PAD, TRIM_THRESHOLD, MMAP_THRESHOLD = -2, -1, -3  # of malloc.h


def keep_memory() -> bool:
    """Make glibc keep freed memory. By default it returns large blocks to the system and maps them anew at every step.

    Returns True if that was possible: not with another C library, and not if SELFSIGHT_SYSTEM_MALLOC is set.
    """
    if SYSTEM_MALLOC in os.environ:
        return False
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is None:
        return False
    return all(
        tune(option, value)
        for option, value in ((TOP_PAD, 2**28), (TRIM_THRESHOLD, 2**31 - 1), (MMAP_THRESHOLD, 2**30))
    )


def use_deterministic_algorithms() -> None:
    """Make a GPU compute the same bits every time: no sums whose order depends on timing.

    Call it before the GPU is first used. torch warns and continues for operators that have no deterministic algorithm,
    among them the backward pass of flash attention, which ViTs use on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # noqa: FBT003
    # a debugging aid, which costs one more write of every new tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_readable(folder: Path) -> None:
    """Give the weights in `folder` the file mode of config.json; safetensors makes them readable by the owner alone."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def compile_blocks(module: nn.Module, backend: str = "inductor") -> None:
    """Compile parts of `module` in place with torch.compile, for fixed shapes. Names of weights do not change.

    The parts are ResNets, blocks of ViTs (all blocks share one program) and modules with `compiled_whole = True`. It
    saves time because on a GPU small operators take longer to launch than to run. Each size of views and each use
    without gradients compiles another program. Without a C compiler torch warns and continues uncompiled;
    TORCH_COMPILE_DISABLE=1 turns compilation off.
    """
    from torchvision.models import ResNet
    from transformers.models.vit.modeling_vit import ViTLayer

    _configure()
    for part in module.modules():
        if isinstance(part, ViTLayer | ResNet) or getattr(part, "compiled_whole", False):
            part.compile(backend=backend, dynamic=False, options=_options(backend))


def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Returns `function`, compiled with the options of `compile_blocks`."""
    _configure()
    return _compiled(function, backend)


@cache
def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return torch.compile(function, backend=backend, dynamic=False, options=_options(backend))


def _options(backend: str) -> dict[str, Any] | None:
    """Returns options for torch.compile that make sums deterministic; otherwise timings would choose their order.

    Unlike a global setting, options also reach the backward pass, which another thread compiles.
    """
    return {"deterministic": True} if backend == "inductor" else None


def _configure() -> None:
    """Configure torch.compile for this thread; each thread has its own settings."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64
