"""Initializes the projector so that it maps the image tokens of a photo near the word embeddings of its answers.

Ridge regression in closed form, from the features of every image token to the mean input embedding of the answers about
that photo, in a few seconds on a CPU. Most of the variance of a small backbone's features lies along few directions,
which makes gradient descent slow and does not matter to regression.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from components.connector.towers import as_sequence
from components.connector.vlm import trained_layer

RIDGE = 1e-2  # of the mean variance of a feature


@torch.no_grad()
def warm_start(vlm: Any, batches: Iterable[tuple[Tensor, list[list[int]]]]) -> None:
    """Sets the projector of vlm. batches: normalized pixels [B, 3, S, S], and answer tokens of each of the B photos."""
    embeddings = vlm.get_input_embeddings().weight
    features, targets = [], []
    for pixels, answers in batches:
        tokens = as_sequence(vlm.model.vision_tower(pixels.to(embeddings.device)).last_hidden_state)  # [B, N, D]
        means = torch.stack([embeddings[torch.tensor(ids)].mean(0) for ids in answers])  # [B, E]
        features.append(tokens.flatten(0, 1).double())
        targets.append(means[:, None].expand(-1, tokens.shape[1], -1).flatten(0, 1).double())
    x, y = torch.cat(features), torch.cat(targets)  # [B·N, D], [B·N, E]
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, x.T @ y).T  # [E, D]
    # predictions of a mean embedding vary little: scale their variance to that of word embeddings
    words = embeddings[: vlm.config.text_config.vocab_size].double()
    weight *= (words.var(0).sum() / (x @ weight.T).var(0).sum().clamp_min(1e-12)).sqrt()
    linear = trained_layer(vlm)
    linear.weight.copy_(weight)
    linear.bias.copy_(y_mean - weight @ x_mean)
