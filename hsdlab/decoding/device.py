"""What goes between the host and the device during a decode, so that neither waits for the other without need.

A plain ``tensor.to(device)`` or ``tensor.cpu()`` holds the host until a GPU has finished all queued work.
"""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, without a wait.

    Args:
        tensor: On the CPU, or on the device already.
        device: Where to.

    Returns:
        The tensor on the device; the same object if it is there already.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # CUDA copies from other memory only after all queued work
    return tensor.to(device, non_blocking=True)


class Reading:
    """A tensor on its way to the CPU.

    Args:
        tensor: On any device. Its copy is queued at once.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copied = tensor.to("cpu", non_blocking=True)
        self._done: torch.Event | None = None
        if tensor.device.type != "cpu":
            self._done = torch.Event(tensor.device)
            self._done.record()

    def values(self) -> Tensor:
        """Wait for the device, unless it has passed the copy already.

        Returns:
            The tensor on the CPU.
        """
        if self._done is not None:
            self._done.synchronize()
            self._done = None
        return self._copied


class RowsOnDevice:
    """Indices of rows on the device, copied once as long as they are the same."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None

    def get(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return the indices on the device.

        Args:
            rows: LongTensor [n] on the CPU.
            device: Where to.

        Returns:
            LongTensor [n]; the same object as before while rows and device are equal.
        """
        last = self._last
        if last is None or last[1].device != device or not (last[0] is rows or torch.equal(last[0], rows)):
            last = self._last = rows, sent(rows, device)
        return last[1]
