"""Comparisons whose failure is a violated law."""

from typing import Any

import torch
from torch import Tensor


class LawViolationError(AssertionError):
    """A strategy breaks one of the laws; the message says which and how."""


def expect_close(got: Tensor, expected: Tensor, what: str, tolerance: float | None = None) -> None:
    """Expect two tensors of one shape that nowhere differ by more than ``tolerance``.

    Args:
        got: The tensor of the strategy, of any dtype; compared in float64.
        expected: The tensor that it should be.
        what: Begins the message.
        tolerance: Largest absolute difference. None means 1e-9, of which two orders of the same arithmetic stay far
            below in float64; where ``expected`` is float32, 1e-4 of its largest number.

    Raises:
        LawViolationError: The shapes differ, or a difference is larger or NaN.
    """
    if tolerance is None:
        single = expected.dtype == torch.float32 and expected.numel() > 0
        tolerance = 1e-4 * float(expected.abs().max()) if single else 1e-9
    if got.shape != expected.shape:
        raise LawViolationError(f"{what}: got shape {tuple(got.shape)}, expected {tuple(expected.shape)}.")
    distance = float((got.double() - expected.double()).abs().max()) if got.numel() else 0.0
    if not distance <= tolerance:
        raise LawViolationError(f"{what}: the largest difference is {distance:.3g}, expected at most {tolerance:.0e}.")


def expect_equal(got: Any, expected: Any, what: str) -> None:
    """Expect two equal values.

    Args:
        got: The value of the strategy; compared by ``!=``, so a tensor has to become a list first.
        expected: The value that it should be.
        what: Begins the message, in the plural ("… differ").

    Raises:
        LawViolationError: The values differ. The message shows the first 300 characters of each.
    """
    if got != expected:
        raise LawViolationError(f"{what} differ: got {_short(got)}, expected {_short(expected)}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]} …"
