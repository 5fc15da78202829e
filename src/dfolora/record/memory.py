"""Peak memory of a fit: torch's, the driver's (NVML) and the process's."""

import ctypes
import gc
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

MEGABYTE = 1e6


class PeakMemory:
    """Peak memory since its creation; call ``sample`` at every generation, then ``megabytes``.

    The process's is the weights, where it holds them, and the most by which its resident memory
    has grown since the watch began: so it does not depend on what else the process loaded or did
    before. torch's and the driver's are all that is in use on the device, weights included.

    torch counts every moment, and so does Linux for the process; elsewhere the process, and
    everywhere the driver, is seen at the samples only. The driver's misses little, for torch gives
    nothing back between them.

    Args:
        device: Where the model is; torch and the driver are asked only about a CUDA device.
        weights: Bytes of the model's, loaded before the watch begins.
    """

    def __init__(self, device: torch.device, *, weights: int = 0) -> None:
        self._process = psutil.Process()
        self._cuda = device if device.type == "cuda" else None
        self._nvml = None if self._cuda is None else _nvml_handle(self._cuda)
        self._peaks: dict[str, int] = {}
        _give_back_free_memory()
        self._marked = _forget_high_water_mark()
        self._before = self._process.memory_info().rss - (0 if self._cuda else weights)
        if self._cuda is not None:
            torch.cuda.empty_cache()  # of earlier work, which the driver would count
            torch.cuda.reset_peak_memory_stats(self._cuda)
        self.sample()

    def sample(self) -> None:
        """Record the memory in use now."""
        resident = self._process.memory_info().rss
        if self._marked:
            resident = max(resident, _high_water_mark())
        used = {"process": resident - self._before}
        if self._cuda is not None:
            used["torch"] = torch.cuda.max_memory_allocated(self._cuda)
        if self._nvml is not None:
            used |= _driver_bytes(self._nvml)
        self._peaks |= {name: max(size, self._peaks.get(name, 0)) for name, size in used.items()}

    def megabytes(self) -> Mapping[str, float]:
        """The peaks so far in 10^6 bytes, by instrument; instruments that fail have no entry."""
        return {name: size / MEGABYTE for name, size in self._peaks.items()}


def _give_back_free_memory() -> None:
    """Of the C library's heap, where it can: else what earlier work left free would hide growth."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _forget_high_water_mark() -> bool:
    """Reset Linux's peak counter of the process (proc(5)); returns whether that worked."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water_mark() -> int:
    """The process's peak resident memory since then, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line for line in lines if line.startswith("VmHWM")).split()[1]
    return 1024 * int(kilobytes)


def _nvml_handle(device: torch.device) -> Any:
    """The driver's handle of a GPU; None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        )
    except pynvml.NVMLError:
        return None


def _driver_bytes(handle: Any) -> Mapping[str, int]:
    """This process's bytes, including the CUDA context; if unknown, the whole device's.

    Containers hide processes from each other, and some drivers tell neither.
    """
    import pynvml

    try:
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return {"nvml": int(process.usedGpuMemory)}
        return {"nvml_device": int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)}
    except pynvml.NVMLError:
        return {}
