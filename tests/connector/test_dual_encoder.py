"""Photos and texts in one space: the loss, and every family of backbones in transformers' own dual encoder."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, VisionTextDualEncoderModel

from components.connector.dual_encoder import DualEncoder, as_stock, pooling_problem, stock_tower
from components.connector.text_encoder import build_encoder, text_tokenizer, tokenize, word_vectors
from components.models import published
from components.models.backbone import Backbone, PublishedBackbone, ResNetBackbone, ViTBackbone, build, load
from tests.connector import tiny
from tests.families import MAKERS, checkpoint
from tests.tolerances import FLOAT32, LAYERS_FLOAT32

TEXTS = ["red", "all of it is green", "A  bright picture"]


def encoder(dim: int, matching: float = 0.1) -> tuple[DualEncoder, Any]:
    """Returns a dual encoder on features [B, dim] with large weights, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = text_tokenizer(tiny.tokenizer())
    text_model = build_encoder(tokenizer, word_vectors(tiny.llm(), 16), 1)
    both = DualEncoder(torch.randn(64, dim) + 3, text_model, 8, matching).eval()
    with torch.no_grad():
        for name, parameter in both.named_parameters():
            if parameter.ndim == 2 and "word_embeddings" not in name:
                parameter.normal_(std=0.3)
    return both, tokenizer


@torch.no_grad()
def test_the_loss_is_siglips_over_all_pairs_of_a_batch() -> None:
    both, tokenizer = encoder(6)
    features, matches = torch.randn(4, 6), torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1]]).bool()
    tokens = tokenize(tokenizer, TEXTS)
    photos, texts, total = both.photos(features), both.texts(tokens), 0.0
    for i in range(4):
        for j in range(3):
            logit = both.log_scale.exp().item() * float(photos[i] @ texts[j]) + both.bias.item()
            z = 1 if matches[i, j] else -1
            total += math.log(1 + math.exp(-z * logit))
    losses = both((features, tokens, matches))
    assert losses["loss"].item() == pytest.approx(total / 4, rel=FLOAT32)
    assert both.log_scale.exp().item() == pytest.approx(10)
    assert torch.sigmoid(both.bias).item() == pytest.approx(0.1)  # the odds that it starts from are those of a match
    assert encoder(6, matching=1.0)[0].bias.item() == 0  # all photos of a batch may have the same text


@torch.no_grad()
def test_what_all_photos_share_changes_no_vector_and_the_folded_layer_is_the_same() -> None:
    both, _ = encoder(6)
    features = torch.randn(5, 6)
    shared = both.direction * both.std
    moved = both.photos(features + 7 * shared)
    torch.testing.assert_close(moved, both.photos(features), atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)
    folded = torch.nn.functional.normalize(features @ both.folded().T, dim=1)
    torch.testing.assert_close(folded, both.photos(features), atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)


