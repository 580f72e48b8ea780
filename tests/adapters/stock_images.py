"""Pixels and logits that a user gets from saved folders with the code of docs/loading.md, without this project."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline


def documented(text: str) -> dict[str, Any]:
    """Returns what the Python blocks of a Markdown text define."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    return names


@torch.inference_mode()
def main(folder: Path) -> None:
    """`folder` holds loading.md, photos, a backbone, and stock/NAME and torchvision/NAME with squares.npy in each."""
    names = documented((folder / "loading.md").read_text(encoding="utf-8"))
    processor = AutoImageProcessor.from_pretrained(folder / "backbone")
    photos = {path.name: names["read_photo"](path) for path in sorted((folder / "photos").iterdir())}
    inputs = processor(list(photos.values()), return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    np.savez(folder / "pixels.npz", **dict(zip(photos, (255 * (inputs * std + mean)).numpy(), strict=True)))
    outputs, labels = {}, {}
    for path in sorted([*(folder / "stock").iterdir(), *(folder / "torchvision").iterdir()]):
        name = f"{path.parent.name}/{path.name}"
        squares = [Image.fromarray(square) for square in np.load(path / "squares.npy")]
        pixels = AutoImageProcessor.from_pretrained(path)(squares, return_tensors="pt")["pixel_values"]
        if path.parent.name == "torchvision":
            outputs[name] = names["load_resnet"](path)(pixels).tolist()
            continue
        outputs[name] = AutoModelForImageClassification.from_pretrained(path)(pixels).logits.tolist()
        results = pipeline("image-classification", model=str(path))(squares, top_k=1)
        labels[name] = [result[0]["label"] for result in results]
    print(json.dumps([outputs, labels]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
