"""Logits of classifier.onnx files by onnxruntime and numpy, in a process in which torch cannot be imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """`folder` holds folders with a classifier.onnx and squares.npy, uint8 [7, 3, S, S], in each."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    import numpy as np
    import onnxruntime

    results = {}
    for place in sorted(path for path in folder.iterdir() if (path / "classifier.onnx").is_file()):
        session = onnxruntime.InferenceSession(place / "classifier.onnx", providers=["CPUExecutionProvider"])
        squares = np.load(place / "squares.npy")
        logits = {size: session.run(["logits"], {"pixels": squares[:size]})[0].tolist() for size in (1, 2, 7)}
        results[place.name] = {
            "logits": logits,
            "classes": json.loads(session.get_modelmeta().custom_metadata_map["classes"]),
            "shape": session.get_inputs()[0].shape,
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
