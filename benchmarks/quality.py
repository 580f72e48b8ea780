"""Compares the kNN accuracy of SimCLR in selfsight and in lightly, after the same number of steps, for several seeds.

    python -m benchmarks.quality --params benchmarks/cifar10.yaml --data artifacts/benchmark-cifar10/prepare

Both have the same photos in the same order, network, head, optimizer, schedule, batch size and precision. The row
"ours" has selfsight's views, loss and loop; the row "lightly" has lightly's transform, head and loss in a plain loop
over a DataLoader. It needs .peers (make .peers).
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import processor
from benchmarks.methods import ROOT, overlaid
from benchmarks.peers import PEERS, peer_version
from components.data.photos import Photos
from components.evaluation import knn
from components.evaluation.features import center, features
from components.machine import keep_memory
from components.models.backbone import Backbone, build
from components.stages.pretrain import epoch_rows, setup
from components.stages.pretrain_config import PretrainConfig, configure_for
from components.training import optim
from components.training.loop import accelerator, fit
from components.training.monitor import Run


def ours(config: PretrainConfig, data: Path) -> Backbone:
    acc = accelerator()
    run_setup = setup(config, data, acc)
    steps = config.epochs * run_setup.per_epoch
    with tempfile.TemporaryDirectory() as root:
        run = Run("ours", steps, config.batch_size, Path(root) / "log.jsonl", Path(root) / "state", seed=config.seed)
        fit(run_setup.method, run_setup.load, run_setup.optimizer, config.settings.optimizer, run, acc)
    return run_setup.method.keep()


class Pictures(Dataset[Any]):
    def __init__(self, photos: Photos, transform: Callable[[Any], Any]) -> None:
        self.photos, self.transform = photos, transform

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, row: int) -> Any:
        return self.transform(Image.fromarray(self.photos[row].permute(1, 2, 0).numpy()))


def lightly(config: PretrainConfig, data: Path) -> Backbone:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    settings: Any = config.settings
    photos, size = Photos(data), config.backbone.image_size
    strength = settings.color_strength
    transform = SimCLRTransform(size, cj_strength=strength, min_scale=settings.crop[0], gaussian_blur=settings.blur)
    torch.manual_seed(config.seed)
    backbone = build(config.backbone)
    student = nn.Sequential(backbone, SimCLRProjectionHead(backbone.dim, settings.hidden, settings.dim)).train()
    criterion = NTXentLoss(temperature=settings.temperature)
    optimizer = optim.build(student, settings.optimizer, config.batch_size)
    rows = photos.rows("train")
    per_epoch = len(rows) // config.batch_size
    steps = config.epochs * per_epoch
    orders = [epoch_rows(rows, config.seed, epoch)[: per_epoch * config.batch_size] for epoch in range(config.epochs)]
    batches = np.concatenate(orders).reshape(-1, config.batch_size).tolist()
    for step, views in enumerate(DataLoader(Pictures(photos, transform), batch_sampler=batches)):
        # lightly has normalized the views by the same statistics as our network, which takes values from 0 to 255
        a, b = student(torch.cat([view * backbone.std + backbone.mean for view in views])).chunk(2)
        optim.set_rates(optimizer, settings.optimizer, step / steps)
        optimizer.zero_grad()
        criterion(a, b).backward()
        optim.clip(optimizer, settings.optimizer)
        optimizer.step()
    return backbone


def neighbors(backbone: Backbone, photos: Photos, k: int) -> float:
    """Returns the kNN accuracy on the test photos, from their k nearest training photos."""
    vectors: Tensor = features(backbone, photos)
    train, test = photos.rows("train", labeled=True), photos.rows("test", labeled=True)
    bank, queries = center(vectors[train], vectors[test])
    return float((knn.classify(queries, bank, photos.labels(train), k) == photos.labels(test)).float().mean())


def run_side(side: str, seed: int, params: dict[str, Any], data: Path) -> None:
    """Prints the accuracy and the seconds that training took."""
    keep_memory()
    params["pretrain"]["common"]["seed"] = seed
    config, start = configure_for("simclr", params["pretrain"], Photos(data)), time.monotonic()
    backbone = {"ours": ours, "lightly": lightly}[side](config, data)
    seconds = time.monotonic() - start
    print(json.dumps([neighbors(backbone, Photos(data), params["evaluate"]["neighbors"]), seconds]))


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, help="a file whose settings override params.yaml")
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="how many runs at once; they divide the cores")
    parser.add_argument("--side", choices=("ours", "lightly"), help="only one run, with the first seed")
    args = parser.parse_args()
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    if args.params:
        params = overlaid(params, yaml.safe_load(args.params.read_text(encoding="utf-8")))
    if args.side:
        run_side(args.side, args.seeds[0], params, args.data)
        return
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PEERS}", "LIGHTLY_DID_VERSION_CHECK": "True"}

    def run(pair: tuple[str, int]) -> list[float]:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.quality", *sys.argv[1:]]
        command += ["--side", pair[0], "--seeds", str(pair[1])]
        process = subprocess.run(
            command, env={**environment, "OMP_NUM_THREADS": threads}, stdout=subprocess.PIPE, text=True, check=True
        )
        return list(json.loads(process.stdout.splitlines()[-1]))

    pairs = [(side, seed) for seed in args.seeds for side in ("ours", "lightly")]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = dict(zip(pairs, pool.map(run, pairs), strict=True))
    print(f"{processor()}, torch {torch.__version__}, lightly {peer_version()}, {args.jobs} at once\n")
    print(f"| | kNN, seeds {', '.join(map(str, args.seeds))} | mean | training, s |\n|---|---|---|---|")
    for side in ("ours", "lightly"):
        accuracies, seconds = zip(*(results[side, seed] for seed in args.seeds), strict=True)
        values = ", ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
        print(f"| {side} | {values} % | {statistics.mean(accuracies):.1%} | {statistics.mean(seconds):.0f} |")


if __name__ == "__main__":
    main()
