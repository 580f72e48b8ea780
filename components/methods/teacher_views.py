"""Batch fields of distillation: the student's view as the teacher sees it, or what the teacher saw in whole photos."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from components.data.augment import DRAWS_PER_VIEW, View, sample_params
from components.data.fields import BatchSource, Field
from components.data.photos import Photos
from components.models.backbone import PublishedBackbone
from components.models.teacher import Teacher, token_grid
from components.precision import uses_bf16
from components.progress import progress

BATCH = 64  # photos shown to the teacher at once: always the same ones, so that a resumed run gets the same bits


@dataclass(frozen=True)
class SameView(Field):
    """The view at position `view_index` in the batch once more, in another size: uint8 [B, 3, view.size, view.size]."""

    view: View
    view_index: int
    dtype = torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape

    def make(self, source: BatchSource, position: int) -> Tensor:  # noqa: ARG002
        return self.view.make(source, self.view_index)


class TeacherOutputs(NamedTuple):
    """A teacher's outputs for the training photos, prepared as `evaluate` prepares them. Rows of other splits are 0."""

    features: Tensor  # float32 [photos, D]
    maps: Tensor  # float16 [photos, D, side, side], the tokens in their places; side is 0 without maps


@lru_cache(maxsize=1)
@torch.no_grad()
def whole_photos(config: PublishedBackbone, folder: Path, device: torch.device, *, with_maps: bool) -> TeacherOutputs:
    """Returns the teacher's outputs for each training photo of a folder written by `prepare`, computed once."""
    photos, teacher = Photos(folder), Teacher(config)
    rows = photos.rows("train")
    side, width = token_grid(teacher.backbone) if with_maps else (0, 0)
    features = torch.zeros(len(photos), teacher.backbone.dim)
    maps = torch.zeros(len(photos), width, side, side, dtype=torch.float16)
    teacher.to(device)
    batches = photos.batches(rows, config.image_size, config.square, BATCH)
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16()):
        for number, pixels in enumerate(progress(batches, "teacher", -(-len(rows) // BATCH), unit="batch")):
            indices = torch.from_numpy(rows[number * BATCH : number * BATCH + len(pixels)])
            pooled, tokens = teacher(pixels.to(device))
            features[indices] = pooled.float().cpu()
            if with_maps:
                maps[indices] = tokens.transpose(1, 2).unflatten(2, (side, side)).half().cpu()
    return TeacherOutputs(features, maps)


@dataclass(frozen=True)
class PhotoFeatures(Field):
    """The teacher's feature of each whole photo: float32 [B, D]."""

    teacher: PublishedBackbone
    with_maps: bool  # as for the PhotoTokens of the same batch
    dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (Teacher(self.teacher).backbone.dim,)

    def make(self, source: BatchSource, position: int) -> Tensor:  # noqa: ARG002
        outputs = whole_photos(self.teacher, source.photos.folder, source.device, with_maps=self.with_maps)
        return outputs.features[torch.from_numpy(source.rows)]


@dataclass(frozen=True)
class PhotoTokens(Field):
    """The teacher's tokens of the whole photo where the view at position `view_index` shows it: float32 [B, side², D].

    Bilinear between its tokens, mirrored with the view; what lies outside of what the teacher saw is its border.
    """

    teacher: PublishedBackbone
    view: View
    view_index: int
    dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        side, width = token_grid(Teacher(self.teacher).backbone)
        return side**2, width

    def make(self, source: BatchSource, position: int) -> Tensor:  # noqa: ARG002
        outputs = whole_photos(self.teacher, source.photos.folder, source.device, with_maps=True)
        maps = outputs.maps[torch.from_numpy(source.rows)].float()
        grid = self._token_positions(source, maps.shape[-1]).float()
        tokens = grid_sample(maps, grid, padding_mode="border", align_corners=False)  # [B, D, side, side]
        return tokens.flatten(2).transpose(1, 2).contiguous()

    def _token_positions(self, source: BatchSource, side: int) -> Tensor:
        """Returns x and y of the view's tokens in the teacher's picture, from -1 to 1: [B, side, side, 2]."""
        params = sample_params(self.view, source.shapes, source.uniform(self.view_index, DRAWS_PER_VIEW))
        steps = (torch.arange(side, dtype=torch.float64) + 0.5) / side  # centers of tokens, in views
        teacher_shapes = source.shapes.double()  # [B, 2]: height and width of what the teacher saw
        if self.teacher.square == "crop":
            teacher_shapes = teacher_shapes.min(1, keepdim=True).values.expand(-1, 2)
        margin = (source.shapes - teacher_shapes) / 2
        axes = []
        for axis, mirrored in enumerate((torch.zeros_like(params.flip), params.flip)):
            positions = torch.where(mirrored[:, None], steps.flip(0), steps)  # [B, side]
            start, length = params.boxes[:, axis, None], params.boxes[:, 2 + axis, None]
            axes.append((start + length * positions - margin[:, axis, None]) / teacher_shapes[:, axis, None] * 2 - 1)
        y, x = axes
        return torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=-1)
