"""A classifier of whole images, saved so that it runs without this project.

With a linear layer a ViT becomes transformers' ViTForImageClassification, a ResNet for images of more than 64 pixels
its ResNetForImageClassification (the same network as torchvision's, its parameters named differently). No class of
transformers has the 3 × 3 stem of a ResNet for small images: that one is saved as torchvision's ResNet with its `fc`.

Other heads have no class of transformers, and neither has a DINOv3 with a linear one. They are a folder with the
backbone, as a stock class, head.safetensors, and a config.json that says what the head computes from what.

Where photos have several labels, every config.json has transformers' `problem_type`: a sigmoid gives the probabilities.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_file
from torch import nn

from components.adapters.heads import Attention
from components.machine import make_readable
from components.models.backbone import Backbone, Published, ResNet, Timm, ViT
from components.models.resnet import SMALL_IMAGE

# as torchvision's, which has the stride of a bottleneck in its 3 x 3 convolution
RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "resnet50": {"layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]},
}

MULTI_LABEL = "multi_label_classification"


def problem(backbone: Backbone) -> str | None:
    """Returns why no class of transformers is a classifier with this backbone, None if one is."""
    if isinstance(backbone, Published) and backbone.family.classifier is None:
        return f"transformers has no image classifier for a {backbone.origin.model_type}"
    return None


def save(
    folder: Path, backbone: Backbone, head: nn.Module, classes: tuple[str, ...], *, multi_label: bool = False
) -> None:
    """Write backbone and head (on raw outputs of `backbone.as_stock()`) as one classifier with named classes.

    multi_label: the classes are independent of each other, as photos have several labels.
    """
    kind = {"problem_type": MULTI_LABEL} if multi_label else {}
    if not isinstance(head, nn.Linear) or problem(backbone):
        _save_in_parts(folder, backbone, head, {"classes": classes, **kind})
        return
    backbone.save(folder)  # for the preprocessor; the weights are replaced next
    if isinstance(backbone, ResNet) and backbone.config.image_size <= SMALL_IMAGE:
        _save_for_torchvision(folder, backbone, head, {"classes": classes, **kind})
    else:
        ids = {name: index for index, name in enumerate(classes)}
        labels = {"id2label": dict(enumerate(classes)), "label2id": ids, **kind}
        model, classifier = _stock_model(backbone, labels)
        classifier.load_state_dict(head.state_dict())
        model.save_pretrained(folder)
    make_readable(folder)


def _stock_model(backbone: Backbone, labels: dict[str, Any]) -> tuple[Any, Any]:
    """Returns transformers' classifier with the backbone's weights, and its layer that takes the head's."""
    model: Any
    weights = backbone.trunk.state_dict()
    if isinstance(backbone, Timm):
        names = list(labels["label2id"])
        problem_type = {name: value for name, value in labels.items() if name == "problem_type"}
        values = {**backbone.trunk.config.to_dict(), "label_names": names, "num_classes": len(names), **problem_type}
        model = transformers.TimmWrapperForImageClassification(transformers.TimmWrapperConfig.from_dict(values))
        missing, unexpected = model.timm_model.load_state_dict(backbone.trunk.timm_model.state_dict(), strict=False)
        assert not unexpected
        classifier = model.timm_model.get_classifier()
        assert len(missing) == len(classifier.state_dict())
        return model, classifier
    if isinstance(backbone, ResNet):
        make: Any = transformers.ResNetConfig
        model = transformers.ResNetForImageClassification(make(**RESNETS[backbone.config.kind], **labels))
        model.resnet.load_state_dict({stock_name(name): value for name, value in weights.items()})
        return model, model.classifier[-1]
    assert isinstance(backbone, ViT | Published)
    config = backbone.trunk.config
    name = backbone.family.classifier if isinstance(backbone, Published) else "ViTForImageClassification"
    assert name is not None
    make = getattr(transformers, name)
    if make.config_class is not type(config):  # CLIP's and SigLIP's classifiers have the configuration of both towers
        model = make(make.config_class(vision_config=config.to_dict(), **labels))
    else:
        model = make(config.from_dict({**config.to_dict(), **labels}))
    (tower,) = (child for child in model.children() if child is not model.classifier)
    tower.load_state_dict(weights)
    return model, model.classifier


FORMULAS = {
    Attention: "attention: x = norm(tokens); softmax(query · key(x) / sqrt(D / heads)) · value(x); pooled_norm; linear",
    nn.Sequential: "mlp: 0 (linear), GELU, 2 (linear), of the feature",
    nn.Linear: "linear, of the feature",
}


def _save_in_parts(folder: Path, backbone: Backbone, head: nn.Module, labels: dict[str, Any]) -> None:
    backbone.save(folder / "backbone")
    save_file(
        {name: value.detach().contiguous() for name, value in head.state_dict().items()}, folder / "head.safetensors"
    )
    config = {
        "head": FORMULAS[type(head)],
        **({"heads": head.heads} if isinstance(head, Attention) else {}),
        "feature": "pooler" if isinstance(backbone, Timm) else backbone.pool,
        "prefix": backbone.prefix,
        **labels,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    make_readable(folder)


def _save_for_torchvision(folder: Path, backbone: ResNet, head: nn.Linear, labels: dict[str, Any]) -> None:
    weights = {**backbone.trunk.state_dict(), "fc.weight": head.weight.detach(), "fc.bias": head.bias.detach()}
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"library": "torchvision", "stem": "conv1 3 x 3, stride 1, padding 1; no maxpool", **labels}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def stock_name(name: str) -> str:
    """Returns the name in transformers' ResNetModel of a parameter or buffer of torchvision's ResNet."""
    name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
    name = re.sub(r"^layer(\d)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.layers.", name)
    name = re.sub(r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.convolution.", name)
    name = re.sub(r"\.bn(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.normalization.", name)
    return name.replace(".downsample.0.", ".shortcut.convolution.").replace(
        ".downsample.1.", ".shortcut.normalization."
    )
