"""What the report says of which methods differ, from the files that evaluate writes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from components.evaluation.seeds import CORRECT, over_seeds, write_correct
from components.evaluation.statistics import proportion_with_ci
from components.reporting import compared
from components.reporting.basis import basis
from components.reporting.compared import against_best, compare, lines, matrix
from components.reporting.for_dvc import plain_metrics, write
from components.reporting.page import render
from components.reporting.results import Results
from components.reporting.summary import summary

PHOTOS = 300
RIGHT = {"published": 0.75, "simclr": 0.72, "dino": 0.5, "moco": 0.5}  # planted: dino and moco are equal on average
SEEDS = {"published": 1, "simclr": 3, "dino": 3, "moco": 1}


def planted(accuracy, random, seeds=1):
    """bool [S, N] of seeds that are right where a photo's own difficulty and some noise allow it."""
    hard, draws = np.random.default_rng(5).uniform(size=PHOTOS), np.random.default_rng(random)
    return torch.from_numpy(np.stack([hard + draws.normal(0, 0.1, PHOTOS) < accuracy for _ in range(seeds)]))


def scores(right):
    return {kind: proportion_with_ci(int(x.sum()), len(x)) for kind, x in right.items()}


@pytest.fixture
def evaluated(tmp_path):
    """What evaluate writes for four methods; kNN and linear accuracy are the same."""
    pixels = planted(0.3, 99)[0]
    for index, (name, accuracy) in enumerate(RIGHT.items()):
        seeds = [{"knn": x, "linear": x} for x in planted(accuracy, index, SEEDS[name])]
        each = {
            seed: {
                "backbone": scores(right),
                "health": {"effective_rank": 20.0, "dimensions": 64, "photos": PHOTOS},
                "selection": {"knn": scores(right)["knn"], "on": "the val photos"},
            }
            for seed, right in enumerate(seeds)
        }
        (tmp_path / name).mkdir()
        untrained = planted(0.2, 50 + index)[0]  # each method's own
        baselines = {"pixels": {"knn": pixels, "linear": pixels}, "random": {"knn": untrained, "linear": untrained}}
        metrics = {**each[0], **{of: scores(right) for of, right in baselines.items()}}
        metrics["seeds"] = over_seeds(each)
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        correct = {"backbone": seeds, **{of: [right] for of, right in baselines.items()}}
        write_correct(correct, torch.arange(PHOTOS), tmp_path / name / CORRECT)
    return tmp_path


@pytest.fixture
def results(evaluated):
    nothing = {"skipped": "not run yet"}
    made = Results(
        config={"data": {"source": "photos"}},
        validation={
            "offered": 96, "used": 96, "rejected": {}, "splits": {"train": 70, "test": 26}, "classes": {},
            "unlabeled": 0, "captioned": 0, "converted": {}, "width": {"min": 1, "median": 2, "max": 3},
            "height": {"min": 1, "median": 2, "max": 3}, "notes": [], "warnings": [],
        },
        rejected=[],
        methods={name: json.loads((evaluated / name / "metrics.json").read_text()) for name in RIGHT},
        logs={name: [{"step": 9, "loss": 1.0}] for name in RIGHT},
        measured={}, teachers={}, starts={}, pending={},
        origins={"published": {"source": "a", "revision": None, "trained_on": "b", "license": "c"}},
        configs={
            name: {"epochs": int(name != "published"), "batch_size": 4, "seed": 5, "seeds": seeds}
            for name, seeds in SEEDS.items()
        },
        adapter=nothing, words=nothing, answering=nothing, answers=[], embedded=nothing, issues=[], quality=[],
    )  # fmt: skip
    return replace(made, compared=compare(made, evaluated))


def test_every_pair_with_a_method_is_compared_on_the_same_photos(results):
    names = {frozenset((pair.first, pair.second)) for pair in results.compared["knn"]}
    assert len(names) == len(results.compared["knn"]) == 6 + 8  # four methods, each also with two baselines
    above = results.comparison("knn", "dino", "published")
    assert (above.first, above.second, above.photos, above.seeds) == ("published", "dino", PHOTOS, (1, 3))
    assert above.shown
    assert not results.comparison("knn", "moco", "dino").shown
    for name in RIGHT:  # its own untrained backbone, not another method's
        accuracies = [results.methods[name][of]["knn"]["value"] for of in ("backbone", "random")]
        accuracies[0] = results.methods[name]["seeds"]["knn"]["mean"]
        untrained = results.comparison("knn", name, "random")
        assert (untrained.first, untrained.second) == (name, "random")
        assert untrained.value == pytest.approx(accuracies[0] - accuracies[1])


