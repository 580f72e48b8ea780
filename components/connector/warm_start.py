"""A language model reads best what looks like words: so a projector starts where a picture's tokens mean its answers.

Ridge regression in closed form, from the features of every image token to the mean input embedding of what is said
about the picture: a few seconds on a CPU. The features of a small backbone are lopsided (most of their variance lies
along few directions), which gradient descent is slow to make up for and regression does not mind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

RIDGE = 1e-2  # of the mean variance of a feature


@torch.no_grad()
def warm_start(vlm: Any, pictures: Iterable[tuple[Tensor, list[list[int]]]]) -> None:
    """Set vlm's projector. pictures: normalized pixels [B, 3, S, S], and for each of the B the tokens said about it."""
    embeddings = vlm.get_input_embeddings().weight
    features, said = [], []
    for pixels, tokens in pictures:
        seen = vlm.model.vision_tower(pixels.to(embeddings.device)).last_hidden_state  # [B, N, D]
        meant = torch.stack([embeddings[torch.tensor(ids)].mean(0) for ids in tokens])  # [B, E]
        features.append(seen.flatten(0, 1).double())
        said.append(meant[:, None].expand(-1, seen.shape[1], -1).flatten(0, 1).double())
    x, y = torch.cat(features), torch.cat(said)  # [B·N, D], [B·N, E]
    middle, target = x.mean(0), y.mean(0)
    x, y = x - middle, y - target
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, x.T @ y).T  # [E, D]
    # a mean of words, seen through one patch, hardly moves: let it move as much as words do
    words = embeddings[: vlm.config.text_config.vocab_size].double()
    weight *= (words.var(0).sum() / (x @ weight.T).var(0).sum().clamp_min(1e-12)).sqrt()
    linear = vlm.model.multi_modal_projector.linear
    linear.weight.copy_(weight)
    linear.bias.copy_(target - weight @ middle)
