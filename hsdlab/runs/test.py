"""Test: decode a split under one strategy, and write its figures, its texts and its TensorBoard run."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

from lightning.pytorch import Trainer

from hsdlab.data import GenerationDataModule
from hsdlab.errors import UserError
from hsdlab.modules import DecodeModule
from hsdlab.records.comparison import Comparison, compare_results
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.records.run_folder import METRICS_FILE, RESULT_FILE, prediction_file, write_json
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting import tensorboard
from hsdlab.runs.folder import holding_folder
from hsdlab.runs.strategies import Split, StrategyRuns, check_strategies
from hsdlab.strategies import SkipStrategy


@holding_folder
def test(
    trainer: Trainer,
    module: DecodeModule,
    datamodule: GenerationDataModule,
    strategy: SkipStrategy,
    folder: str | Path,
    *,
    split: Split = "test",
    run: RunInfo | None = None,
) -> StrategyResult:
    """Decode a split under one strategy; write its texts, its figures and its TensorBoard run.

    Args:
        trainer: Runs the module; its callbacks hold no strategy.
        module: Holds the loaded model. If its `resume` is set, what the prediction file holds is not decoded again.
        datamodule: Gives the split.
        strategy: The strategy.
        folder: Folder for predictions.jsonl, result.json, metrics.json and the TensorBoard run. A missing folder is
            created.
        split: "test" or "validation".
        run: Provenance for the record. None notes it now.

    Returns:
        Scores, cost and the records of all examples.

    Raises:
        UserError: `strategy` is no strategy, or `split` no split.
    """
    check_strategies([strategy])
    if split not in get_args(Split):
        raise UserError(f"split={split!r}: expected one of {', '.join(get_args(Split))}.")
    folder = Path(folder)
    runs = StrategyRuns(trainer, module, datamodule, split, warms_up=False)
    result = replace(
        runs.result(strategy, prediction_file(folder)), run=run or run_info(generation=module.generation().record())
    )
    if trainer.is_global_zero:
        prefix = {"validation": "val", "test": "test"}[split]
        write_json(folder / METRICS_FILE, {f"{prefix}/{name}": value for name, value in result.figures().items()})
        write_result(result, folder)
    return result


def write_result(result: StrategyResult, folder: Path) -> Comparison:
    """Write result.json, and the run of TensorBoard that `compare` would write for the strategy.

    Args:
        result: With the records of its examples. Without a `run`, provenance is noted now.
        folder: A missing folder is created.

    Returns:
        A comparison of this one strategy, for a table.
    """
    result.without_examples().write(folder / RESULT_FILE)
    comparison = compare_results([result], result.run or run_info())
    (row,) = comparison.rows
    events = folder / tensorboard.FOLDER / tensorboard.run_name(row, numbered=False)
    tensorboard.write_strategy(comparison, row, result, events)
    return comparison