def same_as_stock(backbone: Backbone, folder: Path, out: Path) -> None:
    """Asserts that the saved dual encoder gives the vectors of `backbone`, which was loaded from `folder`."""
    both, tokenizer = encoder(backbone.dim)
    size = backbone.config.image_size
    photos = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    photos[0], photos[1, 0] = photos[0] // 8, 255  # a dark one, a red one
    pixels, tokens = backbone.normalize(photos), tokenize(tokenizer, TEXTS)
    expected = both.photos(backbone(photos)), both.texts(tokens)
    as_stock(both, stock_tower(backbone, folder)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    stock = VisionTextDualEncoderModel.from_pretrained(out).eval()
    read = AutoTokenizer.from_pretrained(out)(TEXTS, padding=True, return_tensors="pt")
    assert {name: value.tolist() for name, value in read.items()} == {name: t.tolist() for name, t in tokens.items()}
    result = stock(pixel_values=pixels, **read)
    close: dict[str, float] = {"atol": LAYERS_FLOAT32, "rtol": LAYERS_FLOAT32}
    torch.testing.assert_close(result.image_embeds, expected[0], **close)
    torch.testing.assert_close(result.text_embeds, expected[1], **close)
    torch.testing.assert_close(result.logits_per_image, 10 * expected[0] @ expected[1].T, **close)
    assert stock.config.logit_bias == pytest.approx(both.bias.item())
    assert expected[0].std(0).max() > 10 * LAYERS_FLOAT32  # photos differ


@torch.no_grad()
@pytest.mark.parametrize("family", MAKERS)
def test_every_family_whose_feature_the_stock_class_pools(family: str, tmp_path: Path) -> None:
    values = published.resolve({"kind": "published", "from": str(checkpoint(family, tmp_path / "from"))})
    built = build(PublishedBackbone(**values))
    next(weight for weight in built.parameters() if weight.ndim == 4).mul_(30)  # the class token sees the patches
    built.save(tmp_path / "backbone")
    backbone = load(tmp_path / "backbone").eval()
    if family in ("vit_mae", "ijepa"):
        assert "pooled as 'mean'" in str(pooling_problem(backbone))
        with pytest.raises(ValueError, match=r"choose another words\.method"):
            stock_tower(backbone, tmp_path / "backbone")
        return
    assert pooling_problem(backbone) is None
    same_as_stock(backbone, tmp_path / "backbone", tmp_path / "out")


@torch.no_grad()
def test_own_backbones(tmp_path: Path) -> None:
    shapes = {"vit": ViTBackbone(image_size=16, patch_size=8, width=32, depth=2, heads=2)}
    for name, shape in (shapes | {"resnet": ResNetBackbone(kind="resnet18", image_size=72)}).items():
        torch.manual_seed(0)
        build(shape).save(tmp_path / name)
        same_as_stock(load(tmp_path / name).eval(), tmp_path / name, tmp_path / f"{name} out")
    small = build(ResNetBackbone(kind="resnet18", image_size=64))
    assert "first layer of a ResNet" in str(pooling_problem(small))


def test_texts_are_read_in_lower_case_and_words_as_inside_of_a_text() -> None:
    tokenizer = text_tokenizer(tiny.tokenizer())
    ids = {text: tokenizer(text)["input_ids"] for text in ("red", "Red", " RED ")}
    assert len({tuple(value) for value in ids.values()}) == 1
    inside = tokenizer("all red")["input_ids"]
    assert ids["red"] == [inside[0], *inside[len(tokenizer("all")["input_ids"]) :]]
    assert inside[0] == tokenizer.bos_token_id
    assert len(tokenize(tokenizer, ["red " * 200])["input_ids"][0]) == 64
    first = text_tokenizer(tiny.tokenizer(bos=False))  # Qwen2 has no first token
    assert first("red")["input_ids"][0] == first.convert_tokens_to_ids(tiny.EOS)
    with pytest.raises(ValueError, match=r"no fast tokenizer with a special token; try another words\.llm"):
        text_tokenizer(type("Slow", (), {"is_fast": False, "bos_token": "a", "eos_token": "b"})())


def test_word_vectors_keep_the_similarities_of_the_language_model_and_are_not_trained() -> None:
    llm = tiny.llm()
    vectors = llm.get_input_embeddings().weight.detach()
    centered = vectors - vectors.mean(0)
    same = word_vectors(llm, 10_000)
    assert same.shape == vectors.shape
    scale = same.norm() / centered.norm()
    torch.testing.assert_close(same @ same.T, scale**2 * centered @ centered.T, atol=LAYERS_FLOAT32, rtol=1e-3)
    fewer = word_vectors(llm, 18)
    assert fewer.shape == (len(vectors), 16)  # the heads divide it
    ratio = fewer / same[:, :16]
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)
    model = build_encoder(text_tokenizer(tiny.tokenizer()), fewer, 1)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["embeddings.word_embeddings.weight"]
    assert torch.equal(model.get_input_embeddings().weight[: len(vectors)], fewer)
