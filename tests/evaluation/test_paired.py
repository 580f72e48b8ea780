"""Paired comparisons against versions written out one photo, one seed and one draw after the other."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from components.evaluation.paired import Right, compare_pairs, difference_over_seeds, holm, mcnemar
from components.evaluation.statistics import paired_difference


def trained(seeds, photos=400, accuracy=0.5, deviation=0.0, random=0):
    """Which photos each seed gets right, bool [S, N]. Some photos are easy for all; a seed is better or worse."""
    ease = np.random.default_rng(7).normal(0, 1.5, photos)
    draws = np.random.default_rng(random)
    center = stats.norm.ppf(accuracy) * 1.7
    rows = [ease + center + draws.normal(0, 0.7, photos) + draws.normal(0, deviation) > 0 for _ in range(seeds)]
    return torch.from_numpy(np.stack(rows))


def compared(correct, pairs):
    return compare_pairs((Right(a, correct[a]), Right(b, correct[b])) for a, b in pairs)


def test_mcnemar_is_a_sum_of_exact_binomial_probabilities():
    first, second = trained(1, random=1)[0], trained(1, accuracy=0.56, random=2)[0]
    only_first = sum(a and not b for a, b in zip(first.tolist(), second.tolist(), strict=True))
    differ = only_first + sum(b and not a for a, b in zip(first.tolist(), second.tolist(), strict=True))
    chances = [math.comb(differ, k) / 2**differ for k in range(differ + 1)]
    expected = sum(chance for chance in chances if chance <= chances[only_first] * (1 + 1e-9))
    assert 0.001 < expected < 0.5  # neither certain nor impossible
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar(first, first) == 1.0


def test_holm_goes_down_the_sorted_p_values_and_stops_at_the_first_that_is_too_large():
    p_values = [0.02, 0.001, 0.04, 0.5, 0.012]
    adjusted = holm(p_values)
    for level in (0.004, 0.03, 0.05, 0.07, 0.2):
        rejected = []
        for place, index in enumerate(sorted(range(5), key=lambda index: p_values[index])):
            if p_values[index] * (5 - place) >= level:
                break
            rejected.append(index)
        assert [index for index in range(5) if adjusted[index] < level] == sorted(rejected)
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_with_one_seed_the_interval_is_that_of_the_photos():
    first, second = trained(1, random=1), trained(1, accuracy=0.6, random=2)
    expected, found = paired_difference(first[0], second[0]), difference_over_seeds(first, second)
    assert [found[key] for key in ("low", "high")] == pytest.approx([expected[key] for key in ("low", "high")])
    assert found["value"] == pytest.approx(expected["value"])


def test_the_interval_over_seeds_adds_the_variance_of_photos_and_of_seeds():
    first, second = trained(3, 60, 0.6, 0.3, 1), trained(2, 60, 0.5, 0.3, 2)
    gains = [sum(first[:, i].tolist()) / 3 - sum(second[:, i].tolist()) / 2 for i in range(60)]
    # the four cells of half a photo each: right or wrong in both (twice no difference), in the first, in the second
    values, weights = [*gains, 0, 0, 1, -1], [1.0] * 60 + [0.5] * 4
    total = sum(weights)
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    of_photos = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True)) / total**2
    parts = []
    for correct in (first, second):
        accuracies = [sum(row) / 60 for row in correct.tolist()]
        center, count = sum(accuracies) / len(accuracies), len(accuracies)
        parts.append((sum((x - center) ** 2 for x in accuracies) / (count - 1) / count, count - 1))
    variance = of_photos + sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / of for part, of in parts)
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    found = difference_over_seeds(first, second)
    assert (found["low"], found["high"]) == pytest.approx((mean - half, mean + half))
    assert found["p"] == pytest.approx(2 * (1 - stats.t.cdf(abs(mean) / variance**0.5, freedom)))


def test_the_interval_of_photos_is_that_of_a_bootstrap_where_seeds_are_equal():
    first, second = trained(1, accuracy=0.6, random=1).expand(3, -1), trained(1, random=2).expand(3, -1)
    gains, random = (first[0].double() - second[0].double()).numpy(), np.random.default_rng(0)
    draws = [gains[random.integers(0, len(gains), len(gains))].mean() for _ in range(4000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    found = difference_over_seeds(first, second)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.006)


def test_seeds_that_differ_are_no_difference_of_methods():
    """Of methods that are equal on average, one seed each is called different too often, three seeds each are not."""
    called = {1: 0, 3: 0}
    for trial in range(200):
        for seeds in called:
            two = {name: trained(seeds, deviation=0.2, random=(trial, i)) for i, name in enumerate("ab")}
            called[seeds] += compared(two, [("a", "b")])[0].shown
    assert called[1] > 60  # of 200; 10 are allowed at 95 %
    assert called[3] <= 16


def test_an_equal_pair_is_named_as_one_that_this_data_cannot_tell_apart():
    correct = {"dino": trained(1, random=1), "moco": trained(1, random=2), "simclr": trained(1, accuracy=0.7, random=3)}
    pairs = [("dino", "moco"), ("dino", "simclr"), ("moco", "simclr")]
    equal, *different = compared(correct, pairs)
    assert not equal.shown
    value = 100 * abs(float(correct["dino"].double().mean() - correct["moco"].double().mean()))
    assert f"no difference that this data can show ({value:+.1f}, " in equal.words()
    for one, other in zip(different, ("dino", "moco"), strict=True):
        assert one.words().startswith(f"simclr above {other} by {100 * one.value:.1f} points ({100 * one.low:.1f} to ")
        assert (one.photos, one.seeds) == (400, (1, 1))
    same = compared({"a": correct["dino"], "b": correct["dino"].clone()}, [("a", "b")])[0]
    assert (same.value, same.p, same.shown) == (0, 1, False)
    assert same.words().startswith("a and b: no difference that this data can show (+0.0, -")


def test_many_pairs_need_more_than_one():
    """A difference that one pair would show alone is not shown where it is the largest of many by chance."""
    correct = {"a": trained(1, random=1), "b": trained(1, accuracy=0.56, random=2)}
    correct |= {str(i): trained(1, random=2 + i) for i in range(1, 13)}
    alone = compared(correct, [("a", "b")])[0]
    assert alone.shown
    among = compared(correct, [("a", "b"), *((x, y) for x in correct for y in correct if "0" < x < y < "a")])[0]
    assert alone.p == among.p < 0.05 <= among.p_adjusted
    assert not among.shown
    assert "no difference that this data can show" in among.words()
    assert f" to {100 * among.high:.1f}; p {among.p_adjusted:.2f} among all pairs)" in among.words()
