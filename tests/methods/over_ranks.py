"""Run by two gloo processes: python over_ranks.py OUT FOLDER STORE RANK.

Rank 0 writes its results after steps of some methods, and the results that two well-known mistakes would give, so that
test_over_ranks.py can compare them with those of one process.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from small import SMALL
from torch.nn.parallel import DistributedDataParallel

from components import ranks
from components.config import parse
from components.data.fields import make_batch
from components.data.photos import Photos
from components.methods import METHODS
from components.methods.barlowtwins import cross_correlation_loss
from components.methods.losses import nt_xent
from components.models.backbone import ResNetBackbone, ViTBackbone, build

VIT = ViTBackbone(image_size=16, patch_size=8, width=16, depth=1, heads=2)
RESNET = ResNetBackbone(kind="resnet18", image_size=16)
BATCH, STEPS = 8, 3
LOSSES = {"simclr": lambda a, b: nt_xent(a, b, 0.2), "barlowtwins": lambda a, b: cross_correlation_loss(a, b, 0.1)[0]}


def run(name, settings, photos, shape=VIT):
    """Returns losses, last gradients and state, by name, after a few steps of a method on this rank's share."""
    recipe, world_size, rank = METHODS[name], ranks.world_size(), ranks.rank()
    config = recipe.method.resolve(parse(recipe.config, settings, name), photos)
    torch.manual_seed(0)
    method = recipe.method(build(shape), config).double().train()
    wrapped = DistributedDataParallel(method) if world_size > 1 else method
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    rows = photos.rows("train", labeled=True)[:BATCH]
    mine = rows[rank * BATCH // world_size : (rank + 1) * BATCH // world_size]
    results = {}
    for step in range(STEPS):
        method.before_step(step / STEPS)
        batch = make_batch(photos, mine, recipe.method.views(config, 16), 0, step)
        batch = [x.double() if x.dtype == torch.float32 else x for x in batch]
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = wrapped(batch)["loss"]
        loss.backward()
        method.after_backward()
        optimizer.step()
        method.after_step()
        results[f"loss {step}"] = ranks.total(loss.detach()) / world_size
    results |= {f"gradient {key}": p.grad.clone() for key, p in method.named_parameters() if p.grad is not None}
    return results | {f"state {key}": value.detach().clone().contiguous() for key, value in method.state_dict().items()}


def bare(name):
    """Returns a loss without its method, and its gradient for a shared weight; both are means over ranks."""
    torch.manual_seed(0)
    x, weight = torch.randn(8, 5).double(), torch.randn(5, 3).double().requires_grad_()
    share = len(x) // ranks.world_size()
    x = x[dist.get_rank() * share :][:share] if ranks.world_size() > 1 else x
    loss = LOSSES[name](x @ weight, x.flip(1).sin() @ weight)
    loss.backward()
    return {"loss": ranks.total(loss) / ranks.world_size(), "gradient": ranks.total(weight.grad) / ranks.world_size()}


def main():
    out, folder, store, rank = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    photos = Photos(Path(folder))
    results = {}
    results["moco"] = run("moco", SMALL["moco"], photos)
    for symmetric in (False, True):
        settings = {**SMALL["moco"], "batch_norm_groups": 4, "symmetric": symmetric}
        results[f"shuffled {symmetric}"] = run("moco", settings, photos, RESNET)
    results["chunks"] = run("simclr", {**SMALL["simclr"], "chunk": 3}, photos)
    results |= {f"bare {name}": bare(name) for name in LOSSES}
    whole = ranks._Gather.backward
    ranks._Gather.backward = staticmethod(lambda ctx, g: g.narrow(0, dist.get_rank() * ctx.rows, ctx.rows))
    results |= {f"unsummed {name}": bare(name) for name in LOSSES}
    ranks._Gather.backward = whole
    rank_of, ranks.rank = ranks.rank, lambda: 0
    results["unshifted simclr"] = {"loss": bare("simclr")["loss"]}
    ranks.rank = rank_of
    if rank == "0":
        save_file({f"{name}|{key}": value for name, values in results.items() for key, value in values.items()}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
