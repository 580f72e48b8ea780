"""Describes this machine, and measures on some of the photos how long it takes for what a run consists of."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from components.commands.photo_folder import spaced
from components.data.photos import Photos
from components.evaluation.features import features
from components.measurement import measuring
from components.precision import uses_bf16, with_bf16_weights
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from components.stages.pretrain import setup
from components.stages.pretrain_config import DataSize, configure
from components.training.loop import accelerator
from components.training.lora import LoRA, add_lora

GIB = 2**30
PHOTOS = 32  # of the sample that are read and trained on
BATCH = 16  # photos in the measured step
SEQUENCES, TOKENS = 4, 32  # of the measured step of the language model
# SmolLM2-135M, whose weights need not be read to measure a step
SMOLLM2 = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
)


@dataclass(frozen=True)
class Machine:
    """gpu: its name, None without one. Memory in GiB."""

    cores: int
    memory: float
    bf16: bool
    gpu: str | None = None
    gpu_memory: float = 0.0

    def __str__(self) -> str:
        gpu = f"{self.gpu} with {self.gpu_memory:.0f} GiB" if self.gpu else "no GPU"
        precision = "bf16" if self.bf16 else "fp32"
        return f"{self.cores} core{'s' if self.cores > 1 else ''}, {self.memory:.0f} GiB of memory, {gpu}, {precision}"


@dataclass(frozen=True)
class Speed:
    """Seconds: start (a process, until torch is imported), read (a photo, until it is packed), forward (a photo through
    the network), train (a view through teacher and student, and back), token (of the language model, and back)."""

    start: float
    read: float
    forward: float
    train: float
    token: float

    def __str__(self) -> str:
        ms = {name: 1000 * getattr(self, name) for name in ("read", "forward", "train", "token")}
        return (
            "to read a photo {read:.1f} ms, features of it {forward:.1f} ms, a training step {train:.1f} ms a view, a "
            "step of the language model {token:.1f} ms a token".format(**ms)
        )


def this_machine() -> Machine:
    memory = psutil.virtual_memory().total / GIB
    if not torch.cuda.is_available():
        return Machine(cores(), memory, uses_bf16())
    gpu = torch.cuda.get_device_properties(0)
    return Machine(cores(), memory, uses_bf16(), gpu.name, gpu.total_memory / GIB)


def measure(files: Sequence[Path], data_size: int, backbone: dict[str, Any], teacher: dict[str, Any]) -> Speed:
    """Returns the speed of this machine while nothing else runs on it: photos are read, and real steps are trained.

    files: some photos. data_size: as packed. backbone, teacher: the sections of published ones.
    """
    start = time.process_time()  # of this process until now: nearly all of it imports
    with TemporaryDirectory() as name:
        photos, data = Path(name, "photos"), Path(name, "data")
        photos.mkdir()
        files = spaced(files, PHOTOS)
        for number, file in enumerate(files):
            (photos / f"{number:03d}{file.suffix}").symlink_to(file)
        config = ResolvedConfig(
            data=DataConfig(source=str(photos), size=data_size, max_rejected=1.0),
            prepare=PrepareConfig(val_share=0, test_share=0),
        )
        read_seconds = _cpu_seconds(lambda: prepare(config, data, data)) / len(files)
        forward, train = _network(data, backbone, teacher)
    return Speed(start, read_seconds, forward, train, _language_model())


def _network(data: Path, backbone: dict[str, Any], teacher: dict[str, Any]) -> tuple[float, float]:
    """Returns the seconds of a photo's features, and of a step of distill, with its views, for each of them."""
    photos, acc = Photos(data), accelerator()
    batch = min(BATCH, len(photos))
    params = {
        "common": {"backbone": backbone, "batch_size": batch, "epochs": 1},
        "distill": {"teacher": teacher, "queue": "auto"},
    }
    run = setup(configure("distill", params, DataSize(len(photos), 0)), data, acc)
    method = run.method.to(acc.device).train()

    def step() -> None:
        with acc.autocast():
            loss = method(run.load(0))["loss"]
        loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()

    train = _seconds(step) / batch
    network = method.keep()
    return _seconds(lambda: features(network, photos, "measure")) / len(photos), train


def _language_model() -> float:
    """Returns the seconds of a token of SmolLM2, forward and backward, as connect trains it: by low-rank updates."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make: Any = LlamaForCausalLM
    model = make(SMOLLM2).to(device).requires_grad_(requires_grad=False)
    add_lora(model.model, LoRA(), seed=0)
    model = with_bf16_weights(model) if uses_bf16() else model
    inputs = torch.zeros(SEQUENCES, TOKENS, SMOLLM2.hidden_size, device=device, requires_grad=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16()):
            logits = model(inputs_embeds=inputs, logits_to_keep=4, use_cache=False).logits
        logits.float().logsumexp(-1).sum().backward()

    return _seconds(step) / (SEQUENCES * TOKENS)


def _seconds(action: Callable[[], object]) -> float:
    """Returns the seconds of a second call of `action`; the first one prepares: it compiles and allocates."""
    action()
    if not torch.cuda.is_available():
        with measuring():  # on one thread
            return _cpu_seconds(action)
    torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _cpu_seconds(action: Callable[[], object]) -> float:
    """Returns the CPU's seconds, shared among all cores: other processes on a busy machine do not count."""
    start = time.process_time()
    action()
    return (time.process_time() - start) / _cores_worth()


def _cores_worth() -> float:
    """Returns how many times as fast all cores are as one."""
    return float(cores() ** 0.9)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
