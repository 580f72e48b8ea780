"""Trains a classifier of each kind with the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.adapters.best_epoch import BestEpoch
from components.adapters.fine_tuning import FineTuned, add_updates, trained_parameters
from components.adapters.heads import AttentionHead, Head, LinearHead, MLPHead
from components.adapters.kinds import MLP, Attentive, Full, Recipe
from components.adapters.pixel_classifier import PixelClassifier, photo_logits
from components.adapters.task import Task, Trained
from components.adapters.tokens import cached_tokens
from components.data.augment import View
from components.data.fields import make_batch
from components.training import optim
from components.training.loop import fit
from components.training.lora import LoRA, merge
from components.training.monitor import Run
from components.training.start import Start, rates


def train_linear(task: Task, recipe: Recipe) -> Trained:
    """Trains a linear layer on the features of the frozen backbone."""
    bank = task.vectors[task.train]
    torch.manual_seed(task.seed)
    head = LinearHead(bank, len(task.target.classes), task.weights)
    return _train(task, head, task.run("linear", recipe), recipe, _batch_of_bank(task, bank))


def train_mlp(task: Task, recipe: Recipe, settings: MLP) -> Trained:
    """Trains one hidden layer and a linear one on the features of the frozen backbone."""
    bank = task.vectors[task.train]
    torch.manual_seed(task.seed)
    head = MLPHead(bank, len(task.target.classes), settings.hidden, task.weights)
    val = task.vectors[task.val]
    return _train(task, head, task.run("mlp", recipe), recipe, _batch_of_bank(task, bank), lambda: _logits(head, val))


def train_attention(task: Task, recipe: Recipe, settings: Attentive) -> Trained:
    """Trains attention over the tokens of the frozen backbone, which are computed once and kept in a file.

    Raises ValueError if settings.heads does not divide the tokens' features.
    """
    run = task.run("attention", recipe)
    tokens = cached_tokens(task.backbone, task.photos, np.concatenate([task.train, task.val]), run.state)
    torch.manual_seed(task.seed)
    head = AttentionHead(tokens.shape[2], len(task.target.classes), settings.heads, task.weights)
    labels = task.target.labels(task.train)
    val = tokens[len(task.train) :]

    def make(indices: np.ndarray, _: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(tokens[indices]).float(), labels[indices]

    def logits() -> Tensor:
        return torch.cat([_logits(head, torch.from_numpy(part).float()) for part in _parts(val)])

    return _train(task, head, run, recipe, make, logits)


def tune(task: Task, start: LinearHead, recipe: Recipe, settings: LoRA | Full, view: View) -> Trained:
    """Trains the backbone and a linear layer, which starts as `start`, on augmented photos.

    settings: LoRA trains low-rank updates, Full all weights. Raises ValueError if LoRA finds no attention.
    """
    objective = FineTuned(task.backbone, start)
    adapter, factors = None, {}
    if isinstance(settings, LoRA):
        adapter = add_updates(objective, settings, task.seed)
    else:
        slower = Start(frozen=0.0, backbone_lr=1.0, layer_decay=settings.layer_decay, patch_lr=1.0)
        factors = rates(objective, slower)

    def make(indices: np.ndarray, epoch: int) -> list[Tensor]:
        return make_batch(
            task.photos, task.train[indices], (view, task.target.field), task.seed, epoch, task.acc.device
        )

    def logits() -> Tensor:
        model = PixelClassifier(objective.backbone, objective.head.deployed(), "feature")
        return photo_logits(model, task.photos, task.val, "val")

    run = task.run("full" if adapter is None else "lora", recipe)
    trained = _train(task, objective, run, recipe, make, logits, factors)
    merge(adapter)
    return trained


Make = Callable[[np.ndarray, int], Any]  # positions in `Task.train` and the number of the epoch -> a batch


def _train(
    task: Task,
    objective: Head | FineTuned,
    run: Run,
    recipe: Recipe,
    make: Make,
    val_logits: Callable[[], Tensor] | None = None,
    factors: Mapping[str, float] | None = None,
) -> Trained:
    """Trains the objective. With `val_logits` and val photos it ends with the weights of its best epoch on val."""
    per_epoch = run.per_epoch or run.steps
    run = run if isinstance(objective, FineTuned) else replace(run, micro_batches=1)
    parameters, best = trained_parameters(objective), None
    optimizer = optim.build(objective, recipe.optimizer, run.batch_size, factors)
    if val_logits and len(task.val):
        labels = task.target.labels(task.val)
        best = BestEpoch(run.state, objective, lambda: task.target.quality(val_logits(), labels))
        if isinstance(objective, FineTuned):
            best.take(0)  # the linear classifier that it starts as
        epoch_ends = tuple(range(per_epoch, run.steps + 1, per_epoch))
        run = replace(run, measured=epoch_ends, measure=lambda step, _: best.take(step // per_epoch))
    fit(objective, _batches(task, run, make), optimizer, recipe.optimizer, run, task.acc)
    best_epoch = best.restore() if best else None
    objective.cpu().eval()
    head, backbone = (
        (objective.head, objective.backbone) if isinstance(objective, FineTuned) else (objective, task.backbone)
    )
    return Trained(head, backbone, parameters, run.log, best.epochs() if best else [], best_epoch)


def _batches(task: Task, run: Run, make: Make) -> Callable[[int], Any]:
    """Returns a function from a step to its batch; each epoch goes through the training photos in another order."""
    per_epoch, size = run.per_epoch or run.steps, run.batch_size

    def batch(step: int) -> Any:
        epoch, index = divmod(step, per_epoch)
        order = np.random.default_rng((task.seed, epoch)).permutation(len(task.train))
        return make(order[index * size : (index + 1) * size], epoch)

    return batch


def _batch_of_bank(task: Task, bank: Tensor) -> Make:
    labels = task.target.labels(task.train)
    return lambda indices, _: (bank[indices], labels[indices])


@torch.no_grad()
def _logits(head: Head, outputs: Tensor) -> Tensor:
    device = next(head.parameters()).device
    return head.logits(outputs.to(device)).cpu()


def _parts(rows: np.ndarray, size: int = 256) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
