"""MoCo is compared with an independent derivation in float64, and with the known defects of other libraries."""

import copy

import numpy as np
import pytest
import torch
from naive import TINY, pixels
from torch.nn.functional import normalize

from components.methods import METHODS
from components.methods.moco import MoCo, MoCoConfig, MoCoScriptConfig
from components.models.backbone import ResNetBackbone, build
from components.training.optim import SGD, Steps, multiplier
from tests.tolerances import FLOAT64


def moco(**settings):
    torch.manual_seed(0)
    return MoCo(build(TINY), MoCoConfig(queue=10, dim=3, **settings)).double().train()


def batch(seed, count=4):
    return [*pixels(seed, count), torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))]


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
    average = copy.deepcopy(method.query)
    queue = [row.numpy() for row in method.queue.items.clone()]
    optimizer = torch.optim.SGD(method.query.parameters(), lr=0.5)
    for step in range(4):  # 16 keys through a queue of 10: it wraps
        images1, images2, shuffle_draws = batch(step)
        with torch.no_grad():
            for old, new in zip(average.parameters(), method.query.parameters(), strict=True):
                old.mul_(momentum).add_(
                    new, alpha=1 - momentum
                )  # the paper updates before the step, this code after it
            for old, actual in zip(average.parameters(), method.key.parameters(), strict=True):
                assert torch.allclose(old, actual, atol=FLOAT64)
            q = normalize(method.query(images1), dim=1)
            k = normalize(average(images2), dim=1)
        expected = naive_loss(q.numpy(), k.numpy(), queue, 0.2)
        optimizer.zero_grad()
        loss = method([images1, images2, shuffle_draws])["loss"]
        loss.backward()
        optimizer.step()
        method.after_step()
        assert loss.item() == pytest.approx(expected, abs=FLOAT64)
        for i, key in enumerate(k):
            queue[(4 * step + i) % 10] = key.numpy()
        assert np.allclose(np.stack(queue), method.queue.items.numpy(), atol=FLOAT64)


def test_a_key_is_not_its_own_negative():
    """Keys pushed before the logits are computed would put every positive among the negatives."""
    method = moco()
    images1, images2, shuffle_draws = batch(0)
    before = method.queue.items.clone()
    loss = method([images1, images2, shuffle_draws])["loss"]
    method.after_step()
    q, k = (
        normalize(method.query(images1), dim=1),
        normalize(method.key(images2), dim=1),
    )  # nothing was learned: lr is 0
    assert loss.item() == pytest.approx(naive_loss(*(x.detach().numpy() for x in (q, k, before)), 0.2), abs=FLOAT64)
    late = naive_loss(*(x.detach().numpy() for x in (q, k, method.queue.items)), 0.2)
    assert abs(loss.item() - late) > 1e-3


def test_the_queue_survives_a_restart():
    method = moco()
    method(batch(0))
    names = set(method.state_dict())
    assert {"queue.items", "queue.cursor"} <= names


def test_no_gradient_reaches_keys_or_queue():
    method = moco()
    method(batch(0))["loss"].backward()
    assert all(p.grad is None for p in method.key.parameters())
    assert not method.queue.items.requires_grad


def resnet(**settings):
    torch.manual_seed(0)
    method = MoCo(build(ResNetBackbone(kind="resnet18", image_size=8)), MoCoConfig(queue=16, dim=3, **settings))
    return method.double()


def record_inputs(module):
    """Returns a list that collects the batches which pass through `module` from now on."""
    inputs = []
    module.register_forward_hook(lambda _, args, __: inputs.append(args[0].clone()))
    return inputs


def test_with_batch_norm_keys_are_normalized_in_other_groups_than_queries():
    """Batch statistics shared by query and key leak which key belongs to the query (section 3.3)."""
    method = resnet(batch_norm_groups=2)
    images1, images2 = pixels(0, 8)
    shuffle_draws = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.7])[:, None]
    order = [1, 4, 3, 6, 0, 7, 5, 2]
    queries, keys = record_inputs(method.query[0]), record_inputs(method.key.module[0])
    method([images1, images2, shuffle_draws])
    assert [len(group) for group in queries + keys] == [4] * 4
    assert torch.equal(torch.cat(queries), images1)
    assert torch.equal(torch.cat(keys), images2[order])
    expected = torch.cat([method.key(images2[order[:4]]), method.key(images2[order[4:]])])
    assert torch.allclose(
        method.encode_keys(images2, shuffle_draws)[order], expected
    )  # and keys return to the order of the batch


def test_without_batch_norm_nothing_is_shuffled():
    method = moco()
    keys = record_inputs(method.key.module[0])
    images1, images2, shuffle_draws = batch(0)
    method([images1, images2, shuffle_draws])
    assert len(keys) == 1
    assert torch.equal(keys[0], images2)


def test_a_batch_that_cannot_be_split_in_equal_groups_raises():
    with pytest.raises(ValueError, match="a batch of 6 photos per process cannot be split in 4 equal groups"):
        resnet(batch_norm_groups=4)(batch(0, 6))


def test_the_symmetric_loss_adds_both_directions_and_queues_both_keys():
    method, one_way = moco(symmetric=True), moco()
    images1, images2, shuffle_draws = batch(0)
    both = method([images1, images2, shuffle_draws])["loss"].item()
    expected = one_way([images1, images2, shuffle_draws])["loss"] + one_way([images2, images1, shuffle_draws])["loss"]
    assert both == pytest.approx(expected.item(), abs=FLOAT64)
    method.after_step()
    keys = torch.stack([normalize(method.key(view), dim=1) for view in (images2, images1)], 1).flatten(0, 1)  # lr is 0
    assert torch.allclose(method.queue.items[:8], keys)
    assert method.queue.cursor == 8
    with pytest.raises(ValueError, match="queue 300 is shorter than the 512 keys of a batch; try queue: 512"):
        MoCo.check(MoCoConfig(queue=300, symmetric=True), 1000, 256, 1)


def test_micro_batches_equal_one_batch():
    """lightly-train #968: the EMA copy and the queue moved once per micro-batch."""
    whole, parts = moco(symmetric=True), moco(symmetric=True)
    fields = batch(0)
    loss = whole(fields)["loss"]
    halves = [parts([x[half] for x in fields])["loss"] for half in (slice(0, 2), slice(2, 4))]
    assert loss.item() == pytest.approx(sum(halves).item() / 2)
    for method in (whole, parts):
        method.after_step()
    assert torch.allclose(whole.queue.items, parts.queue.items)
    assert whole.queue.cursor == parts.queue.cursor == 8


def test_defaults_are_those_of_the_paper_and_of_the_script():
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
    first, second, _ = METHODS["mocoscriptstyle"].method.views(script, 224)
    assert first == second
    assert (first.crop, first.gray, first.gray_first, first.blur, first.flip) == ((0.2, 1.0), 0.2, True, 0.0, 0.5)
    assert vars(first.jitter) == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4, "p": 1.0}
    assert isinstance(MoCo(build(TINY), script).query[1], torch.nn.Linear)


def test_an_impossible_queue_raises_with_advice():
    check = METHODS["moco"].method.check
    with pytest.raises(ValueError, match=r"queue 65536 is longer than the data .1000 photos.*try 256"):
        check(MoCoConfig(), 1000, 256, 1)
    with pytest.raises(ValueError, match="queue 100 is shorter than the 256 keys of a batch; try queue: 256"):
        check(MoCoConfig(queue=100), 1000, 256, 1)
