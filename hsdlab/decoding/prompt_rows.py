"""The prefill, computed once for each source: its rows (beams, several sampled sequences) have the same prompt."""

from typing import Any

import torch
from torch import Tensor

from hsdlab.decoding.arguments import RowArguments


class PromptRows:
    """The first row of each source.

    Args:
        batch: Rows of the batch; those of a source are consecutive.
        copies: Rows of a source.
        device: Of the model.

    Attributes:
        copies: As given.
    """

    def __init__(self, batch: int, copies: int, device: torch.device) -> None:
        self.copies = copies
        self._batch = batch
        self._first = torch.arange(0, batch, copies, device=device)
        self._arguments = RowArguments()

    @property
    def sources(self) -> Tensor:
        """The source of each row, LongTensor [rows] on the device."""
        return torch.arange(len(self._first), device=self._first.device).repeat_interleave(self.copies)

    def first(self, hidden: Tensor) -> Tensor:
        """Take the first row of each source.

        Args:
            hidden: [rows, length, d].

        Returns:
            [sources, length, d].
        """
        return hidden if self.copies == 1 else hidden.index_select(0, self._first)

    def arguments(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Select a layer's arguments for the first row of each source.

        Args:
            args: The positional arguments.
            kwargs: The keyword arguments.

        Returns:
            Both for as many rows as there are sources.
        """
        return (args, kwargs) if self.copies == 1 else self._arguments.select(self._first, self._batch, args, kwargs)

    def forget(self) -> None:
        """Hold nothing of the prefill's arguments, among which is the cache that holds this object."""
        self._arguments.forget()

    def all(self, hidden: Tensor) -> Tensor:
        """Repeat each source for all its rows.

        Args:
            hidden: [sources, length, d].

        Returns:
            [rows, length, d].
        """
        return hidden if self.copies == 1 else hidden.repeat_interleave(self.copies, dim=0)
