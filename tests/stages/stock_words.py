"""What a user gets from the saved folder of the stage words. Imports transformers and not this project."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderModel


@torch.inference_mode()
def main(folder: Path) -> None:
    """`folder` holds models and asked.json: docs/loading.md, paths of photos, class names and texts."""
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    photos = [Image.open(path).convert("RGB") for path in asked["photos"]]
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", asked["documented"], re.DOTALL):
        exec(block, names)
    results = {}
    for path in sorted((folder / "models").iterdir()):
        named = [names["name_photo"](path, photo, asked["names"]) for photo in photos]
        model = VisionTextDualEncoderModel.from_pretrained(path).eval()
        tokens = AutoTokenizer.from_pretrained(path)(asked["texts"], padding=True, return_tensors="pt")
        output = model(**tokens, **AutoImageProcessor.from_pretrained(path)(photos, return_tensors="pt"))
        results[path.name] = {
            "named": [{line["label"]: line["score"] for line in lines} for lines in named],
            "photos": output.image_embeds.tolist(),
            "logits": output.logits_per_image.tolist(),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
