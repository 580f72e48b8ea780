"""Measures images per second and memory of the same training step in this project and in others, in alternation.

    make bench                                                        # all lines; first installs lightly in .peers
    python -m benchmarks.peers --photos FOLDER --only simclr-vit-64   # your photos, one line

Files, network, heads, views, batch and losses are the same on all sides, and so is the kind of optimizer. If only the
class token of a ViT is used, this project computes no other token in the last block, and with Winograd's filtering it
computes a quarter of a convolution's products. The fraction of the ceiling counts all operations on all sides.
  ours         the training loop of this project, on photos packed once
  lightly      lightly's transforms, losses, heads and momentum update in a plain loop over a DataLoader
  script       the CIFAR-10 script of lightly's documentation, with its own ResNet-18 and Lightning's loop; only for
               SimCLR at 32 pixels, because its MoCo encodes both views twice and its DINO has no local views
  torchvision  a plain loop as in the papers' scripts: torchvision's transforms, one photo at a time, and our loss
The first round tries several numbers of DataLoader workers for the other sides and keeps the fastest. If this project
computes in bf16 (see components/precision.py), the others have rows in bf16 too, and for ResNets in bf16 with channels
last. Each side runs in its own process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.machine import ceiling, chip
from components.data import scenes
from components.models import winograd
from components.precision import PRECISION, uses_bf16
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".peers"
COUNT = 1024  # photos, more than the steps use


@dataclass(frozen=True)
class Line:
    """What is trained: one method, network, view size and batch size."""

    method: str
    backbone: str
    size: int  # pixels of a view
    batch: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.backbone}-{self.size}"

    @property
    def packed(self) -> int:
        """The shorter side of the files: 32 as in CIFAR-10, 64 for the 40 of params.yaml, else 8 / 7 of a view."""
        return {32: 32, 40: 64}.get(self.size, self.size * 8 // 7)


BATCHES = {
    ("default", 40): 64,
    ("vit", 32): 32,
    ("vit", 64): 32,
    ("vit", 224): 8,
    ("resnet18", 32): 16,
    ("resnet18", 64): 8,
    ("resnet18", 224): 8,
}
LINES = [
    Line(method, backbone, size, batch // 2 if method == "dino" else batch)  # one to two seconds a step on two cores
    for method in ("simclr", "moco", "dino")
    for (backbone, size), batch in BATCHES.items()
]


def files(photos: Path | None, folder: Path, side: int) -> None:
    """Writes COUNT JPEGs whose shorter side is `side`: of the photos, or generated ones."""
    (folder / "all").mkdir(parents=True)
    paths = (
        sorted(path for path in photos.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"}) if photos else []
    )
    for index in range(COUNT):
        if photos:
            image = Image.open(paths[index * len(paths) // COUNT]).convert("RGB")
        else:
            image = Image.fromarray(scenes.draw(0, index).pixels)
        scale = side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        image.save(folder / "all" / f"{index:04d}.jpg", quality=90)


def packed(photos: Path | None, folder: Path, side: int) -> Path:
    """Writes the files and the packed photos to `folder`, unless they are there, and returns it."""
    if not folder.joinpath("packed").exists():
        files(photos, folder / "files", side)
        config = ResolvedConfig(
            data=DataConfig(source=str(folder / "files"), size=side),
            prepare=PrepareConfig(val_share=0, test_share=0, max_aspect=100, min_side=8),
        )
        prepare(config, folder / "packed", folder / "downloads")
    return folder


def measure(line: Line, side: str, data: Path, steps: int) -> dict[str, Any]:
    """Returns what one side measured in a process of its own."""
    name, workers, precision = side.split("/")
    arguments = [line.method, line.backbone, str(line.size), str(line.batch), str(data), workers, precision, str(steps)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PEERS}", "LIGHTLY_DID_VERSION_CHECK": "True"}
    environment[PRECISION] = precision[:4]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.sides", name, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode:
        raise RuntimeError(f"{line.name}, {side}:\n{process.stderr[-3000:]}")
    return dict(json.loads(process.stdout.splitlines()[-1]))


def sides(line: Line, workers: list[int]) -> list[str]:
    """Returns the sides as SIDE/WORKERS/PRECISION, ours first. Precisions: fp32, bf16, bf16cl (channels last)."""
    peers = ["lightly", *(["script"] if line.name == "simclr-resnet18-32" else [])]
    rows = [f"{name}/{count}/fp32" for name in (*peers, "torchvision") for count in workers]
    if uses_bf16():
        rows += [f"{name}/{count}/bf16" for name in (*peers, "torchvision") for count in workers]
        if line.backbone.startswith("resnet"):
            rows += [f"{name}/{count}/bf16cl" for name in ("lightly", "torchvision") for count in workers]
    return [f"ours/0/{'bf16' if uses_bf16() else 'fp32'}", *rows]


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="a folder of images; generated ones, if not given")
    parser.add_argument("--only", nargs="+", choices=[line.name for line in LINES], metavar="LINE")
    parser.add_argument("--steps", type=int, default=8, help="timed, a side and round, after two that are not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, os.cpu_count() or 1], help="of the others' DataLoader"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "peers.json")
    args = parser.parse_args()
    if args.photos and not args.photos.is_dir():
        sys.exit(f"benchmarks.peers: {args.photos} is not a folder; --photos takes a folder of images")
    text = [
        f"{os.cpu_count()} cores, {chip()}, torch {torch.__version__}, lightly {peer_version()}, "
        f"{time.strftime('%B %Y')}; bf16 is {'used' if uses_bf16() else 'not used, so there are no bf16 rows'}; "
        f"convolutions of ours in fp32: {'Winograd' if winograd.enabled() else 'torch'}.",
        "",
        "Parts of a step: outside (wait for views and all between steps) / forward (with lightly's momentum update) "
        "/ backward / optimizer. The ceiling is torch's matrix product in the same precision.",
        "",
        "| | chip | side, precision | source images/s | ours is | step, ms | parts | memory, MiB | of the ceiling |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    results, precisions = [], {"fp32": torch.float32, **({"bf16": torch.bfloat16} if uses_bf16() else {})}
    with tempfile.TemporaryDirectory() as root:
        for line in LINES:
            if args.only and line.name not in args.only:
                continue
            data = packed(args.photos, Path(root) / str(line.packed), line.packed)
            names = sides(line, args.workers)
            rounds = []
            for round_number in range(args.rounds):
                peaks = {kind: ceiling(dtype, torch.device("cpu")) for kind, dtype in precisions.items()}
                rounds.append(
                    {
                        name: {**measure(line, name, data, args.steps), "peak": peaks[name.split("/")[2][:4]]}
                        for name in names
                    }
                )
                if round_number == 0:
                    names = fastest(names, rounds[0])
            table = rows(line, names, rounds)
            text += table
            results.append({**asdict(line), "rounds": rounds})
            print("\n".join(table), flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    args.out.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def fastest(names: list[str], results: dict[str, Any]) -> list[str]:
    """Returns each library's side with its best number of workers, for each precision."""
    best: dict[tuple[str, str], str] = {}
    for name in names:
        side, _, precision = name.split("/")
        best[side, precision] = min(best.get((side, precision), name), name, key=lambda name: results[name]["seconds"])
    return list(best.values())


