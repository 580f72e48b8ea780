"""Classifiers of a frozen backbone's outputs: linear, one hidden layer, or attention over the patches' tokens."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from components.evaluation.scale import deviation
from components.evaluation.several_labels import labels_loss
from components.training.objective import Objective

Reads = Literal["feature", "tokens"]  # what of a backbone a classifier reads: one vector a photo, or one a position


class Head(Objective):
    """Outputs of a backbone -> logits [B, C]; an Objective on batches of (outputs, labels).

    labels: int64 [B], or bool [B, C] where photos have several; each class then is an independent yes or no.
    """

    reads: Reads = "feature"
    class_weights: Tensor | None  # of the loss, see Target.class_weights

    def __init__(self, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)

    @abstractmethod
    def logits(self, outputs: Tensor) -> Tensor: ...

    @abstractmethod
    def deployed(self, temperature: float = 1.0) -> nn.Module:
        """Returns a module from raw outputs to the logits divided by `temperature`. Its last layer is linear."""

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        outputs, labels = batch
        return self.losses(self.logits(outputs), labels)

    def losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if labels.ndim == 2:
            return {"loss": labels_loss(logits, labels, self.class_weights)}
        if self.class_weights is None:
            loss = cross_entropy(logits, labels)
        else:  # torch would divide by the weights of the batch, so that a photo's loss would depend on the other photos
            loss = (cross_entropy(logits, labels, reduction="none") * self.class_weights[labels]).mean()
        return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}


class Standardized(Head):
    """A head on features of mean 0 and deviation 1 over the training photos."""

    mean: Tensor
    std: Tensor

    def __init__(self, bank: Tensor, class_weights: Tensor | None = None) -> None:
        """bank: training features [N, D]; features are standardized by their mean and standard deviation."""
        super().__init__(class_weights)
        self.register_buffer("mean", bank.mean(0))
        self.register_buffer("std", deviation(bank))

    def standardize(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    @torch.no_grad()
    def folded(self, linear: nn.Linear) -> nn.Linear:
        """Returns a linear layer on raw features that gives what `linear` gives on standardized ones."""
        layer = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device)
        layer.weight.copy_(linear.weight / self.std)
        layer.bias.copy_(linear.bias - layer.weight @ self.mean)
        return layer


class LinearHead(Standardized):
    """Features [B, D] -> logits [B, C]."""

    def __init__(self, bank: Tensor, classes: int, class_weights: Tensor | None = None) -> None:
        super().__init__(bank, class_weights)
        self.linear = nn.Linear(bank.shape[1], classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def logits(self, outputs: Tensor) -> Tensor:
        return self.linear(self.standardize(outputs))

    def deployed(self, temperature: float = 1.0) -> nn.Linear:
        return divided(self.folded(self.linear), temperature)


class MLPHead(Standardized):
    """Features [B, D] -> one hidden layer with GELU [B, hidden] -> logits [B, C]."""

    def __init__(self, bank: Tensor, classes: int, hidden: int, class_weights: Tensor | None = None) -> None:
        super().__init__(bank, class_weights)
        self.hidden = nn.Linear(bank.shape[1], hidden)
        self.linear = nn.Linear(hidden, classes)

    def logits(self, outputs: Tensor) -> Tensor:
        return self.linear(nn.functional.gelu(self.hidden(self.standardize(outputs))))

    def deployed(self, temperature: float = 1.0) -> nn.Sequential:
        return nn.Sequential(self.folded(self.hidden), nn.GELU(), divided(self.linear, temperature))


class Attention(nn.Module):
    """Tokens [B, N, D] -> logits [B, C]: one learned query attends to all tokens, with several heads.

    The pooling of the attentive probes of CAE (https://arxiv.org/abs/2202.03026) and V-JEPA
    (https://arxiv.org/abs/2404.08471), without their block's MLP.
    Raises ValueError if D is not a multiple of `heads`.
    """

    def __init__(self, dim: int, classes: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            fits = max(number for number in range(1, heads + 1) if dim % number == 0)
            raise ValueError(
                f"attention.heads is {heads}, which does not divide the {dim} features of a token; try {fits}"
            )
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(heads, 1, dim // heads))
        self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.pooled_norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens)
        key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.key, self.value)
        )  # [B, heads, N, D / heads]
        query = self.query.expand(key.shape[0], -1, -1, -1)  # [B, heads, 1, D / heads]
        pooled = scaled_dot_product_attention(query, key, value).flatten(1)  # [B, D]
        return self.linear(self.pooled_norm(pooled))


class AttentionHead(Head):
    reads = "tokens"

    def __init__(self, dim: int, classes: int, heads: int, class_weights: Tensor | None = None) -> None:
        super().__init__(class_weights)
        self.attention = Attention(dim, classes, heads)

    def logits(self, outputs: Tensor) -> Tensor:
        return self.attention(outputs)

    def deployed(self, temperature: float = 1.0) -> Attention:
        linear = self.attention.linear
        copy = Attention(linear.in_features, linear.out_features, self.attention.heads)
        copy.load_state_dict(self.attention.state_dict())
        copy.linear = divided(linear, temperature)
        return copy


@torch.no_grad()
def divided(linear: nn.Linear, temperature: float) -> nn.Linear:
    """Returns a linear layer whose outputs are those of `linear`, divided by the temperature."""
    layer = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device)
    layer.weight.copy_(linear.weight / temperature)
    layer.bias.copy_(linear.bias / temperature)
    return layer
