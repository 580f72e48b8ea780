"""Several seeds of one method: each is the run that it would be alone, and what is finished is not trained again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from components.data.photos import Photos
from components.evaluation.seeds import read_correct
from components.stages import pretrain as stage
from components.stages.evaluate import EvaluateConfig, evaluate
from components.stages.pretrain import pretrain
from components.stages.pretrain_config import configure
from components.stages.seeds import seed_folders
from tests.stages.test_stages import PARAMS

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFSIGHT_SCRATCH", str(tmp_path / "scratch"))


def seeded(method="simclr", **common):
    return configure(method, {**PARAMS, "common": {**PARAMS["common"], **common}})


def written(folder):
    """The bytes of the files of one run, but for its speed in log.jsonl."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines]
    names = ("backbone/model.safetensors", "backbone/config.json", "measured.jsonl")
    return losses, [(folder / name).read_bytes() for name in names]


def test_each_seed_is_the_run_that_it_would_be_alone(prepared, tmp_path):
    pretrain(seeded(seed=4, seeds=2), prepared, tmp_path / "two")
    pretrain(seeded(seed=4), prepared, tmp_path / "first")
    pretrain(seeded(seed=5), prepared, tmp_path / "second")
    folders = seed_folders(tmp_path / "two")
    assert folders == {4: tmp_path / "two", 5: tmp_path / "two" / "seeds" / "5"}
    assert written(folders[4]) == written(tmp_path / "first") != written(folders[5])
    assert written(folders[5]) == written(tmp_path / "second")
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders.values()]
    assert [(config["seed"], config["seeds"]) for config in configs] == [(4, 2), (5, 1)]
    assert configs[1] == json.loads((tmp_path / "second" / "config.json").read_text())
    assert not list((tmp_path / "scratch" / "pretrain").iterdir())
    pretrain(seeded(seed=4), prepared, tmp_path / "two")
    assert list(seed_folders(tmp_path / "two")) == [4]  # those of an earlier run are not left


def test_seeds_that_were_finished_before_an_interruption_are_not_trained_again(prepared, tmp_path, monkeypatch):
    trained, fit = [], stage.fit

    def interrupted(*args):
        trained.append(args[4].seed)
        if len(trained) == 2:
            raise KeyboardInterrupt
        fit(*args)

    monkeypatch.setattr(stage, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(seeded(seeds=3), prepared, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()  # a stage that fails leaves no half of its results
    pretrain(seeded(seeds=3), prepared, tmp_path / "cut")
    assert trained == [0, 1, 1, 2]
    assert list(seed_folders(tmp_path / "cut")) == [0, 1, 2]
    pretrain(seeded(), prepared, tmp_path / "alone")
    assert written(tmp_path / "cut") == written(tmp_path / "alone")


def test_every_seed_is_measured_and_the_first_as_if_it_were_alone(prepared, tmp_path):
    pretrain(seeded(seeds=3), prepared, tmp_path / "pre")
    metrics = evaluate(EvaluateConfig(neighbors=5), tmp_path / "pre", prepared, tmp_path / "eval")
    folders = [tmp_path / "pre", *(tmp_path / "pre" / "seeds" / seed for seed in ("1", "2"))]
    each = []
    for index, folder in enumerate(folders):
        shutil.copytree(folder, tmp_path / "alone" / str(index), ignore=shutil.ignore_patterns("seeds"))
        alone = evaluate(EvaluateConfig(neighbors=5), tmp_path / "alone" / str(index), prepared, tmp_path / "one")
        each.append([alone["backbone"]["knn"]["value"], alone["backbone"]["linear"]["value"]])
        assert alone["seeds"]["knn"] == {"mean": each[-1][0], "deviation": None}
        if not index:
            differs = {"seeds", "command"}
            assert {k: v for k, v in alone.items() if k not in differs} == {
                k: v for k, v in metrics.items() if k not in differs
            }
    seeds = metrics["seeds"]
    assert (seeds["count"], [one["seed"] for one in seeds["each"]]) == (3, [0, 1, 2])
    assert [[one["knn"], one["linear"]] for one in seeds["each"]] == each
    assert (seeds["knn"]["mean"], seeds["knn"]["deviation"]) == pytest.approx(
        (np.mean([one[0] for one in each]), np.std([one[0] for one in each], ddof=1))
    )
    rows, correct = read_correct(tmp_path / "eval" / "correct.safetensors")
    photos = Photos(prepared)
    assert rows.tolist() == photos.rows("test", labeled=True).tolist()
    assert correct["backbone"]["knn"].double().mean(1).tolist() == pytest.approx([one[0] for one in each])
    assert correct["backbone"]["linear"].double().mean(1).tolist() == pytest.approx([one[1] for one in each])
    for name in ("pixels", "random"):
        for kind, right in correct[name].items():
            assert float(right.double().mean()) == pytest.approx(metrics[name][kind]["value"])
    assert float(correct["majority"]["knn"].double().mean()) == pytest.approx(metrics["majority"]["top1"]["value"])


def test_what_does_not_train_has_one_seed(prepared, tmp_path):
    for left in ("seeds/1", "best", "last"):
        (tmp_path / "out" / left).mkdir(parents=True)
    pretrain(seeded(seeds=3, epochs=0), prepared, tmp_path / "out")
    assert not any((tmp_path / "out" / left).exists() for left in ("seeds", "best", "last"))
    (tmp_path / "out" / "seeds").mkdir()
    (tmp_path / "out" / "seeds" / ".DS_Store").touch()
    assert list(seed_folders(tmp_path / "out")) == [0]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["seeds"] == 1


@pytest.mark.parametrize("seeds", [0, 1.5, True, "auto"])
def test_a_number_of_seeds_that_makes_no_sense_is_refused(seeds):
    with pytest.raises(ValueError, match=r"section pretrain.common: seeds"):
        seeded(seeds=seeds)


@pytest.mark.slow
def test_two_processes_train_each_seed_as_they_would_alone(prepared, tmp_path):
    for name, own in (("two", {"seeds": 2}), ("second", {"seed": 1})):
        folder = tmp_path / name
        folder.mkdir()
        params = {**PARAMS, "common": {**PARAMS["common"], **own}}
        (folder / "params.yaml").write_text(yaml.safe_dump({"pretrain": params}))
        subprocess.run(
            [
                sys.executable,
                "-m",
                "components.stages.pretrain",
                "--method",
                "simclr",
                "--data",
                prepared,
                "--out",
                "out",
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SELFSIGHT_PROCESSES": "2"},
            check=True,
        )
    assert written(tmp_path / "two" / "out" / "seeds" / "1") == written(tmp_path / "second" / "out")
