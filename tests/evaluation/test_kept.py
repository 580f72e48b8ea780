"""Linear probes of what is kept find what was planted in features, and nothing else."""

import numpy as np
import pytest
import torch

from components.data.scenes import draw
from components.evaluation import linear
from components.evaluation.kept import balanced_with_ci, fit, measure_kept, probe, targets
from components.evaluation.linear import PENALTIES

ROWS = [np.arange(300), np.arange(300, 360), np.arange(360, 500)]
SINGLE = ("kind", "number", "place", "ground")


@pytest.fixture(scope="module")
def truths():
    return [draw(2, index).truth for index in range(500)]


def planted(truths, name):
    """Returns features of noise, to which the answers of one target are added."""
    asked = targets(truths)
    features = torch.randn(500, 24, generator=torch.Generator().manual_seed(0))
    for place, values in enumerate(v for target, v in asked.items() if target.startswith(name)):
        for answer in range(int(values.max()) + 1):
            features[:, place + answer] += 6.0 * (values == answer)
    return [features[torch.from_numpy(rows)] for rows in ROWS]


@pytest.mark.parametrize("name", [*SINGLE, "colors"])
def test_what_is_planted_is_found_and_the_rest_is_at_chance(truths, name):
    found = measure_kept(planted(truths, name), ROWS, truths)
    assert set(found) == {*SINGLE, "colors"}
    assert found[name]["value"] > 0.9
    assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    for other in set(found) - {
        name,
        "number" if name in ("colors", "place") else name,
    }:  # four objects show more colors
        assert abs(found[other]["value"] - found[other]["chance"]) < 0.15
        assert found[other]["high"] < 0.75


def test_targets_are_those_of_the_scenes(truths):
    asked = targets(truths)
    for index, truth in enumerate(truths):
        answers = {name: int(values[index]) for name, values in asked.items()}
        empty = {0, 1, 2, 3} - set(truth.quarters)
        assert answers["place"] == (empty.pop() if truth.number == 3 else -1)
        assert answers["number"] == truth.number - 3
        shown = {
            name.removeprefix("colors ") for name, value in answers.items() if name.startswith("colors ") and value
        }
        assert shown == set(truth.colors)


def test_probes_that_are_fitted_together_are_those_that_are_fitted_alone():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=random)
    labels = [(x[:, 0] + torch.randn(200, generator=random) > 0).long(), (3 * torch.rand(200, generator=random)).long()]
    asked = torch.arange(200) % 3 > 0  # the second target is not asked of all
    weight, bias = fit(x, [labels[0], labels[1].where(asked, torch.tensor(-1))], [2, 3], 0.01, steps=300)
    for start, stop, rows, y in ((0, 2, slice(None), labels[0]), (2, 5, asked, labels[1])):
        alone_weight, alone_bias = linear.fit(x[rows], y[rows], stop - start, 0.01, steps=300)
        assert (weight[start:stop] - alone_weight).abs().max() < 1e-3  # two searches end near the same optimum
        assert (bias[start:stop] - alone_bias).abs().max() < 1e-3


def test_each_target_has_the_penalty_that_is_best_on_val(truths):
    parts = planted(truths, "kind")
    train, val = ({name: v[torch.from_numpy(r)] for name, v in targets(truths).items()} for r in ROWS[:2])
    said = probe(parts, train, val)
    for name in ("kind", "ground"):
        right = []
        for penalty in PENALTIES:
            sizes = [int(values.max()) + 1 for values in train.values()]
            weight, bias = fit(parts[0], list(train.values()), sizes, penalty)
            place = list(train).index(name)
            rows = slice(sum(sizes[:place]), sum(sizes[: place + 1]))
            answers = [(x @ weight[rows].T + bias[rows]).argmax(1) for x in parts[1:]]
            right.append((float((answers[0] == val[name]).float().mean()), answers[1]))
        best = max(score for score, _ in right)
        assert torch.equal(said[name], next(answer for score, answer in right if score == best))


def test_balanced_accuracy_is_that_of_a_loop():
    random = np.random.default_rng(0)
    shown, said = random.random((80, 3)) < [0.2, 0.5, 0.9], random.random((80, 3)) < 0.4
    values = []
    for column in range(3):
        sides = [[], []]
        for expected, answer in zip(shown[:, column], said[:, column], strict=True):
            sides[int(expected)].append(expected == answer)
        values.append(np.mean([np.mean(side) for side in sides]))
    found = balanced_with_ci(torch.from_numpy(said), torch.from_numpy(shown))
    assert found["value"] == pytest.approx(np.mean(values))
    assert found["low"] < found["value"] < found["high"]
    always = balanced_with_ci(torch.ones(80, 3) > 0, torch.from_numpy(shown))
    assert (always["value"], always["low"], always["high"]) == (0.5, 0.5, 0.5)


def test_what_has_one_answer_alone_is_left_out(truths):
    few = [truth for truth in truths if truth.number == 4][:60]
    rows = [np.arange(40), np.arange(0), np.arange(40, 60)]
    found = measure_kept([torch.randn(len(r), 4) for r in rows], rows, few)
    assert set(found) == {"kind", "ground", "colors"}
