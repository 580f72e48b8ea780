"""What the training loop trains: a loss, and hooks before a step, after the backward pass and after the step."""

from __future__ import annotations

from torch import nn


class Objective(nn.Module):
    """forward(batch) -> scalars by name; "loss" is minimized, the others are only logged.

    forward may get a micro-batch (gradient accumulation), so it changes no state: it records what after_step needs.
    State that must survive a restart is in buffers; schedules are functions of `progress`.
    """

    progress: float = 0.0  # completed fraction of the run, 0 … 1, at the beginning of this step
    needs_full_batch: str = ""  # why micro-batches would change the loss: what in it depends on the other photos

    def before_step(self, progress: float) -> None:
        """Called at the beginning of a step; override it only if more than `progress` is to be set."""
        self.progress = progress

    def after_backward(self) -> None:
        """Called when gradients are complete over all ranks and not clipped: remove those of frozen weights here."""

    def after_step(self) -> None:
        """Called once per optimizer step, the same on every rank: update EMA copies, queues and centers here."""
