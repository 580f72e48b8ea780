"""Where the backbone looks in some photos, drawn for the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import interpolate

from components.data.photos import Photos
from components.reporting.figures import data_uri

SIDE = 128  # pixels


@dataclass(frozen=True)
class Maps:
    """method: whose backbone; shown: what the brightness is.

    photos: each as three data URIs: itself, dark where the backbone looks least, and its places as colors.
    """

    method: str
    shown: str
    photos: list[tuple[str, str, str]]


def read_maps(files: dict[str, Path], photos: Photos) -> Maps | None:
    """Returns what `write_maps` wrote for the first of the methods, drawn; None if there is no file of any."""
    method = next((name for name, file in files.items() if file.is_file()), None)
    if method is None:
        return None
    with safe_open(files[method], "pt") as stored:
        about = stored.metadata()
        rows, attention, colors = (stored.get_tensor(name) for name in ("rows", "attention", "colors"))
    squares = photos.squares(rows.numpy(), SIDE, "crop" if about["square"] == "crop" else "squash")
    light = interpolate(attention[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    dark = (squares * (0.15 + 0.85 * light)).to(torch.uint8)
    blocks = interpolate(colors.permute(0, 3, 1, 2).float(), (SIDE, SIDE)).to(torch.uint8)
    return Maps(method, about["shown"], [_uris(*three) for three in zip(squares, dark, blocks, strict=True)])


def _uris(photo: Tensor, dark: Tensor, blocks: Tensor) -> tuple[str, str, str]:
    return data_uri(photo), data_uri(dark), data_uri(blocks)
