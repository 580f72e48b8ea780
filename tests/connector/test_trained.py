from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.connector.collate import Collator
from components.connector.objective import Connector
from components.connector.towers import image_size
from components.connector.trained import trained_weights, unfreeze
from components.training.lora import LoRA, merge
from tests.connector import tiny
from tests.tolerances import FLOAT32

EYES = pytest.mark.parametrize("eyes", [tiny.backbone, tiny.cnn])


def questions(processor: Any) -> dict[str, torch.Tensor]:
    size = image_size(processor.image_processor)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, size, size), dtype=np.uint8)
    batch = Collator(processor, 8)([tiny.COLOR, tiny.SIDE] * 2, ["red", "no", "green", "yes"])
    return {**batch, "pixels": torch.from_numpy(pixels)}


def train(model: Any, processor: Any, steps: int = 3) -> Connector:
    objective = Connector(model, processor)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(steps):
        objective(questions(processor))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return objective


@EYES
def test_merged_updates_give_the_same_losses(eyes: Callable[[Path], Path], tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path, eyes=eyes)
    batch = questions(processor)
    adapter = unfreeze(model, "lora", LoRA(), seed=0)
    with torch.no_grad():
        untrained = Connector(model, processor).losses(batch)
    objective = train(model, processor)
    with torch.no_grad():
        unmerged = objective.losses(batch)
        merge(adapter)
        merged = objective.losses(batch)
    assert not torch.allclose(merged, untrained, rtol=0.01)
    torch.testing.assert_close(merged, unmerged, rtol=10 * FLOAT32, atol=10 * FLOAT32)


def test_a_seed_draws_the_same_updates(tmp_path: Path) -> None:
    draws = []
    for run, seed in enumerate((0, 0, 1)):
        model, _ = tiny.vlm(tmp_path / str(run))
        unfreeze(model, "lora", LoRA(), seed)
        draws.append(trained_weights(model))
    name = next(name for name in draws[0] if "lora_A" in name)
    assert torch.equal(draws[0][name], draws[1][name])
    assert not torch.equal(draws[0][name], draws[2][name])
    assert all(not weight.any() for name, weight in draws[0].items() if "lora_B" in name)


@pytest.mark.parametrize("kind", ["qwen3", "phi3", "gemma2"])
def test_other_language_models_get_updates_in_all_products(kind: str, tmp_path: Path) -> None:
    model, _ = tiny.vlm(tmp_path, kind)
    linear = [m for m in model.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    unfreeze(model, "lora", LoRA(rank=2), seed=0)
    assert len(trained_weights(model)) == 2 * len(linear)
    assert not any("lora" in name for name, _ in model.model.vision_tower.named_parameters())
