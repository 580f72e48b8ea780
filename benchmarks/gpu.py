"""Measures speed, and accuracy after a run of published length, on a GPU machine without prefect, dvc and pandera.

    python -m benchmarks.gpu throughput       # source images per second, one row per workload
    python -m benchmarks.gpu train --method simclr --photos cifar10.tar.xz --seconds 560  # repeat until it says "done"

It needs torch, torchvision, transformers, accelerate, numba and pydantic. If a machine lacks pydantic and reaches no
registry, run `pip download pydantic --only-binary :all: --python-version 3.12 -d wheels` on one that does, copy the
folder, and run `pip install --no-index --find-links wheels pydantic`.

`train` has the settings of benchmarks/cifar10_long.yaml. When the seconds are over, the state is saved in --out, and
the same command continues from there. The photos are split/class/file, in a folder or a tar archive.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch._dynamo.utils import counters

from benchmarks.machine import ceiling, operations
from benchmarks.methods import LONG, ROOT, claim, overlaid
from benchmarks.profile import timed
from components.data.photos import SPLITS, Photos
from components.evaluation import knn
from components.evaluation.features import center, features
from components.machine import keep_memory
from components.methods import METHODS
from components.models.backbone import load
from components.source_files import digest
from components.stages.pretrain import pretrain, setup
from components.stages.pretrain_config import configure, configure_for
from components.stages.scratch import SCRATCH
from components.training.loop import Stopped, accelerator

VIT_S = {"kind": "vit", "image_size": 224, "patch_size": 16, "width": 384, "depth": 12, "heads": 6}
ADAMW = {"kind": "adamw", "lr": 5.0e-4}
WORKLOADS: dict[str, dict[str, Any]] = {
    "ViT-S/16, 2 views": {"method": "simclr", "backbone": VIT_S, "batch_size": 256, "optimizer": ADAMW},
    "DINO ViT-S/16, 2 + 8": {"method": "dino", "backbone": VIT_S, "batch_size": 128},
    "ResNet-18, CIFAR": {
        "method": "simclr",
        "backbone": {"kind": "resnet18", "image_size": 32},
        "batch_size": 1024,
        "hidden": 512,
        "blur": 0.0,
    },
    "ResNet-50, SimCLR": {"method": "simclr", "backbone": {"kind": "resnet50"}, "batch_size": 256},
}


def pack(folder: Path, images: Iterator[tuple[np.ndarray, str, str]]) -> None:
    """Packs photos as the stage prepare does. images: pixels uint8 [h, w, 3], split and class of each."""
    folder.mkdir(parents=True)
    shapes, splits, labels, offset, offsets = [], [], [], 0, []
    with (folder / "pixels.bin").open("wb") as file:
        for pixels, split, label in images:
            file.write(pixels.tobytes())
            offsets.append(offset)
            offset += pixels.size
            shapes.append(pixels.shape[:2])
            splits.append(SPLITS.index(split))
            labels.append(label)
    classes = sorted(set(labels))
    np.savez(
        folder / "index.npz",
        offsets=np.array(offsets),
        shapes=np.array(shapes),
        splits=np.array(splits, np.int8),
        labels=np.array([classes.index(label) for label in labels], np.int32),
        classes=np.array(classes, np.str_),
    )
    # a run compares the digest of this file, to resume only on the same data; a true manifest would need polars
    (folder / "manifest.parquet").write_text(digest(folder / "pixels.bin"), encoding="utf-8")


def noise(count: int, side: int) -> Iterator[tuple[np.ndarray, str, str]]:
    draws = np.random.default_rng(0)
    for _ in range(count):
        yield draws.integers(0, 256, (side, side, 3), dtype=np.uint8), "train", "noise"


def pictures(photos: Path) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yields pixels, split and class of all files named …/split/class/file in a folder or a tar archive."""

    def contents() -> Iterator[tuple[str, bytes]]:
        if photos.is_dir():
            for path in sorted(path for path in photos.rglob("*") if path.is_file()):
                yield path.relative_to(photos).as_posix(), path.read_bytes()
            return
        with tarfile.open(photos) as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]

    for name, content in contents():
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in SPLITS:
            yield np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), parts[-3], parts[-2]


