"""The state of a run: one file of tensors, which is either complete or absent, so that a run can end at any step.

No pickle: all state is tensors, for schedules, data order and randomness are functions of the step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from components.models import winograd
from components.models.resnet import Conv2d
from components.precision import PRECISION, uses_bf16

KEPT = 2


def save(folder: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Write folder/step-N.safetensors, sync it and rename it. The last two are kept. Returns None.

    If a tensor is not finite, nothing is written and the tensor's name is returned: such a state cannot be resumed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # clones: safetensors refuses tensors that share memory, and a tied weight is saved under each of its names
    tensors = {f"module.{name}": value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):  # after its first step SGD may have None
                tensors[f"optimizer.{index}.{name}"] = value.detach().clone().contiguous()
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        return bad[0]
    part = folder / "part.tmp"
    save_file(tensors, part, metadata={"step": str(step), **_arithmetic(module)})
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(folder / f"step-{step}.safetensors")
    for old in _list_states(folder)[:-KEPT]:
        old.unlink()
    return None


def restore(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest state in `folder` into module and optimizer. Returns its step, 0 if there is none.

    A damaged file is skipped, with a message. Raises ValueError if all of them are damaged, or if this process has
    other arithmetic than the state was computed with.
    """
    paths = _list_states(folder)
    for path in reversed(paths):
        try:
            return _restore(path, module, optimizer)
        except SafetensorError as error:
            print(f"{path} cannot be read ({error}); trying the state before it", flush=True)
    if paths:
        raise ValueError(f"no state in {folder} can be read; remove the folder to start from the beginning")
    return 0


def _restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    weights: dict[str, Tensor] = {}
    slots: dict[int, dict[str, Any]] = {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        step = int(metadata["step"])
        for name, value in _arithmetic(module).items():
            if metadata.get(name, value) != value:
                raise ValueError(
                    f"the state in {path} was computed with {name}={metadata[name]}, this process has {value}; "
                    f"set {name}={metadata[name]} to continue, or remove {path.parent} to start from the beginning"
                )
        for key in file.keys():  # noqa: SIM118 (a file, not a dict)
            kind, _, name = key.partition(".")
            if kind == "module":
                weights[name] = file.get_tensor(key)
            else:
                index, _, slot = name.partition(".")
                slots.setdefault(int(index), {})[slot] = file.get_tensor(key)
    module.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    for p, state in optimizer.state.items():  # same memory layout as the parameter: fused optimizers need it
        for name, value in state.items():
            if value.shape == p.shape:
                state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
    return step


def _arithmetic(module: nn.Module) -> dict[str, str]:
    """Returns the environment variables that fix the decisions made for this machine, with their values.

    Winograd's filtering is only for fp32 convolutions on a CPU, so other runs do not depend on its variable.
    """
    bf16 = uses_bf16()
    convolutions = any(isinstance(layer, Conv2d) for layer in module.modules())
    filtering = convolutions and not bf16 and not torch.cuda.is_available() and winograd.enabled()
    return {PRECISION: "bf16" if bf16 else "fp32", winograd.WINOGRAD: "on" if filtering else "off"}


def _list_states(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), key=lambda path: int(path.stem.removeprefix("step-")))
