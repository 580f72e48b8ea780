"""Small tokenizers, language models, backbones and data for tests of the connector; no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TimmWrapperConfig,
    TimmWrapperModel,
)

from components.connector.vlm import assemble, trained_layer
from components.data.entries import DESCRIBE
from components.data.photos import write_index
from components.models import published
from components.models.backbone import PublishedBackbone, ViTBackbone, build

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 80, 220), "yellow": (230, 210, 50)}
COLOR, SIDE = "What color is it?", "Is it bright?"
BOS, EOS = "<|im_start|>", "<|im_end|>"


def tokenizer(bos: bool = True) -> Any:
    """Byte-level BPE like SmolLM2's, of about 300 tokens."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator([COLOR, SIDE, DESCRIBE, "a bright picture, all of it", *COLORS] * 9, trainer)
    names = {"eos_token": EOS, "unk_token": "<|endoftext|>", **({"bos_token": BOS} if bos else {})}
    return PreTrainedTokenizerFast(tokenizer_object=built, **names)


def llm(kind: str = "llama", tied: bool = True, seed: int = 0) -> Any:
    """Returns a causal language model with random weights, of any type that a PaliGemma can hold."""
    shape = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,  # with the usual 0.02 all logits would be nearly equal
    }
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**shape)).eval()


def llm_folder(folder: Path, **options: Any) -> Path:
    llm(**options).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def backbone(folder: Path, seed: int = 0) -> Path:
    """Writes what pretrain writes: `folder`/backbone, a ViT of 2 x 2 patches."""
    torch.manual_seed(seed)
    build(ViTBackbone(image_size=16, patch_size=8, width=32, depth=2, heads=2)).save(folder / "backbone")
    return folder


def cnn(folder: Path, seed: int = 0) -> Path:
    """Writes what pretrain writes: `folder`/backbone, a CNN of timm with a map of 2 x 2 places, for cropped squares."""
    torch.manual_seed(seed)
    pixels = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "input_size": (3, 64, 64)}
    model = TimmWrapperModel(TimmWrapperConfig(architecture="test_efficientnet", pretrained_cfg=pixels))
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None  # statistics of all batches, here one
    with torch.no_grad():  # with the initial statistics, features would be 1e-14 and no answer depend on an image
        model.train()(torch.randn(8, 3, 64, 64))
    model.eval().save_pretrained(folder / "from")
    values = published.resolve({"kind": "published", "from": str(folder / "from")})
    build(PublishedBackbone(**values)).save(folder / "backbone")
    return folder


def vlm(folder: Path, kind: str = "llama", tied: bool = True, eyes: Callable[[Path], Path] = backbone) -> Any:
    """Returns a model and its processor; its projector is large enough for answers to depend on the image."""
    model, processor = assemble(eyes(folder) / "backbone", llm(kind, tied), tokenizer())
    with torch.no_grad():
        trained_layer(model).weight.mul_(20)
    return model, processor


def prepared(folder: Path, count: int = 80, questions: bool = True) -> Path:
    """Writes what prepare writes: images of one color each, with questions and answers."""
    folder.mkdir(parents=True)
    r = np.random.default_rng(0)
    rows, lines, pixels = [], [], []
    for row in range(count):
        name = list(COLORS)[row % len(COLORS)]
        height, width = (int(side) for side in r.integers(16, 33, 2))
        image = np.clip(np.array(COLORS[name]) + r.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
        split = ("train", "train", "train", "val", "test")[row // len(COLORS) % 5]
        place = {"offset": sum(map(len, pixels)), "packed_height": height, "packed_width": width}
        rows.append({"path": f"{row}.png", "split": split, "label": name, "caption": f"all {name}", **place})
        pixels.append(image.reshape(-1))
        bright = "yes" if name in ("yellow", "red") else "no"
        if questions:
            pairs = ((COLOR, name), (SIDE, bright), (DESCRIBE, f"a bright picture, all {name}"))
            lines += [{"row": row, "question": question, "answer": answer} for question, answer in pairs]
    manifest = pl.DataFrame(rows).with_columns(labels=pl.concat_list("label"))
    manifest.write_parquet(folder / "manifest.parquet")
    schema = {"row": pl.Int64, "question": pl.String, "answer": pl.String}
    pl.DataFrame(lines, schema=schema).write_parquet(folder / "questions.parquet")
    np.concatenate(pixels).tofile(folder / "pixels.bin")
    write_index(folder, manifest)
    return folder
