"""`dvc metrics` and `dvc plots`, as dvc.yaml declares them, show and compare what the report wrote."""

import copy
import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from components.reporting import for_dvc
from tests.reporting.test_page import results  # noqa: F401

ROOT = Path(__file__).parents[2]
REPORT = Path("artifacts/report")
CURVES = ["learned/moco", "losses/moco", "losses/simclr"]


@pytest.fixture
def measured(results):  # noqa: F811
    points = [{"step": step, "value": step / 40, "measured": "a measure"} for step in (0, 9, 19)]
    return replace(results, measured={"moco": points})


def test_each_curve_is_a_file(measured, tmp_path):
    for_dvc.write(measured, tmp_path)
    assert sorted(str(file.relative_to(tmp_path).with_suffix("")) for file in tmp_path.rglob("*.csv")) == CURVES
    with (tmp_path / "learned" / "moco.csv").open() as file:
        assert list(csv.reader(file)) == [["photos_seen", "value"], ["0", "0.0"], ["144", "0.225"], ["304", "0.475"]]
    with (tmp_path / "losses" / "simclr.csv").open() as file:
        assert [tuple(map(float, row)) for row in list(csv.reader(file))[1:]] == [(s, 5 / s) for s in range(1, 20)]


@pytest.fixture
def dvc(tmp_path, monkeypatch):
    """Runs DVC in a repository with our metrics and plots. Returns what it printed; nothing may have failed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    for person in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{person}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{person}_EMAIL", "somebody@example.org")

    def run(*command):
        done = subprocess.run([sys.executable, "-m", "dvc", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "failed" not in done.stdout + done.stderr
        return done.stdout

    subprocess.run(["git", "init", "-q"], check=True)
    run("init", "-q")
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    stage = {"cmd": "exit 1", "outs": declared["stages"]["report"]["outs"]}  # files are written and committed here
    shown = {"stages": {"report": stage}, "metrics": declared["metrics"], "plots": declared["plots"]}
    Path("dvc.yaml").write_text(yaml.safe_dump(shown))
    return run


def test_metrics_and_plots_are_shown_and_compared(measured, dvc):
    REPORT.mkdir(parents=True)
    for_dvc.write(measured, REPORT)
    dvc("commit", "-q", "--force", "report")
    for command in (["add", "--all"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    shown = json.loads(dvc("metrics", "show", "--json"))[""]["data"][str(REPORT / "metrics.json")]["data"]
    assert shown["knn"] == {"simclr": 0.2, "moco": 0.8}
    assert dvc("metrics", "diff") == ""  # as it was

    methods = copy.deepcopy(measured.methods)
    methods["moco"]["backbone"]["knn"]["value"] = 0.9
    log = [{"step": step, "loss": 4 / step} for step in range(1, 20)]
    for_dvc.write(replace(measured, methods=methods, logs={**measured.logs, "moco": log}), REPORT)
    dvc("commit", "-q", "--force", "report")
    (line,) = [line for line in dvc("metrics", "diff").splitlines() if line.startswith(str(REPORT))]
    assert line.split() == [str(REPORT / "metrics.json"), "knn.moco", "0.8", "0.9", "0.1"]
    plots = json.loads(dvc("plots", "diff", "--json"))["data"]
    assert sorted(plots) == [str(REPORT / f"{name}.csv") for name in CURVES]
    (drawn,) = plots[str(REPORT / "losses" / "moco.csv")]
    assert drawn["revisions"] == ["workspace", "HEAD"]
    dvc("plots", "show")
    assert Path("dvc_plots/index.html").is_file()
    assert "/dvc_plots/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.slow
def test_an_experiment_changes_neither_the_settings_nor_the_results_that_there_are(dvc, tmp_path):
    """As docs/comparing.md says, with our params.yaml and a stage that writes one of its settings as its result."""
    runs = tmp_path / "runs.txt"
    Path("stage.py").write_text(
        "import json, pathlib, yaml\n"
        "out = pathlib.Path('artifacts/report')\n"
        "out.mkdir(parents=True)\n"
        "value = yaml.safe_load(open('params.yaml'))['pretrain']['simclr']['temperature']\n"
        "(out / 'metrics.json').write_text(json.dumps({'value': value}))\n"
        f"open({str(runs)!r}, 'a').write('ran\\n')\n"
    )
    ignored = ["/artifacts/", "/runs.txt"]
    Path(".gitignore").write_text("\n".join(ignored))
    settings = (ROOT / "params.yaml").read_text()
    Path("params.yaml").write_text(settings)
    declared = yaml.safe_load(Path("dvc.yaml").read_text())
    stage = {**declared["stages"]["report"], "cmd": f"{sys.executable} stage.py", "params": ["pretrain"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({**declared, "stages": {"report": stage}, "plots": []}))
    dvc("repro", "-q")
    before = (REPORT / "metrics.json").read_text()
    for command in (["add", "--all"], ["commit", "-q", "-m", "the settings that I have"]):
        subprocess.run(["git", *command], check=True)

    dvc("exp", "run", "--temp", "-n", "cooler", "-S", "pretrain.simclr.temperature=0.1")
    assert Path("params.yaml").read_text() == settings
    assert (REPORT / "metrics.json").read_text() == before
    (line,) = [line for line in dvc("metrics", "diff", "HEAD", "cooler").splitlines() if line.startswith(str(REPORT))]
    assert line.split()[1:] == ["value", "0.2", "0.1", "-0.1"]

    changed = settings.replace("    temperature: 0.2\n", "    temperature: 0.1\n", 1)
    Path("params.yaml").write_text(changed)
    dvc("repro", "-q")
    assert json.loads((REPORT / "metrics.json").read_text()) == {"value": 0.1}
    assert runs.read_text() == "ran\nran\n"  # the third time, the experiment's result was in the cache
