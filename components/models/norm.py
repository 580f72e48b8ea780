"""Batch norm over the images of all ranks, on any device. torch's SyncBatchNorm needs a GPU.

Ioffe & Szegedy, Batch Normalization, ICML 2015, https://arxiv.org/abs/1502.03167.
"""

from __future__ import annotations

from torch import Tensor, nn

from components import ranks


class BatchNorm1d(nn.BatchNorm1d):
    """Gathers a head's vectors from all ranks, with their gradients, and returns those of this rank."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or ranks.world_size() == 1:
            return super().forward(x)
        rows = len(x)
        return super().forward(ranks.gather(x)).narrow(0, ranks.rank() * rows, rows)


class BatchNorm2d(nn.BatchNorm2d):
    """Gathers means and variances only, since a backbone's maps are large. Each rank must have as many images."""

    sync_ranks = True  # False: each rank has its own statistics, as in MoCo

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.sync_ranks and ranks.world_size() > 1):
            return super().forward(x)
        count = ranks.world_size() * x.numel() // x.shape[1]
        full = x.float() if x.element_size() < 4 else x
        mean = ranks.gather(full.mean((0, 2, 3))[None]).mean(0)  # [C]
        centered = full - mean[:, None, None]
        var = ranks.gather(centered.square().mean((0, 2, 3))[None]).mean(0)
        self._update_running_statistics(mean.detach(), var.detach() * count / (count - 1))
        scale = self.weight * (var + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _update_running_statistics(self, mean: Tensor, var: Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