def throughput(args: Namespace) -> None:
    acc = accelerator()
    peak = ceiling(torch.bfloat16 if acc.mixed_precision == "bf16" else torch.float32, acc.device)
    device = torch.cuda.get_device_name() if acc.device.type == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}, {acc.mixed_precision}, matrix product {peak / 1e12:.1f} TFLOP/s\n")
    print("| | batch | source images/s | memory, GiB | of the matrix product |\n|---|---|---|---|---|")
    for name, workload in WORKLOADS.items():
        settings = {**workload, "epochs": 1, **json.loads(args.smaller)}
        method = settings.pop("method")
        config = configure(method, {"common": {}, method: settings})
        side = 32 if config.backbone.image_size == 32 else config.backbone.image_size * 8 // 7
        with tempfile.TemporaryDirectory() as root:
            pack(Path(root) / "data", noise(2 * config.batch_size, side))
            run_setup = setup(config, Path(root) / "data", acc)
            run_setup.method.to(acc.device)
            batch = run_setup.load(0)
            with acc.autocast():
                flops = operations(lambda run_setup=run_setup, batch=batch: run_setup.method(batch)["loss"])  # type: ignore[misc]
            run_setup.method.zero_grad()
            if acc.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            timed(run_setup, args.untimed, acc)
            seconds = timed(run_setup, args.steps, acc)
        memory = torch.cuda.max_memory_allocated() / 2**30 if acc.device.type == "cuda" else 0.0
        share = flops / seconds / peak
        rate = config.batch_size / seconds
        print(f"| {name} | {config.batch_size} | {rate:,.0f} | {memory:.1f} | {share:.0%} |", flush=True)
        if acc.device.type == "cuda":  # functions that could not be compiled ran uncompiled
            frames = counters["frames"]
            print(f"{name}: {frames['ok']} of {frames['total']} functions compiled", file=sys.stderr)
            counters.clear()
        del run_setup, batch
        acc.free_memory()  # of prepared models and optimizers, and of the GPU's cache


def train(args: Namespace) -> None:
    out = args.out.resolve()
    data, folder = out / "data", out / args.method
    claim(out, {"photos": str(args.photos.resolve())})
    claim(folder, {"method": args.method, "smaller": args.smaller})
    if not data.is_dir():
        part = out / "part.tmp"
        shutil.rmtree(part, ignore_errors=True)
        pack(part, pictures(args.photos))
        part.rename(data)
    os.environ[SCRATCH] = str(out / "scratch")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params = overlaid(params, yaml.safe_load((ROOT / LONG).read_text(encoding="utf-8")))
    for section in (params["pretrain"]["common"], params["pretrain"][args.method]):
        section.update(json.loads(args.smaller))
    if not (folder / "config.json").is_file():  # the last file that pretrain writes
        start = time.monotonic()

        def stop(*_: object) -> None:
            """Make the loop save and stop, or try again in a second if it does not handle SIGTERM now."""
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.alarm(1)
            else:
                os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGALRM, stop)
        signal.alarm(args.seconds)
        try:
            pretrain(configure_for(args.method, params["pretrain"], Photos(data)), data, folder)
        except Stopped:
            sys.exit(f"{args.method}: {time.monotonic() - start:.0f} s are over; run the same command again")
        finally:
            signal.alarm(0)
    photos, backbone = Photos(data), load(folder / "backbone")
    vectors = features(backbone, photos)
    rows = [photos.rows(split) for split in ("train", "test")]
    bank, _, queries = center(vectors[rows[0]], vectors[rows[0][:1]], vectors[rows[1]])
    predictions = knn.classify(queries, bank, photos.labels(rows[0]), min(params["evaluate"]["neighbors"], len(bank)))
    accuracy = (predictions == photos.labels(rows[1])).float().mean()
    steps = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    print(f"{args.method}: done, kNN {accuracy:.1%} of {len(rows[1])}; {steps['epoch']:.0f} epochs")


def main() -> None:
    keep_memory()
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    throughput_parser = tasks.add_parser("throughput")
    throughput_parser.add_argument("--steps", type=int, default=60)
    throughput_parser.add_argument("--untimed", type=int, default=20, help="steps before those that are timed")
    train_parser = tasks.add_parser("train")
    train_parser.add_argument("--method", choices=list(METHODS), metavar="METHOD", required=True)
    train_parser.add_argument("--photos", type=Path, required=True)
    train_parser.add_argument(
        "--seconds", type=int, default=560, help="after which the state is saved and the run ends"
    )
    train_parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "gpu")
    for task in (throughput_parser, train_parser):
        task.add_argument("--smaller", default="{}", metavar="JSON", help="smaller settings, to try the benchmark")
    args = parser.parse_args()
    {"throughput": throughput, "train": train}[args.task](args)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"benchmarks.gpu: {error}")
