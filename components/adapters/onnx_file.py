"""Writes a classifier as an ONNX file, which onnxruntime runs without torch.

Its input `pixels` is uint8 [B, 3, S, S], squares in RGB; scaling and normalization are in the graph, so that only
resizing is left to whoever runs it. Its output `logits` is float32 [B, C], with the temperature in it: a softmax gives
calibrated probabilities. The metadata `classes` is their names as JSON. B is free; S, and with it the positions, fixed.
Where photos have several labels, the metadata has `problem_type`, and a sigmoid gives the probabilities.
"""

from __future__ import annotations

import json
import warnings
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.adapters.classifier import MULTI_LABEL
from components.adapters.pixel_classifier import PixelClassifier
from components.models.resnet import Conv2d

NAME = "classifier.onnx"
PACKAGES = ("onnx", "onnxscript")
MOST_BYTES = 1_900_000_000  # of weights; a file of this format holds 2 GB


def onnx_problem(model: nn.Module) -> str | None:
    """Returns why no ONNX file can be written, None if one can."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        return f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} not installed; try: pip install -e '.[onnx]'"
    if (size := sum(x.numel() * x.element_size() for x in model.state_dict().values())) > MOST_BYTES:
        return f"the weights have {size / 1e9:.1f} GB, and one file holds 2"
    return None


@torch.no_grad()
def write_onnx(model: PixelClassifier, classes: tuple[str, ...], file: Path, *, multi_label: bool = False) -> None:
    """Writes the file. model: on the CPU; multi_label: see `classifier.save`. Needs packages of the extra `onnx`."""
    import onnx

    copy = deepcopy(model).eval()
    for layer in copy.modules():
        if isinstance(layer, Conv2d):
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]  # torch's own: one operator of ONNX
    size = model.config.image_size
    pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8)  # of one photo, the batch would be fixed to 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        program = torch.onnx.export(
            copy,
            (pixels,),
            dynamo=True,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    proto: Any = program.model_proto
    _remove_traces(proto.graph)
    metadata = {"classes": json.dumps(classes, ensure_ascii=False)}
    onnx.helper.set_model_props(proto, metadata | ({"problem_type": MULTI_LABEL} if multi_label else {}))
    part = file.with_suffix(".part")
    onnx.save(proto, part)
    part.rename(file)


def _remove_traces(graph: Any) -> None:
    """Removes what the exporter notes about the origin of each operator: this machine's paths and lines of code."""
    for entry in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
