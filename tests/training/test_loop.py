"""A run that is stopped or killed at any step, and started again, ends in the same weights, bit for bit."""

import json
import os
import signal

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from components.models import winograd
from components.models.backbone import ResNetBackbone, ViTBackbone
from components.models.backbone import build as build_backbone
from components.precision import PRECISION
from components.training import checkpoints, distributed, loop, micro_batches
from components.training.loop import Stopped, fit
from components.training.monitor import Run
from components.training.objective import Objective
from components.training.optim import LARS, SGD, AdamW, Cosine, build
from tests.tolerances import FLOAT64


class Toy(Objective):
    """Has what methods have: dropout (randomness), batch norm and a buffer that is updated without a gradient."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("progress_sum", torch.zeros(()))
        self.stop_at = self.die_at = self.calls = 0
        self.nan_at = self.overflow_at = -1
        self.stop_by = signal.SIGTERM
        self.error = None

    def forward(self, batch):
        self.calls += 1
        if self.error:
            raise self.error
        loss = self.net(batch).square().mean()
        return {"loss": loss * float("nan") if self.calls == self.nan_at else loss}

    def after_step(self):
        self.progress_sum += self.progress
        if self.calls == self.stop_at:
            os.kill(os.getpid(), self.stop_by)
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        if self.calls == self.overflow_at:
            self.net[0].weight.data.fill_(float("inf"))


def data(step):
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))


def train(folder, settings, *, steps=40, kind=Toy, per_epoch=None, **changes):
    torch.manual_seed(0)
    toy = kind()
    for name, value in changes.items():
        setattr(toy, name, value)
    run = Run("toy", steps, 16, folder / "log.jsonl", folder / "state", save_every=10, per_epoch=per_epoch)
    fit(toy, data, build(toy, settings, 256), settings, run, Accelerator(cpu=True))
    return toy.state_dict()


SETTINGS = [
    SGD(lr=0.1, schedule=Cosine(warmup=0.2)),
    AdamW(lr=0.01, weight_decay=0.1, clip=1.0, schedule=Cosine()),
    LARS(lr=1.0, weight_decay=0.1, classic_momentum=True, schedule=Cosine(warmup=0.5)),
]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("settings", SETTINGS, ids=["sgd", "adamw", "lars"])
def test_a_stopped_run_ends_in_the_same_weights(settings, by, tmp_path, capsys):
    whole = train(tmp_path / "whole", settings)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "cut", settings, stop_at=14, stop_by=by)
    assert "toy: stopped at step 20 of 40; the same command continues from there" in capsys.readouterr().out
    assert stopped.value.code == 75
    assert [path.name for path in checkpoints._list_states(tmp_path / "cut" / "state")] == [
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


def test_a_loss_that_is_nan_stops_the_run_and_the_last_good_state_stays(tmp_path):
    """The loss is checked every tenth step; the message names the exact step."""
    with pytest.raises(
        FloatingPointError, match=r"toy: loss is nan at step 17; at step 16 it was [\d.]+\. The last good"
    ):
        train(tmp_path, SETTINGS[0], nan_at=17)
    assert [path.name for path in checkpoints._list_states(tmp_path / "state")] == ["step-10.safetensors"]


def test_a_loss_that_explodes_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"toy: loss is [\d.]+e\+\d+ at step"):
        train(tmp_path, SGD(lr=1e4))


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The loss of a step is computed before its update: a bad update shows in the weights first."""
    with pytest.raises(FloatingPointError, match=r"toy: not saved at step 20: module\.net\..* is not finite"):
        train(tmp_path, SETTINGS[0], overflow_at=20)
    assert [path.name for path in checkpoints._list_states(tmp_path / "state")] == ["step-10.safetensors"]
    assert torch.isfinite(train(tmp_path, SETTINGS[0])["net.0.weight"]).all()


