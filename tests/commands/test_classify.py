"""`selfsight classify` names photos as the classifier that was measured does, also in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from components.adapters.saved import KEY, load_classifier
from components.commands.classify import Folders, adapter_folders, classify, main
from components.commands.one_photo import photo_files
from components.data.photos import Photos
from components.models.backbone import ViTBackbone, build
from components.stages.adapt import AdaptConfig, adapt
from tests.commands.test_cli import ROOT
from tests.tolerances import LAYERS_FLOAT32


@pytest.fixture(scope="module")
def project(folder: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dvc.yaml, params.yaml and the artifacts that the command reads."""
    root = tmp_path_factory.mktemp("project")
    (root / "dvc.yaml").symlink_to(ROOT / "dvc.yaml")
    (root / "params.yaml").write_text(yaml.safe_dump({"methods": ["simclr"], "adapt": {"method": "simclr"}}))
    artifacts = root / "artifacts"
    trained = artifacts / "pretrain" / "simclr"
    torch.manual_seed(0)
    build(ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2)).save(trained / "backbone")
    (artifacts / "prepare").symlink_to(prepared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSIGHT_SCRATCH", str(root / "scratch"))
        adapt(AdaptConfig(method="simclr", epochs=2, onnx=False), trained, prepared, artifacts / "adapt")
    return root


def where(root: Path) -> Folders:
    artifacts = root / "artifacts"
    return Folders(artifacts / "adapt", artifacts / "pretrain" / "simclr", artifacts / "prepare")


def test_a_photo_has_the_probabilities_of_the_classifier(project: Path, folder: Path, photos: Photos) -> None:
    names = photos.manifest["path"].to_list()[:5]
    saved = load_classifier(project / "artifacts" / "adapt" / "model")
    expected = saved.probabilities(photos.squares(np.arange(5), 16))
    found = dict(classify([folder / name for name in names], 2, where(project)))
    for name, row in zip(names, expected, strict=True):
        assert dict(found[folder / name]) == pytest.approx(
            dict(zip(photos.classes, row.tolist(), strict=True)), abs=LAYERS_FLOAT32
        )
        values = [value for _, value in found[folder / name]]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1)
    one = dict(classify([folder / names[0]], 1, where(project)))
    assert one[folder / names[0]] == found[folder / names[0]][:1]


def test_in_a_fresh_process_it_prints_each_photo_and_names_what_is_none(
    project: Path, folder: Path, photos: Photos, tmp_path: Path
) -> None:
    name = str(folder / photos.manifest["path"][0])
    (tmp_path / "text.jpg").write_text("no photo")
    command = [sys.executable, "-m", "components.commands.cli", "classify", name, str(tmp_path), "--k", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed, likely = done.stdout.splitlines()
    ((label, value),) = dict(classify([Path(name)], 1, where(project)))[Path(name)]
    assert printed == name
    assert likely.split() == [f"{value:.1%}", label]
    assert f"left out: {tmp_path / 'text.jpg'}: " in done.stderr


def test_an_adapter_that_was_copied_needs_no_backbone(project: Path, folder: Path, monkeypatch, tmp_path: Path) -> None:
    copied = shutil.copytree(project / "artifacts" / "adapt", tmp_path / "adapter")
    monkeypatch.chdir(project)
    assert adapter_folders(None) == where(Path()) == adapter_folders(Path("artifacts/adapt"))
    assert adapter_folders(copied) == Folders(copied, None, None)
    files = photo_files([folder])[:3]
    assert len(dict(classify(files, 2, adapter_folders(copied)))) == 3


def test_what_cannot_be_used_gets_a_sentence_and_code_2(
    project: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = str(photo_files([folder])[0])
    root = Path(shutil.copytree(project, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    torch.manual_seed(1)
    build(ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2)).save(
        root / "artifacts" / "pretrain" / "simclr" / "backbone"
    )
    replaced = Path(shutil.copytree(project / "artifacts" / "adapt", tmp_path / "replaced"))
    weights = replaced / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\1")
    (tmp_path / "skipped").mkdir()
    (tmp_path / "skipped" / "metrics.json").write_text(json.dumps({"skipped": "no classifier: a reason"}))
    (tmp_path / "text.jpg").write_text("no photo")
    good = str(Path(shutil.copytree(project / "artifacts" / "adapt", tmp_path / "good")))
    for arguments, words in (
        ([photo], "artifacts/adapt is of another backbone than the one in artifacts/pretrain/simclr/backbone"),
        ([photo, "--adapter", str(replaced)], "model.safetensors is not the file that adapt wrote"),
        ([photo, "--adapter", str(tmp_path / "skipped")], "holds no classifier: no classifier: a reason"),
        ([photo, "--adapter", str(tmp_path)], f"{KEY} is missing; this makes one: dvc repro adapt"),
        ([photo, "--adapter", good, "--k", "0"], "--k is 0; allowed: 1 or more"),
        (["nowhere.jpg", "--adapter", good], "there is no file or folder nowhere.jpg"),
        ([str(tmp_path / "text.jpg"), "--adapter", good], "no photo to classify"),
    ):
        monkeypatch.setattr(sys, "argv", ["classify", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
