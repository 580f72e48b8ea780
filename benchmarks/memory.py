"""Measures the peak memory of one training step with large batches or many prototypes, each in its own process.

python -m benchmarks.memory
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import torch

from components.config import parse
from components.methods import METHODS
from components.models.backbone import ViTBackbone, build
from components.training import optim

VIT_T = ViTBackbone(image_size=64, patch_size=16, width=192, depth=12, heads=3)
STEPS = {
    "SimCLR, batch 256": ("simclr", 256, {"hidden": 512}),
    "SimCLR, batch 1,024": ("simclr", 1024, {"hidden": 512}),
    "SimCLR, batch 1,024, chunk 128": ("simclr", 1024, {"hidden": 512, "chunk": 128}),
    "SimCLR, batch 4,096, chunk 128": ("simclr", 4096, {"hidden": 512, "chunk": 128}),
    "DINO, batch 32, 2 + 6 views, 4,096 prototypes": (
        "dino",
        32,
        {"prototypes": 4096, "local_crops": 6, "local_size": 32},
    ),
    "DINO, batch 32, 2 + 6 views, 65,536 prototypes": ("dino", 32, {"local_crops": 6, "local_size": 32}),
}


def step(name: str) -> None:
    """Prints the peak memory of the process before the step and after it, in bytes."""
    kind, batch, settings = STEPS[name]
    recipe = METHODS[kind]
    config = parse(recipe.config, settings, kind)
    method = recipe.method(build(VIT_T), config).train()
    views = recipe.method.views(config, VIT_T.image_size)
    pixels = [torch.randint(0, 256, (batch, 3, view.size, view.size), dtype=torch.uint8) for view in views]
    optimizer = optim.build(method, optim.AdamW(lr=1e-4), 256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method(pixels)["loss"].backward()
    optimizer.step()
    method.after_step()
    print(json.dumps([1024 * before, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))


def main() -> None:
    if len(sys.argv) > 1:
        step(sys.argv[1])
        return
    print("ViT-T/16 at 64 pixels, fp32, one process\n\n| | before, MiB | peak, MiB |\n|---|---|---|")
    for name in STEPS:
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", name], capture_output=True, text=True, check=False
        )
        numbers = json.loads(process.stdout) if process.returncode == 0 else []
        print(f"| {name} | {' | '.join(f'{n / 2**20:,.0f}' for n in numbers) or 'no memory left'} |", flush=True)


if __name__ == "__main__":
    main()
