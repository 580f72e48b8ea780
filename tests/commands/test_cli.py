"""The program `selfsight` runs what dvc.yaml says."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from components.commands.cli import command_line, stages, usage

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_stage_runs_with_the_folders_of_dvc_yaml():
    assert command_line("prepare", []) == [
        *("-m", "components.stages.prepare", "--out", "artifacts/prepare", "--downloads", "data")
    ]
    assert command_line("adapt", ["--out", "there"])[-4:] == ["--out", "artifacts/adapt", "--out", "there"]
    assert "artifacts/pretrain/simclr" in command_line("adapt", [])


@pytest.mark.parametrize("arguments", [["--method", "dino", "--out", "x"], ["--method=dino", "--out", "x"]])
def test_a_stage_of_all_methods_takes_one(arguments):
    line = command_line("evaluate", arguments)
    assert line[:4] == ["-m", "components.stages.evaluate", "--backbone", "artifacts/pretrain/dino"]
    assert line[-2:] == ["--out", "x"]
    assert "--method" not in line
    assert command_line("pretrain", arguments)[2:4] == ["--method", "dino"]


@pytest.mark.parametrize("arguments", [[], ["--method"], ["--method="]])
def test_a_stage_of_all_methods_without_one_is_refused(arguments):
    with pytest.raises(ValueError, match=r"selfsight pretrain needs --method NAME; params.yaml lists: "):
        command_line("pretrain", arguments)


@pytest.mark.parametrize("command", ["pretrain", "evaluate"])
def test_a_mistyped_method_is_refused_with_the_similar_one(command):
    with pytest.raises(ValueError, match=r"no method 'simlcr'; known: .*; did you mean simclr\?"):
        command_line(command, ["--method", "simlcr"])
    assert "artifacts/pretrain/byol" in command_line(command, ["--method", "byol"])  # need not be listed


@pytest.mark.parametrize("stage", ["adapt", "embed", "words", "connect"])
@pytest.mark.parametrize("value", [None, ["simclr"], ""])
def test_a_stage_whose_method_is_not_a_name_is_refused(stage, value, tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").symlink_to(ROOT / "dvc.yaml")
    params = {stage: {"epochs": 1, **({} if value is None else {"method": value})}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"params.yaml, section {stage}: method: a name is needed; given: ") as error:
        command_line(stage, [])
    assert str(error.value).endswith(repr(value))


def test_a_mistyped_command_is_refused_with_the_similar_one():
    with pytest.raises(ValueError, match=r"no command 'pretrian'; known: settings, check, .*; did you mean pretrain\?"):
        command_line("pretrian", [])


def test_help_lists_every_command_with_what_it_does():
    lines = usage(["check", *stages()]).splitlines()
    for name in ("check", *stages()):
        assert [line for line in lines if line.startswith(f"  {name} ") and len(line.split()) > 3], name


def test_the_program_is_installed_and_ends_with_the_code_of_the_command(tmp_path):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"selfsight": "components.commands.cli:main"}
    command = [sys.executable, "-c", "from components.commands.cli import main; main()"]
    env = {"PYTHONPATH": str(ROOT)}
    elsewhere = subprocess.run([*command, "check"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (elsewhere.returncode, elsewhere.stdout) == (2, "")
    assert elsewhere.stderr.startswith(f"selfsight: no dvc.yaml in {tmp_path}; run this in the project's folder")
    done = subprocess.run(
        [*command, "report", "--quereis", "1"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unrecognized arguments: --quereis" in done.stderr
