"""What a user gets from the saved folder of the stage words. Imports transformers and not this project."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderModel, pipeline


@torch.inference_mode()
def main(folder: Path) -> None:
    """`folder` holds models and asked.json: paths of photos, class names and texts."""
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    photos = [Image.open(path).convert("RGB") for path in asked["photos"]]
    results = {}
    for path in sorted((folder / "models").iterdir()):
        name = pipeline("zero-shot-image-classification", model=str(path))
        named = name(photos, candidate_labels=asked["names"])
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