@pytest.mark.parametrize(
    ("error", "needs_full_batch", "advice"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "",
            "SELFSIGHT_MICRO_BATCHES=2: the same batch in 2 micro-b",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "the reason",
            "in micro-batches: the reason",
        ),
    ],
)
def test_an_error_for_lack_of_memory_names_the_settings_to_change(error, needs_full_batch, advice, tmp_path):
    pattern = "toy: no memory left for a batch_size of 16, 16 per process; try batch_size: 8, .*" + advice
    with pytest.raises(MemoryError, match=pattern):
        train(tmp_path, SETTINGS[0], error=error, needs_full_batch=needs_full_batch)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        train(tmp_path, SETTINGS[0], error=RuntimeError("something else"))


def test_a_real_allocation_that_fails_gives_the_same_advice(tmp_path):
    class Greedy(Toy):
        def forward(self, batch):
            return {"loss": torch.empty(2**46)[0] + batch.sum()}

    with pytest.raises(MemoryError, match="toy: no memory left"):
        train(tmp_path, SETTINGS[0], kind=Greedy)


def test_the_log_has_epochs_rates_and_memory(tmp_path):
    train(tmp_path, SETTINGS[0], per_epoch=20)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0.5, 1.0, 1.5, 2.0]
    assert lines[-1]["seconds_left"] == 0 < lines[0]["seconds_left"]
    assert all(0 <= line["data_wait"] <= 1 and line["images_per_second"] > 0 for line in lines)
    assert all(0.05 < line["memory_gib"] < 64 for line in lines)


def test_the_last_two_states_are_kept(tmp_path):
    train(tmp_path, SETTINGS[0])
    kept = [path.name for path in checkpoints._list_states(tmp_path / "state")]
    assert kept == ["step-30.safetensors", "step-40.safetensors"]


def test_states_are_saved_every_save_every_steps(tmp_path):
    run = Run("toy", 15, 16, tmp_path / "log.jsonl", tmp_path, save_every=7)
    toy = Toy()
    fit(toy, data, build(toy, SETTINGS[0], 256), SETTINGS[0], run, Accelerator(cpu=True))
    assert [path.name for path in checkpoints._list_states(tmp_path)] == ["step-7.safetensors", "step-14.safetensors"]


def test_a_damaged_state_is_skipped_for_the_one_before(tmp_path, capsys):
    whole = train(tmp_path, SETTINGS[0])
    _, newest = checkpoints._list_states(tmp_path / "state")
    newest.write_bytes(newest.read_bytes()[:100])
    again = train(tmp_path, SETTINGS[0])
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert "trying the state before it" in capsys.readouterr().out
    for path in checkpoints._list_states(tmp_path / "state"):
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can be read; remove the folder"):
        train(tmp_path, SETTINGS[0])


def test_a_run_does_not_go_on_in_another_precision(tmp_path, monkeypatch):
    monkeypatch.setenv(PRECISION, "fp32")
    train(tmp_path, SETTINGS[0], steps=20)
    monkeypatch.setenv(PRECISION, "bf16")
    with pytest.raises(ValueError, match=r"with SELFSIGHT_PRECISION=fp32, this process has bf16; set .* or remove"):
        train(tmp_path, SETTINGS[0])


@pytest.mark.parametrize(
    ("shape", "matters"),
    [
        (ResNetBackbone(kind="resnet18", image_size=16), True),
        (ViTBackbone(image_size=16, patch_size=8, width=16, depth=1, heads=2), False),
    ],
    ids=["resnet", "vit"],
)
def test_a_state_records_which_convolutions_it_was_computed_with(shape, matters, monkeypatch):
    backbone = build_backbone(shape)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(PRECISION, "fp32")
    recorded = []
    for setting in ("on", "off"):
        monkeypatch.setenv(winograd.WINOGRAD, setting)
        recorded.append(checkpoints._arithmetic(backbone))
    assert (recorded[0] != recorded[1]) is matters
    assert recorded[1] == {PRECISION: "fp32", winograd.WINOGRAD: "off"}


def test_half_a_line_of_the_log_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, SETTINGS[0], die_at=27)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 30, "lo')
    train(tmp_path, SETTINGS[0])
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 30, 40]


