"""Benchmarks are run by hand. These tests check that they run, and that they measure what they name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from benchmarks import gpu, peers, profile
from benchmarks.methods import claim, overlaid
from benchmarks.sides import own, peer
from benchmarks.sides.work import Work
from components.methods import TRAINED
from components.models.backbone import ViTBackbone, build
from components.stages.pretrain_config import DataSize, configure
from tests.tolerances import PATIENCE

ROOT = Path(__file__).parents[1]


def test_overlaid_settings_replace_others_section_by_section():
    below = {"a": {"x": 1, "y": {"kind": "p", "r": 1}}, "b": 2}
    assert overlaid(below, {"a": {"x": 3}}) == {"a": {"x": 3, "y": {"kind": "p", "r": 1}}, "b": 2}
    assert overlaid(below, {"a": {"y": {"r": 2}}, "b": {}})["a"]["y"] == {"kind": "p", "r": 2}
    assert overlaid(below, {"a": {"y": {"kind": "q", "s": 1}}})["a"]["y"] == {"kind": "q", "s": 1}


def test_a_folder_with_results_of_other_settings_is_refused(tmp_path):
    claim(tmp_path / "out", {"a": 1})
    claim(tmp_path / "out", {"a": 1})
    with pytest.raises(ValueError, match=r"out holds results of other pictures or settings; remove it"):
        claim(tmp_path / "out", {"a": 2})


@pytest.mark.parametrize("name", ["cifar10.yaml", "cifar10_long.yaml", "clothing.yaml"])
def test_the_settings_of_each_benchmark_are_valid(name):
    other = yaml.safe_load((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))
    both = overlaid(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")), other)
    for method in other.get("methods", TRAINED):
        config = configure(method, both["pretrain"], DataSize(photos=10_000, side=64))
        assert config.backbone.image_size == other["pretrain"]["common"]["backbone"]["image_size"]
        assert config.epochs == both["pretrain"].get(method, {}).get("epochs", both["pretrain"]["common"]["epochs"])


TINY = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_long_run_on_a_gpu_machine_continues_when_it_is_called_again(folder, tmp_path):
    """It reads an archive and needs neither Prefect nor DVC. The first call runs out of time, the second ends."""
    with tarfile.open(tmp_path / "photos.tar.xz", "w:xz") as archive:
        for index, path in enumerate(sorted(folder.rglob("*.png"))):
            archive.add(path, f"photos/{'test' if index % 4 == 0 else 'train'}/{path.parent.name}/{path.name}")
    smaller = json.dumps({"backbone": TINY, "batch_size": 16, "epochs": 150})
    args = ["train", "--method", "simclr", "--photos", "photos.tar.xz", "--out", "out", "--smaller", smaller]
    first = run("gpu", *args, "--seconds", "1", cwd=tmp_path)
    assert first.returncode == 1, first.stderr
    assert "run the same command again" in first.stderr
    second = run("gpu", *args, "--seconds", str(PATIENCE), cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert re.search(r"simclr: resumed at step [1-9]\d* of 600", second.stdout)
    score = re.search(r"simclr: done, kNN (.*)% of 24; 150 epochs", second.stdout)
    assert score
    assert float(score[1]) > 60  # red or green


def test_a_classifier_is_measured_once(prepared, tmp_path):
    build(ViTBackbone.model_validate(TINY)).save(tmp_path / "mine" / "backbone")
    folders = ("--backbone", str(tmp_path / "mine"), "--data", str(prepared), "--out", str(tmp_path / "out"))
    args = (*folders, "--kinds", "mlp", "--settings", "{epochs: 1}")
    first = run("adapters", *args, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "out" / "mine" / "mlp" / "result.json").read_text())
    assert f"| mlp | {100 * result['accuracy']['value']:.1f} %" in first.stdout
    again = run("adapters", *args, cwd=tmp_path)
    assert again.stdout.splitlines()[-3:] == first.stdout.splitlines()[-3:]
    assert "adapt:" in first.stdout
    assert "adapt:" not in again.stdout


def test_throughput_is_measured_on_every_workload(tmp_path):
    smaller = json.dumps({"backbone": TINY, "batch_size": 8, "optimizer": {"kind": "adamw", "lr": 1e-3}})
    done = run("gpu", "throughput", "--steps", "2", "--untimed", "1", "--smaller", smaller, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and "batch" not in line]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(gpu.WORKLOADS)
    assert all(float(row.split(" | ")[2].replace(",", "")) > 0 for row in rows)


def test_a_profile_divides_the_time_among_the_parts_of_a_step(prepared, tmp_path):
    common = {"backbone": TINY, "batch_size": 16, "epochs": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"pretrain": {"common": common, "moco": {"queue": 32}}}))
    done = run("profile", "--method", "moco", "--data", str(prepared), "--steps", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shares = dict(re.findall(r"^\| ([a-z ]+) \| [\d.]+ \| ([\d.]+)% \|$", done.stdout, re.M))
    assert list(shares) == list(profile.PARTS)
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=1)  # each is rounded
    assert "aten::" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]  # nothing is written


@pytest.mark.slow
def test_search_is_measured_beside_faiss(tmp_path):
    done = run("search", str(tmp_path / "vectors"), "--rows", "4000", "--width", "16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["flat", "exact", "index"]
    assert [row[5] for row in rows[1:3]] == ["100.0 %", "100.0 %"]  # faiss and we find the same
    assert 80 < float(rows[3][5].removesuffix("%")) <= 100
    assert all(0 < float(row[6]) < 8 for row in rows[1:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("line", ["simclr default 40 4", "moco resnet18 32 4", "dino vit 32 2"])
def test_all_sides_do_the_same_work(line, tmp_path, monkeypatch):
    """Forward and backward of all sides count nearly the same operations; heads differ by a bias or a norm."""
    monkeypatch.setattr(peers, "COUNT", 12)
    method, backbone, size, batch = line.split()
    line = peers.Line(method, backbone, int(size), int(batch))
    work = Work(method, backbone, line.size, line.batch, peers.packed(None, tmp_path, line.packed))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(peers.PEERS)
    monkeypatch.setenv("LIGHTLY_DID_VERSION_CHECK", "True")
    all_sides = [own.ours, own.torchvision, *([peer.plain] if peers.PEERS.is_dir() else [])]
    results = [side(work, 1, 0, "fp32") for side in all_sides]
    for clock, _ in results:
        assert len(clock.steps) == 5  # two untimed, one timed, the last, and one that has not started
        assert all(seconds > 0 for seconds in clock.seconds().values())
    our_flops, *peer_flops = [flops for _, flops in results]
    assert all(flops == pytest.approx(our_flops, rel=0.02) for flops in peer_flops)


@pytest.mark.slow
def test_a_side_is_measured_in_its_own_process(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "COUNT", 12)
    line = peers.Line("simclr", "vit", 32, 4)
    results = peers.measure(line, "ours/0/fp32", peers.packed(None, tmp_path, line.packed), 2)
    assert results["seconds"] == pytest.approx(sum(results["parts"].values()))
    assert all(results["parts"][part] > 0 for part in ("outside", "forward", "backward", "optimizer"))
    assert results["flops"] > 1e9
    assert results["memory"] > 1e8


@pytest.mark.slow
@pytest.mark.skipif(not peers.PEERS.is_dir(), reason="lightly is not installed: make .peers")
def test_lightlys_example_script_does_the_same_work(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "COUNT", 12)
    line = peers.Line("simclr", "resnet18", 32, 4)
    assert "script/0/fp32" in peers.sides(line, [0])
    data = peers.packed(None, tmp_path, line.packed)
    ours, script = (peers.measure(line, side, data, 1) for side in ("ours/0/fp32", "script/0/fp32"))
    assert script["flops"] == pytest.approx(ours["flops"], rel=0.02)
    assert all(script["parts"][part] > 0 for part in ours["parts"])
