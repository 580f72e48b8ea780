"""Photos go in at one end, and a page with a language model's answers about them comes out at the other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.connector import tiny

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_whole_chain_by_dvc(folder, tmp_path):
    """dvc.yaml as it is, on a copy of the project with a small params.yaml; a second time nothing runs."""
    for name in ("dvc.yaml", ".dvcignore", "components"):
        (tmp_path / name).symlink_to(ROOT / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["methods"] = ["moco"]
    params["data"] |= {"source": str(folder), "size": 32}
    params["pretrain"]["common"] |= {"batch_size": 16, "epochs": 1}
    params["pretrain"]["common"]["backbone"] |= {"image_size": 16, "width": 16, "depth": 1, "heads": 2}
    params["pretrain"]["moco"] |= {"epochs": 2, "queue": 32}
    params["adapt"] |= {"method": "moco", "epochs": 3, "onnx": False}
    llm = str(tiny.llm_folder(tmp_path / "llm"))
    params["embed"]["method"] = "moco"
    params["words"] |= {"method": "moco", "llm": llm, "steps": 10}
    params["connect"] |= {"method": "moco", "llm": llm, "steps": 10, "batch_size": 4}
    params["answer"] |= {"pictures": 6}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert run(tmp_path, "dvc", "init", "--no-scm", "-q").returncode == 0
    done = run(tmp_path, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr

    html = (tmp_path / "artifacts" / "report" / "index.html").read_text()
    assert "Questions and answers" in html
    assert "What is in the picture?" in html
    assert "from the same features, by labels: knn" in html.lower()
    found = run(tmp_path, "components.commands.cli", "search", "--text", "red", "--k", "2")
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) == 2
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", html)
    metrics = json.loads((tmp_path / "artifacts" / "answer" / "metrics.json").read_text())
    assert metrics["pictures"] == 6
    photo = str(next(folder.rglob("*.png")))
    named = run(tmp_path, "components.commands.cli", "classify", photo, "--k", "1")
    assert named.stdout.split()[-1] in ("red", "green"), named.stderr
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].keys() - {"fingerprint"}:
        assert list((tmp_path / "artifacts" / stage).rglob("config.json")), f"{stage} does not explain itself"
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.suffix in {".pkl", ".pt", ".bin", ".pth"}
                and path.name != "pixels.bin"]  # fmt: skip

    shown = json.loads(run(tmp_path, "dvc", "metrics", "show", "--json").stdout)
    (workspace,) = shown.values()
    numbers = workspace["data"]["artifacts/report/metrics.json"]["data"]
    assert numbers["answers"] == metrics["exact_match"]["value"]
    plots = run(tmp_path, "dvc", "plots", "show", "--json")
    assert list(json.loads(plots.stdout)["data"]) == ["artifacts/report/losses/moco.csv"]
    assert "failed" not in plots.stderr

    again = run(tmp_path, "dvc", "repro")
    assert "Running stage" not in again.stdout
    params["pretrain"]["moco"]["temperature"] = 0.3
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert "Running stage 'fingerprint'" in run(tmp_path, "dvc", "repro", "fingerprint").stdout
    status = json.loads(run(tmp_path, "dvc", "status", "--json").stdout)
    assert "pretrain@moco" in status
    assert not [stage for stage in status if stage.startswith(("prepare", "pretrain@")) and stage != "pretrain@moco"]


def run(where: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=where, env=environment, capture_output=True, text=True, check=False
    )