def rows(line: Line, names: list[str], rounds: list[dict[str, Any]]) -> list[str]:
    """Returns the rows of the table. A ratio is taken within a round; shown are the median and the range."""
    text = []
    for name in names:
        side, _, precision = name.split("/")
        seconds = statistics.median(results[name]["seconds"] for results in rounds)
        ratios = sorted(results[name]["seconds"] / results[names[0]]["seconds"] for results in rounds)
        spread = "" if side == "ours" else f"{statistics.median(ratios):.2f} × ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        share = statistics.median(
            results[name]["flops"] / results[name]["seconds"] / results[name]["peak"] for results in rounds
        )
        memory = max(results[name]["memory"] for results in rounds) / 2**20
        part_seconds = [
            statistics.median(results[name]["parts"][part] for results in rounds) for part in rounds[0][name]["parts"]
        ]
        parts = " / ".join(f"{part / sum(part_seconds):.0%}" for part in part_seconds)
        label = f"{side}, {precision}" + ("" if side == "ours" else f", {name.split('/')[1]} workers")
        text.append(
            f"| {line.name}, {line.batch} | {chip()} | {label} | {line.batch / seconds:.1f} | {spread} | "
            f"{1000 * seconds:.0f} | {parts} | {memory:.0f} | {share:.0%} |"
        )
    return text


def peer_version() -> str:
    sys.path.append(str(PEERS))
    return version("lightly")


if __name__ == "__main__":
    main()
