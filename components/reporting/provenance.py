"""How the results on the page were made: settings, seeds, minutes, versions, machine and commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from components.measurement import processor
from components.reporting.results import Results
from components.source_files import ROOT

PACKAGES = ("selfsight", "torch", "torchvision", "transformers", "accelerate", "dvc")


@dataclass(frozen=True)
class Trained:
    """settings: all values that were used, as JSON."""

    name: str
    words: str
    settings: str


@dataclass(frozen=True)
class Provenance:
    """machine, versions, commit: of the process that wrote the page."""

    methods: list[Trained]
    machine: str
    versions: str
    commit: str | None


def provenance(results: Results) -> Provenance:
    """Returns how each method ran, and on what the page was written."""
    methods = [
        Trained(name, _words(name, results), json.dumps(config, indent=1)) for name, config in results.configs.items()
    ]
    machine = f"{os.cpu_count()} cores, {processor()[0] or platform.machine()}, {platform.system()}"
    found = [f"{name} {number}" for name in PACKAGES if (number := _version(name))]
    return Provenance(methods, machine, ", ".join([f"Python {platform.python_version()}", *found]), _commit())


def _words(name: str, results: Results) -> str:
    config, log = results.configs[name], results.logs.get(name, [])
    if not log:
        return "not trained"
    seen = log[-1]["step"] * config["batch_size"]
    first, last = config["seed"], config["seed"] + config.get("seeds", 1) - 1
    seed = f"seed {first}" if first == last else f"with each of the seeds {first} to {last}"
    words = f"{seen:,.0f} photos seen in batches of {config['batch_size']}, {seed}"
    if rate := log[-1].get("images_per_second"):
        words += f", {'' if first == last else 'the first took '}{seen / rate / 60:.1f} minutes"
    return words


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the commit of the project's checkout, with a note if files differ from it; None if it is not in git."""
    if not (ROOT / ".git").exists():  # installed elsewhere, perhaps inside another project's checkout
        return None
    try:
        command = ["git", "describe", "--always", "--dirty= with changes", "--exclude=*"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
