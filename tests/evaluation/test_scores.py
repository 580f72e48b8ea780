import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from components.evaluation import knn, linear
from components.evaluation.features import center, features, standardize
from components.evaluation.health import effective_rank, spread
from components.evaluation.scoring import baselines, cannot_score, score
from components.evaluation.statistics import share, wilson
from components.machine import PRECISION
from components.models.backbone import build


def blobs(count, classes=3, dim=5, noise=0.3, seed=0):
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    return centers[labels] + noise * torch.randn(count, dim, generator=random), labels


def test_neighbors_vote_as_the_paper_says():
    bank, labels = blobs(40, noise=2.0)
    queries, _ = blobs(17, noise=2.0, seed=1)
    got = knn.classify(queries, bank, labels, k=7, temperature=0.07)
    for query, said in zip(normalize(queries, dim=1), got, strict=True):
        similarity = normalize(bank, dim=1) @ query
        votes = np.zeros(3)
        for place in np.argsort(-similarity.numpy())[:7]:
            votes[labels[place]] += math.exp(similarity[place] / 0.07)
        assert said == votes.argmax()


def test_neighbors_do_not_depend_on_tiles(monkeypatch):
    bank, _ = blobs(40)
    queries, _ = blobs(17, seed=1)
    similarity, places = (normalize(queries, dim=1) @ normalize(bank, dim=1).T).sort(descending=True)
    monkeypatch.setattr(knn, "TILE", 4)
    monkeypatch.setattr(knn, "BANK", 11)
    found = knn.nearest(queries, bank, 5)
    assert torch.allclose(found[0], similarity[:, :5])
    assert torch.equal(found[1], places[:, :5])


def test_more_neighbors_than_pictures_are_refused():
    bank, labels = blobs(10)
    with pytest.raises(ValueError, match="k is 11; allowed: 1 to 10"):
        knn.classify(bank, bank, labels, 11)


def test_the_probe_is_at_the_minimum_of_its_loss():
    x, labels = blobs(60, noise=1.0)
    weight, bias = linear.fit(x, labels, 3, penalty=0.01)
    weight.requires_grad_(), bias.requires_grad_()
    loss = cross_entropy(x @ weight.T + bias, labels) + 0.005 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-4


def test_the_probe_never_chooses_on_test():
    (x, y), (vx, vy), (tx, _) = blobs(60, noise=1.5), blobs(30, noise=1.5, seed=1), blobs(30, noise=1.5, seed=2)
    said, penalty = linear.probe((x, y), (vx, vy), tx, 3)
    right = {
        p: float(((vx @ w.T + b).argmax(1) == vy).float().mean())
        for p in linear.PENALTIES
        for w, b in [linear.fit(x, y, 3, p)]
    }
    assert right[penalty] == max(right.values())
    weight, bias = linear.fit(x, y, 3, penalty)
    assert torch.equal(said, (tx @ weight.T + bias).argmax(1))
    assert linear.probe((x, y), (vx[:0], vy[:0]), tx, 3)[1] in linear.PENALTIES


def test_wilson_is_the_textbooks():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert all(wilson(0, total)[0] == 0.0 and wilson(total, total)[1] == 1.0 for total in range(1, 40))
    assert share(1, 4)["value"] == 0.25
    for right, total in ((5, 4), (0, 0), (-1, 3)):
        with pytest.raises(ValueError, match="is no share"):
            wilson(right, total)


def test_a_collapsed_backbone_is_seen_to_be_ill():
    torch.manual_seed(0)
    healthy = torch.randn(500, 8)
    collapsed = torch.ones(500, 8) + 1e-4 * torch.randn(500, 8)
    assert effective_rank(healthy) > 7.5
    assert effective_rank(collapsed) < 1.1
    assert 0.9 < spread(healthy) < 1.1
    assert spread(collapsed) < 0.01


def test_center_and_standardize_use_the_bank_alone():
    bank, other = torch.randn(50, 4) * 3 + 1, torch.randn(9, 4)
    a, b = standardize(bank, other)
    assert torch.allclose(a.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(b, (other - bank.mean(0)) / bank.std(0))
    assert torch.allclose(center(bank, other)[1].norm(dim=1), torch.ones(9))


def test_every_baseline_is_scored_on_the_same_rows(photos, tiny):
    torch.manual_seed(3)
    backbone = build(tiny)
    found = {**baselines(photos, tiny, k=5, seed=0), "backbone": score(features(backbone, photos), photos, k=5)}
    total = len(photos.rows("test", labeled=True))
    assert set(found) == {"majority", "pixels", "random", "backbone"}
    assert {said["of"] for kinds in found.values() for said in kinds.values()} == {total}
    assert found["pixels"]["linear"]["value"] == 1.0  # red and green pictures: pixels are enough
    assert baselines(photos, tiny, k=5, seed=3)["random"] == found["backbone"]  # the same backbone, untrained


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.1)]
)  # a few roundings of values near 1
def test_features_do_not_depend_on_the_batch_and_leave_no_gradient(photos, tiny, precision, tolerance, monkeypatch):
    monkeypatch.setenv(PRECISION, precision)
    backbone = build(tiny)
    vectors = features(backbone, photos)
    assert vectors.shape == (len(photos), 16)
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    assert torch.allclose(vectors[5:6], backbone.eval()(photos.squares(np.array([5]), 16)), atol=tolerance)


def test_what_cannot_be_scored_says_why(photos):
    assert cannot_score(photos) is None

    class Unlabeled:
        classes = ()

    assert "no labels" in cannot_score(Unlabeled())
