"""A run that was cut anywhere ends in the same weights, bit for bit."""

import json
import os
import signal

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from components.training import checkpoints, distributed, loop
from components.training.loop import Run, Stopped, fit
from components.training.objective import Objective
from components.training.optim import SGD, AdamW, Cosine, build


class Toy(Objective):
    """Has what methods have: dropout (randomness), batch norm and a buffer that moves outside the gradient."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("moved", torch.zeros(()))
        self.stop_at = self.die_at = self.calls = 0
        self.bad_at = -1

    def forward(self, batch):
        self.calls += 1
        loss = self.net(batch).square().mean()
        return {"loss": loss * float("nan") if self.calls == self.bad_at else loss}

    def after_step(self):
        self.moved += self.progress
        if self.calls == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.calls == self.die_at:
            raise KeyboardInterrupt


def data(step):
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))


def train(folder, settings, *, steps=40, **changes):
    torch.manual_seed(0)
    toy = Toy()
    for name, value in changes.items():
        setattr(toy, name, value)
    run = Run("toy", steps, 16, folder / "log.jsonl", folder / "state", save_every=10)
    fit(toy, data, build(toy, settings, 256), settings, run, Accelerator(cpu=True))
    return toy.state_dict()


SETTINGS = [
    SGD(lr=0.1, schedule=Cosine(warmup=0.2)),
    AdamW(lr=0.01, weight_decay=0.1, clip=1.0, schedule=Cosine()),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["sgd", "adamw"])
def test_a_stopped_run_ends_in_the_same_weights(settings, tmp_path):
    whole = train(tmp_path / "whole", settings)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "cut", settings, stop_at=14)
    assert stopped.value.code == 75
    assert [path.name for path in checkpoints._all(tmp_path / "cut" / "state")] == [
        "step-10.safetensors",
        "step-20.safetensors",
    ]
    again = train(tmp_path / "cut", settings)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 30, 40]


@pytest.mark.parametrize("die_at", [1, 10, 11, 27, 40])
def test_a_killed_run_ends_in_the_same_weights(die_at, tmp_path):
    whole = train(tmp_path / "whole", SETTINGS[0])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", SETTINGS[0], die_at=die_at)
    again = train(tmp_path / "cut", SETTINGS[0])
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_loss_that_is_no_number_stops_the_run_and_the_good_state_stays(tmp_path):
    with pytest.raises(FloatingPointError, match="toy: loss is nan at step 20; the last good state is in"):
        train(tmp_path, SETTINGS[0], bad_at=20)
    assert [path.name for path in checkpoints._all(tmp_path / "state")] == ["step-10.safetensors"]


def test_half_a_file_is_never_taken_for_a_state(tmp_path):
    train(tmp_path, SETTINGS[0], steps=20)
    (tmp_path / "state" / "part.tmp").write_bytes(b"half")
    toy = Toy()
    assert checkpoints.restore(tmp_path / "state", toy, build(toy, SETTINGS[0], 256)) == 20
    assert checkpoints.restore(tmp_path / "nothing", toy, build(toy, SETTINGS[0], 256)) == 0


def test_the_handler_of_sigterm_is_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(tmp_path, SETTINGS[0], steps=10)
    assert signal.getsignal(signal.SIGTERM) == before


class Line(Objective):
    """Each row counts for itself, so that a batch may be computed in parts."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.steps = 0

    def forward(self, batch):
        x, (y, z) = batch["x"], batch["more"]
        return {"loss": (self.net(x) - y + z).square().mean(), "seen": x.mean()}

    def after_step(self):
        self.steps += 1


@pytest.mark.parametrize("parts", ["2", "4"])
def test_a_batch_in_parts_is_the_batch(parts, tmp_path, monkeypatch):
    def more(step):
        return {"x": data(step), "more": [data(step + 100)[:, :1], data(step + 200)[:, :1]]}

    found = []
    for given in ("1", parts):
        monkeypatch.setenv(distributed.PARTS, given)
        torch.manual_seed(0)
        line = Line().double()
        run = Run("line", 20, 16, tmp_path / given / "log.jsonl", tmp_path / given)
        load = lambda step: {"x": more(step)["x"].double(), "more": [m.double() for m in more(step)["more"]]}  # noqa: E731
        fit(line, load, build(line, SETTINGS[1], 256), SETTINGS[1], run, Accelerator(cpu=True))
        log = [json.loads(text) for text in run.log.read_text().splitlines()]
        found.append((line.net.weight.detach(), [(at["loss"], at["seen"]) for at in log]))
        assert line.steps == 20  # what moves outside the gradient moves once a step
    assert torch.allclose(found[0][0], found[1][0], atol=1e-12)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert a == pytest.approx(b, abs=1e-12)


def test_what_must_not_be_split_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv(distributed.PARTS, "2")
    with pytest.raises(ValueError, match="toy cannot compute a batch in parts: batch norm; unset it"):
        train(tmp_path, SETTINGS[0], coupled="batch norm")
    with pytest.raises(ValueError, match="batch of 5 a process cannot be split in 2 equal parts"):
        loop._split(torch.zeros(5), 2)


def test_bf16_only_where_the_chip_multiplies_in_it(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, wanted in (("avx2 amx_bf16 amx_tile", True), ("avx2 fma", False)):
        (tmp_path / "cpuinfo").write_text(flags)
        monkeypatch.setattr(loop, "CPUINFO", tmp_path / "cpuinfo")
        assert loop._has_bf16() is wanted