def test_the_summary_says_what_the_data_cannot_show(results):
    text = summary(results)
    assert results.best_method() == "published"
    assert "published above dino by " in text
    pair = results.comparison("knn", "moco", "dino")
    assert f"- {pair.first} and {pair.second}: no difference that this data can show (+" in text
    mean, deviation = (100 * results.methods["dino"]["seeds"]["knn"][key] for key in ("mean", "deviation"))
    assert f"; 3 seeds: {mean:.1f} ± {deviation:.1f} |" in text
    assert "n = 300 test photos; 3 seeds of simclr, dino, 1 seed of published, moco; dvc repro evaluate@METHOD" in text
    assert "One seed of moco: this compares these backbones, not the methods in general" in text
    assert "p is below 0.05 by McNemar's exact test or a t-test over seeds, adjusted for 14 pairs (Holm)" in text


def test_every_method_is_beside_every_other_one_in_the_matrix(results):
    rows = dict(matrix(results, "knn"))
    assert list(rows) == list(RIGHT)
    for place, name in enumerate(RIGHT):
        for other, (side, points) in zip(RIGHT, rows[name], strict=True):
            mirrored, negative = rows[other][place]
            if name == other:
                assert (side, points) == ("", "")
            elif side:
                assert {side, mirrored} == {"yes", "no"}
                assert float(points) == -float(negative)
                assert (side == "yes") == (RIGHT[name] > RIGHT[other])
            else:
                assert points.startswith("≈")
    assert rows["moco"][2][0] == ""


def test_the_page_shows_the_best_method_beside_all_others(results, photos):
    html = render(results, photos, {}, 4)
    assert html.count("no difference that this data can show") >= 2
    for row in against_best(results):
        assert row.words["knn"] in html
    dino = next(row for row in against_best(results) if row.name == "dino")
    pair = results.comparison("knn", "published", "dino")
    assert dino.words["knn"] == f"{100 * pair.value:+.1f} points ({100 * pair.low:+.1f} to {100 * pair.high:+.1f})"
    mean, deviation = (100 * results.methods["dino"]["seeds"]["knn"][key] for key in ("mean", "deviation"))
    assert f"3 seeds: {mean:.1f}\u00a0±\u00a0{deviation:.1f}<" in html
    stands, _, command = basis(results)["backbones"].rpartition("; ")
    assert f"{stands}; <code>{command}</code>" in html
    assert "36 photos seen in batches of 4, with each of the seeds 5 to 7" in html
    assert "36 photos seen in batches of 4, seed 5" in html
    assert "Which differences" not in render(replace(results, compared={}), photos, {}, 4)


def test_dvc_shows_means_over_seeds_and_the_differences_in_words(results, tmp_path):
    numbers = plain_metrics(results)
    assert numbers["knn_over_seeds"]["dino"] == results.methods["dino"]["seeds"]["knn"]
    assert "moco" not in numbers["knn_over_seeds"]
    assert numbers["seeds"] == SEEDS
    assert numbers["n"] == PHOTOS
    assert numbers["knn_compared"]["dino and moco"] == results.comparison("knn", "dino", "moco").words()
    assert not any("pixels" in name for name in numbers["knn_compared"])
    write(results, tmp_path)
    pairs = json.loads((tmp_path / "comparisons.json").read_text())
    assert len(pairs["linear"]) == 14
    assert {"first", "second", "value", "low", "high", "p", "p_adjusted", "photos", "seeds", "words"} < set(
        pairs["knn"][0]
    )


def test_the_best_method_is_that_of_the_best_mean_over_seeds(results, photos):
    seeds = results.methods["simclr"]["seeds"]
    methods = {
        **results.methods,
        "simclr": {**results.methods["simclr"], "seeds": {**seeds, "selection": {"mean": 0.9, "deviation": 0.0123}}},
    }
    changed = replace(results, methods=methods)
    assert changed.best_method() == "simclr"
    sentence = "accuracy of 90.0\u00a0±\u00a01.2 % (mean and standard deviation over 3 seeds) on the val photos"
    assert f"Best method: <b>simclr</b>, with a kNN {sentence}" in render(changed, photos, {}, 4)


def test_methods_of_other_photos_and_without_the_file_are_left_out(results, evaluated):
    (evaluated / "simclr" / CORRECT).unlink()
    right = {"knn": planted(0.7, 3)[0], "linear": planted(0.7, 3)[0]}
    write_correct({"backbone": [right]}, torch.arange(1, PHOTOS + 1), evaluated / "dino" / CORRECT)
    found = compare(results, evaluated)
    assert {name for pair in found["knn"] for name in (pair.first, pair.second)} == {
        "published",
        "moco",
        "pixels",
        "random",
    }
    few = replace(results, compared=found)
    assert compared.tables(few)["matrices"] == {}
    assert [row.name for row in against_best(few)] == ["pixels", "random", "moco"]
    nothing = replace(results, methods={}, compared={})
    assert compare(nothing, evaluated) == {} == compared.tables(nothing)
    assert lines(nothing) == []


def test_a_method_that_is_below_the_untrained_one_is_named_even_where_intervals_do_not_overlap(results):
    pair = SimpleNamespace(first="random", second="dino", shown=True)
    own = {"knn": [pair], "linear": [pair]}
    assert replace(results, compared=own).no_better_than_untrained() == ["dino"]
