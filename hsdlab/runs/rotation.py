"""Rotation: decode each batch under several strategies before the next batch begins, in an order that rotates.

A machine's speed drifts within a run by more than two strategies differ. Strategies that decode a batch one right after
the other meet the same machine, and none of them is always the first: their times are compared within a batch. They
share one prefill, which runs the same layers for all of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng

from hsdlab.decoding.shared_prefill import shared_prefill
from hsdlab.errors import RunError
from hsdlab.modules import DecodeModule
from hsdlab.records.corpus import corpus_scores
from hsdlab.records.example import ExampleRecord
from hsdlab.records.predictions import PredictionFile
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.runs.strategies import StrategyRuns, result_of
from hsdlab.strategies import SkipStrategy


class Rotation(LightningModule):
    """Decodes each batch of a split under each of several strategies, each with a prediction file of its own.

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

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Decode, score and write a batch of `hsdlab.data` under every strategy."""
        self.test_step(batch, batch_index)

    def on_test_start(self) -> None:
        """Open the prediction files."""
        for _, turn in self.turns:
            turn.trainer = self.trainer
            turn.on_test_start()

    def on_test_end(self) -> None:
        """Make one file of those of all processes, for each strategy."""
        for _, turn in self.turns:
            turn.on_test_end()

    def on_validation_start(self) -> None:
        """Open the prediction files."""
        self.on_test_start()

    def on_validation_end(self) -> None:
        """Make one file of those of all processes, for each strategy."""
        self.on_test_end()


def decode_in_turn(runs: StrategyRuns, strategies: Sequence[SkipStrategy], files: Sequence[Path]) -> None:
    """Decode a split under several strategies, each batch by all of them in turn.

    Args:
        runs: Gives the Trainer, the module, the data and the split.
        strategies: In the order of the files.
        files: Of predictions, one a strategy. If `module.resume` is set, what they hold is not decoded again.
    """
    with isolate_rng():
        runs.run_split(Rotation(runs.module, strategies, files))


def results_in(runs: StrategyRuns, strategies: Sequence[SkipStrategy], files: Sequence[Path]) -> list[StrategyResult]:
    """Read what :func:`decode_in_turn` decoded.

    Args:
        runs: As there.
        strategies: As there.
        files: As there.

    Returns:
        The result of each strategy with its examples.

    Raises:
        RunError: The data or the Trainer's limits gave no batch.
    """
    records = [PredictionFile(file).records() for file in files]
    if not records[0]:
        raise RunError(f"{files[0]} holds no prediction: nothing was decoded. Look at --trainer.{runs.limit}.")
    return results_of(runs.module, strategies, records)


def results_of(
    module: DecodeModule, strategies: Sequence[SkipStrategy], records: Sequence[list[ExampleRecord]]
) -> list[StrategyResult]:
    """Make results of the records of several strategies.

    Args:
        module: Which decoded.
        strategies: Under which it did.
        records: Of each of them.

    Returns:
        What each strategy gave.
    """
    return [
        result_of(module, strategy, corpus_scores(examples), examples)
        for strategy, examples in zip(strategies, records, strict=True)
    ]
