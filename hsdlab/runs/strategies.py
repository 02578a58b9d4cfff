"""One strategy after the other over the same split: what `compare`, `calibrate` and `tune` share."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from hsdlab.data import GenerationDataModule
from hsdlab.decoding.families import decoder_parts
from hsdlab.errors import UserError
from hsdlab.metrics import Efficiency
from hsdlab.modules import DecodeModule
from hsdlab.records.predictions import PredictionFile, batch_costs
from hsdlab.reporting import StrategyResult
from hsdlab.strategies import FullDepth, SkipStrategy

Split = Literal["validation", "test"]


class StrategyRuns:
    """Decodes a split under strategies, each into a prediction file of its own.

    Before the first batch that is decoded, one is decoded at full depth without a trace of it, so that the first
    strategy does not pay for cold caches. If `model.resume` is set, what a file holds is not decoded again.

    Args:
        trainer: Runs the module; its callbacks hold no strategy.
        model: Holds the loaded model.
        datamodule: The data.
        split: "validation" or "test".
    """

    def __init__(self, trainer: Trainer, model: DecodeModule, datamodule: GenerationDataModule, split: Split) -> None:
        self.trainer = trainer
        self.model = model
        self.datamodule = datamodule
        self.split = split
        self.limit = {"validation": "limit_val_batches", "test": "limit_test_batches"}[split]
        self._warm = False

    def result(self, strategy: SkipStrategy, predictions: Path) -> StrategyResult:
        """Decode the split under one strategy.

        Args:
            strategy: Under which to decode.
            predictions: The file to write, or to go on with.
        """
        if not self._warm and (self.trainer.world_size > 1 or not self.model.resume or not self._finished(predictions)):
            self._warm_up()
        self.model.predictions = str(predictions)
        return strategy_result(self.model, strategy, self._run(strategy), predictions)

    def _finished(self, predictions: Path) -> bool:
        """Tell whether there is a prediction for every example."""
        self.datamodule.prepare_data()
        return len(PredictionFile(predictions).records()) >= len(self.datamodule.examples(self.split))

    def _warm_up(self) -> None:
        limit, file = getattr(self.trainer, self.limit), self.model.predictions
        setattr(self.trainer, self.limit, 1)
        self.model.predictions = None
        try:
            self._run(FullDepth())
        finally:
            setattr(self.trainer, self.limit, limit)
            self.model.predictions = file
        self._warm = True

    def _run(self, strategy: SkipStrategy) -> dict[str, float]:
        """Decode under a strategy, from the same random state each time; return what it logs."""
        run = self.trainer.validate if self.split == "validation" else self.trainer.test
        callbacks = self.trainer.callbacks
        callbacks.append(strategy)
        try:
            with isolate_rng():
                (logged,) = run(self.model, datamodule=self.datamodule, verbose=False)
        finally:
            callbacks.remove(strategy)
        return dict(logged)


def strategy_result(
    model: DecodeModule, strategy: SkipStrategy, logged: dict[str, float], predictions: Path
) -> StrategyResult:
    """Return what a finished `validate` or `test` gave; texts and their cost are read back from their file.

    Args:
        model: Which decoded.
        strategy: Under which it did.
        logged: The figures that it logged.
        predictions: The file that it wrote.
    """
    records = PredictionFile(predictions).records()
    efficiency = _efficiency(records)
    scores = {name.partition("/")[2]: value for name, value in logged.items()}
    return StrategyResult(
        name=repr(strategy),
        strategy=strategy.config(),
        num_layers=decoder_parts(model.model).num_layers,
        scores={name: value for name, value in scores.items() if name not in efficiency},
        efficiency=efficiency,
        examples=records,
        is_oracle=strategy.is_oracle,
    )


def baseline_first(strategies: Sequence[SkipStrategy]) -> list[SkipStrategy]:
    """Return the strategies with FullDepth first, added where it is missing.

    Raises:
        UserError: A strategy is listed twice.
    """
    names = [repr(strategy) for strategy in strategies]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} is listed {names.count(name)} times: expected each strategy once.")
    others = [strategy for strategy in strategies if not isinstance(strategy, FullDepth)]
    return [FullDepth(), *others]


def prediction_files(folder: Path, strategies: Sequence[SkipStrategy] | None = None) -> list[Path]:
    """Return the files of predictions that a run writes into its folder.

    Args:
        folder: Of the run.
        strategies: Those of a comparison or calibration, each with a file of its own; None for any other run.
    """
    if strategies is None:
        return [folder / "predictions.jsonl"]
    names = [_file_name(repr(strategy)) for strategy in baseline_first(strategies)]
    return [folder / "predictions" / f"{number:02}_{name}.jsonl" for number, name in enumerate(names, start=1)]


def prediction_file(folder: Path, strategy: SkipStrategy) -> Path:
    """Return the file of predictions of one of the strategies of a run whose order is not known beforehand."""
    return folder / "predictions" / f"{_file_name(repr(strategy))}.jsonl"


def _file_name(text: str) -> str:
    """Return the text with an underscore for each run of characters that a file name should not have."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("_")


def _efficiency(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Compute depth and speed from prediction records: of all processes, here in one."""
    efficiency = Efficiency(sync_on_compute=False)  # the records of all processes; not every process may be here
    for cost in batch_costs(records):
        efficiency.update(**cost)
    return {name: float(value) for name, value in efficiency.compute().items()}
