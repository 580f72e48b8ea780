from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from components.connector.answering import generate_answers
from components.connector.collate import Collator
from components.connector.objective import Connector
from components.connector.packing import IGNORE
from components.precision import PRECISION
from tests.connector import tiny
from tests.tolerances import FLOAT32, LAYERS_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return tiny.vlm(tmp_path_factory.mktemp("vlm"))


def pixels(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8))


def test_the_loss_equals_a_naive_one(pair: tuple[Any, Any]) -> None:
    """From all logits: a mean over the tokens of each answer, then over the batch."""
    model, processor = pair
    batch = Collator(processor, 64)([tiny.COLOR, tiny.SIDE], ["red", "a bright picture, all of it"])
    inputs = {**batch, "pixels": pixels(2)}
    objective = Connector(model, processor)
    labels = batch.pop("labels")
    with torch.no_grad():
        normalized = (inputs["pixels"] - objective.mean) / objective.std
        scores = model(**batch, pixel_values=normalized).logits
        each = [
            cross_entropy(scores[row, :-1][labels[row, 1:] != IGNORE], labels[row, 1:][labels[row, 1:] != IGNORE])
            for row in range(2)
        ]
        expected = torch.stack(each)
        torch.testing.assert_close(objective.losses(inputs), expected, rtol=LAYERS_FLOAT32, atol=LAYERS_FLOAT32)
        assert objective(inputs)["loss"] == pytest.approx(float(expected.mean()), rel=LAYERS_FLOAT32)


def test_pixels_are_those_of_the_stock_processor(pair: tuple[Any, Any]) -> None:
    model, processor = pair
    objective = Connector(model, processor)
    square = pixels(1)
    image = Image.fromarray(square[0].permute(1, 2, 0).numpy())
    stock = processor(images=[[image]], text=["<image>?"], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close((square - objective.mean) / objective.std, stock, atol=FLOAT32, rtol=FLOAT32)


def train(
    objective: Connector, parameters: list[Tensor], batch: dict[str, Tensor], steps: int, lr: float
) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 10) * (1 - step / steps)
        loss = objective(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def sixteen(processor: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Returns one question about sixteen images with sixteen answers, so that a blind model gets one in sixteen."""
    words = [a + b for a in "abcd" for b in "wxyz"]
    return {**Collator(processor, 8)([tiny.SIDE] * 16, words), "pixels": pixels(16)}, words


def test_sixteen_answers_are_memorized(tmp_path: Path) -> None:
    """With the language model trained too: with frozen random weights the projector alone cannot determine answers."""
    model, processor = tiny.vlm(tmp_path, tied=False)
    batch, words = sixteen(processor)
    objective = Connector(model.requires_grad_(), processor)
    loss = train(objective, list(objective.parameters()), batch, steps=150, lr=3e-3)[-1]
    assert loss < 0.02
    images = [Image.fromarray(square.permute(1, 2, 0).numpy()) for square in batch["pixels"]]
    assert generate_answers(model, processor, images, [tiny.SIDE] * 16, 4) == words
    shuffled = objective.losses({**batch, "pixels": batch["pixels"].roll(1, 0)}).mean()
    assert shuffled > loss + 1  # the answers depend on the images


def test_only_the_projector_changes(tmp_path: Path) -> None:
    """The weights of tower and language model stay the same to the bit."""
    model, processor = tiny.vlm(tmp_path, tied=False)
    objective = Connector(model, processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = train(objective, list(objective.parameters()), sixteen(processor)[0], steps=60, lr=0.03)
    assert losses[-1] < 0.6 * losses[0]
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"model.multi_modal_projector.linear.{kind}" for kind in ("weight", "bias")}


def test_frozen_weights_are_held_in_bf16_and_saved_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRECISION, "bf16")
    model, processor = tiny.vlm(tmp_path, tied=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = Connector(model, processor)
    held = objective.vlms[1]
    names = {name for name, weight in held.named_parameters() if weight.dtype == torch.bfloat16}
    assert "model.language_model.layers.0.mlp.up_proj.weight" in names
    assert "lm_head.weight" in names
    assert any(name.startswith("model.vision_tower.") for name in names)
    assert held.model.multi_modal_projector.linear.weight is objective.projector.weight
    batch = {**Collator(processor, 8)([tiny.SIDE] * 4, ["no"] * 4), "pixels": pixels(4)}
    with torch.autocast("cpu", torch.bfloat16):
        near = objective(batch)["loss"]
    assert near.item() == pytest.approx(objective(batch)["loss"].item(), rel=0.05)  # bf16 rounds by 0.4 % at a time
    near.backward()
    assert objective.projector.weight.grad.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_blind_model_has_the_same_loss_with_another_image(tmp_path: Path) -> None:
    model, processor = tiny.vlm(tmp_path)
    with torch.no_grad():
        model.model.multi_modal_projector.linear.weight.zero_()
        batch = {**Collator(processor, 8)([tiny.SIDE] * 4, ["no"] * 4), "pixels": pixels(4)}
        objective = Connector(model, processor)
        right = objective.losses(batch)
        wrong = objective.losses({**batch, "pixels": batch["pixels"].roll(1, 0)})
    assert torch.equal(right, wrong)  # the same computation: every pixel is multiplied by 0
