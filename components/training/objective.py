"""What the loop trains says four things: its loss, and what happens before, within and after a step."""

from __future__ import annotations

from torch import nn


class Objective(nn.Module):
    """forward(batch) -> scalars by name; "loss" is minimized, the others are only logged.

    forward may run on a part of the batch (gradient accumulation), so it changes no state: it notes down what
    after_step is to move. State that must survive a restart is in buffers; schedules are functions of `progress`.
    """

    progress: float = 0.0  # share of the run that lies behind, 0 … 1, as of this step's beginning
    needs_full_batch: str = ""  # why a batch in two halves is not the batch: what in it depends on the other pictures

    def before_step(self, progress: float) -> None:
        """Before anything of a step; overridden only where more than `progress` is to be set."""
        self.progress = progress

    def after_backward(self) -> None:
        """Gradients are complete, over all ranks, and not clipped yet: what is to stay as it is loses its own here."""

    def after_step(self) -> None:
        """Once an optimizer step, on every rank alike: slow copies, queues, centers."""
