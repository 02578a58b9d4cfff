"""What the machine adds to a bench: threads, load, and the memory that it took."""

import os
import sys

import torch

from hsdlab.decoding import Timing
from hsdlab.records.bench import BenchEnvironment
from hsdlab.runs.timing import Side

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT")


def environment(load_average_before: tuple[float, ...] | None) -> BenchEnvironment:
    """Note the threads and the load of the machine.

    Args:
        load_average_before: What `load_average` returned before the measurement.

    Returns:
        The environment up to now.
    """
    return BenchEnvironment(
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        variables={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        load_average_before=load_average_before,
        load_average_after=load_average(),
    )


def load_average() -> tuple[float, ...] | None:
    """Read how busy the machine is.

    Returns:
        The mean number of running processes over 1, 5 and 15 minutes; None where the system does not tell.
    """
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def peak_process_mib() -> float | None:
    """Read how much main memory this process has needed.

    Returns:
        The most that it has taken so far, MiB; None where the system does not tell.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes, or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class PeakMemory:
    """A side that also notes the most memory that tensors took on a CUDA GPU.

    Args:
        side: The side.
        device: Where the model is. On any other device nothing is noted.

    Attributes:
        peak_mib: The most so far, weights included, MiB; None where nothing is noted.
    """

    def __init__(self, side: Side, device: torch.device) -> None:
        self._side = side
        self._device = device
        self.peak_mib: float | None = None

    def __call__(self, case: int) -> Timing:
        """Run a case; return how long it took."""
        if self._device.type != "cuda":
            return self._side(case)
        torch.cuda.reset_peak_memory_stats(self._device)
        timing = self._side(case)
        self.peak_mib = max(self.peak_mib or 0.0, torch.cuda.max_memory_allocated(self._device) / 2**20)
        return timing
