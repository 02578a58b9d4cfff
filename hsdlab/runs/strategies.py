"""One strategy after the other over the same split: what `compare`, `calibrate` and `tune` share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from hsdlab.costs import Cost
from hsdlab.data import GenerationDataModule
from hsdlab.decoding.families import decoder_parts
from hsdlab.errors import RunError, UserError
from hsdlab.modules import DecodeModule
from hsdlab.records.example import ExampleRecord, batch_costs
from hsdlab.records.predictions import PredictionFile
from hsdlab.records.run_folder import prediction_file
from hsdlab.records.strategy import StrategyConfig
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.strategies import FullDepth, SkipStrategy

Split = Literal["validation", "test"]


class StrategyRuns:
    """Decodes a split under strategies, each into a prediction file of its own.

    Before the first batch that is decoded, one is decoded at full depth without a trace of it, so that the first
    strategy does not pay for cold caches. If `model.resume` is set, what a file holds is not decoded again.

    Args:
        trainer: Runs the module; its callbacks hold no strategy.
        module: Holds the loaded model.
        datamodule: Gives the split.
        split: "validation" or "test".
        warms_up: Whether to decode a batch before the first one that is timed.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: DecodeModule,
        datamodule: GenerationDataModule,
        split: Split,
        warms_up: bool = True,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.datamodule = datamodule
        self.split = split
        self.limit = {"validation": "limit_val_batches", "test": "limit_test_batches"}[split]
        self._warm = not warms_up

    def result(self, strategy: SkipStrategy, predictions: Path) -> StrategyResult:
        """Decode the split under one strategy.

        Args:
            strategy: The strategy.
            predictions: The file to write. With `module.resume`, batches that it holds are not decoded again.

        Returns:
            Scores, cost and the records of all examples, of all processes.

        Raises:
            RunError: Nothing was decoded.
        """
        self.warm_up([predictions])
        self.module.predictions = str(predictions)
        return strategy_result(self.module, strategy, self._run(strategy), predictions)

    def warm_up(self, files: Sequence[Path]) -> None:
        """Decode a batch at full depth without a trace of it; a second call does nothing.

        Args:
            files: Of predictions. Where a single process resumes and each holds every example, nothing is decoded.
        """
        if self._warm or (
            self.trainer.world_size == 1 and self.module.resume and all(self._finished(file) for file in files)
        ):
            return
        limit, file = getattr(self.trainer, self.limit), self.module.predictions
        setattr(self.trainer, self.limit, 1)
        self.module.predictions = None
        try:
            self._run(FullDepth())
        finally:
            setattr(self.trainer, self.limit, limit)
            self.module.predictions = file
        self._warm = True

    def _finished(self, predictions: Path) -> bool:
        """Tell whether there is a prediction for every example."""
        self.datamodule.prepare_data()
        return len(PredictionFile(predictions).records()) >= len(self.datamodule.examples(self.split))

    def _run(self, strategy: SkipStrategy) -> dict[str, float]:
        """Decode under a strategy, from the same random state each time; return what it logs."""
        callbacks = self.trainer.callbacks
        callbacks.append(strategy)
        try:
            with isolate_rng():
                (logged,) = self.run_split(self.module)
        finally:
            callbacks.remove(strategy)
        return dict(logged)

    def run_split(self, module: LightningModule) -> Any:
        """Run a module over the split.

        Args:
            module: The module, or one that decodes with it.

        Returns:
            What `validate` or `test` of the Trainer returns.
        """
        run = self.trainer.validate if self.split == "validation" else self.trainer.test
        return run(module, datamodule=self.datamodule, verbose=False)


def strategy_result(
    module: DecodeModule, strategy: SkipStrategy, logged: Mapping[str, float], predictions: Path
) -> StrategyResult:
    """Make the result of a finished `validate` or `test`.

    Args:
        module: Only the number of its layers is used.
        strategy: The strategy of the run.
        logged: The figures that the run logged, such as "test/rougeL".
        predictions: The file that the run wrote. Texts and their cost are read from it.

    Returns:
        The scores without their prefix, the cost, and the records of all examples.

    Raises:
        RunError: The file holds no prediction.
    """
    records = PredictionFile(predictions).records()  # of all processes; not every process may be here
    if not records:
        raise RunError(f"{predictions} holds no prediction: nothing was decoded. Look at --trainer.limit_…_batches.")
    scores = {name.partition("/")[2]: value for name, value in logged.items()}
    return result_of(module, strategy, scores, records)


def result_of(
    module: DecodeModule, strategy: SkipStrategy, scores: Mapping[str, float], records: Sequence[ExampleRecord]
) -> StrategyResult:
    """Return what a strategy gave, from its examples.

    Args:
        module: Which decoded.
        strategy: Under which it did.
        scores: Corpus figures by name; figures of the cost among them are left out, for the records hold the cost.
        records: Of the examples, whole batches.

    Returns:
        The result with its examples.
    """
    cost = sum(batch_costs(records), Cost())
    figures = cost.figures()
    return StrategyResult(
        name=repr(strategy),
        resolved=repr(strategy.resolved(decoder_parts(module.model).num_layers)),
        strategy=StrategyConfig.of(strategy.config()),
        num_layers=decoder_parts(module.model).num_layers,
        scores={name: value for name, value in scores.items() if name not in figures},
        cost=cost,
        examples=tuple(records),
        is_oracle=strategy.is_oracle,
    )


def check_strategies(strategies: object) -> None:
    """Refuse a list that holds something other than strategies: their names or classes, for example.

    Args:
        strategies: Expected to be a sequence of strategy objects.

    Raises:
        UserError: It is not; the message shows the value.
    """
    if isinstance(strategies, str) or not isinstance(strategies, Sequence):
        raise UserError(f"strategies={strategies!r}: expected a list of strategies, such as [HSD(), CALM()].")
    for strategy in strategies:
        if not isinstance(strategy, SkipStrategy):
            raise UserError(f"strategies holds {strategy!r}; expected objects such as HSD().")


def check_fit(module: DecodeModule, strategies: Sequence[SkipStrategy]) -> None:
    """Refuse strategies that do not fit the model, before anything is decoded.

    Args:
        module: Gives the model, and T as its max_new_tokens.
        strategies: Each is applied to the model once, without a decode.

    Raises:
        UserError: The first strategy that does not fit says why.
    """
    for strategy in strategies:
        with strategy.applied_to(module.model, max_new_tokens=module.max_new_tokens):
            pass


def baseline_first(strategies: Sequence[SkipStrategy]) -> list[SkipStrategy]:
    """Put FullDepth first.

    Args:
        strategies: In any order, with or without FullDepth.

    Returns:
        FullDepth, then the others in their order.

    Raises:
        UserError: A strategy is listed twice, or something is no strategy.
    """
    check_strategies(strategies)
    names = [repr(strategy) for strategy in strategies]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} is listed {names.count(name)} times: expected each strategy once.")
    others = [strategy for strategy in strategies if not isinstance(strategy, FullDepth)]
    return [FullDepth(), *others]


def prediction_files(folder: Path, strategies: Sequence[SkipStrategy]) -> list[Path]:
    """Name the prediction files of a comparison or calibration.

    Args:
        folder: Folder of the run.
        strategies: As for `baseline_first`.

    Returns:
        One file for each strategy in the order of `baseline_first`, so FullDepth's first.
    """
    ordered = baseline_first(strategies)
    return [prediction_file(folder, repr(strategy), number) for number, strategy in enumerate(ordered, start=1)]
