"""Compare strategies: decode the test split under each, and set quality against cost."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console

from hsdlab.data import GenerationDataModule
from hsdlab.modules import DecodeModule
from hsdlab.records.comparison import Comparison, compare_results
from hsdlab.records.predictions import PredictionFile
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.reporting import tensorboard
from hsdlab.reporting.comparison import pictures_in_words, print_comparison, write_comparison
from hsdlab.reporting.tables import console
from hsdlab.runs.folder import holding_folder
from hsdlab.runs.rotation import decode_in_turn, results_in, results_of
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

    The baseline, FullDepth, comes first, and is added if it is not listed. Each batch is decoded under all strategies
    before the next begins, in an order that rotates (:class:`~hsdlab.runs.rotation.Rotation`), so that the machine's
    drift does not enter the speed-up. Predictions are written after each batch and strategy. When a run is cut short,
    by Ctrl-C or an error, they stay, and the table over the batches that all strategies have decoded is printed. If
    `module.resume` is set, what the prediction files hold is not decoded again.

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
        RunError: The data or the Trainer's limits gave no batch.

    Example::

        trainer = Trainer(logger=False, enable_checkpointing=False)
        comparison = compare(trainer, DecodeModule(*load_model("gpt2")), Docstrings(limit=32), [HSD()], "runs/mine")
        print(comparison.rows[1].percent_of_baseline["rougeL"], comparison.rows[1].average_layers)
    """
    folder, run = Path(folder), run or run_info(generation=module.generation().record())
    ordered, files = baseline_first(strategies), prediction_files(folder, strategies)
    check_fit(module, ordered)
    terminal = console(quiet=not trainer.is_global_zero)
    for number, strategy in enumerate(ordered, start=1):
        terminal.print(f"Strategy {number} of {len(ordered)}: {strategy!r}", highlight=False)
    runs = StrategyRuns(trainer, module, datamodule, "test")
    runs.warm_up(files)
    try:
        decode_in_turn(runs, ordered, files)
    except BaseException:
        if trainer.is_global_zero:
            _print_finished(module, ordered, files, run, terminal)
        raise
    results = results_in(runs, ordered, files)
    comparison = compare_results(results, run, in_turn=True)
    if trainer.is_global_zero:
        events = folder / tensorboard.FOLDER
        pictures = write_comparison(comparison, results, folder)
        tensorboard.write_runs(comparison, results, pictures, events)
        print_comparison(comparison, terminal)
        terminal.print(
            f"{len(results)} strategies over {len(results[0].examples)} examples. In {folder}: the tables in "
            f"comparison.md and .json, the pictures in {pictures_in_words(pictures)}, the texts in predictions/.",
            highlight=False,
        )
        terminal.print(f"Side by side in TensorBoard: {tensorboard.command(events)}", highlight=False, soft_wrap=True)
    return comparison


def _print_finished(
    module: DecodeModule,
    strategies: Sequence[SkipStrategy],
    files: Sequence[Path],
    run: RunInfo,
    terminal: Console,
) -> None:
    """Print the comparison over the batches that all strategies which have begun share when a run is cut short."""
    batches = [PredictionFile(file).read() for file in files]
    begun = [(strategy, each) for strategy, each in zip(strategies, batches, strict=True) if each]
    common = sorted(set.intersection(*(set(each) for _, each in begun))) if begun else []
    if common:
        records = [[record for number in common for record in each[number]] for _, each in begun]
        results = results_of(module, [strategy for strategy, _ in begun], records)
        print_comparison(compare_results(results, run, in_turn=True), terminal)
    decoded = sum(map(len, batches))
    terminal.print(
        f"Cut short after {decoded} decodes of a batch. {len(begun)} of {len(strategies)} strategies have begun; the "
        f"table is over the {len(common)} batches that they share. The same command goes on from there.",
        highlight=False,
    )
