"""The precision of matrix products: bf16 where the chip multiplies in it and it measurably wins, else fp32."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from components.measurement import best_seconds, measured, measuring, processor, setting

M = TypeVar("M", bound=nn.Module)

PRECISION = "SELFSIGHT_PRECISION"  # auto, fp32 or bf16: what matrix products are computed in
BF16_UNITS = {"amx_bf16", "avx512_bf16", "bf16", "svebf16"}  # flags of x86 and of ARM
MIN_SPEEDUP = 1.2  # below, bf16 is not worth its rounding
EMULATED = 4  # times as slow as fp32 in a small product: not even tried in a large one


def uses_bf16() -> bool:
    """Returns True if matrix products are to be computed in bf16.

    SELFSIGHT_PRECISION decides if it is set. Otherwise a GPU decides by what it supports, and a CPU that has bf16 units
    by a measurement, which is kept (see `measured`).
    """
    precision = setting(PRECISION, ("auto", "fp32", "bf16"))
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not BF16_UNITS.isdisjoint(processor()[1]) and measured("bf16", bf16_speedup) >= MIN_SPEEDUP


def bf16_speedup() -> float:
    """Returns how many times as fast as in fp32 this CPU trains in bf16: a linear layer or a convolution, the smaller.

    Returns 0 where bf16 turns out to be emulated.
    """
    with measuring():
        full = torch.randn(128, 128)
        half = full.bfloat16()
        fp32_seconds, bf16_seconds = best_seconds(lambda: full @ full, lambda: half @ half)
        if bf16_seconds > EMULATED * fp32_seconds:
            return 0.0
        layers = [
            (nn.Linear(192, 768), torch.randn(2048, 192)),  # of a ViT-T
            (nn.Conv2d(64, 64, 3, padding=1, bias=False), torch.randn(8, 64, 32, 32)),  # of a ResNet-18
        ]
        return min(_layer_speedup(layer, x) for layer, x in layers)


def _layer_speedup(layer: nn.Module, x: Tensor) -> float:
    def train(*, bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer(x)
        y.float().square().sum().backward()

    fp32, bf16 = best_seconds(lambda: train(bf16=False), lambda: train(bf16=True))
    return fp32 / bf16


def with_bf16_weights(module: M) -> M:
    """Returns the module for use under autocast, with the frozen weights of its matrix products held in bf16.

    Autocast casts an fp32 weight at every call; the results are the same. `module` keeps its own fp32 weights, and
    shares all others with what is returned. Frozen is what has no gradient: without grad mode, everything.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    bf16_module = copy.deepcopy(module, memo)
    for layer in bf16_module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for name, weight in list(layer.named_parameters(recurse=False)):
                if not (torch.is_grad_enabled() and weight.requires_grad):
                    setattr(layer, name, nn.Parameter(weight.detach().bfloat16(), requires_grad=False))
    return bf16_module
