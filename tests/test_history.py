"""The studies of the history: their cells are valid and measure what they name, their sections say what they saw."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.nn.functional import affine_grid, grid_sample

from benchmarks.history import augmentations, collapse, heads, photo_sets
from benchmarks.history.cell import Cell, run
from benchmarks.history.page import recorded, write
from benchmarks.history.runner import Runner, key
from benchmarks.history.section import Section, beyond_seeds, spread
from benchmarks.history.studies import STUDIES
from components.data.photos import Photos
from components.methods.simclr import SimCLR, SimCLRConfig
from components.stages.pretrain_config import DataSize, configure

TINY = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}


def cell(method, points=0, **own):
    common = {"backbone": TINY, "batch_size": 16, "epochs": 2, "seed": 0}
    return Cell("photos", method, {"common": common, method: own}, points)


def test_a_cell_measures_what_is_kept_the_head_and_the_points_of_training(prepared, tmp_path):
    result = run(cell("simclr", points=2, hidden=8, dim=4), prepared, tmp_path)
    train = len(Photos(prepared).rows("train"))
    assert result["pictures"] == 2 * (train // 16) * 16
    assert [point["pictures"] for point in result["points"]] == [result["pictures"] // 2, result["pictures"]]
    assert result["points"][-1]["kept"] == result["val"]["kept"]["value"]  # the last point is the end
    assert set(result["val"]) == {"kept", "head"} == {"kept", *result["others"]}
    assert result["test"]["knn"]["of"] == len(Photos(prepared).rows("test"))
    assert result["cpu_seconds"] > 0


def test_a_cell_that_was_interrupted_ends_as_the_whole_one(prepared, tmp_path, monkeypatch):
    of = cell("dino", points=2, hidden=8, bottleneck=4, prototypes=8, local_crops=0)
    whole = run(of, prepared, tmp_path / "whole")
    from benchmarks.history import cell as module

    class StopError(Exception):
        pass

    class Stops(module.Points):
        def take(self, step):
            super().take(step)
            raise StopError

    monkeypatch.setattr(module, "Points", Stops)
    with pytest.raises(StopError):
        run(of, prepared, tmp_path / "half")
    monkeypatch.undo()
    again = run(of, prepared, tmp_path / "half")
    assert set(whole["val"]) == {"kept", "student"}
    for name in ("points", "val", "test", "others"):
        assert again[name] == whole[name]


def test_without_epochs_a_cell_is_the_floor(prepared, tmp_path):
    own = cell("simclr")
    result = run(replace(own, pretrain={**own.pretrain, "simclr": {"epochs": 0}}), prepared, tmp_path)
    assert set(result) == {"pictures", "test", "majority", "pixels"}
    assert set(result["pixels"]) == {"knn", "linear"}


def test_each_color_is_enlarged_about_the_middle():
    plane = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    for factor in (0.9, 1.0, 1.2):
        grid = affine_grid(
            torch.eye(2, 3, dtype=torch.float64)[None] / factor, (1, 1, *plane.shape), align_corners=True
        )
        source = torch.from_numpy(plane.astype(float))[None, None]
        expected = grid_sample(source, grid, padding_mode="border", align_corners=True)[0, 0].numpy()
        np.testing.assert_allclose(photo_sets.magnified(plane, factor), expected, atol=0.51)  # rounded to whole numbers


def test_augmentations_are_switched_on_alone_and_in_pairs():
    def view(*names):
        return SimCLR.views(
            SimCLRConfig(**{k: v for k, v in augmentations.settings(*names).items() if k != "epochs"}), 32
        )[0]

    off = view()
    assert (off.crop, off.jitter, off.gray, off.blur, off.distort) == (None, off.jitter, 0, 0, ())
    assert off.jitter is None or not any((off.jitter.brightness, off.jitter.hue))
    assert view("sobel", "noise").distort == ("sobel", "noise")
    assert (view("crop", "gray").crop, view("crop", "gray").gray) == ((0.08, 1.0), 0.5)
    assert view("color").gray == 0


def test_a_difference_within_the_spread_of_the_seeds_is_not_one():
    assert not beyond_seeds([50.0, 54.0, 52.0], [51.0, 55.0, 53.0])
    assert beyond_seeds([50.0, 50.5, 51.0], [55.0, 55.5, 56.0])
    assert not beyond_seeds([50.0], [52.0])
    assert spread([50.0, 52.0]) == "51.0 ± 1.4"
    assert spread([50.0]) == "50.0"


class Planned(Runner):
    """Results that only depend on the cell, in place of training."""

    def measure(self, cells):
        return [self._result(one) for one in cells]

    def _result(self, one):
        assert configure(one.method, one.pretrain, DataSize(photos=10_000, side=64)).method == one.method
        random = np.random.default_rng(len(json.dumps(one.pretrain)) + one.pretrain["common"]["seed"])

        def scores():
            return {
                k: {"value": v, "low": v - 0.02, "high": v + 0.02, "of": 100}
                for k, v in zip(("knn", "linear"), random.random(2), strict=True)
            }

        point = {"step": 9, "pictures": 90, "kept": 0.5, "student": 0.4}
        line = {"step": 9, "accuracy": 0.2, "entropy": 0.7, "prototype_usage": 0.9}
        return {
            "pictures": 1000,
            "cpu_seconds": 10.0,
            "test": scores(),
            "others": {"head": scores(), "student": scores()},
            "points": [point],
            "log": [line] * 4,
            "majority": {"value": 0.1, "of": 100},
            "pixels": scores(),
        }


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "collapse"])  # it also reads a backbone
def test_a_study_ends_in_a_section(name, tmp_path):
    section = STUDIES[name](Planned(tmp_path, seeds=2))
    assert section.name == name
    assert all(len(row) == len(section.table[0]) for row in section.table)
    assert "nan" not in section.seen
    assert "inf" not in section.seen
    write(section, {}, tmp_path, "command", list(STUDIES))
    assert (tmp_path / f"{name}.png").stat().st_size < 150_000


def result(*, linear, knn=50.0, head=None, **more):
    def scores(value):
        return {"knn": {"value": knn / 100}, "linear": {"value": value / 100}}

    return {"test": scores(linear), "others": {"head": scores(head or linear)}, **more}


def test_sentences_say_what_the_numbers_can_tell():
    by_head = {
        "none": [result(linear=60), result(linear=62)],
        "linear": [result(linear=66), result(linear=74)],
        "v1": [result(linear=70, head=60), result(linear=71, head=61)],
    }
    words = heads._seen(by_head)
    assert words.startswith(
        "By a linear probe, features before the two-layer head are 9.5 points above features without a head, level "
        "with those before a linear head (+0.5 points, too little to tell) and 10.0 points above those after it: "
        "2 of 3 as in the paper. By kNN, "
    )
    assert words.endswith("with those after it (+0.0 points, too little to tell): unlike the paper in all three.")

    def learning(entropy):
        return {"points": [{"kept": 0.4, "student": 0.3}], "log": [{"entropy": entropy}], **result(linear=50)}

    of = {name: [learning(entropy)] for name, entropy in zip(collapse.RUNS, (0.4, 0.0, 1.0, 0.5), strict=True)}
    words = collapse._seen(of)
    assert words.startswith(
        "As in the paper: in the runs that learn, the teacher is above its student at 100 % of the points measured. At "
    )
    assert "is 0.40 of its maximum with centering and sharpening, 0.00 without centering and 1.00 without" in words

    one = {(a, b): [50.0] for a in augmentations.CHANGES for b in augmentations.CHANGES}
    words = augmentations._seen({**one, ("crop", "color"): [56.0], ("crop", "gray"): [58.0]}, [40.0])
    assert "The best pair is crop with gray (58.0 %). Too close to tell from it: crop with color. " in words
    assert "Crop with color has 56.0 %, as in the paper" in words


def test_a_section_replaces_its_own_and_keeps_the_others_in_order(tmp_path):
    def section(name, seen):
        return Section(name, name.title(), "claim", seen, [["a", "b"], ["1", "2"]], Figure(), "runs")

    for name, seen in (("heads", "stale"), ("ladder", "other"), ("heads", "second")):
        write(section(name, seen), {}, tmp_path, "command", list(STUDIES))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "stale" not in text
    assert text.index("Our runs.** other") < text.index("Our runs.** second")
    assert text.count("| a | b |\n|---|---|\n| 1 | 2 |") == 2


def test_recorded_results_are_used_and_what_they_lack_is_run(tmp_path, monkeypatch):
    of = cell("simclr")
    section = Section("heads", "Heads", "claim", "seen", [["a"], ["1"]], Figure(), "runs")
    write(section, {key(of): {"pictures": 3, "test": {"knn": 1 / 3}}}, tmp_path, "command", list(STUDIES))
    results, made = recorded(tmp_path, "heads")
    ready = Runner(tmp_path / "out", recorded=results)
    assert made == "command"
    assert ready.measure([of]) == [{"pictures": 3, "test": {"knn": 0.333333}}]
    assert list(ready.used) == [key(of)]
    lacking = replace(of, points=1)
    folder = tmp_path / "out" / "cells" / key(lacking)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"pictures": 4}')  # as a run would leave it
    monkeypatch.setattr(Runner, "photos", lambda *_: tmp_path)
    assert [found["pictures"] for found in ready.measure([lacking, of])] == [4, 3]
    assert key(replace(of, points=1)) != key(of)
    with pytest.raises(ValueError, match=r"queue.json is missing; without --recorded, the study queue is run"):
        recorded(tmp_path, "queue")
