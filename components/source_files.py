"""Lists the source files that a module imports, directly or not, without executing them."""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Neither listed nor followed. The package files only name what others define (`components.methods` imports every
# method, of which a run uses one); the other modules show progress, fix imports, find folders and end processes.
NO_EFFECT = {
    "progress.py",
    "source_files.py",
    "stages/exit_code.py",
    "training/collapse.py",
    "stages/scratch.py",
    "torchvision_schemas.py",
}


def digests(*modules: str) -> dict[str, str]:
    """Returns {path: sha256} of the files under `components` that the modules need, directly or not, sorted by path.

    Files of other kinds (templates) count for every module in their folder. Names outside `components` are skipped.
    Raises ValueError for a module of `components` that does not exist.
    """
    files: dict[Path, bytes] = {}
    pending = list(modules)
    for name in modules:
        if name.startswith("components.") and not _file(name):
            raise ValueError(f"no module {name!r}; allowed: modules under {ROOT / 'components'}")
    while pending:
        path = _file(pending.pop())
        if path is None or path in files or has_no_effect(path):
            continue
        files[path] = path.read_bytes()
        pending += _imports(files[path])
        other_files = (file for file in path.parent.iterdir() if file.is_file() and file.suffix not in (".py", ".pyc"))
        files |= {file: file.read_bytes() for file in other_files}
    return {path.relative_to(ROOT).as_posix(): hashlib.sha256(files[path]).hexdigest() for path in sorted(files)}


def has_no_effect(path: Path) -> bool:
    """Returns True for a file under `components` that decides nothing about a result."""
    return path.stem == "__init__" or path.relative_to(ROOT / "components").as_posix() in NO_EFFECT


def digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_digests(sources: Iterable[str]) -> dict[str, str]:
    """Returns the digests of models' weights and settings, by file. A source that is not a folder (an id) has none."""
    folders = [Path(source).expanduser() for source in sources]
    files = [
        file for folder in folders for pattern in ("*.safetensors", "*config.json") for file in folder.glob(pattern)
    ]
    return {str(file): digest(file) for file in sorted(files)}


def _file(module: str) -> Path | None:
    """Returns the file of a module or package of `components`; None for any other name."""
    if module.partition(".")[0] != "components":
        return None
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache  # methods share most of their files
def _imports(source: bytes) -> tuple[str, ...]:
    """Returns each name that may be a module, wherever in the source it is imported."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are absolute"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)
