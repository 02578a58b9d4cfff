"""What a law says when it is broken."""

from typing import Any

from torch import Tensor


class LawViolationError(AssertionError):
    """A strategy breaks one of the laws; the message says which and how."""


def expect_close(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    """Expect two tensors of one shape that nowhere differ by more than ``tolerance``.

    Args:
        got: What the strategy gave.
        expected: What it should be.
        what: Begins the message.
        tolerance: The default is for float64, where two orders of the same arithmetic stay far below it.

    Raises:
        LawViolationError: If they differ.
    """
    if got.shape != expected.shape:
        raise LawViolationError(f"{what}: got shape {tuple(got.shape)}, expected {tuple(expected.shape)}.")
    distance = float((got.double() - expected.double()).abs().max()) if got.numel() else 0.0
    if not distance <= tolerance:
        raise LawViolationError(f"{what}: the largest difference is {distance:.3g}, expected at most {tolerance:.0e}.")


def expect_equal(got: Any, expected: Any, what: str) -> None:
    """Expect two equal values; ``what`` begins the message.

    Raises:
        LawViolationError: If they differ.
    """
    if got != expected:
        raise LawViolationError(f"{what} differ: got {_short(got)}, expected {_short(expected)}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]} …"
