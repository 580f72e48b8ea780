"""The same work, ours and others', in turns on one machine: seconds a step, memory, and share of what the machine can.

    make bench                                              # all of it; installs the peer beside .venv first
    python -m benchmarks.peers --photos FOLDER --only simclr-vit-64   # any photos, one line

Same files, network, heads, views, batch and losses on all sides, and the same kind of optimizer, each its own. Of a ViT
whose class token alone is read, we compute no other place in its last block; of a convolution by Winograd's filtering a
quarter of the products. The others compute all of them, and shares of the ceiling are counted so, ours too.
  ours         the training loop of this project, on pictures packed once
  lightly      lightly's transforms, losses, heads and momentum update in a plain loop over a DataLoader
  script       the CIFAR-10 script of lightly's documentation, with its own ResNet-18 and Lightning's loop; for SimCLR
               at 32 pixels alone: its MoCo sees both views twice, its DINO no local views, and that is other work
  torchvision  a plain loop as the papers' scripts have it: torchvision's transforms a picture at a time, our loss
Workers of the others are swept in the first round, and the best go on. A row in bf16, and one with channels last for
ResNets, is added where the chip multiplies in bf16. Each side is a process of its own, the sides of a line in turns.
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

from benchmarks.machine import ceiling, processor
from components.data import scenes
from components.machine import uses_bf16
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".peers"
COUNT = 1024  # pictures, more than the steps see


@dataclass(frozen=True)
class Line:
    """One row of the table: what is trained."""

    method: str
    backbone: str
    size: int  # pixels of a view
    batch: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.backbone}-{self.size}"

    @property
    def packed(self) -> int:
        """Shorter side of the files: 32 as CIFAR-10 has it, 64 as params.yaml has it for 40, else 8 / 7 of a view."""
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
    """COUNT JPEGs whose shorter side is `side`: of the photos, or generated ones."""
    (folder / "all").mkdir(parents=True)
    found = (
        sorted(path for path in photos.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"}) if photos else []
    )
    for index in range(COUNT):
        if photos:
            image = Image.open(found[index * len(found) // COUNT]).convert("RGB")
        else:
            image = Image.fromarray(scenes.draw(0, index).pixels)
        scale = side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        image.save(folder / "all" / f"{index:04d}.jpg", quality=90)


def packed(photos: Path | None, folder: Path, side: int) -> Path:
    """The files, and the same as `prepare` packs them, in `folder`."""
    if not folder.joinpath("packed").exists():
        files(photos, folder / "files", side)
        config = ResolvedConfig(
            data=DataConfig(source=str(folder / "files"), size=side),
            prepare=PrepareConfig(val_share=0, test_share=0, max_aspect=100, min_side=8),
        )
        prepare(config, folder / "packed", folder / "downloads")
    return folder


def measure(line: Line, side: str, data: Path, steps: int) -> dict[str, Any]:
    """One side in a process of its own."""
    name, workers, precision = side.split("/")
    given = [line.method, line.backbone, str(line.size), str(line.batch), str(data), workers, precision, str(steps)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PEERS}", "LIGHTLY_DID_VERSION_CHECK": "True"}
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.sides", name, *given],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{line.name}, {side}:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def sides(line: Line, workers: list[int]) -> list[str]:
    """ours first; SIDE/WORKERS/PRECISION."""
    peers = ["lightly", *(["script"] if line.name == "simclr-resnet18-32" else [])]
    rows = [f"{name}/{count}/fp32" for name in (*peers, "torchvision") for count in workers]
    if uses_bf16():
        rows += [f"{name}/{count}/bf16" for name in peers for count in workers]
        if line.backbone.startswith("resnet"):
            rows += [f"lightly/{count}/bf16cl" for count in workers]
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
    given = parser.parse_args()
    if given.photos and not given.photos.is_dir():
        sys.exit(f"benchmarks.peers: {given.photos} is no folder")
    text = [
        f"{os.cpu_count()} cores, {processor()}, torch {torch.__version__}, lightly {peer_version()}, "
        f"{time.strftime('%B %Y')}; bf16 units: {'yes' if uses_bf16() else 'no, so no bf16 rows'}.",
        "",
        "Parts of a step: outside (wait for views and all between steps) / forward (with lightly's momentum update) "
        "/ backward / optimizer.",
        "",
        "| | side | source images/s | ours is | step, ms | parts | memory, MiB | of the matrix-product ceiling |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kept, precisions = [], {"fp32": torch.float32, **({"bf16": torch.bfloat16} if uses_bf16() else {})}
    with tempfile.TemporaryDirectory() as root:
        for line in LINES:
            if given.only and line.name not in given.only:
                continue
            data = packed(given.photos, Path(root) / str(line.packed), line.packed)
            names = sides(line, given.workers)
            rounds = []
            for turn in range(given.rounds):
                peaks = {kind: ceiling(dtype, torch.device("cpu")) for kind, dtype in precisions.items()}
                rounds.append(
                    {
                        name: {**measure(line, name, data, given.steps), "peak": peaks[name.split("/")[2][:4]]}
                        for name in names
                    }
                )
                if turn == 0:
                    names = fastest(names, rounds[0])
            found = rows(line, names, rounds)
            text += found
            kept.append({**asdict(line), "rounds": rounds})
            print("\n".join(found), flush=True)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    given.out.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def fastest(names: list[str], found: dict[str, Any]) -> list[str]:
    """Of each library and precision its best number of workers."""
    best: dict[tuple[str, str], str] = {}
    for name in names:
        side, _, precision = name.split("/")
        best[side, precision] = min(best.get((side, precision), name), name, key=lambda name: found[name]["seconds"])
    return list(best.values())


def rows(line: Line, names: list[str], rounds: list[dict[str, Any]]) -> list[str]:
    """Ratios are within a round: their median and range."""
    text = []
    for name in names:
        side, _, precision = name.split("/")
        seconds = statistics.median(found[name]["seconds"] for found in rounds)
        ratios = sorted(found[name]["seconds"] / found[names[0]]["seconds"] for found in rounds)
        spread = "" if side == "ours" else f"{statistics.median(ratios):.2f} × ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        share = statistics.median(
            found[name]["flops"] / found[name]["seconds"] / found[name]["peak"] for found in rounds
        )
        memory = max(found[name]["memory"] for found in rounds) / 2**20
        spent = [statistics.median(found[name]["parts"][part] for found in rounds) for part in rounds[0][name]["parts"]]
        parts = " / ".join(f"{part / sum(spent):.0%}" for part in spent)
        label = f"{side}, {precision}" + ("" if side == "ours" else f", {name.split('/')[1]} workers")
        text.append(
            f"| {line.name}, {line.batch} | {label} | {line.batch / seconds:.1f} | {spread} | {1000 * seconds:.0f} | "
            f"{parts} | {memory:.0f} | {share:.0%} |"
        )
    return text


def peer_version() -> str:
    sys.path.append(str(PEERS))
    return version("lightly")


if __name__ == "__main__":
    main()
