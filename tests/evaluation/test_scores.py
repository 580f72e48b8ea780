import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from components.data.label_sets import label_sets
from components.evaluation import knn, linear, scoring
from components.evaluation.features import center, features, standardize
from components.evaluation.health import effective_rank, feature_std
from components.evaluation.scale import deviation, unit_vectors
from components.evaluation.scoring import baselines, cannot_score, score, selection_score
from components.evaluation.statistics import proportion_with_ci, wilson
from components.models.backbone import build
from components.precision import PRECISION
from tests.tolerances import BF16, FLOAT32, LAYERS_FLOAT32


def blobs(count, classes=3, dim=5, noise=0.3, seed=0):
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    return centers[labels] + noise * torch.randn(count, dim, generator=random), labels


def naive_knn(query, bank, labels, k, temperature=0.07):
    """The class of one unit vector by the paper's weighted vote, one neighbor after the other."""
    similarity = (normalize(bank, dim=1) @ query).numpy()
    votes = np.zeros(3)
    for row in np.argsort(-similarity)[:k]:
        votes[labels[row]] += math.exp(similarity[row] / temperature)
    return votes.argmax()


def test_knn_votes_are_weighted_as_in_the_paper():
    bank, labels = blobs(40, noise=2.0)
    queries, _ = blobs(17, noise=2.0, seed=1)
    predicted = knn.classify(queries, bank, labels, k=7)
    assert predicted.tolist() == [naive_knn(query, bank, labels, 7) for query in normalize(queries, dim=1)]


def test_leave_one_out_equals_knn_on_a_bank_without_the_query():
    bank, labels = blobs(40, noise=2.0)
    bank[20:26] = bank[3]  # duplicates, more than neighbors: a photo may not be among its own
    rows = torch.tensor([0, 3, 20, 25, 39, 7])
    predicted = knn.classify_leave_one_out(rows, bank, labels, k=4)
    for row, label in zip(rows.tolist(), predicted.tolist(), strict=True):
        others = [other for other in range(40) if other != row]
        if row not in (3, *range(20, 26)):  # equally near duplicates are kept in any order
            assert label == naive_knn(normalize(bank, dim=1)[row], bank[others], labels[others], 4)
    lonely = torch.eye(3)  # a photo that voted for itself would be right
    assert knn.classify_leave_one_out(torch.arange(3), lonely, torch.arange(3), k=2).eq(torch.arange(3)).sum() == 0
    with pytest.raises(ValueError, match="k is 3; allowed: 1 to 2"):
        knn.classify_leave_one_out(torch.arange(3), lonely, torch.arange(3), k=3)


def test_neighbors_do_not_depend_on_tiles(monkeypatch):
    bank, _ = blobs(40)
    queries, _ = blobs(17, seed=1)
    similarity, rows = (normalize(queries, dim=1) @ normalize(bank, dim=1).T).sort(descending=True)
    monkeypatch.setattr(knn, "TILE", 4)
    monkeypatch.setattr(knn, "BANK", 11)
    actual_similarity, actual_rows = knn.nearest(queries, bank, 5)
    assert torch.allclose(actual_similarity, similarity[:, :5], atol=FLOAT32)
    assert similarity[:, :6].diff().abs().min() > 2 * FLOAT32  # so that rounding does not change their order
    assert torch.equal(actual_rows, rows[:, :5])


def test_more_neighbors_than_photos_are_refused():
    bank, labels = blobs(10)
    with pytest.raises(ValueError, match="k is 11; allowed: 1 to 10"):
        knn.classify(bank, bank, labels, 11)


def test_the_gradient_of_the_fitted_probe_is_zero():
    x, labels = blobs(60, noise=1.0)
    weight, bias = linear.fit(x, labels, 3, penalty=0.01)
    weight.requires_grad_(), bias.requires_grad_()
    loss = cross_entropy(x @ weight.T + bias, labels) + 0.005 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-4  # float32, and the search ends near 0


def test_the_penalty_is_chosen_on_val():
    (x, y), (vx, vy), (tx, _) = blobs(60, noise=1.5), blobs(30, noise=1.5, seed=1), blobs(30, noise=1.5, seed=2)
    predicted, penalty = linear.probe((x, y), (vx, vy), tx, 3)
    accuracy = {
        p: float(((vx @ w.T + b).argmax(1) == vy).float().mean())
        for p in linear.PENALTIES
        for w, b in [linear.fit(x, y, 3, p)]
    }
    assert accuracy[penalty] == max(accuracy.values())
    weight, bias = linear.fit(x, y, 3, penalty)
    assert torch.equal(predicted, (tx @ weight.T + bias).argmax(1))
    assert linear.probe((x, y), (vx[:0], vy[:0]), tx, 3)[1] in linear.PENALTIES


def test_wilson_interval_equals_the_textbook_values():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)  # the book's digits
    assert all(wilson(0, total)[0] == 0.0 and wilson(total, total)[1] == 1.0 for total in range(1, 40))
    assert proportion_with_ci(1, 4)["value"] == 0.25
    for correct, total in ((5, 4), (0, 0), (-1, 3)):
        with pytest.raises(ValueError, match="is not a proportion"):
            wilson(correct, total)


def test_collapsed_features_have_a_low_rank_and_deviation():
    torch.manual_seed(0)
    healthy = torch.randn(500, 8)
    collapsed = torch.ones(500, 8) + 1e-4 * torch.randn(500, 8)
    assert effective_rank(healthy) > 7.5
    assert effective_rank(collapsed) < 1.1
    assert 0.9 < feature_std(healthy) < 1.1
    assert feature_std(collapsed) < 0.01


