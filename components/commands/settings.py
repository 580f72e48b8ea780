"""Choose settings for a folder of photos and this machine, and write them to params.yaml with the reasons."""

from __future__ import annotations

import io
import itertools
from argparse import ArgumentParser
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from components.commands.photo_folder import describe_folder
from components.config import PARAMS, section
from components.machine import keep_memory

MINUTES, GPU_MINUTES = 30, 60


def settings(folder: Path, minutes: float | None = None, path: Path = PARAMS, *, again: bool = False) -> list[str]:
    """Writes params.yaml for the photos in `folder`. Returns what to tell about it, line by line.

    minutes: for a whole run; None: MINUTES, or GPU_MINUTES with a GPU. A file that is for this folder already, and may
    have been edited since, is not touched unless `again`; any other one is kept beside the new one.
    Raises ValueError, before anything is written, if the photos cannot be used or the settings would be refused.
    """
    photos, files = describe_folder(folder)
    if not again and _is_for(photos.folder, path):
        return [f"{path} is for {photos.folder} already and stays as it is; to choose again, add --again"]
    # these take seconds, for which a mistyped folder need not wait
    from components.commands.choose import choose, packed_size, published, teacher
    from components.commands.plan import image_size
    from components.commands.speed import measure, this_machine

    machine = this_machine()
    size = image_size(photos, machine)
    print("choosing settings; some steps are measured first, which takes half a minute or more", flush=True)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # lines of stages would mislead
        speed = measure(files, packed_size(size), published(size), teacher(size))
    text = choose(photos, machine, speed, minutes or (GPU_MINUTES if machine.gpu else MINUTES))
    backup = write(text, path)
    lines = [line.removeprefix("# ") for line in text.partition("\n\n")[0].splitlines()[2:]]
    return [
        *lines,
        f"written to {path}, which is yours to change" + (f"; the one before is {backup}" if backup else ""),
    ]


def write(text: str, path: Path) -> Path | None:
    """Writes params.yaml. Returns the copy of the file that was there, None if there was none.

    Raises ValueError if `selfsight check` would refuse it.
    """
    from components.commands.check import check  # takes seconds; a mistyped folder is reported before it

    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    if errors := check(new).errors:
        new.unlink()
        raise ValueError("\n".join(["the settings that were chosen are refused:", *errors]))
    backup = keep(path)
    new.replace(path)
    return backup


def _is_for(folder: Path, path: Path) -> bool:
    """Returns True if params.yaml names this folder. Raises ValueError if it cannot be read."""
    source = section("data", path).get("source") if path.is_file() else None
    return isinstance(source, str) and Path(source).expanduser().resolve() == folder.resolve()


def keep(path: Path) -> Path | None:
    """Copies the file to the first free name of params.yaml.1, .2 …, or to none if one of these is the same.

    Returns that name, None if there is no file.
    """
    if not path.is_file():
        return None
    text = path.read_bytes()
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    copy = next(name for name in names if not name.exists() or name.read_bytes() == text)
    copy.write_bytes(text)
    return copy


def positive(text: str) -> float:
    """Returns the number, for argparse. Raises ValueError if it is not above 0."""
    if not 0 < float(text) < float("inf"):
        raise ValueError(text)
    return float(text)


def main() -> None:
    parser = ArgumentParser(prog="selfsight settings", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="of photos: flat, one subfolder for each class, or train|val|test folders"
    )
    parser.add_argument(
        "--minutes", type=positive, help=f"that a whole run may take (default: {MINUTES}, or {GPU_MINUTES} with a GPU)"
    )
    parser.add_argument("--again", action="store_true", help="choose also if params.yaml is for this folder already")
    args = parser.parse_args()
    keep_memory()  # as the stages do; without it a training step takes twice as long
    try:
        lines = settings(args.folder, args.minutes, again=args.again)
    except ValueError as error:
        parser.exit(2, f"selfsight settings: {error}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
