"""What the parity tests share: pictures, heads as numpy loops, gradients by finite differences."""

import numpy as np
import torch
from torch import nn

from components.models.backbone import Backbone, ViTBackbone

TINY = ViTBackbone(image_size=8, patch_size=4, width=8, depth=1, heads=2)


def pixels(seed, count=5):
    """Two views, float64 [count, 3, 8, 8] in 0 … 255."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 8, 8, generator=generator, dtype=torch.float64) * 255 for _ in range(2)]


def network(layers, x):
    """A backbone with its head, or a head alone, in train mode; the head written out. -> numpy [B, D]"""
    for layer in layers:
        if isinstance(layer, Backbone):
            with torch.no_grad():
                x = layer(x).numpy()
        elif isinstance(layer, nn.Sequential):
            x = network(layer, x)
        elif isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().numpy().T
            x = x + (layer.bias.detach().numpy() if layer.bias is not None else 0)
        elif isinstance(layer, nn.BatchNorm1d):
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            if layer.affine:
                x = x * layer.weight.detach().numpy() + layer.bias.detach().numpy()
        else:
            assert isinstance(layer, nn.ReLU)
            x = np.maximum(x, 0)
    return x


def assert_gradients(method, loss, per=3, step=1e-6):
    """Gradients of `method` are the central differences of `loss()`, at the `per` largest of each parameter's entries
    and at one that is drawn."""
    for name, p in method.named_parameters():
        if not p.requires_grad:
            continue
        flat, grad = p.data.view(-1), p.grad.view(-1)
        places = {*grad.abs().topk(min(per, len(grad))).indices.tolist(), int(torch.randint(len(grad), ()))}
        for place in places:
            before, values = flat[place].item(), []
            for moved in (before + step, before - step):
                flat[place] = moved
                values.append(loss())
            flat[place] = before
            wanted = (values[0] - values[1]) / (2 * step)
            assert abs(grad[place].item() - wanted) < 1e-6 * max(1.0, abs(wanted)), (name, place)
