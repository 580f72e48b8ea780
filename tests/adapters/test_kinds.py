"""Heads, class weights and the best epoch are what their definitions say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from components.adapters.best_epoch import BestEpoch
from components.adapters.heads import Attention, AttentionHead, Head, LinearHead, MLPHead
from components.adapters.kinds import RECIPES, class_weights, filled
from components.adapters.target import OneLabel, balanced_accuracy
from components.data.photos import Photos
from tests.tolerances import FLOAT32, LAYERS_FLOAT32


def heads() -> dict[str, tuple[Head, Tensor]]:
    """One head of each kind with random weights, and outputs of a backbone for it."""
    torch.manual_seed(0)
    bank, tokens = torch.randn(50, 6) * 4 + 2, torch.randn(50, 7, 6) * 4 + 2
    made: dict[str, tuple[Head, Tensor]] = {
        "linear": (LinearHead(bank, 3), bank),
        "mlp": (MLPHead(bank, 3, 5), bank),
        "attention": (AttentionHead(6, 3, 2), tokens),
    }
    for head, _ in made.values():
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter)
    return made


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "mlp", "attention"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_is_saved_gives_the_logits_divided_by_the_temperature(name: str, temperature: float) -> None:
    head, outputs = heads()[name]
    logits = head.logits(outputs)
    assert torch.allclose(head.deployed(temperature)(outputs), logits / temperature, atol=LAYERS_FLOAT32)
    assert torch.equal(head.logits(outputs), logits)  # it is a copy


@torch.no_grad()
def test_attention_is_that_of_a_loop() -> None:
    torch.manual_seed(0)
    dim, count, size = 6, 2, 3
    head, tokens = Attention(dim, 4, count), torch.randn(5, 7, dim)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    for photo, logits in zip(tokens, head(tokens), strict=True):
        x = [head.norm(token) for token in photo]
        pooled = []
        for number in range(count):
            part = slice(number * size, (number + 1) * size)
            scores = torch.stack([head.query[number, 0] @ head.key(one)[part] / size**0.5 for one in x])
            shares = scores.exp() / scores.exp().sum()
            pooled.append(sum(share * head.value(one)[part] for share, one in zip(shares, x, strict=True)))
        expected = head.linear(head.pooled_norm(torch.cat(pooled)))
        assert torch.allclose(logits, expected, atol=LAYERS_FLOAT32)


def test_heads_that_do_not_divide_the_features_are_refused_with_a_number_that_does() -> None:
    with pytest.raises(ValueError, match=r"attention.heads is 8, which does not divide the 20 features .*; try 5"):
        Attention(20, 3, 8)


def test_class_weights_make_all_classes_weigh_the_same() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = class_weights(labels, 4)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 0, 10 / 3])
    assert float(weights[labels].mean()) == pytest.approx(1)
    for label in (0, 1, 3):
        assert float(weights[labels][labels == label].sum()) == pytest.approx(10 / 3)


@torch.no_grad()
def test_the_weighted_loss_is_that_of_a_loop_and_does_not_depend_on_micro_batches() -> None:
    torch.manual_seed(0)
    bank, labels = torch.randn(12, 4), torch.tensor([0] * 8 + [1] * 3 + [2])
    weights = class_weights(labels, 3)
    head = LinearHead(bank, 3, weights)
    torch.nn.init.normal_(head.linear.weight)
    loss = head((bank, labels))["loss"]
    shares = head.logits(bank).softmax(1)
    each = [-float(weights[label]) * float(share[label].log()) for share, label in zip(shares, labels, strict=True)]
    assert float(loss) == pytest.approx(sum(each) / 12, rel=FLOAT32)
    halves = [head((bank[part], labels[part]))["loss"] for part in (slice(0, 6), slice(6, 12))]
    assert float(sum(halves) / 2) == pytest.approx(float(loss), rel=FLOAT32)
    plain = LinearHead(bank, 3)
    plain.load_state_dict(head.state_dict())  # the weights are not part of the state
    assert torch.equal(plain((bank, labels))["loss"], cross_entropy(plain.logits(bank), labels))


def test_balanced_accuracy_is_the_mean_over_classes() -> None:
    assert balanced_accuracy([[90, 10, 0], [1, 1, 0], [0, 0, 0]]) == pytest.approx((0.9 + 0.5) / 2)


def test_settings_replace_the_kinds_own_one_by_one() -> None:
    recipe = RECIPES["full"]
    values = filled("full", {"epochs": 3, "batch_size": None})
    assert values == {"epochs": 3, "batch_size": recipe.batch_size, "optimizer": recipe.optimizer}


class Scripted(torch.nn.Module):
    """Has as its weight the number of the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = torch.nn.Parameter(torch.zeros(1))
        self.dropout = torch.nn.Dropout().eval()


def logits_for(right: int, confidence: float) -> Tensor:
    """Logits of four photos of class 0, of which `right` are named right."""
    return torch.tensor([[confidence, 0.0]] * right + [[0.0, confidence]] * (4 - right))


def test_the_best_epoch_is_kept_also_after_an_interruption(tmp_path: Path, photos: Photos) -> None:
    """By accuracy, then by cross-entropy, then the first."""
    script = {0: (1, 1.0), 1: (3, 1.0), 2: (3, 0.5), 3: (2, 1.0), 4: (3, 0.5)}
    labels, module, quality = torch.zeros(4, dtype=torch.long), Scripted().train(), OneLabel(photos).quality
    for first in (0, 2):  # started again after epoch 1
        best = BestEpoch(tmp_path, module, lambda: quality(logits_for(*script[int(module.epoch)]), labels))
        for epoch in range(first, 5):
            with torch.no_grad():
                module.epoch.fill_(epoch)
            best.take(epoch)
            if first == 0 and epoch == 3:
                break
    assert module.training
    assert module.dropout.training  # as train() left it
    assert [line["epoch"] for line in best.epochs()] == [0, 1, 2, 3, 4]
    assert [line["accuracy"] for line in best.epochs()] == [0.25, 0.75, 0.75, 0.5, 0.75]
    losses = {line["epoch"]: line["cross_entropy"] for line in best.epochs()}
    assert losses[1] != losses[2] == losses[4]
    kept = 1 if losses[1] < losses[2] else 2
    assert best.restore() == kept == int(module.epoch)
