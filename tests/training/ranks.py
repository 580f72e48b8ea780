"""Run by two gloo processes; prints what rank 0 has, for the test to compare with one process."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from components import ranks
from components.methods.losses import nt_xent

acc = Accelerator(cpu=True)
torch.manual_seed(0)
everything = torch.randn(8, 5)
weight = torch.randn(5, 3, requires_grad=True)
share = len(everything) // acc.num_processes
mine = everything[acc.process_index * share : (acc.process_index + 1) * share]
other = mine.flip(1)
loss = nt_xent(mine @ weight, other @ weight, 0.2)
loss.backward()
gradient = acc.reduce(weight.grad, "mean")
loss = acc.reduce(loss.detach(), "mean")
if acc.is_main_process:
    Path(sys.argv[1]).write_text(
        json.dumps({"ranks": ranks.world(), "loss": loss.item(), "gradient": gradient.flatten().tolist()})
    )
acc.end_training()
