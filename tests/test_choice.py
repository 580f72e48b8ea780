"""How well a measure without labels agrees with the labels, from made-up points."""

import math

import pytest
import yaml

from benchmarks.choice import GOING_ON, MEASURES, RUNS, SPOILED, compare, sections_of, tables
from benchmarks.methods import ROOT
from components.methods import METHODS
from components.stages.pretrain_config import DataSize, configure

MEASURED = ("own_crop", "effective_rank", "alignment", "uniformity", "near_start", "near_pixels")


def points(accuracies, values):
    return [
        {"step": step, "value": accuracy, **dict.fromkeys(MEASURED, value)}
        for step, (accuracy, value) in enumerate(zip(accuracies, values, strict=True))
    ]


def test_agreement_is_that_of_a_computation_by_hand():
    runs = {
        "rises": points([0.2, 0.3, 0.4], [1.0, 2.0, 3.0]),  # agrees in all
        "falls": points([0.305, 0.3, 0.2], [1.0, 2.0, 0.0]),  # chooses the second: 0.5 points lost; correlation 1/2
        "other": points([0.5, 0.1, 0.2], [0.0, 2.0, 1.0]),  # 40 points lost; ranks 3 1 2 and 1 3 2: correlation -1
    }
    found = compare(runs, MEASURES["own crop found"])
    assert found["within"] == pytest.approx((1 + 0.5 - 1) / 3)
    assert (found["same"], found["near"]) == pytest.approx((1 / 3, 2 / 3))
    assert (found["regret"], found["worst"]) == pytest.approx(((0 + 0.005 + 0.4) / 3, 0.4))
    assert compare({"rises": runs["rises"]}, MEASURES["alignment (low)"])["over"] == pytest.approx(-1)
    assert compare(runs, MEASURES["the last point"])["worst"] == pytest.approx(0.3)


def test_a_measure_that_never_changes_has_no_correlation_and_chooses_the_start():
    found = compare({"flat": points([0.2, 0.3], [1.0, 1.0]), "rises": points([0.1, 0.3], [1.0, 2.0])}, lambda line: 1.0)
    assert math.isnan(found["within"])
    assert found["regret"] == pytest.approx((0.1 + 0.2) / 2)


def test_the_tables_have_each_measure_and_each_point():
    text = tables({"simclr": points([0.2, 0.3], [1.0, 2.0])})
    assert all(f"\n| {name} | " in text for name in MEASURES)
    assert "| simclr, 1 | 0.300 | 2.000 | 2 |" in text
    assert "Spoiled runs" not in text
    assert {method for method, _ in RUNS.values()} <= set(METHODS)


@pytest.mark.parametrize(
    ("name", "published"), [*((name, False) for name in RUNS), *((name, True) for name in GOING_ON)]
)
def test_the_settings_of_each_run_are_valid_and_it_is_measured_at_nine_points(name, published):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())["pretrain"]
    method, sections = sections_of(name, params, published=published)
    config = configure(method, sections, DataSize(photos=3000, side=128))
    assert config.goes_on == published
    assert (config.start.measured if published else config.measured) == 8


def test_spoiled_runs_and_the_others_are_compared_apart():
    spoiled = sorted(SPOILED)[0]
    learns, fails = points([0.2, 0.25, 0.3], [1.0, 3.0, 2.0]), points([0.2, 0.1], [2.0, 1.0])
    all_runs, others, failed = tables({"simclr": learns, spoiled: fails}).split("| chosen by |")[1:]
    for part, cells in (
        (all_runs, "1 of 2 | 1 of 2 | 2.5 | 5.0 |"),
        (others, "0 of 1 | 0 of 1 | 5.0 | 5.0 |"),
        (failed, "1 of 1 | 1 of 1 | 0.0 | 0.0 |"),
    ):
        assert cells in next(line for line in part.splitlines() if line.startswith("| own crop found |"))
    assert all_runs.endswith("Runs that were not spoiled (1):\n\n")
    assert others.endswith("Spoiled runs (1):\n\n")
    assert set(RUNS) > SPOILED