def test_center_and_standardize_use_statistics_of_train_alone():
    bank, other = torch.randn(50, 4) * 3 + 1, torch.randn(9, 4)
    a, b = standardize(bank, other)
    assert torch.allclose(a.mean(0), torch.zeros(4), atol=FLOAT32)
    assert torch.allclose(b, (other - bank.mean(0)) / bank.std(0), atol=FLOAT32)
    assert torch.allclose(center(bank, other)[1].norm(dim=1), torch.ones(9))


@pytest.mark.parametrize("exponent", [-100, -73, 0, 60])
def test_features_of_any_scale_are_centered_and_standardized_alike(exponent):
    bank, other = torch.randn(50, 4) * 3 + 1, torch.randn(9, 4)
    bank[:, 2] = other[:, 2] = 0.7  # a dimension that does not vary
    expected = [*center(bank, other), *standardize(bank, other), deviation(bank)]
    bank, other = (torch.ldexp(x, torch.tensor(exponent)) for x in (bank, other))
    scaled = [*center(bank, other), *standardize(bank, other), torch.ldexp(deviation(bank), torch.tensor(-exponent))]
    assert all(torch.equal(a, b) for a, b in zip(scaled, expected, strict=True))  # a power of two costs no precision
    assert all(x.isfinite().all() for x in expected)
    assert feature_std(bank) == feature_std(torch.ldexp(bank, torch.tensor(-exponent)))


def test_rows_and_dimensions_each_have_a_scale_of_their_own():
    torch.manual_seed(0)
    x = torch.randn(6, 4).double()
    scales = torch.tensor([1e-30, 1e-13, 1.0, 7.0, 1e12, 1e30]).double()
    expected = x / x.norm(dim=1, keepdim=True)
    assert torch.allclose(unit_vectors((x * scales[:, None]).float()).double(), expected, atol=FLOAT32)
    columns = (x * scales[:4]).float()
    assert torch.allclose(deviation(columns).double(), x.std(0) * scales[:4], rtol=FLOAT32, atol=0)
    huge = torch.full((1, 4), torch.finfo(torch.float32).max)
    assert torch.allclose(unit_vectors(huge), torch.full((1, 4), 0.5))


def test_no_features_and_no_photos_are_no_error():
    assert [float(x.abs().max()) for x in (*center(torch.zeros(5, 3)), *standardize(torch.zeros(5, 3)))] == [0.0, 0.0]
    nothing = torch.empty(0, 3)
    assert [len(x) for x in (*center(torch.ones(5, 3), nothing), *standardize(torch.ones(5, 3), nothing))] == [5, 0] * 2


def test_all_baselines_are_scored_on_the_same_photos(photos, tiny):
    torch.manual_seed(3)
    backbone = build(tiny)
    scores = {**baselines(photos, backbone, k=5, seed=0)[0], "backbone": score(features(backbone, photos), photos, k=5)}
    total = len(photos.rows("test", labeled=True))
    assert set(scores) == {"majority", "pixels", "random", "backbone"}
    for kinds in scores.values():
        assert {accuracy["of"] for name, accuracy in kinds.items() if name != "retrieval"} == {total}
    assert scores["pixels"]["retrieval"]["by_class"]["map_at_r"]["of"] == total
    assert scores["pixels"]["retrieval"]["by_class"]["gallery"] == total
    assert scores["pixels"]["linear"]["value"] == 1.0  # red and green photos: pixels are enough
    assert baselines(photos, backbone, k=5, seed=3)[0]["random"] == scores["backbone"]  # the same backbone, untrained


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", LAYERS_FLOAT32), ("bf16", BF16)])
def test_features_do_not_depend_on_the_batch_and_leave_no_gradient(photos, tiny, precision, tolerance, monkeypatch):
    monkeypatch.setenv(PRECISION, precision)
    backbone = build(tiny)
    vectors = features(backbone, photos)
    assert vectors.shape == (len(photos), 16)
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    assert {weight.dtype for weight in backbone.parameters()} == {torch.float32}
    assert torch.allclose(vectors[5:6], backbone.eval()(photos.squares(np.array([5]), 16)), atol=tolerance)


def test_methods_are_compared_on_val_and_without_it_on_training_photos(photos, tiny, monkeypatch):
    vectors = features(build(tiny), photos)
    train, val, test = (photos.rows(split, labeled=True) for split in ("train", "val", "test"))
    monkeypatch.setattr(scoring, "FEWEST_LABELS", 1)
    selection = selection_score(vectors, photos, 5, seed=0)
    assert selection["knn"]["of"] == len(val)
    assert selection["on"] == f"the {len(val)} labeled val photos"
    monkeypatch.setattr(scoring, "FEWEST_LABELS", len(val) + 1)
    fallback = selection_score(vectors, photos, 5, seed=0)
    assert fallback["knn"]["of"] == len(train)
    assert fallback["on"].startswith(f"{len(train)} training photos, each classified by the others (only {len(val)}")
    vectors[test] = torch.randn(len(test), 16)  # what lies in test decides nothing
    assert selection_score(vectors, photos, 5, seed=0) == fallback
    monkeypatch.setattr(scoring, "FEWEST_LABELS", 1)
    assert selection_score(vectors, photos, 5, seed=0) == selection


def test_reasons_why_accuracy_cannot_be_measured(photos):
    assert cannot_score(photos) is None

    class Unlabeled:
        classes = ()
        label_sets = None

    assert "no labels" in cannot_score(Unlabeled())
    Unlabeled.label_sets = label_sets([["a", "b"]], [True])
    assert "all that are labeled have several" in cannot_score(Unlabeled())
