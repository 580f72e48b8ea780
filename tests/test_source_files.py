"""A module's list of source files is complete, and it has nothing of modules that are not imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from components import source_files
from components.methods import METHODS
from components.source_files import digests, has_no_effect
from components.stages.fingerprint import STAGES

ROOT = Path(__file__).parents[1]


SCRIPT = """
import os, sys
for module in sys.argv[1:]:
    __import__(module)  # and with it torch and the like, once for all
for name in [name for name in sys.modules if name.startswith("components")]:
    del sys.modules[name]
for module in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:
        __import__(module)
        for name, loaded in sys.modules.copy().items():
            if name.startswith("components"):
                print(module, loaded.__file__)
        break
    os.wait()
"""


def test_the_list_has_every_file_that_a_stage_executes():
    """Each stage is imported by a fork of its own. METHODS imports all methods; a method's list has its own files."""
    lists = {f"components.stages.{stage}": set(digests(f"components.stages.{stage}")) for stage in STAGES}
    methods = [digests("components.stages.pretrain", *recipe.modules) for recipe in METHODS.values()]
    lists["components.stages.pretrain"] = {path for files in methods for path in files}
    script = [sys.executable, "-c", SCRIPT, *lists]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    executed = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert {module for module, _ in executed} == set(lists)
    for module, file in executed:
        path = Path(file)
        assert has_no_effect(path) or path.relative_to(ROOT).as_posix() in lists[module], (module, file)


def test_a_function_that_imports_when_it_is_called_counts(tmp_path, monkeypatch):
    package = tmp_path / "components" / "part"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from components.part import unrelated\n")
    (package / "first.py").write_text("def run():\n    from components.part import second\n    import torch\n")
    (package / "second.py").write_text("import components.part.third\n")
    for name in ("third.py", "unrelated.py", "page.html"):
        (package / name).write_text("")
    monkeypatch.setattr(source_files, "ROOT", tmp_path)
    names = [f"components/part/{name}" for name in ("first.py", "page.html", "second.py", "third.py")]
    before = digests("components.part.first", "torch")
    assert list(before) == names
    (package / "second.py").write_text("import components.part.third  # edited\n")
    changed = {name for name, digest in digests("components.part.first").items() if digest != before[name]}
    assert changed == {"components/part/second.py"}
    with pytest.raises(ValueError, match=r"no module 'components\.part\.fourth'"):
        digests("components.part.fourth")
