"""A run that collapses says so at once, stops there where it is told to, and never looks like a success."""

import os
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from test_stages import PARAMS

from components.evaluation import snapshots
from components.evaluation.features import features
from components.evaluation.health import verdict
from components.evaluation.points import Point, Watched, measure
from components.evaluation.scoring import score
from components.models.backbone import build, load
from components.stages import evaluate, pretrain
from components.stages.exit_code import exit_code
from components.stages.pretrain_config import configure_for
from components.stages.scratch import SCRATCH
from components.training.collapse import CollapseError

ROOT = Path(__file__).parents[2]
HEALTHY, COLLAPSED = Point(0.5, "made up", 9.0), Point(0.3, "made up", 1.1)


def run(photos, out, **common):
    params = {**PARAMS, "common": {**PARAMS["common"], "epochs": 4, "measured": 4, **common}}
    pretrain.pretrain(configure_for("simclr", params, photos), photos.folder, out)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Returns the points that are measured one after the other; the run collapses after half of its steps."""
    points = [HEALTHY, HEALTHY, COLLAPSED, COLLAPSED, COLLAPSED]
    monkeypatch.setattr(snapshots, "measure", lambda *_: (points.pop(0), torch.zeros(2, 1)))
    monkeypatch.setenv(SCRATCH, str(tmp_path / "scratch"))
    return points


def test_it_stops_where_it_is_measured_and_goes_on_if_it_is_not_to_stop(photos, tmp_path, measured, capsys):
    out = tmp_path / "out"
    for _ in range(2):  # the second time it is not trained again
        with pytest.raises(CollapseError, match=r"^simclr: stopped at step 8 of 16: collapsed: all .* try a .*go on"):
            run(photos, out, stop_on_collapse=True)
        assert len(measured) == 2
        assert not out.exists()
    assert "simclr: 50 % of the run, step 8: collapsed: all photos" in capsys.readouterr().out
    run(photos, out)
    printed = capsys.readouterr().out
    assert "simclr: resumed at step 8 of 16" in printed
    assert printed.splitlines()[-1].startswith("simclr: collapsed: all photos have nearly the same features (effective")
    measured.extend([HEALTHY, HEALTHY, COLLAPSED, COLLAPSED, COLLAPSED])
    run(photos, tmp_path / "whole")
    first, second = (dict(load(folder / "backbone").named_parameters()) for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_collapse_is_no_failure_that_may_not_recur(capsys):
    with pytest.raises(SystemExit) as ended, exit_code("pretrain", ArgumentParser()):
        raise CollapseError("it has collapsed")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "pretrain: it has collapsed\n"


COLLAPSING = """
import torch
from components.evaluation import snapshots
from components.evaluation.points import Point
from components.stages.pretrain import main
ranks = iter([9.0, 9.0, 1.1])
snapshots.measure = lambda *_: (Point(0.5, "made up", next(ranks)), torch.zeros(2, 1))
main()
"""


@pytest.mark.slow
def test_all_processes_stop_together(prepared, tmp_path):
    params = {**PARAMS, "common": {**PARAMS["common"], "epochs": 4, "stop_on_collapse": True}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"pretrain": params}))
    (tmp_path / "collapsing.py").write_text(COLLAPSING)
    stage = ["collapsing.py", "--method", "simclr", "--data", str(prepared), "--out", "out"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *stage]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", SCRATCH: str(tmp_path / "scratch")}
    done = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("pretrain: simclr: stopped at step 8 of 16: ") == 2
    assert list((tmp_path / "scratch").rglob("*.safetensors"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        ({"entropy": 0.1, "prototype_usage": 0.001}, "one prototype wins every photo"),
        ({"entropy": 0.9999, "prototype_usage": 1.0}, "the targets of all photos are uniform"),
        ({"entropy": 0.3, "prototype_usage": 0.99}, None),
        ({}, None),
    ],
)
def test_targets_that_are_the_same_for_all_photos_are_a_collapse(logged, said):
    assert (verdict(20.0, logged) or "").startswith(f"collapsed: {said}; try" if said else "")
    assert (verdict(20.0, logged) is None) == (said is None)


def test_the_best_snapshot_is_kept_beside_the_last_where_they_differ(photos, tmp_path, measured):
    points = [replace(HEALTHY, value=value) for value in (0.2, 0.5, 0.8, 0.7, 0.6)]
    measured[:] = points
    run(photos, tmp_path / "falls")
    measured[:] = sorted(points, key=lambda point: point.value)
    run(photos, tmp_path / "falls")  # into the same folder
    assert not (tmp_path / "falls" / "best").exists()
    last = dict(load(tmp_path / "falls" / "backbone").named_parameters())
    measured[:] = points
    run(photos, tmp_path / "falls")
    again, best = (dict(load(tmp_path / "falls" / name).named_parameters()) for name in ("backbone", "best"))
    assert all(torch.equal(last[name], again[name]) for name in last)  # the backbone stays the last one
    assert not all(torch.equal(last[name], best[name]) for name in last)
    measured[:] = [HEALTHY] * 5
    run(photos, tmp_path / "equal")
    assert not (tmp_path / "equal" / "best").exists()
    measured[:] = [HEALTHY, *[replace(HEALTHY, value=0.0)] * 4]
    run(photos, tmp_path / "start")  # all of it made the features worse
    config = configure_for("simclr", PARAMS, photos)
    untrained = dict(pretrain.untrained(config, photos.folder).named_parameters())
    best = dict(load(tmp_path / "start" / "best").named_parameters())
    assert all(torch.equal(untrained[name], best[name]) for name in best)


def test_the_other_snapshot_is_measured_on_test_beside_the_one_that_is_kept(photos, tmp_path, measured):
    """The best of a run from random weights; of one that goes on from published weights see test_going_on.py."""
    measured[:] = [replace(HEALTHY, value=value) for value in (0.2, 0.5, 0.8, 0.7, 0.6)]
    run(photos, tmp_path / "falls")
    metrics = evaluate.evaluate(evaluate.EvaluateConfig(), tmp_path / "falls", photos.folder, tmp_path / "metrics")
    other = metrics["snapshot"]
    assert (other["name"], other["step"], other["chosen_by"]) == ("best snapshot", 8, "made up")
    vectors = features(load(tmp_path / "falls" / "best"), photos)
    assert other["backbone"] == score(vectors, photos, 20)
    assert other["health"]["effective_rank"] != metrics["health"]["effective_rank"]
    measured[:] = [replace(HEALTHY, value=value) for value in (0.2, 0.5, 0.6, 0.7, 0.8)]
    run(photos, tmp_path / "rises")
    metrics = evaluate.evaluate(evaluate.EvaluateConfig(), tmp_path / "rises", photos.folder, tmp_path / "metrics")
    assert "snapshot" not in metrics


@pytest.mark.parametrize("first", ["falls", "rises"])
def test_the_best_snapshots_of_all_seeds_are_measured(first, photos, tmp_path, measured):
    """Of two seeds one gets better to its end, so that its best snapshot is the backbone itself."""
    falls = [replace(HEALTHY, value=value) for value in (0.2, 0.5, 0.8, 0.7, 0.6)]
    rises = sorted(falls, key=lambda point: point.value)
    measured[:] = falls + rises if first == "falls" else rises + falls
    out = tmp_path / "out"
    run(photos, out, seeds=2)
    metrics = evaluate.evaluate(evaluate.EvaluateConfig(), out, photos.folder, tmp_path / "metrics")
    other, second = metrics["snapshot"], out / "seeds" / "1"
    best = [out / "best", second / "backbone"] if first == "falls" else [out / "backbone", second / "best"]
    expected = [score(features(load(folder), photos), photos, 20) for folder in best]
    assert other["backbone"] == expected[0]
    assert other["step"] == (8 if first == "falls" else 16)
    for kind in ("knn", "linear"):
        values = [scores[kind]["value"] for scores in expected]
        assert [one[kind] for one in other["seeds"]["each"]] == values
        assert other["seeds"][kind]["mean"] == pytest.approx(sum(values) / 2)


def test_neighbors_are_compared_with_the_start_and_with_pixels(photos, tiny):
    watched = Watched(photos, 0, ("train", "val"))
    torch.manual_seed(0)
    point, start = measure(build(tiny), watched)
    assert point.near_start == 1
    assert start.shape == (len(watched.rows), 10)
    torch.manual_seed(1)
    later, neighbors = measure(build(tiny), watched, start)
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(start.tolist(), neighbors.tolist(), strict=True)]
    assert later.near_start == pytest.approx(sum(shared) / len(shared))
    pixels = watched.near_by_pixels.tolist()
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(pixels, neighbors.tolist(), strict=True)]
    assert later.near_pixels == pytest.approx(sum(shared) / len(shared))
    assert 10 / len(watched.rows) < later.near_start < 1
