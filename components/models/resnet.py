"""torchvision's ResNets (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385).

Networks for small images have the stem of SimCLR's CIFAR runs (appendix B.9 of https://arxiv.org/abs/2002.05709).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import unfold
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck

from components.models import winograd
from components.models.interface import Backbone, ResNetBackbone
from components.models.norm import BatchNorm2d

# a matrix product is faster up to MAX_POSITIONS of the output, from MIN_CHANNELS of it on
MAX_POSITIONS, MIN_CHANNELS = 16, 512
SMALL_IMAGE = 64  # up to this image size in pixels the stem does not reduce the resolution


class Conv2d(nn.Conv2d):
    """A convolution without bias that uses Winograd's filtering on a CPU where that is faster (see `winograd.applies`).

    Otherwise a CPU computes small feature maps with many channels as one matrix product: training is 1.2 to 1.4 times
    faster, measured in fp32 on AVX2. With fewer channels, larger maps or a kernel of 1 × 1 it was slower. The product
    needs memory for the unfolded map, which is kernel height × kernel width times as large as the map.
    """

    def forward(self, x: Tensor) -> Tensor:
        if winograd.applies(self, x):
            return winograd.convolve(x, self.weight)
        height, width = ((side - 1) // self.stride[0] + 1 for side in x.shape[-2:])  # padding: half of the kernel
        is_small = height * width <= MAX_POSITIONS and self.out_channels >= MIN_CHANNELS and self.kernel_size != (1, 1)
        if x.device.type != "cpu" or len(x) == 0 or not is_small:
            return super().forward(x)
        # [B, C · kernel, positions]
        columns = unfold(x, self.kernel_size, padding=self.kernel_size[0] // 2, stride=self.stride)
        outputs = columns.transpose(1, 2).flatten(0, 1) @ self.weight.flatten(1).T  # [B · positions, out_channels]
        return outputs.view(len(x), height, width, -1).permute(0, 3, 1, 2)


class ResNet(Backbone):
    """torchvision's ResNet without its classifier. The state dict has torchvision's keys."""

    config: ResNetBackbone

    def __init__(self, config: ResNetBackbone) -> None:
        super().__init__(config)
        self.pool = "mean"
        self.trunk = {"resnet18": resnet18, "resnet50": resnet50}[config.kind](weights=None, norm_layer=BatchNorm2d)
        self.dim = self.trunk.fc.in_features
        self.trunk.fc = nn.Identity()
        if config.image_size <= SMALL_IMAGE:
            self.trunk.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.trunk.maxpool = nn.Identity()
        for layer in self.trunk.modules():
            if isinstance(layer, nn.Conv2d):
                layer.__class__ = Conv2d

    def whole(self, pixels: Tensor) -> Tensor:
        return self.trunk(self.normalize(pixels))

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        """Returns the feature maps [B, D, h, w] after each of the four stages."""
        trunk, feature_maps = self.trunk, []
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(self.normalize(pixels)))))
        for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
            x = stage(x)
            feature_maps.append(x)
        return feature_maps

    def _blocks(self, pixels: Tensor) -> list[Tensor]:
        return [self.trunk.avgpool(x).flatten(1) for x in self._stages(pixels)]

    def whole_and_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self._stages(pixels)[-1]
        return self.trunk.avgpool(x).flatten(1), x.flatten(2).transpose(1, 2)

    def _save(self, folder: Path) -> None:
        config = {"model_type": self.config.kind, **self.config.model_dump(mode="json"), "patches": self.patches}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.trunk.state_dict().items()}, folder / "model.safetensors")

    def layers(self) -> dict[str, int]:
        stages = ("layer1", "layer2", "layer3", "layer4")
        names = {name: name.split(".")[1] for name, _ in self.named_parameters()}
        return {name: 1 + stages.index(stage) if stage in stages else 0 for name, stage in names.items()}

    def untrained(self) -> ResNet:
        return ResNet(self.config)

    def read_weights(self, folder: Path) -> None:
        self.trunk.load_state_dict(load_file(folder / "model.safetensors"))


@torch.no_grad()
def zero_init_residual(backbone: Backbone) -> None:
    """Sets the scale of the last batch norm of each block to 0, so that every block of a ResNet starts as the identity.

    Call it once, before training from random weights: Goyal et al., 2017, section 5.1
    (https://arxiv.org/abs/1706.02677). A ViT stays as it is, and so do trained weights.
    """
    if backbone.origin is not None:
        return
    for block in backbone.modules():
        if isinstance(block, Bottleneck):
            block.bn3.weight.zero_()
        elif isinstance(block, BasicBlock):
            block.bn2.weight.zero_()
