"""The program `selfsight`: runs a command of this package, or one stage with the folders that dvc.yaml gives it."""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from components.config import PARAMS, known_names, methods, section

PIPELINE = Path("dvc.yaml")
COMPONENTS = Path(__file__).parents[1]
COMMANDS = ["settings", "check", "ask", "search", "classify", "app"]  # that are no stages
USAGE = """usage: selfsight COMMAND [--method NAME] [arguments of the command]

{commands}

A stage runs even if it is up to date. It uses the folders of dvc.yaml; arguments that you add override them.
`dvc repro` runs all stages that are not up to date. `selfsight COMMAND --help` lists the arguments of one command.
"""


def stages(pipeline: Path = PIPELINE) -> dict[str, Any]:
    """Returns the stages of dvc.yaml. Raises ValueError if there is none here."""
    if not pipeline.is_file():
        raise ValueError(f"no {pipeline} in {Path.cwd()}; run this in the project's folder")
    return dict(yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"])


def usage(names: list[str]) -> str:
    files = {name: COMPONENTS / ("commands" if name in COMMANDS else "stages") / f"{name}.py" for name in names}
    texts = {name: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) for name, file in files.items()}
    lines = [f"  {name:11} {(text or '').splitlines()[0].removeprefix('Stage: ')}" for name, text in texts.items()]
    return USAGE.format(commands="\n".join(lines))


def command_line(command: str, arguments: list[str]) -> list[str]:
    """Returns the arguments of `python` that run `command`: for a stage its `cmd` of dvc.yaml, then `arguments`.

    Raises ValueError for a command that does not exist, and for a stage of all methods without `--method NAME`.
    """
    stage_specs = stages()
    if command in COMMANDS:
        return ["-m", f"components.commands.{command}", *arguments]
    if command not in stage_specs:
        raise ValueError(f"no command {command!r}; known: {known_names(command, [*COMMANDS, *stage_specs])}")
    if {"-h", "--help"} & set(arguments):
        return ["-m", f"components.stages.{command}", "--help"]
    cmd = stage_specs[command]["cmd"]
    text = str(cmd[-1] if isinstance(cmd, list) else cmd)
    if "${item.method}" in text:
        method, arguments = _method(command, arguments)
        text = text.replace("${item.method}", method)
    text = re.sub(r"\$\{(\w+)\.(\w+)\}", lambda match: _setting(match[1], match[2]), text)
    return [*shlex.split(text)[1:], *arguments]


def folders(stage: str) -> dict[str, Path]:
    """Returns the folders that dvc.yaml gives a stage, by argument: backbone, data, out."""
    line = command_line(stage, [])
    return {name.removeprefix("--"): Path(value) for name, value in zip(line[2::2], line[3::2], strict=True)}


def _method(command: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the value of `--method`, and the other arguments. Raises ValueError if it is missing or not known."""
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--method" and (value or arguments[index + 1 :]):
            method = value or arguments[index + 1]
            if method not in methods():
                from components.methods import METHODS  # takes seconds

                if method not in METHODS:
                    raise ValueError(f"no method {method!r}; known: {known_names(method, METHODS)}")
            return method, arguments[:index] + arguments[index + (1 if value else 2) :]
    raise ValueError(f"selfsight {command} needs --method NAME; {PARAMS} lists: {', '.join(methods())}")


def _setting(name: str, key: str) -> str:
    """Returns a setting of params.yaml. Raises ValueError if it is not a word."""
    value = section(name).get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{PARAMS}, section {name}: {key}: a name is needed; given: {value!r}")
    return value


def main() -> None:
    arguments = sys.argv[1:]
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage([*COMMANDS, *stages()]), end="")
            return
        line = command_line(arguments[0], arguments[1:])
    except ValueError as error:
        print(f"selfsight: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *line])


if __name__ == "__main__":
    main()
