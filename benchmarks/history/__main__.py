"""The history of self-supervision told by our own runs: seven studies, each a figure on the page docs/history.

    python -m benchmarks.history                                # all but those on CIFAR-10
    python -m benchmarks.history ladder dino --scale 2          # twice the epochs
    python -m benchmarks.history photos --cifar data/cifar10    # class folders: train/CLASS, test/CLASS
    python -m benchmarks.history heads --recorded               # from the results beside the page; runs what they lack

What is finished is in --out and is not repeated; an interrupted run goes on from its last state.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks.history.page import recorded, write
from benchmarks.history.runner import Runner
from benchmarks.history.studies import STUDIES
from benchmarks.methods import ROOT, machine


def _command(name: str, args: Namespace) -> str:
    """Returns the command that runs one study."""
    scale = "" if args.scale == 1 else f" --scale {args.scale:g}"
    seeds = "" if args.seeds == 3 else f" --seeds {args.seeds}"
    return f"python -m benchmarks.history {name}{scale}{seeds}" + " --cifar data/cifar10" * (name == "photos")


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"default: all of {', '.join(STUDIES)}")
    parser.add_argument("--scale", type=float, default=1.0, help="factor by which all epochs are multiplied")
    parser.add_argument("--seeds", type=int, default=3, help="of the runs that are repeated")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once; the cores are divided among them")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as class folders, for the study `photos`")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "history")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "history")
    parser.add_argument("--recorded", action="store_true", help="use the results beside the page; run what they lack")
    args = parser.parse_args()
    if unknown := set(args.studies) - set(STUDIES):
        raise ValueError(f"no study {', '.join(sorted(unknown))}; known: {', '.join(STUDIES)}")
    names = args.studies or [name for name in STUDIES if args.cifar or name != "photos"]
    cifar = args.cifar and args.cifar.resolve()
    for name in names:
        results, made = recorded(args.page, name) if args.recorded else ({}, "")
        runner = Runner(args.out.resolve(), args.scale, args.seeds, args.jobs, cifar, results)
        section = STUDIES[name](runner)
        if set(runner.used) != set(results):
            made = f"`{_command(name, args)}` on {machine()}"
        write(section, runner.used, args.page, made, list(STUDIES))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError) as error:
        sys.exit(f"benchmarks.history: {error}")
