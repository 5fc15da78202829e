"""Peak memory of a run: torch's, the driver's (NVML) and the process's."""

import os
from collections.abc import Mapping
from typing import Any

import psutil
import torch

MEGABYTE = 1e6


class PeakMemory:
    """Watches from its making on; ``sample`` at every generation, then ``megabytes``."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._resident = 0
        self._device = 0
        self._cuda = torch.cuda.is_available()
        self._nvml = _nvml_handle() if self._cuda else None
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self.sample()

    def sample(self) -> None:
        """Take note of what is in use now."""
        self._resident = max(self._resident, self._process.memory_info().rss)
        if self._nvml is not None:
            self._device = max(self._device, _used_by_this_process(self._nvml))

    def megabytes(self) -> Mapping[str, float]:
        """The peaks so far, by what measured them, in 10^6 bytes; no entry where nothing could."""
        peaks = {"process": self._resident / MEGABYTE}
        if self._cuda:
            peaks["torch"] = torch.cuda.max_memory_allocated() / MEGABYTE
        if self._nvml is not None:
            peaks["nvml"] = self._device / MEGABYTE
        return peaks


def _nvml_handle() -> Any:
    """The driver's handle of torch's current GPU, or None where the driver tells nothing."""
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None


def _used_by_this_process(handle: Any) -> int:
    """Bytes, the CUDA context included; all of the device's where containers hide processes."""
    import pynvml

    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
        if process.pid == os.getpid() and process.usedGpuMemory:
            return int(process.usedGpuMemory)
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
