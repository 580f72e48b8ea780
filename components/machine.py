"""What the machine can do: the precision it computes in, memory, torch.compile, repeatable results."""

from __future__ import annotations

import copy
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

CPUINFO = Path("/proc/cpuinfo")
PRECISION = "SELFSIGHT_PRECISION"  # auto, fp32 or bf16: what matrix products are computed in
SYSTEM_MALLOC = "SELFSIGHT_SYSTEM_MALLOC"  # set to anything: the C library frees memory as it likes
TOP_PAD, TRIM_THRESHOLD, MMAP_THRESHOLD = -2, -1, -3  # of malloc.h
BF16_UNITS = {"amx_bf16", "avx512_bf16", "bf16", "svebf16"}  # flags of x86 and of ARM
MIN_SPEEDUP = 1.2  # below, bf16 is not worth its rounding
EMULATED = 4  # times as slow as fp32 in a small product: not even tried in a large one


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


def make_readable(folder: Path) -> None:
    """Give weights in `folder` the file mode of config.json beside them: safetensors lets the owner alone read them."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def setting(name: str, allowed: tuple[str, ...]) -> str:
    """Returns the value of an environment variable, the first of `allowed` where it is not set.

    Raises ValueError if it has another value.
    """
    value = os.environ.get(name) or allowed[0]
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    return value


def processor() -> tuple[str, frozenset[str]]:
    """Returns the CPU's name and flags (instruction sets); where there is no /proc/cpuinfo, no flags."""
    try:
        first = CPUINFO.read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    name = fields.get("model name") or " ".join(fields.get(key, "") for key in ("CPU implementer", "CPU part")).strip()
    return name or platform.machine(), frozenset((fields.get("flags") or fields.get("Features") or "").split())


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


@cache
def measured(name: str, measure: Callable[[], float]) -> float:
    """Returns measure(), a speedup, that the first process on this machine keeps in a file of the user's cache.

    So later processes, a resumed run among them, decide by the same number. The key holds what it depends on: CPU,
    torch, threads, and variables that restrict instruction sets. If no file can be written, each process measures once.
    """
    limits = [os.environ.get(limit) for limit in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
    cpu, flags = processor()
    key = json.dumps([cpu, sorted(flags), torch.__version__, torch.get_num_threads(), limits])
    path = _cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:  # two that measure at once would slow each other
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (kept := _read_speedup(path)) is not None:
                return kept
            speedup = measure()
            record = {"speedup": speedup, "cpu": cpu, "torch": torch.__version__, "threads": torch.get_num_threads()}
            part = path.with_suffix(".tmp")
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            part.replace(path)
    except OSError:
        kept = _read_speedup(path)
        return measure() if kept is None else kept
    return speedup


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfsight"
    except RuntimeError:  # nobody's home
        return Path(tempfile.gettempdir()) / "selfsight"


def _read_speedup(path: Path) -> float | None:
    """Returns the number in the file, None if there is no file or if it is damaged."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["speedup"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def bf16_speedup() -> float:
    """Returns how many times as fast as in fp32 this CPU trains in bf16: a linear layer or a convolution, the smaller.

    Returns 0 where bf16 turns out to be emulated.
    """
    with measuring():
        full = torch.randn(128, 128)
        half = full.bfloat16()
        plain, emulated = best_seconds(lambda: full @ full, lambda: half @ half)
        if emulated > EMULATED * plain:
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


@contextmanager
def measuring() -> Iterator[None]:
    """Sets one thread, gradients and no autocast; restores the number of threads and torch's random state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others would count while they spin
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_num_threads(threads)


def best_seconds(*functions: Callable[[], object], rounds: int = 5) -> list[float]:
    """Returns the least CPU time of each function over some rounds.

    The functions alternate, and the time of other processes is not counted, so the ratio holds on a busy machine too.
    """
    best = [float("inf")] * len(functions)
    for function in functions:
        function()  # the first call prepares: it compiles, allocates, reorders
    for _ in range(rounds):
        for index, function in enumerate(functions):
            start = time.process_time()
            function()
            best[index] = min(best[index], time.process_time() - start)
    return best


def with_bf16_weights(module: M) -> M:
    """Returns the module for use under autocast, with the frozen weights of its matrix products held in bf16.

    Autocast casts an fp32 weight at every call; the results are the same. `module` keeps its own fp32 weights, and
    shares all others with what is returned. Frozen is what has no gradient: without grad mode, everything.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    held = copy.deepcopy(module, shared)
    for layer in held.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for name, weight in list(layer.named_parameters(recurse=False)):
                if not (torch.is_grad_enabled() and weight.requires_grad):
                    setattr(layer, name, nn.Parameter(weight.detach().bfloat16(), requires_grad=False))
    return held


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
