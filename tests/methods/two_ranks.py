"""Two steps of the training loop for every method, in double precision; run in one process and, by torchrun, in two.

Each process writes its results to FOLDER/rank-N.safetensors: losses, gradients as the optimizer got them, the state.
"""

import json
import os
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import save_file
from small import BATCH, batch, make

from components import ranks
from components.data.photos import Photos
from components.methods import TRAINED
from components.training import distributed, loop, optim
from components.training.loop import fit
from components.training.monitor import Run
from components.training.objective import Objective

STEPS = 2
RESNETS = ("simclr", "moco")  # batch norm over all ranks, and in groups of its own
STARTS = (("byol", "timm_wrapper"), ("dino", "dinov3_vit"))  # on published backbones
ADAM = optim.AdamW(lr=1e-2, weight_decay=0.1, schedule=optim.Cosine(warmup=0.3), clip=1.0)
SETTINGS = optim.SGD(lr=0.1, momentum=0.9, schedule=optim.Constant())


def train(objective: Objective, load, name: str, acc: Accelerator) -> dict[str, torch.Tensor]:
    """Returns loss/STEP, gradient/STEP/NAME and state/NAME of two steps of `fit`."""
    results = {}
    optimizer = optim.build(objective, SETTINGS, 256)
    step = iter(range(STEPS))

    def before(*_):
        at = next(step)
        for key, p in objective.named_parameters():
            if p.grad is not None:
                results[f"gradient/{at}/{key}"] = p.grad.clone()

    optimizer.register_step_pre_hook(before)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(name, STEPS, BATCH, Path(folder) / "log.jsonl", Path(folder))
        fit(objective, load, optimizer, SETTINGS, run, acc)
        log = [json.loads(line) for line in run.log.read_text().splitlines()] if acc.is_main_process else []
    acc.free_memory()
    results |= {f"loss/{at}": torch.tensor(line["loss"], dtype=torch.double) for at, line in enumerate(log)}
    return results | {f"state/{key}": value.clone() for key, value in objective.state_dict().items()}


def run(name: str, photos: Photos, acc: Accelerator, shape: str = "vit") -> dict[str, torch.Tensor]:
    """Returns the results of a method of METHODS on this process's share of the batch."""
    share = BATCH // acc.num_processes
    load = lambda step: batch(name, photos, step, acc.process_index * share, share)  # noqa: E731
    return train(make(name, shape).double(), load, name, acc)


def resumes(name: str, photos: Photos, acc: Accelerator, shape: str = "vit") -> list[str]:
    """Returns what is not bitwise equal in a run that was cut after its third step and resumed from its second."""
    share = BATCH // acc.num_processes

    def load(step):
        return batch(name, photos, step, acc.process_index * share, share)

    def state(folder: Path, cut: int | None) -> dict[str, torch.Tensor]:
        method = make(name, shape)
        if cut is not None:
            updates = iter(range(cut))
            after_step, method.after_step = method.after_step, lambda: (after_step(), next(updates))
        optimizer = optim.build(method, ADAM, 256)
        run = Run(name, 6, BATCH, folder / "log.jsonl", folder, save_every=2)
        try:
            fit(method, load, optimizer, ADAM, run, acc)
        except StopIteration:
            assert cut is not None
        acc.free_memory()
        return {key: value.clone() for key, value in method.state_dict().items()}

    with tempfile.TemporaryDirectory() as root:
        place = Path(root if acc.num_processes == 1 else os.environ["SHARED"]) / f"{name}-{shape}"
        whole = state(place / "whole", None)
        half = state(place / "cut", 2)
        again = state(place / "cut", None)
    assert any(not torch.equal(whole[key], half[key]) for key in whole)  # it was cut
    return [key for key in whole if not torch.equal(whole[key], again[key])]


class Local(Objective):
    """Does what a method must not do: it uses the standard deviation of this rank's share of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 3)

    def forward(self, batch):
        return {"loss": self.net(batch).var(0).sqrt().mean()}


def run_local(acc: Accelerator) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    local, share = Local().double(), BATCH // acc.num_processes
    everything = torch.randn(STEPS, BATCH, 4, dtype=torch.double)
    mine = slice(acc.process_index * share, (acc.process_index + 1) * share)
    return train(local, lambda step: everything[step, mine], "local", acc)


def main(data: Path, out: Path) -> None:
    os.environ["SHARED"] = str(out / "states")
    loop.CHECK_EVERY = 1  # every loss in the log
    # a rank that waits for one which failed gives up
    acc = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=10))])
    photos, results, failed = Photos(data), {"ranks": torch.tensor(ranks.world_size())}, {}
    results |= {f"local/1/{key}": value for key, value in run_local(acc).items()}
    for name in TRAINED:
        try:  # report each method's failure by itself
            for micro_batches in (1,) if make(name, "vit").needs_full_batch else (1, 2):
                os.environ[distributed.MICRO_BATCHES] = str(micro_batches)
                results |= {f"{name}/{micro_batches}/{key}": value for key, value in run(name, photos, acc).items()}
            os.environ[distributed.MICRO_BATCHES] = "1"
            results[f"{name}/differs"] = torch.tensor(len(resumes(name, photos, acc)))
        except Exception:
            failed[name] = traceback.format_exc()
    os.environ[distributed.MICRO_BATCHES] = "1"
    for name in RESNETS:
        results |= {f"{name}/resnet/{key}": value for key, value in run(name, photos, acc, "resnet").items()}
    for name, family in STARTS:
        results |= {f"{name}/{family}/{key}": value for key, value in run(name, photos, acc, family).items()}
        results[f"{name}/{family}/differs"] = torch.tensor(len(resumes(name, photos, acc, family)))
    save_file(
        {key: value.contiguous() for key, value in results.items()}, out / f"rank-{acc.process_index}.safetensors"
    )
    (out / f"failed-{acc.process_index}.json").write_text(json.dumps(failed))
    acc.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
