"""Compare strategies: decode the test split under each, and set quality against cost."""

import time
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from hsdlab.data import GenerationDataModule
from hsdlab.modules import DecodeModule
from hsdlab.progress import part
from hsdlab.records.comparison import Comparison, compare_results
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting import tensorboard
from hsdlab.reporting.comparison import print_comparison, write_comparison
from hsdlab.reporting.tables import console
from hsdlab.runs.folder import holding_folder
from hsdlab.runs.strategies import StrategyRuns, baseline_first, check_fit, prediction_files
from hsdlab.strategies import SkipStrategy


@holding_folder
def compare(
    trainer: Trainer,
    module: DecodeModule,
    datamodule: GenerationDataModule,
    strategies: Sequence[SkipStrategy],
    folder: str | Path,
    *,
    run: RunInfo | None = None,
) -> Comparison:
    """Decode the test split under each strategy; write and print quality against cost.

    The baseline, FullDepth, is run first, and added if it is not listed. The report (comparison.md, comparison.json,
    pareto.png, depth.png, TensorBoard's runs) is written anew after each strategy, predictions after each batch: when a
    run is cut short, by Ctrl-C or an error, what has finished stays and its table is printed. If `module.resume` is
    set, what the prediction files hold is not decoded again.

    Args:
        trainer: Runs the module; its callbacks hold no strategy.
        module: Holds the loaded model.
        datamodule: Its test split is decoded.
        strategies: The strategies to compare, each once.
        folder: Folder of the report and the predictions. A missing folder is created.
        run: Provenance for the records. None notes it now.

    Returns:
        The comparison of all strategies.

    Raises:
        UserError: A strategy is listed twice, or does not fit the model.

    Example::

        trainer = Trainer(logger=False, enable_checkpointing=False)
        comparison = compare(trainer, DecodeModule(*load_model("gpt2")), Docstrings(limit=32), [HSD()], "runs/mine")
        print(comparison.rows[1].percent_of_baseline["rougeL"], comparison.rows[1].average_layers)
    """
    folder, run = Path(folder), run or run_info(generation=module.generation().record())
    ordered, files = baseline_first(strategies), prediction_files(folder, strategies)
    check_fit(module, ordered)
    runs = StrategyRuns(trainer, module, datamodule, "test")
    events = folder / tensorboard.FOLDER
    if trainer.is_global_zero:
        tensorboard.remove_events(events)
    results: list[StrategyResult] = []
    began = time.monotonic()
    terminal = console(quiet=not trainer.is_global_zero)
    try:
        for number, (strategy, predictions) in enumerate(zip(ordered, files, strict=True), start=1):
            terminal.print(f"Strategy {number} of {len(ordered)}: {strategy!r}", highlight=False)
            with part(len(results), len(ordered), "strategy", since=began):
                results.append(runs.result(strategy, predictions))
            comparison = compare_results(results, run)
            if trainer.is_global_zero:
                write_comparison(comparison, results, folder)
                row = comparison.rows[-1]
                tensorboard.write_strategy(comparison, row, results[-1], events / tensorboard.run_name(row))
    finally:
        if results and trainer.is_global_zero:
            print_comparison(comparison, terminal)
            tensorboard.write_comparison(comparison, results, events / tensorboard.COMPARISON_RUN)
            terminal.print(
                f"{len(results)} of {len(ordered)} strategies finished. In {folder}: the tables in "
                "comparison.md and .json, the pictures in pareto.png and depth.png, the texts in predictions/.",
                highlight=False,
            )
            terminal.print(
                f"Side by side in TensorBoard: {tensorboard.command(events)}", highlight=False, soft_wrap=True
            )
    return comparison
