"""The layers, names and dependencies of the project are as the design says."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from components.methods import METHODS
from components.source_files import digests
from components.stages import fingerprint

ROOT = Path(__file__).parents[1]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "fingerprint"])  # which has no settings
def test_a_stage_has_one_name_in_five_places(stage):
    assert stage in PARAMS, "its section in params.yaml"
    assert (ROOT / "components" / "stages" / f"{stage}.py").is_file(), "its file"
    assert (ROOT / "flows" / f"{stage}.py").is_file(), "its flow"
    assert f"-m components.stages.{stage} " in str(STAGES[stage]["cmd"]), "its command"
    outs = [out if isinstance(out, str) else next(iter(out)) for out in STAGES[stage]["outs"]]  # a dict has options
    assert all(out.startswith(f"artifacts/{stage}") for out in outs), "its folder"


def test_no_stage_file_and_no_section_without_a_stage():
    files = {path.stem for path in (ROOT / "components" / "stages").glob("*.py")}
    assert files - {"__init__", "exit_code", "scratch", "seeds", "pretrain_config"} == set(STAGES)
    assert set(PARAMS) == {*STAGES, "methods", "data"} - {"fingerprint"}


def test_params_yaml_names_known_methods_only():
    assert set(PARAMS["pretrain"]) <= {"common", *METHODS}
    assert set(PARAMS["methods"]) <= set(METHODS)


def test_no_setting_has_a_name_that_the_run_cache_of_dvc_ignores():
    """dvc/stage/cache.py ignores them at any depth of a section, but not where dvc.yaml lists them by themselves."""

    def below(values, path):
        for name, value in values.items() if isinstance(values, dict) else ():
            yield f"{path}.{name}"
            yield from below(value, f"{path}.{name}")

    ignored = ("size", "nfiles")
    assert [name for name in below(PARAMS, "") if name.rpartition(".")[2] in ignored] == [".data.size"]
    assert "data.size" in STAGES["prepare"]["params"]
    for recipe in METHODS.values():
        assert not [name for name in below(recipe.config().model_dump(), "") if name.rpartition(".")[2] in ignored]


def test_every_stage_has_a_fingerprint():
    assert {*fingerprint.STAGES, "pretrain", "fingerprint"} == set(STAGES)
    for name, stage in STAGES.items():
        file = "pretrain/${item.method}" if name == "pretrain" else name
        assert (stage["deps"][0] == f"artifacts/fingerprint/{file}.json") == (name != "fingerprint")


def test_methods_do_not_import_each_other():
    """METHODS decides what is a method; other modules of components.methods (losses, masks, crops) are for all."""
    files = {name: {f"{module.replace('.', '/')}.py" for module in METHODS[name].modules} for name in METHODS}
    for name, own in files.items():
        others = set().union(*files.values()) - own
        assert not others & set(digests(*METHODS[name].modules)), name


def test_the_record_of_one_machines_results_is_not_in_the_repository():
    """dvc.lock holds digests of weights, which differ between CPUs. DVC does not allow it in .gitignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    tracked = subprocess.run(["git", "ls-files", "dvc.lock"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not tracked.stdout


def test_only_dvc_yaml_knows_a_path():
    """Code gets its folders as arguments."""
    for path in [*(ROOT / "components").rglob("*.py")]:
        assert "artifacts/" not in re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL), path


def test_imports_point_down():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_imports_form_a_circle():
    """Nor do those under TYPE_CHECKING."""
    paths = list((ROOT / "components").rglob("*.py"))
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    imports: dict[str, set[str]] = {}
    for module, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                for name in (f"{node.module}.{alias.name}" for alias in node.names):
                    names.add(name if name in files else str(node.module))
        imports[module] = names & set(files) - {module}
    TopologicalSorter(imports).prepare()  # raises CycleError, with the modules of a circle


def test_components_import_with_prefect_dvc_and_for_training_pandera_and_polars_blocked():
    script = """
import sys
for name in ("prefect", "dvc", "pandera", "polars", "matplotlib"):
    sys.modules[name] = None
import components.stages.pretrain, components.stages.evaluate, components.stages.adapt
for name in ("pandera", "polars", "matplotlib"):
    del sys.modules[name]
import importlib, pkgutil, components
for module in pkgutil.walk_packages(components.__path__, "components."):
    importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_name_hides_what_is_inside():
    hidden = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "manager"}
    files = [path for part in ("components", "flows") for path in (ROOT / part).rglob("*.py")]
    assert not [path for path in files if path.stem in hidden]


def test_no_pickle_no_remote_code():
    for path in (p for part in ("components", "flows") for p in (ROOT / part).rglob("*.py")):
        text = path.read_text()
        assert not re.search(
            r"^\s*(import|from) pickle|torch\.save\(|torch\.load\((?!.*weights_only=True)|trust_remote_code=True",
            text,
            re.M,
        ), path


def test_what_torch_needs_stays_out_of_the_lock():
    names = {re.split(r"[=;\s]", line)[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert not names & {"torch", "torchvision", "triton"}
    assert not [name for name in names if name.startswith(("nvidia", "cuda"))]
