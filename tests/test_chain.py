"""Photos go in at one end, and a page with a language model's answers about them comes out at the other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

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
    assert "with labels, from the same features: knn" in html.lower()
    check_the_uses(tmp_path, next(folder.rglob("*.png")))
    elements = re.sub(
        r"<script.*?</script>", "", html, flags=re.DOTALL
    )  # plotly's code has addresses that it never opens
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", elements)
    assert "Map of the photos" in elements
    metrics = json.loads((tmp_path / "artifacts" / "answer" / "metrics.json").read_text())
    assert metrics["pictures"] == 6
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in ("evaluate", "adapt", "words", "answer"):  # what metrics.json says it was made by is what DVC ran
        (file,) = (tmp_path / "artifacts" / stage).rglob("metrics.json")
        expected = stages[stage]["cmd"].replace("${item.method}", "moco").replace(f"${{{stage}.method}}", "moco")
        assert json.loads(file.read_text())["command"] == expected
    for stage in stages.keys() - {"fingerprint"}:
        assert list((tmp_path / "artifacts" / stage).rglob("config.json")), f"{stage} does not explain itself"
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.suffix in {".pkl", ".pt", ".bin", ".pth"}
                and path.name != "pixels.bin"]  # fmt: skip

    shown = json.loads(run(tmp_path, "dvc", "metrics", "show", "--json").stdout)
    (workspace,) = shown.values()
    numbers = workspace["data"]["artifacts/report/metrics.json"]["data"]
    assert numbers["answers"] == metrics["exact_match"]["value"]
    plots = run(tmp_path, "dvc", "plots", "show", "--json")
    curves = [f"artifacts/report/{what}/moco.csv" for what in ("learned", "losses")]
    assert sorted(json.loads(plots.stdout)["data"]) == curves
    assert "failed" not in plots.stderr

    again = run(tmp_path, "dvc", "repro")
    assert "Running stage" not in again.stdout
    params["pretrain"]["moco"]["temperature"] = 0.3
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert "Running stage 'fingerprint'" in run(tmp_path, "dvc", "repro", "fingerprint").stdout
    status = json.loads(run(tmp_path, "dvc", "status", "--json").stdout)
    assert "pretrain@moco" in status
    assert not [stage for stage in status if stage.startswith(("prepare", "pretrain@")) and stage != "pretrain@moco"]


def check_the_uses(where: Path, photo: Path) -> None:
    """Each command, in a process of its own, works on what the chain made."""
    found = run(where, "components.commands.cli", "search", "--text", "red", "--k", "2")
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) == 2
    named = run(where, "components.commands.cli", "classify", str(photo), "--k", "1")
    assert named.stdout.split()[-1] in ("red", "green"), named.stderr
    alike = run(where, "components.commands.cli", "search", str(photo), "--k", "3", "--page", "found.html")
    assert sum(line.endswith(".png") for line in alike.stdout.splitlines()) >= 3, alike.stdout + alike.stderr
    assert "data:image/jpeg" in (where / "found.html").read_text()
    told = ask_the_app(where, photo)
    assert Path(told["similar"]["photos"][0]["path"]).name == photo.name
    assert told["classes"]["classes"][0][0] == named.stdout.split()[-1]
    assert "<script" in told["page"]


def ask_the_app(where: Path, photo: Path) -> dict[str, Any]:
    """Serves the page in a process of its own, as `make app` does. Returns the page and what it says of a photo."""
    command, environment = [sys.executable, "-m", "components.commands.app", "--port", "0"], process_environment()
    with subprocess.Popen(command, cwd=where, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address
            with urlopen(address[0]) as page:
                told: dict[str, Any] = {"page": page.read().decode()}
            for use in ("similar", "classes"):
                with urlopen(Request(f"{address[0]}/{use}?name=photo.png", photo.read_bytes())) as answer:
                    told[use] = json.load(answer)
            return told
        finally:
            server.terminate()


def run(where: Path, *command: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", *command)
    return subprocess.run(command, cwd=where, env=process_environment(), capture_output=True, text=True, check=False)


def process_environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
