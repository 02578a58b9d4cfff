"""CUDA graphs of decode steps: one for each set of layers that a step executes.

Launching the kernels of a decode step takes the CPU longer than running them takes the GPU. A CUDA graph launches all
of them at once. It is captured from a step that has run before, so that nothing is compiled or loaded in the capture.
All graphs take their memory from one pool, since only one runs at a time. On other devices nothing is captured, and
the step itself runs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hsdlab.decoding.timing import now_s

Step = Callable[[], None]
Capture = Callable[[Step], Step]
"""Captures a step, and returns what replays it."""


@dataclass(frozen=True)
class Warmup:
    """What it cost to compile and capture the decode steps of one decode.

    Attributes:
        seconds: For running each new set of layers once, compilation included, and for capturing it. They are in no
            field of :class:`~hsdlab.decoding.timing.Timing`.
        captured: Sets of layers that this decode was the first to execute.
        graphs: CUDA graphs that are kept after the decode, those of earlier decodes included; 0 without CUDA.
        graph_bytes: GPU memory that they take, bytes; the KV cache is not included.
    """

    seconds: float
    captured: int
    graphs: int
    graph_bytes: int


class StepGraphs:
    """Runs decode steps of one shape: each set of layers once to warm up, then as a CUDA graph.

    Args:
        device: Where the model is.
        capture: What captures a step. None captures CUDA graphs on CUDA, and nothing on other devices.
    """

    def __init__(self, device: torch.device, capture: Capture | None = None) -> None:
        self._device = device
        self._cuda = _CudaGraphs(device) if capture is None and device.type == "cuda" else None
        self._capture = capture or (None if self._cuda is None else self._cuda.capture)
        self._replays: dict[tuple[int, ...], Step | None] = {}  # None: the step itself runs
        self._seconds, self._captured = 0.0, 0

    def run(self, layers: tuple[int, ...], step: Step) -> None:
        """Run a decode step.

        Args:
            layers: The layers that it executes.
            step: Runs it. It reads and writes tensors at the same addresses in every call, and running it twice does
                the same as running it once.
        """
        if layers not in self._replays:
            begin_s = now_s(self._device)
            if self._cuda is None:
                step()
            else:
                self._cuda.warm_up(step)
            self._replays[layers] = None if self._capture is None else self._capture(step)
            self._seconds += now_s(self._device) - begin_s
            self._captured += 1
        (self._replays[layers] or step)()

    def take_warmup(self) -> Warmup:
        """Report what warming up has cost since the last report.

        Returns:
            The cost, with all graphs that are kept.
        """
        graphs = sum(replay is not None for replay in self._replays.values())
        warmup = Warmup(self._seconds, self._captured, graphs, 0 if self._cuda is None else self._cuda.nbytes)
        self._seconds, self._captured = 0.0, 0
        return warmup


class _CudaGraphs:
    """Captures CUDA graphs that share a memory pool and a stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self.nbytes = 0

    def warm_up(self, step: Step) -> None:
        """Run a step on the stream of the capture, where libraries allocate what they need once."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                step()
            torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, step: Step) -> Step:
        """Capture a step; return what replays it. Other threads, such as a data loader's, may use CUDA meanwhile."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # as the capture does, so that the difference below is that of the graph
            free_before = torch.cuda.mem_get_info()[0]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                step()
            self.nbytes += max(0, free_before - torch.cuda.mem_get_info()[0])
        return graph.replay
