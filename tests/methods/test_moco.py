"""Against an independent derivation in float64, and against the defects that were found in other libraries."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from components.methods import METHODS
from components.methods.moco import MoCo, MoCoConfig, MoCoScriptConfig
from components.models.backbone import ResNetBackbone, ViTBackbone, build
from components.training.optim import SGD, Steps, multiplier

TINY = ViTBackbone(image_size=8, patch_size=4, width=8, depth=1, heads=2)


def moco(**settings):
    torch.manual_seed(0)
    return MoCo(build(TINY), MoCoConfig(queue=10, dim=3, **settings)).double().train()


def pixels(seed, count=4):
    return [
        torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed + i)).double() * 255 for i in (0, 50)
    ]


def naive_loss(q, k, queue, temperature):
    """Equation 1 of the paper, one query at a time, in numpy."""
    losses = []
    for query, key in zip(q, k, strict=True):
        positive = np.exp(query @ key / temperature)
        negatives = sum(np.exp(query @ other / temperature) for other in queue)
        losses.append(-np.log(positive / (positive + negatives)))
    return np.mean(losses)


@pytest.mark.parametrize("momentum", [0.9, 0.999])
def test_several_steps_equal_a_naive_derivation(momentum):
    method = moco(momentum=momentum, temperature=0.2)
    slow = copy.deepcopy(method.query)
    queue = [row.numpy() for row in method.queue.items.clone()]
    optimizer = torch.optim.SGD(method.query.parameters(), lr=0.5)
    for step in range(4):  # 16 keys through a queue of 10: it wraps
        one, two = pixels(step)
        with torch.no_grad():
            for old, new in zip(slow.parameters(), method.query.parameters(), strict=True):
                old.mul_(momentum).add_(new, alpha=1 - momentum)  # the paper's place; ours moved it after the last step
            for old, ours in zip(slow.parameters(), method.key.parameters(), strict=True):
                assert torch.allclose(old, ours, atol=1e-12)
            q = normalize(method.query(one), dim=1)
            k = normalize(slow(two), dim=1)
        wanted = naive_loss(q.numpy(), k.numpy(), queue, 0.2)
        optimizer.zero_grad()
        loss = method([one, two])["loss"]
        loss.backward()
        optimizer.step()
        method.after_step()
        assert loss.item() == pytest.approx(wanted, abs=1e-6)
        for i, key in enumerate(k):
            queue[(4 * step + i) % 10] = key.numpy()
        assert np.allclose(np.stack(queue), method.queue.items.numpy(), atol=1e-6)


def test_a_key_is_not_its_own_negative():
    """Keys that join the queue before the logits would put every positive among the negatives."""
    method = moco()
    one, two = pixels(0)
    before = method.queue.items.clone()
    loss = method([one, two])["loss"]
    method.after_step()
    q, k = normalize(method.query(one), dim=1), normalize(method.key(two), dim=1)  # nothing was learned: lr is 0
    assert loss.item() == pytest.approx(naive_loss(*(x.detach().numpy() for x in (q, k, before)), 0.2), abs=1e-6)
    late = naive_loss(*(x.detach().numpy() for x in (q, k, method.queue.items)), 0.2)
    assert abs(loss.item() - late) > 1e-3


def test_the_queue_survives_a_restart():
    method = moco()
    method(pixels(0))
    names = set(method.state_dict())
    assert {"queue.items", "queue.cursor"} <= names


def test_no_gradient_reaches_keys_or_queue():
    method = moco()
    method(pixels(0))["loss"].backward()
    assert all(p.grad is None for p in method.key.parameters())
    assert not method.queue.items.requires_grad


def test_with_batch_norm_the_keys_are_shuffled_and_normalized_in_groups():
    """A batch whose statistics are shared by query and key gives the answer away."""
    torch.manual_seed(0)
    method = MoCo(
        build(ResNetBackbone(kind="resnet18", image_size=8)), MoCoConfig(queue=16, dim=3, batch_norm_groups=2)
    )
    images = torch.rand(8, 3, 8, 8) * 255
    sizes = []
    method.key.module[0].register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    torch.manual_seed(1)
    keys = method.encode_keys(images)
    assert sizes == [4, 4]
    torch.manual_seed(1)
    order = torch.randperm(8)
    wanted = torch.cat([method.key(images[order[:4]]), method.key(images[order[4:]])])
    assert torch.allclose(keys[order], wanted, atol=1e-5)  # and each key comes back to its own place
    assert MoCo(build(TINY), MoCoConfig(queue=16)).groups == 1


def test_v2_is_the_papers_and_the_script_is_the_scripts():
    v2, script = MoCoConfig(), MoCoScriptConfig()
    assert (v2.head, v2.temperature, v2.queue, v2.momentum, v2.dim) == ("mlp", 0.2, 65536, 0.999, 128)
    assert (script.head, script.temperature, script.queue, script.momentum, script.dim) == (
        "linear",
        0.07,
        65536,
        0.999,
        128,
    )
    assert script.optimizer == SGD(
        lr=0.03, momentum=0.9, weight_decay=1e-4, decay_all=True, schedule=Steps(milestones=(0.6, 0.8), factor=0.1)
    )
    rates = [multiplier(script.optimizer.schedule, epoch / 200) for epoch in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    first, second = METHODS["mocoscriptstyle"].method.views(script, 224)
    assert first == second
    assert (first.crop, first.gray, first.gray_first, first.blur, first.flip) == ((0.2, 1.0), 0.2, True, 0.0, 0.5)
    assert vars(first.jitter) == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4, "p": 1.0}
    assert isinstance(MoCo(build(TINY), script).query[1], torch.nn.Linear)


def test_an_impossible_queue_is_refused_with_advice():
    check = METHODS["moco"].method.check
    with pytest.raises(ValueError, match=r"queue 65536 is longer than the data .1000 pictures.*try 256"):
        check(MoCoConfig(), 1000, 256, 1)
    with pytest.raises(ValueError, match="queue 100 is shorter than batch_size 256; try 1024"):
        check(MoCoConfig(queue=100), 1000, 256, 1)
