"""Peak memory: what the process held between two samples is not forgotten."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest
import torch

from dfolora.record import memory
from dfolora.record.memory import PeakMemory
from tests.emulation import emulated_cuda


def test_peak_stays_after_the_memory_is_given_back():
    watch = PeakMemory(torch.device("cpu"))
    before = watch.megabytes()["process"]
    held = np.ones(30_000_000)  # 240 MB
    watch.sample()
    del held
    watch.sample()
    assert 200 < watch.megabytes()["process"] - before < 500


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts peaks")
def test_peak_between_two_samples_is_seen_and_an_earlier_one_is_not():
    held = np.ones(60_000_000)  # 480 MB
    del held
    watch = PeakMemory(torch.device("cpu"))
    before = watch.megabytes()["process"]
    held = np.ones(30_000_000)  # 240 MB
    del held
    watch.sample()
    assert 200 < watch.megabytes()["process"] - before < 400


def test_what_torch_keeps_of_earlier_work_is_given_back_first(monkeypatch):
    """The driver would count it as this fit's."""
    done = []
    with emulated_cuda():
        for name in ("empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: done.append(name))
        PeakMemory(torch.device("cuda"))
    assert done == ["empty_cache", "reset_peak_memory_stats"]


def pieces(count):
    """So many times 50 kB, which the C library takes from its heap, and keeps when they go."""
    return [b"x" * 50_000 for _ in range(count)]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts peaks")
def test_same_work_takes_the_same_in_a_fresh_process_and_after_others():
    def measured():
        watch = PeakMemory(torch.device("cpu"), weights=7_000_000)
        held = pieces(2000)  # 100 MB
        watch.sample()
        del held
        return watch.megabytes()["process"]

    first = measured()
    earlier = pieces(6000)  # 300 MB, free later, but not the system's while something lies above
    above = pieces(1)
    del earlier
    assert measured() == pytest.approx(first, rel=0.05)
    assert first == pytest.approx(107, rel=0.05)
    del above


def test_driver_counts_this_process_or_else_the_whole_device(monkeypatch):
    mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=5_000_000)
    other = SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=9_000_000)
    processes = [other, mine]
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _handle: processes)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda _handle: SimpleNamespace(used=14_000_000)
    )
    assert memory._driver_bytes(None) == {"nvml": 5_000_000}
    processes.remove(mine)
    assert memory._driver_bytes(None) == {"nvml_device": 14_000_000}

    def refuse(_handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", refuse)
    assert memory._driver_bytes(None) == {}
