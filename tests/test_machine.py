"""Freed memory is kept, so that the next step does not ask for every page again."""

import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from components import machine, measurement, precision

ROOT = Path(__file__).parents[1]
FAULTS = """
import resource, torch
from components.machine import keep_memory
print(keep_memory())
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)  # 64 MiB, 16,384 pages
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("enabled", [True, False])
def test_memory_pages_are_requested_only_once(enabled):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    output = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**clean, "PYTHONPATH": str(ROOT), **({} if enabled else {"SELFSIGHT_SYSTEM_MALLOC": "1"})},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert output[0] == str(enabled)
    if enabled:
        assert int(output[1]) < 1000


def test_a_gpu_is_set_to_deterministic_algorithms(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        machine.use_deterministic_algorithms()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("cuda", [True, False])
def test_the_environment_may_set_the_precision(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: pytest.fail("the chip does not matter"))
    for value, expected in (("bf16", True), ("fp32", False)):
        monkeypatch.setenv(precision.PRECISION, value)
        assert precision.uses_bf16() is expected
    monkeypatch.setenv(precision.PRECISION, "fp16")
    with pytest.raises(ValueError, match="SELFSIGHT_PRECISION is 'fp16'; allowed: auto, fp32, bf16"):
        precision.uses_bf16()


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """Returns a function that sets the CPU's flags; the cache of measurements is empty."""
    monkeypatch.setenv(precision.PRECISION, "auto")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(measurement, "CPUINFO", tmp_path / "cpuinfo")

    def described(flags, field="flags"):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name\t: A CPU\n{field} : {flags}\n\nprocessor : 1\n")

    yield described
    measurement.measured.cache_clear()


@pytest.mark.parametrize(
    ("flags", "speedup", "expected"),
    [
        ("avx2 amx_bf16 amx_tile", 2.0, True),
        ("avx2 avx512f avx512_bf16", 1.6, True),
        ("avx2 avx512_bf16", 1.1, False),  # it has the units, and they win too little
        ("avx2 fma avx512f", 9.0, False),  # emulated
    ],
)
def test_bf16_needs_units_and_a_measured_speedup(cpu, flags, speedup, expected, monkeypatch):
    cpu(flags)
    monkeypatch.setattr(precision, "bf16_speedup", lambda: speedup)
    assert precision.uses_bf16() is expected


def test_arm_and_unknown_processors(cpu, monkeypatch, tmp_path):
    cpu("asimd bf16", field="Features")
    assert measurement.processor() == ("A CPU", {"asimd", "bf16"})
    monkeypatch.setattr(measurement, "CPUINFO", tmp_path / "no such file")
    assert measurement.processor()[1] == frozenset()
    assert not precision.uses_bf16()


def test_a_cpu_without_bf16_units_is_not_measured(cpu, monkeypatch):
    cpu("avx2 fma")
    monkeypatch.setattr(precision, "bf16_speedup", lambda: pytest.fail("measured"))
    assert not precision.uses_bf16()


def measure_once(values):
    """Returns measured() as a new process would call it; `values` are the measurements to come."""
    measurement.measured.cache_clear()
    return measurement.measured("test", lambda: values.pop(0))


def test_a_measurement_is_kept_for_later_processes_on_the_same_machine(cpu, monkeypatch, tmp_path):
    cpu("avx2")
    assert measure_once([2.0]) == 2.0
    assert measure_once([]) == 2.0
    (file,) = (tmp_path / "cache").rglob("*.json")
    assert json.loads(file.read_text())["cpu"] == "A CPU"
    cpu("avx2 avx512f")
    assert measure_once([1.0]) == 1.0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)  # of a run that is resumed
    assert measure_once([]) == 1.0
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert measure_once([4.0]) == 4.0


@pytest.mark.parametrize("damaged", ["", "{", "[]", "{}", '{"speedup": null}'])
def test_a_damaged_file_is_measured_again(cpu, damaged, tmp_path):
    cpu("avx2")
    measure_once([2.0])
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text(damaged)
    assert measure_once([3.0]) == 3.0
    assert measure_once([]) == 3.0


def test_without_a_place_to_write_each_process_measures_once(cpu, monkeypatch, tmp_path):
    cpu("avx2")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    values, measure = [2.0], lambda: values.pop(0)
    assert measurement.measured("test", measure) == 2.0
    assert measurement.measured("test", measure) == 2.0


def test_the_first_of_two_threads_measures(cpu):
    cpu("avx2")
    measured, values = measurement.measured.__wrapped__, [2.0]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: measured("test", lambda: values.pop(0)), range(2)))
    assert results == [2.0, 2.0]


def test_emulated_bf16_is_tried_in_a_small_product_only(monkeypatch):
    monkeypatch.setattr(precision, "best_seconds", lambda *functions: [1.0, 20.0])
    monkeypatch.setattr(precision, "_layer_speedup", lambda *_: pytest.fail("a large one"))
    before = torch.get_rng_state()
    assert precision.bf16_speedup() == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_smaller_speedup_of_a_linear_layer_and_a_convolution_counts(monkeypatch):
    monkeypatch.setattr(precision, "best_seconds", lambda *functions: [1.0, 1.0])
    speedups = [2.0, 1.5]
    monkeypatch.setattr(precision, "_layer_speedup", lambda *_: speedups.pop(0))
    assert precision.bf16_speedup() == 1.5


def test_the_best_time_of_each_function_counts():
    calls = []
    times = measurement.best_seconds(lambda: calls.append("a"), lambda: calls.append("b"), rounds=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert all(0 <= seconds < float("inf") for seconds in times)


def test_frozen_weights_are_held_in_bf16_and_nothing_else_changes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4), nn.Linear(4, 2)).requires_grad_(False)
    net[3].requires_grad_()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    held = precision.with_bf16_weights(net)
    assert [held[index].weight.dtype for index in range(4)] == [
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]
    assert held[3].weight is net[3].weight  # what is trained is shared
    assert all(value.equal(before[name]) and value.dtype == torch.float32 for name, value in net.state_dict().items())
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(held(x), net(x))  # the same casts of the same weights, and the same products
    with torch.no_grad():
        assert precision.with_bf16_weights(net)[3].weight.dtype == torch.bfloat16