class Convolution(Objective):
    """In bf16 its weight is channels-last, and fused AdamW needs its state in the same memory layout."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 8, 3)
        self.die_at, self.calls = 0, 0

    def forward(self, batch):
        return {"loss": (self.net(batch.view(-1, 3, 8, 8)) - 1).float().square().mean()}

    def after_step(self):
        self.calls += 1
        if self.calls == self.die_at:
            raise KeyboardInterrupt


def test_a_convolution_in_bf16_resumes_bit_for_bit(tmp_path):
    def run(name, die_at=0):
        torch.manual_seed(0)
        objective = Convolution()
        objective.die_at = die_at
        settings = Run("convolution", 40, 16, tmp_path / name / "log.jsonl", tmp_path / name, save_every=10)
        load = lambda step: torch.randn(4, 192, generator=torch.Generator().manual_seed(step))  # noqa: E731
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            acc = Accelerator(cpu=True, mixed_precision="bf16")
            fit(objective, load, build(objective, SETTINGS[1], 256), SETTINGS[1], settings, acc)
        except KeyboardInterrupt:
            assert die_at
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
        return objective.net.weight

    whole = run("whole")
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(run("cut", die_at=15), whole)
    assert torch.equal(run("cut"), whole)


def test_a_partly_written_file_is_not_a_state(tmp_path):
    train(tmp_path, SETTINGS[0], steps=20)
    (tmp_path / "state" / "part.tmp").write_bytes(b"half")
    toy = Toy()
    assert checkpoints.restore(tmp_path / "state", toy, build(toy, SETTINGS[0], 256)) == 20
    assert checkpoints.restore(tmp_path / "nothing", toy, build(toy, SETTINGS[0], 256)) == 0


def test_signal_handlers_are_restored(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    train(tmp_path, SETTINGS[0], steps=10)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_ctrl_c_raises_at_once():
    with loop._StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.received
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


class Line(Objective):
    """Has a loss per row, so that a batch may be computed in micro-batches."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.steps = 0

    def forward(self, batch):
        x, (y, z) = batch["x"], batch["more"]
        return {"loss": (self.net(x) - y + z).square().mean(), "seen": x.mean()}

    def after_step(self):
        self.steps += 1


@pytest.mark.parametrize("count", ["2", "4"])
def test_micro_batches_give_the_losses_and_weights_of_the_full_batch(count, tmp_path, monkeypatch):
    def more(step):
        return {"x": data(step), "more": [data(step + 100)[:, :1], data(step + 200)[:, :1]]}

    runs = []
    for micro in ("1", count):
        monkeypatch.setenv(distributed.MICRO_BATCHES, micro)
        torch.manual_seed(0)
        line = Line().double()
        run = Run("line", 20, 16, tmp_path / micro / "log.jsonl", tmp_path / micro)
        load = lambda step: {"x": more(step)["x"].double(), "more": [m.double() for m in more(step)["more"]]}  # noqa: E731
        fit(line, load, build(line, SETTINGS[1], 256), SETTINGS[1], run, Accelerator(cpu=True))
        log = [json.loads(text) for text in run.log.read_text().splitlines()]
        runs.append((line.net.weight.detach(), [(at["loss"], at["seen"]) for at in log]))
        assert line.steps == 20  # once per step, not per micro-batch
    assert torch.allclose(runs[0][0], runs[1][0], atol=FLOAT64)
    for a, b in zip(runs[0][1], runs[1][1], strict=True):
        assert a == pytest.approx(b, abs=FLOAT64)


def test_an_objective_that_needs_the_full_batch_refuses_micro_batches(tmp_path, monkeypatch):
    monkeypatch.setenv(distributed.MICRO_BATCHES, "2")
    with pytest.raises(ValueError, match="toy needs the full batch at once: batch norm; unset it"):
        train(tmp_path, SETTINGS[0], needs_full_batch="batch norm")
    with pytest.raises(ValueError, match="batch of 5 per process cannot be split into 2 equal micro-batches"):
        micro_batches.split(torch.zeros(5), 2)
