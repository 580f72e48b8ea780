"""Published backbones: transformers' own classes, with the interface of our backbones.

`AutoModel.from_pretrained` loads what they save, at the image size they were given here.
"""

from __future__ import annotations

from copy import deepcopy
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from components.models import pretrained
from components.models.families import FAMILIES, Family, Pool
from components.models.interface import Backbone, PublishedBackbone, ViTBackbone, transformer_layers
from components.models.origin import Origin
from components.models.vit import ViT, can_hold

OUTPUTS = Path("artifacts")  # of all stages, in the folder of params.yaml


class Published(Backbone):
    """A vision transformer of one of FAMILIES.

    Learned positions do not change during training: interpolating them for crops of other sizes would need a gradient
    that no GPU sums in a fixed order, and they were learned from far more photos than these.
    """

    config: PublishedBackbone
    pool: Pool
    origin: Origin

    def __init__(self, config: PublishedBackbone, model: Any, family: Family, origin: Origin) -> None:
        super().__init__(config)
        self.trunk, self.family, self.origin = model, family, origin
        has_pooler = getattr(model.config, "vision_use_head", True)  # SigLIP's may be left out
        self.pool = getattr(model.config, "pool", family.pool if has_pooler else "mean")
        self.patches = getattr(model.config, "patches", 0)
        self.dim = model.config.hidden_size * (2 if self.pool == "class and mean" else 1)
        if family.positions:
            attrgetter(family.positions)(model).requires_grad_(False)  # noqa: FBT003
        for name, parameter in model.named_parameters():
            if name.endswith("mask_token"):  # gets no gradient, for which several processes would wait
                parameter.requires_grad_(False)  # noqa: FBT003

    def sequence(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> last_hidden_state [B, prefix + N, D]."""
        return self.trunk(self.normalize(pixels), **self.family.call_options).last_hidden_state

    def whole(self, pixels: Tensor) -> Tensor:
        return self.family.pooled(self.trunk, self.sequence(pixels), self.pool)

    def whole_and_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.sequence(pixels)
        return self.family.pooled(self.trunk, x, self.pool), x[:, self.prefix :]

    @property
    def prefix(self) -> int:
        return self.family.prefix(self.trunk.config)

    def _blocks(self, pixels: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        handles = [block.register_forward_hook(keep) for block in self.family.blocks_of(self.trunk)]
        try:
            self.sequence(pixels)
        finally:
            for handle in handles:
                handle.remove()
        norm = self.family.norm_of(self.trunk)
        return [self.family.pooled(self.trunk, norm(x), self.pool) for x in outputs]

    def as_stock(self) -> Self:
        self.pool = self.family.classifier_pool
        self.dim = self.trunk.config.hidden_size * (2 if self.pool == "class and mean" else 1)
        return super().as_stock()

    def layers(self) -> dict[str, int]:
        blocks = f"trunk.{self.family.blocks}"
        return transformer_layers(self, blocks, len(self.family.blocks_of(self.trunk)))

    def untrained(self) -> Published:
        model = self.family.transformer(deepcopy(self.trunk.config), **self.family.load_options)
        return Published(self.config, model, self.family, self.origin)

    def _save(self, folder: Path) -> None:
        self.trunk.config.pool, self.trunk.config.patches = self.pool, self.patches
        self.trunk.save_pretrained(folder)


class Timm(Backbone):
    """A model of timm, as transformers' TimmWrapperModel: CNNs too."""

    config: PublishedBackbone
    origin: Origin

    def __init__(self, config: PublishedBackbone, model: Any, origin: Origin) -> None:
        super().__init__(config)
        self.trunk, self.origin = model, origin
        self.pool = "mean"
        self.patches = getattr(model.config, "patches", 0)
        self.fixed_size = hasattr(model.timm_model, "set_input_size")  # no CNN
        self.dim = model.timm_model.head_hidden_size
        model.config.hidden_size = self.dim  # which multimodal classes of transformers read
        side, pixels = config.image_size, {"mean": list(config.mean), "std": list(config.std)}
        # what AutoImageProcessor reads
        mode = "squash" if config.square == "squash" else "center"
        resize = {"input_size": [3, side, side], "crop_pct": 1.0, "crop_mode": mode, "interpolation": "bilinear"}
        model.config.pretrained_cfg = {**(getattr(model.config, "pretrained_cfg", None) or {}), **pixels, **resize}

    def whole(self, pixels: Tensor) -> Tensor:
        return self.trunk(self.normalize(pixels)).pooler_output

    def whole_and_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        out = self.trunk(self.normalize(pixels))
        x = out.last_hidden_state
        if x.ndim == 4:  # a CNN's map [B, D, h, w]
            return out.pooler_output, x.flatten(2).transpose(1, 2)
        return out.pooler_output, x[:, self.prefix :]

    @property
    def prefix(self) -> int:
        return int(getattr(self.trunk.timm_model, "num_prefix_tokens", 0))

    def _blocks(self, pixels: Tensor) -> list[Tensor]:
        last, maps = self.trunk.timm_model.forward_intermediates(self.normalize(pixels))  # maps: [B, C, h, w] each
        return [*(x.mean((2, 3)) for x in maps), self.trunk.timm_model.forward_head(last)]

    def layers(self) -> dict[str, int]:
        from timm.models import group_parameters

        model = self.trunk.timm_model
        groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        return {f"trunk.timm_model.{name}": min(layer, max(groups.values())) for name, layer in groups.items()}

    def untrained(self) -> Timm:
        return Timm(self.config, type(self.trunk)(deepcopy(self.trunk.config)), self.origin)

    def _save(self, folder: Path) -> None:
        self.trunk.config.patches = self.patches
        self.trunk.save_pretrained(folder)


def resolve(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a published backbone with those that its checkpoint decides, read from its config.

    Raises ValueError if there is no such checkpoint.
    """
    source = values.get("from")
    if not isinstance(source, str):
        raise ValueError(f"from: an id, a folder or {pretrained.PACKAGED} is needed; given: {source!r}")
    if OUTPUTS.resolve() in Path(source).expanduser().resolve().parents:
        raise ValueError(
            f"from: {source} is an output of this project, which is deleted before its stage runs again; copy it "
            f"first, and start from the copy: cp -r {source} starts/NAME"
        )
    if values.get("patches"):
        raise ValueError(f"patches is for backbones from random weights; given: {values['patches']!r}")
    description = pretrained.describe(source, values.get("revision"))
    checkpoint = {"patch_size": description.patch_size, "mean": description.mean, "std": description.std}
    for name, value in checkpoint.items():
        setting = values.get(name, value)
        if (tuple(setting) if isinstance(setting, list) else setting) != value:
            raise ValueError(f"{name} is the checkpoint's, {value}; leave it out; given: {setting!r}")
    revision = {"revision": description.revision} if description.revision else {}
    return {"image_size": description.image_size, "square": description.square, **values, **checkpoint, **revision}


def build(config: PublishedBackbone) -> Backbone:
    """Returns the published backbone with its weights, for squares of `config.image_size` pixels.

    Checkpoints that our ViT can hold become one, so that the methods that mask patches can go on from them.
    """
    model, origin = pretrained.read(config.source, config.revision)
    if origin.model_type == pretrained.TIMM:
        return Timm(config, _timm_resized(model, config.image_size), origin)
    family = FAMILIES[origin.model_type]
    model = resized(model, family, config.image_size)
    if shape := _as_vit(model, family, config):
        vit = ViT(shape)
        vit.trunk.load_state_dict(model.state_dict())
        vit.origin = origin
        return vit
    return Published(config, model, family, origin)


def _as_vit(model: Any, family: Family, config: PublishedBackbone) -> ViTBackbone | None:
    """Returns the shape of our ViT that computes the same as this model, or None."""
    if family.model != "ViTModel" or not can_hold(model.config):
        return None
    vit_config = model.config
    pool, patches = getattr(vit_config, "pool", family.pool), getattr(vit_config, "patches", 0)
    values = {
        "width": vit_config.hidden_size,
        "depth": vit_config.num_hidden_layers,
        "heads": vit_config.num_attention_heads,
    }
    values |= {"layer_norm_eps": vit_config.layer_norm_eps, "pool": pool, "patches": patches}
    return ViTBackbone(**config.model_dump(include={"image_size", "patch_size", "mean", "std", "square"}), **values)


def resized(model: Any, family: Family, size: int) -> Any:
    """Returns the model for images of `size` pixels; learned positions are interpolated as its own code does."""
    config, old = deepcopy(model.config), _side(model.config.image_size)
    if size == old:
        return model
    config.image_size = size
    state = model.state_dict()
    if family.positions:
        patch = _side(config.patch_size)
        learned = state[family.positions]  # [(1,) rows, D]
        rows = learned.shape[-2] - (old // patch) ** 2 + (size // patch) ** 2
        with torch.no_grad():
            new = model.embeddings.interpolate_pos_encoding(learned.new_zeros(1, rows, learned.shape[-1]), size, size)
        state[family.positions] = new.view(*learned.shape[:-2], *new.shape[-2:])
    copy = family.transformer(config, **family.load_options)
    copy.load_state_dict(state)
    return copy.eval()


def _timm_resized(model: Any, size: int) -> Any:
    """Returns the model for `size` pixels: a CNN takes any size, others interpolate their positions."""
    if hasattr(model.timm_model, "set_input_size"):
        model.timm_model.set_input_size(img_size=size)
        model.config.model_args = {**(model.config.model_args or {}), "img_size": size}
    return model


def _side(size: Any) -> int:
    return size if isinstance(size, int) else int(size[0])
