"""Freed memory is kept, so that the next step does not ask for every page again."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components import machine

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
@pytest.mark.parametrize("asked", [True, False])
def test_pages_are_asked_for_once(asked):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    said = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**clean, "PYTHONPATH": str(ROOT), **({} if asked else {"SELFSIGHT_SYSTEM_MALLOC": "1"})},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert said[0] == str(asked)
    if asked:
        assert int(said[1]) < 1000


def test_a_gpu_is_asked_to_repeat_itself(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        machine.repeat_exactly()
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
        monkeypatch.setenv(machine.PRECISION, value)
        assert machine.has_bf16() is expected
    monkeypatch.setenv(machine.PRECISION, "fp16")
    with pytest.raises(ValueError, match="SELFSIGHT_PRECISION is 'fp16'; allowed: auto, fp32, bf16"):
        machine.has_bf16()


def test_bf16_only_where_the_chip_multiplies_in_it(monkeypatch, tmp_path):
    monkeypatch.setenv(machine.PRECISION, "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, wanted in (("avx2 amx_bf16 amx_tile", True), ("avx2 fma", False)):
        (tmp_path / "cpuinfo").write_text(flags)
        monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
        assert machine.has_bf16() is wanted
