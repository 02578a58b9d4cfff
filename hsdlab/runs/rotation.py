"""Rotation: decode each batch under several strategies before the next batch begins, in an order that rotates.

A machine's speed drifts within a run by more than two strategies differ. Strategies that decode a batch one right after
the other meet the same machine, and none of them is always the first: their times are compared within a batch. They
share one prefill, which runs the same layers for all of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from hsdlab.decoding.shared_prefill import shared_prefill
from hsdlab.modules import DecodeModule
from hsdlab.strategies import SkipStrategy


class Rotation(LightningModule):
    """Decodes each test batch under each of several strategies, each with a prediction file of its own.

    Batch k begins with strategy k mod n. The strategies are applied one at a time, for the batch only: of their
    Lightning hooks none is called.

    Args:
        module: Decodes and scores; its `resume` says whether what the files hold is decoded again.
        strategies: In the order of the files.
        files: Of predictions, one a strategy.
    """

    def __init__(self, module: DecodeModule, strategies: Sequence[SkipStrategy], files: Sequence[Path]) -> None:
        super().__init__()
        self.module = module
        # A tuple: as submodules the copies, which share all weights, would be moved and counted once more each.
        self.turns = tuple(
            (strategy, module.writing_to(str(file))) for strategy, file in zip(strategies, files, strict=True)
        )

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Decode, score and write a batch of `hsdlab.data` under every strategy."""
        first = batch_index % len(self.turns)
        with shared_prefill():
            for strategy, turn in self.turns[first:] + self.turns[:first]:
                with strategy.applied_to(turn.model):
                    turn.test_step(batch, batch_index)

    def on_test_start(self) -> None:
        """Open the prediction files."""
        for _, turn in self.turns:
            turn.trainer = self.trainer
            turn.on_test_start()

    def on_test_end(self) -> None:
        """Make one file of those of all processes, for each strategy."""
        for _, turn in self.turns:
            turn.on_test_end()
