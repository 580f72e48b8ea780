"""Stage: writes a fingerprint of source code and settings for each stage, so that a change reruns no other stage.

A DVC dependency is a file or a folder, but what a stage runs are some files of many folders. So each stage depends on
one file written here, which lists the files that it imports with their digests. Those of `pretrain` also hold the
method's settings (`pretrain.common` and its own section, if it has one), and the digests of weights in local folders
that it starts or learns from; after those changed, `dvc repro --force fingerprint` looks at them again.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from components.config import section, settings
from components.methods import METHODS
from components.source_files import digests, weight_digests
from components.stages.exit_code import exit_code

STAGES = ("prepare", "evaluate", "adapt", "embed", "words", "connect", "answer", "report")  # pretrain: for each method


def fingerprints(params: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the fingerprints of all stages and methods by name. `params` is the section `pretrain` of params.yaml.

    Raises ValueError where a method's section is not a mapping.
    """
    results: dict[str, dict[str, Any]] = {name: {"files": digests(f"components.stages.{name}")} for name in STAGES}
    for name, recipe in METHODS.items():
        sections = {key: settings(params.get(key), f"params.yaml, section pretrain.{key}") for key in ("common", name)}
        files = digests("components.stages.pretrain", *recipe.modules)
        results[f"pretrain/{name}"] = {"settings": sections, "files": files, "start": _start_digests(sections)}
    return results


def _start_digests(sections: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Returns the digests of the weights in local folders that a method starts or learns from, by file."""
    # the method's section comes last, so that its settings replace the common ones
    all_settings = {key: value for values in sections.values() for key, value in values.items()}
    sources = [value.get("from") for value in all_settings.values() if isinstance(value, dict)]
    return weight_digests(source for source in sources if isinstance(source, str))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with exit_code("fingerprint", parser):
        results = fingerprints(section("pretrain"))
    for name, fingerprint in results.items():
        path = args.out / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fingerprint, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
