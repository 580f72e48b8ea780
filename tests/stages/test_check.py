"""What is wrong in params.yaml is said before the first stage, all at once."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.stages.check import problems

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def said(params, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return problems(tmp_path / "params.yaml")


def test_ours_has_no_problem(params, tmp_path):
    assert said(params, tmp_path) == []


def test_every_slip_is_named_at_once(params, tmp_path):
    params["methods"] = ["moco", "dyno"]
    params["pretrain"]["moco"]["quue"] = 1
    params["connect"]["stepz"] = 3
    params["answer"]["pictures"] = "many"
    found = said(params, tmp_path)
    for part in ("quue: no such setting", "no method 'dyno'; known: ", "stepz: no such setting", "given: 'many'"):
        assert sum(part in one for one in found) == 1, part
    untrained = "method is 'simclr', which is not among the methods that are trained: moco, dyno"
    assert [one.partition(": ")[0] for one in found if untrained in one] == [
        f"{tmp_path / 'params.yaml'}, section {name}" for name in ("adapt", "connect")
    ]
    assert len(found) == 6


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("methods: [simclr", "cannot be read"),
        ("", "has no sections; given: None"),
        ("methods: simclr", "methods: a list of names is needed, each once; given: 'simclr'"),
        ("methods: [simclr]", "has no section 'pretrain'; it has: methods"),
        (
            "methods: [simclr, simclr]\npretrain: {}",
            "a list of names is needed, each once; given: ['simclr', 'simclr']",
        ),
        ("methods: [[simclr]]\npretrain: {}", "a list of names is needed, each once; given: [['simclr']]"),
        ("methods: []\npretrain: [1]", "section pretrain: names and their values are needed; given: [1]"),
    ],
)
def test_a_broken_file_is_said_in_words(text, wanted, tmp_path):
    (tmp_path / "params.yaml").write_text(text)
    found = problems(tmp_path / "params.yaml")
    assert len(found) == 1
    assert wanted in found[0]


def test_sections_of_methods_are_looked_at_whether_they_are_trained_or_not(params, tmp_path):
    params["pretrain"]["mae"]["epocs"] = 3
    params["pretrain"]["simlcr"] = params["pretrain"].pop("simclr")
    params["pretrain"]["byol"] = 3
    params["adapt"] = [1]
    params["data"]["source"] = "nowhere"
    params["repprt"] = {}
    params["pretrain"]["dino"] |= {"local_crops": 2, "local_size": 20}
    found = said(params, tmp_path)
    for part in (
        "epocs: no such setting",
        "no method 'simlcr'; known: ",
        "section pretrain: it has no simclr, which is among methods; `simclr: {}` will do",
        "section pretrain.byol: names and their values are needed; given: 3",
        "no section 'repprt' is known; known: methods, pretrain, data",
        "local_size 20 is not a multiple",
        "data.source is 'nowhere', which is no folder here",
        "section adapt: names and their values are needed; given: [1]",
    ):
        assert sum(part in one for one in found) == 1, part


def test_what_all_methods_share_is_needed(params, tmp_path):
    params["pretrain"]["common"] = None
    assert any("pretrain.common or pretrain.moco" in one and "backbone" in one for one in said(params, tmp_path))
    params["pretrain"]["common"] = {"method": "x", "settings": 3}
    assert all("known here: backbone, batch_size, epochs, seed" in one for one in said(params, tmp_path))


def test_the_command_line_ends_with_code_1(tmp_path):
    (tmp_path / "params.yaml").write_text("methods: simclr")
    command = [sys.executable, "-m", "components.stages.check"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith("a list of names is needed, each once; given: 'simclr'\n")
