"""What a stage prints becomes artifacts in the Prefect UI."""

import httpx
import pytest
import torch

from components.evaluation import snapshots
from components.evaluation.points import Point
from components.models.backbone import build
from components.training.monitor import Run
from flows import training_progress
from flows.training_progress import TrainingProgress


@pytest.fixture
def shown(monkeypatch):
    """Returns what was sent to the server: (key, progress or a copy of the rows)."""
    sent = []
    monkeypatch.setattr(
        training_progress, "create_progress_artifact", lambda percent, key, _: sent.append((key, percent)) or key
    )
    monkeypatch.setattr(training_progress, "update_progress_artifact", lambda key, percent: sent.append((key, percent)))
    monkeypatch.setattr(
        training_progress,
        "create_table_artifact",
        lambda rows, key, _: sent.append((key, [dict(row) for row in rows])),
    )
    return sent


def test_a_bar_and_measured_points_of_the_stage_that_runs_are_shown(shown):
    progress = TrainingProgress(pytest.fail)
    lines = """
        simclr:   9%|#         | 4/44 [00:10<01:40]
        Running stage 'pretrain@simclr':
        > python -m components.stages.pretrain --method simclr
        snapshot: 100%|##########| 8/8 [00:01<00:00]
        simclr: 0 % of the run, step 0: kNN accuracy 0.213; effective rank 57
        simclr:  40%|####      | 20/44 [00:10<00:12, loss=4.1]
        simclr: 50 % of the run, step 1,022: kNN accuracy 0.105; effective rank 1
        simclr: 50 % of the run, step 1,022: collapsed: all photos have nearly the same features; try another method
        simclr: 100%|##########| 44/44 [00:22<00:00]
        Running stage 'evaluate@simclr':
        features:  50%|#####     | 4/8 [00:01<00:01]
        Running stage 'adapt':
        adapt linear:  30%|###       | 3/10 [00:01<00:02]
    """
    for line in lines.strip().splitlines():
        progress.read(line.strip())
    first = {"of the run": "0 %", "step": "0", "kNN accuracy": "0.213", "effective rank": "57", "verdict": ""}
    second = {"of the run": "50 %", "step": "1,022", "kNN accuracy": "0.105", "effective rank": "1", "verdict": ""}
    verdict = "collapsed: all photos have nearly the same features; try another method"
    table = "pretrain-simclr-features"
    assert shown == [
        (table, [first]),
        ("pretrain-simclr", 40.0),
        (table, [first, second]),
        (table, [first, {**second, "verdict": verdict}]),
        ("pretrain-simclr", 100.0),
        ("adapt", 30.0),
    ]


def test_several_seeds_are_rows_of_one_table(shown):
    progress = TrainingProgress(pytest.fail)
    progress.read("Running stage 'pretrain@dino':")
    for seed in (0, 1):
        progress.read(f"dino: seed {seed} of 2 seeds from 0 on")
        progress.read("dino: 100 % of the run, step 4: kNN accuracy 0.4")
    assert [row["seed"] for row in shown[-1][1]] == ["0", "1"]


def test_the_lines_are_those_that_a_run_prints(shown, photos, tmp_path, monkeypatch, tiny):
    point = Point(0.5, "made up", 1.2, 0.25, 0.1, -2.0, 0.3, 0.2)
    monkeypatch.setattr(snapshots, "measure", lambda *_: (point, torch.zeros(2, 1)))
    watched = snapshots.Snapshots(tmp_path, photos, 0)
    watched.take(0, build(tiny), {})
    measured = watched.take(4, build(tiny), {"entropy": 0.3, "kl_divergence": 0.2})
    progress = TrainingProgress(pytest.fail)
    progress.read("Running stage 'pretrain@dino':")
    for line in measured.lines(Run("dino", 8, 16, tmp_path, tmp_path), 4):
        progress.read(line)
    (row,) = shown[-1][1]
    assert row.pop("verdict").startswith("collapsed: ")
    assert (row.pop("of the run"), row.pop("step")) == ("50 %", "4")
    assert [float(value) for value in row.values()] == [0.5, 0.25, 1, 0.1, -2, 0.3, 0.2, 0.3, 0.2]


def test_a_server_that_does_not_answer_stops_no_training(monkeypatch):
    def fail(*_):
        raise httpx.ConnectError("refused")

    warnings = []
    monkeypatch.setattr(training_progress, "create_progress_artifact", fail)
    progress = TrainingProgress(warnings.append)
    progress.read("Running stage 'connect':")
    progress.read("connect:  10%|#         | 1/10 [00:01<00:09]")
    assert warnings == ["The Prefect UI does not show the progress of connect: refused"]


def test_every_row_of_the_table_has_every_column(shown):
    progress = TrainingProgress(pytest.fail)
    progress.read("Running stage 'pretrain@dino':")
    progress.read("dino: 0 % of the run, step 0: kNN accuracy 0.2")
    progress.read("dino: 50 % of the run, step 2: kNN accuracy 0.4; entropy of the targets 0.26")
    first, second = shown[-1][1]
    assert list(first) == list(second) == ["of the run", "step", "verdict", "kNN accuracy", "entropy of the targets"]
    assert first["entropy of the targets"] == ""
