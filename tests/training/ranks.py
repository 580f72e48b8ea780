"""Run by two gloo processes; writes the loss and gradient of rank 0, for the test to compare with one process."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from components import ranks
from components.methods.losses import nt_xent

acc = Accelerator(cpu=True)
torch.manual_seed(0)
rows = torch.randn(8, 5)
weight = torch.randn(5, 3, requires_grad=True)
count = len(rows) // acc.num_processes
local = rows[acc.process_index * count : (acc.process_index + 1) * count]
flipped = local.flip(1)
loss = nt_xent(local @ weight, flipped @ weight, 0.2)
loss.backward()
gradient = acc.reduce(weight.grad, "mean")
loss = acc.reduce(loss.detach(), "mean")
if acc.is_main_process:
    Path(sys.argv[1]).write_text(
        json.dumps({"ranks": ranks.world_size(), "loss": loss.item(), "gradient": gradient.flatten().tolist()})
    )
acc.end_training()
