"""The code on docs/adding_a_method.md, run as it is printed there."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_contract
import test_ranks
import yaml

from components.methods import METHODS, Recipe
from components.models.backbone import load
from components.stages import pretrain

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text()
(FILE, LINE), (SECTION,), (COMMAND,) = (
    re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "yaml", "bash")
)


@pytest.fixture
def tint(tmp_path, monkeypatch):
    """Loads the file of the page, and adds its line to METHODS."""
    (tmp_path / "tint.py").write_text(FILE)
    spec = importlib.util.spec_from_file_location("tint", tmp_path / "tint.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tint", module)
    spec.loader.exec_module(module)
    names = {"Recipe": Recipe, "Tint": module.Tint, "TintConfig": module.TintConfig}
    for name, recipe in eval(f"{{{LINE}}}", names).items():
        monkeypatch.setitem(METHODS, name, recipe)


def test_the_file_passes_ruff(tmp_path):
    (tmp_path / "tint.py").write_text(FILE)
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check"], ["format", "--check"]):
        full_command = [ruff, *command, "--no-cache", "--config", ROOT / "pyproject.toml", tmp_path / "tint.py"]
        done = subprocess.run(full_command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_its_command_trains_it(tint, prepared, tmp_path, monkeypatch):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    shape = {"kind": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    params["pretrain"]["common"] |= {"backbone": shape, "batch_size": 16, "epochs": 12}
    params["pretrain"] |= yaml.safe_load(SECTION)["pretrain"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFSIGHT_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "prepare").symlink_to(prepared)
    python, module, name, *args = COMMAND.split()
    assert (python, module, name) == ("python", "-m", "components.stages.pretrain")
    monkeypatch.setattr(sys, "argv", [name, *args])
    pretrain.main()
    out = tmp_path / "artifacts" / "pretrain" / "tint"
    assert load(out / "backbone").dim == 16
    assert json.loads((out / "config.json").read_text())["settings"]["hidden"] == 32
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "promise",
    [
        test_contract.test_the_loss_is_finite_and_all_trained_parameters_have_a_gradient,
        test_contract.test_a_reloaded_method_trains_on_with_the_same_losses,
    ],
)
def test_it_keeps_the_contract(tint, promise, photos):
    promise((test_contract.make("tint", "vit"), lambda epoch: test_contract.batch("tint", photos, epoch)))


def test_its_batch_comes_in_parts(tint, photos, monkeypatch):
    monkeypatch.setattr(test_ranks.loop, "CHECK_EVERY", 1)
    test_ranks.test_micro_batches_give_the_same_results_or_are_refused("tint", photos, monkeypatch)
