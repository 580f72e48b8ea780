"""Both branches, each in a process of its own: the import happens once a process."""

import subprocess
import sys
from textwrap import dedent

import pytest

FAKE = """
import sys, types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
import torch

class Finder(MetaPathFinder, Loader):
    tries = 0
    def find_spec(self, name, path, target=None):
        return ModuleSpec(name, self) if name == "torchvision" else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        Finder.tries += 1
        BODY

sys.meta_path.insert(0, Finder())
import importlib.util
spec = importlib.util.spec_from_file_location("shim", "components/torchvision_schemas.py")
shim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shim)
"""


def run(body: str, check: str) -> subprocess.CompletedProcess[str]:
    script = FAKE.replace("BODY", body) + dedent(check)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_a_healthy_torchvision_is_left_alone():
    done = run("pass", "shim.import_torchvision(); assert Finder.tries == 1 and not shim._libraries")
    assert done.returncode == 0, done.stderr


def test_missing_operators_are_defined_and_the_import_tried_again():
    needs = 'torch.library.register_fake("torchvision::nms")(lambda *a: a)'
    done = run(needs, "shim.import_torchvision(); assert Finder.tries == 2; torch.ops.torchvision.qnms")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "body",
    ['raise RuntimeError("something else")', 'raise RuntimeError("operator torchvision::other does not exist")'],
)
def test_any_other_error_passes_through(body):
    done = run(body, "shim.import_torchvision()")
    assert done.returncode == 1
    assert body.split('"')[1] in done.stderr


def test_components_imports_torchvision_here():
    done = subprocess.run(
        [sys.executable, "-c", "import components, torchvision; torchvision.transforms"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
