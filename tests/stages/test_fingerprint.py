"""A change makes DVC rerun what it concerns, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import source_files
from components.methods import METHODS
from components.stages import fingerprint

ROOT = Path(__file__).parents[2]
PRETRAIN = {f"pretrain/{name}" for name in METHODS}


@pytest.fixture
def changed_by(tmp_path, monkeypatch):
    """Returns a function: the stages and methods whose fingerprint changes with an edit of a file of components."""
    shutil.copytree(ROOT / "components", tmp_path / "components", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source_files, "ROOT", tmp_path)
    before = fingerprint.fingerprints({})

    def edit(path):
        with (tmp_path / "components" / path).open("a") as file:
            file.write("\n# edited\n")
        return {name for name, value in fingerprint.fingerprints({}).items() if value != before[name]}

    return edit


def test_a_method_concerns_itself_alone(changed_by):
    assert changed_by("methods/byol.py") == {"pretrain/byol"}


def test_two_methods_of_one_file_share_it(changed_by):
    assert changed_by("methods/moco.py") == {"pretrain/moco", "pretrain/mocoscriptstyle"}


def test_a_shared_module_concerns_those_that_import_it(changed_by):
    changed = changed_by("methods/distillation.py")
    assert changed == {"pretrain/dino", "pretrain/ibot", "pretrain/dinov2"}


def test_a_new_line_in_methods_concerns_nobody(changed_by):
    assert not changed_by("methods/__init__.py")


def test_views_concern_pretraining_and_classifiers_and_not_the_data(changed_by):
    assert changed_by("data/augment.py") == {*PRETRAIN, "adapt"}


def test_a_template_concerns_the_stage_that_fills_it(changed_by):
    assert changed_by("reporting/page.html") == {"report"}


def test_settings_concern_their_method_and_common_ones_all():
    before = fingerprint.fingerprints({"common": {"epochs": 1}})

    def changed(params):
        return {name for name, value in fingerprint.fingerprints(params).items() if value != before[name]}

    assert changed({"common": {"epochs": 1}, "byol": {"hidden": 8}}) == {"pretrain/byol"}
    assert changed({"common": {"epochs": 2}}) == PRETRAIN
    with pytest.raises(ValueError, match=r"params.yaml, section pretrain.byol: .*given: 3"):
        fingerprint.fingerprints({"byol": 3})


@pytest.mark.slow
def test_dvc_reruns_a_changed_method_alone_and_needs_no_section(tmp_path):
    """dvc.yaml and the stage `fingerprint` as they are; the other stages write an empty file."""
    for name in ("components", "dvc.yaml", ".dvcignore"):
        source, target = ROOT / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["methods"], params["pretrain"] = ["byol", "simclr"], {"common": {}, "byol": {"hidden": 8}}
    for stage in ("adapt", "embed", "words", "connect"):
        params[stage]["method"] = "byol"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    stages = yaml.safe_load((tmp_path / "dvc.yaml").read_text())
    for name, stage in stages["stages"].items():
        if name == "fingerprint":
            stage["cmd"] = stage["cmd"][-1]  # without the check of the settings
        else:
            (out,) = stage["outs"]
            out = out if isinstance(out, str) else next(iter(out))  # with options
            stage["cmd"] = f"mkdir -p {out} && touch {out}/done"
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(stages))
    dvc(tmp_path, "init", "--no-scm", "-q")
    dvc(tmp_path, "repro", "pretrain")
    assert dvc(tmp_path, "status", "pretrain", "--json") == "{}"

    with (tmp_path / "components" / "methods" / "byol.py").open("a") as file:
        file.write("\n# edited\n")
    output = dvc(tmp_path, "repro", "pretrain")
    assert [line for line in output.splitlines() if line.startswith("Running")] == [
        "Running stage 'fingerprint':",
        "Running stage 'pretrain@byol':",
    ]
    params["pretrain"]["simclr"] = {"hidden": 8}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    output = dvc(tmp_path, "repro", "pretrain")
    assert "Running stage 'pretrain@simclr'" in output
    assert "Running stage 'pretrain@byol'" not in output


def dvc(where: Path, *command: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = (sys.executable, "-m", "dvc", *command)
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_weights_in_a_folder_that_a_method_starts_from_are_part_of_its_fingerprint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    params = {"simclr": {"backbone": {"kind": "published", "from": str(tmp_path)}}}
    before = fingerprint.fingerprints(params)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    after = fingerprint.fingerprints(params)
    assert {name for name, value in after.items() if value != before[name]} == {"pretrain/simclr"}
