"""The only file that knows other processes exist. With one process every function here is the identity."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PROCESSES = "SELFSIGHT_PROCESSES"  # the machine's business, so an environment variable and not a parameter


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums what every rank says of my rows; with DDP's mean that is the exact gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad.narrow(0, rank() * ctx.rows, ctx.rows)


def gather(x: Tensor) -> Tensor:
    """[B, …] on each of W ranks -> [W·B, …] on all of them, in rank order, with exact gradients."""
    return x if world() == 1 else _Gather.apply(x)


def relaunch(module: str) -> None:
    """Run `python -m module` again under torchrun, if SELFSIGHT_PROCESSES asks for more than one process.

    Returns in the worker processes, and where one process is enough; elsewhere it exits with torchrun's code.
    torchrun on CPU and GPU alike: `accelerate launch --cpu` would run one process without a word.
    """
    asked = os.environ.get(PROCESSES, "1")
    if not asked.isdigit() or int(asked) < 1:
        raise ValueError(f"{PROCESSES} is {asked!r}; allowed: a whole number from 1 on")
    if int(asked) == 1 or "LOCAL_RANK" in os.environ:
        return
    threads = max(1, (os.cpu_count() or 1) // int(asked))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", asked]
    # no elastic restarts: the state on disk and a fresh start are the way back
    os.execv(sys.executable, [*launcher, "--max-restarts", "0", "--module", module, *sys.argv[1:]])
