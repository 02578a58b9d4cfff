"""Calibrate: find the last setting in a list whose loss stays within a tolerance, with a guarantee."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from hsdlab.calibration import (
    BoundName,
    Calibration,
    LossName,
    bounded,
    check_levels,
    exact_match,
    fixed_sequence,
    risk_losses,
    smallest_sample,
    textual_losses,
)
from hsdlab.data import GenerationDataModule
from hsdlab.errors import UserError
from hsdlab.modules import DecodeModule
from hsdlab.records.calibration import CalibrationResult, CalibrationTest
from hsdlab.records.comparison import compare_results
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.calibration import print_calibration, write_calibration
from hsdlab.reporting.tables import console
from hsdlab.runs.checks import COMPUTED_BY, EXACT_MATCH, check_computed, check_ids
from hsdlab.runs.folder import holding_folder
from hsdlab.runs.strategies import StrategyRuns, baseline_first, prediction_files
from hsdlab.strategies import SkipStrategy


@holding_folder
def calibrate(
    trainer: Trainer,
    module: DecodeModule,
    datamodule: GenerationDataModule,
    strategies: Sequence[SkipStrategy],
    folder: str | Path,
    *,
    tolerance: float = 0.05,
    error: float = 0.05,
    loss: LossName = "risk",
    metric: str = "rougeL",
    bound: BoundName = "hoeffding_bentkus",
    run: RunInfo | None = None,
) -> CalibrationResult:
    """Find the last setting in a list whose loss against full depth stays within a tolerance, with a guarantee.

    Decodes the validation split at full depth and then under one setting after the other. The first that is not shown
    to be within the tolerance ends it, and later ones are not decoded. The report (calibration.md, calibration.json,
    calibration.png) is written anew after each setting, predictions after each batch: a run that is cut short leaves
    what it has, and goes on with it if `module.resume` is set.

    Args:
        trainer: Runs the module; its callbacks hold no strategy.
        module: Holds the loaded model.
        datamodule: Its validation split is decoded.
        strategies: The settings in order, the safest first, of any classes. FullDepth, the reference, is run in any
            case.
        folder: Folder of the report and the predictions. A missing folder is created.
        tolerance: Accepted mean loss against full depth (δ), between 0 and 1.
        error: Probability that the guarantee fails (ε), between 0 and 1.
        loss: "risk", how much worse an example scores against its references; "textual", 1 - the score of its
            text with full depth's as the reference.
        metric: rouge1, rouge2, rougeL, bertscore_precision, bertscore_recall, bertscore_f1 or exact_match.
        bound: The p-value: "hoeffding_bentkus", "hoeffding", or "binomial" for exact_match.
        run: Provenance for the record. None notes it now.

    Returns:
        All tests; its `chosen` is the setting, or full depth where none passed.

    Raises:
        UserError: An option out of its range; a metric without a score for each example; settings that are no
            strategies, are oracles, are listed twice, or decode a sequence differently in a batch than alone; two
            examples of one id.
        RuntimeError: No setting was tested, which is an error in hsdlab.
    """
    folder, run = Path(folder), run or run_info(generation=module.generation().record())
    reference, *settings = baseline_first(strategies)
    datamodule.prepare_data()
    check_calibration(
        strategies,
        tolerance=tolerance,
        error=error,
        bound=bound,
        metric=metric,
        computed=list(module.text_metrics()),
        examples=[example.id for example in datamodule.examples("validation")],
        batch_size=datamodule.batch_size,
    )
    files = prediction_files(folder, strategies)
    runs = StrategyRuns(trainer, module, datamodule, "validation")
    terminal = console(quiet=not trainer.is_global_zero)
    terminal.print(f"Reference: {reference!r}", highlight=False)
    full = runs.result(reference, files[0])
    names = tuple(repr(setting) for setting in settings)

    def losses() -> Iterator[tuple[StrategyResult, list[float]]]:
        """Decode under each setting when it is asked for."""
        for number, (setting, predictions) in enumerate(zip(settings, files[1:], strict=True), start=1):
            terminal.print(f"Setting {number} of {len(settings)}: {setting!r}", highlight=False)
            result = runs.result(setting, predictions)
            found = example_losses(module, loss, metric, full, result) if trainer.is_global_zero else []
            yield result, trainer.strategy.broadcast(found)  # all processes stop at the same setting

    found: CalibrationResult | None = None
    try:
        for calibration in fixed_sequence(losses(), tolerance=tolerance, error=error, bound=bound):
            found = _result(calibration, full, names, loss, metric, run)
            if trainer.is_global_zero:
                write_calibration(found, folder)
    finally:
        if found is not None and trainer.is_global_zero:
            print_calibration(found, terminal)
    if found is None:
        raise RuntimeError("The first setting is always tested, and it was not.")
    return found


def _result(
    calibration: Calibration[StrategyResult],
    full: StrategyResult,
    names: tuple[str, ...],
    loss: str,
    metric: str,
    run: RunInfo,
) -> CalibrationResult:
    """Return the record of a calibration as far as it has come."""
    return CalibrationResult(
        run=run,
        tolerance=calibration.tolerance,
        error=calibration.error,
        bound=calibration.bound,
        loss=loss,
        metric=metric,
        settings=names,
        example_ids=tuple(example.id for example in full.examples),
        examples_needed=smallest_sample(calibration.bound, calibration.tolerance, calibration.error),
        tests=tuple(
            CalibrationTest(test.losses, test.p_value, calibration.upper_bound(test), test.passed)
            for test in calibration.tests
        ),
        comparison=compare_results([full, *(test.setting for test in calibration.tests)], run),
    )


def check_calibration(
    strategies: Sequence[SkipStrategy],
    *,
    tolerance: float,
    error: float,
    bound: BoundName,
    metric: str,
    computed: Collection[str],
    examples: Sequence[str],
    batch_size: int,
) -> None:
    """Refuse a calibration that could not end well; warn of one that can only end with full depth.

    Args:
        strategies: The settings, safest first. FullDepth among them does not count.
        tolerance: δ, between 0 and 1.
        error: ε, between 0 and 1.
        bound: Name of the p-value. "binomial" is for metric="exact_match" only.
        metric: One with a score for each example.
        computed: Names of the metrics that DecodeModule computes.
        examples: Ids of the calibration examples, each once.
        batch_size: Prompts per batch. Settings with `rows_depend` need 1.

    Raises:
        UserError: One of them does not fit; the message names the option.
    """
    check_levels(tolerance, error, bound)
    settings = baseline_first(strategies)[1:]
    if not settings:
        raise UserError("strategies names no setting besides full depth; expected those to test, the safest first.")
    _check_metric(metric, computed)
    if bound == "binomial" and metric != EXACT_MATCH:
        raise UserError(
            f"bound=binomial is for losses of 0 or 1, and those of metric={metric} lie between: give "
            f"bound=hoeffding_bentkus, or metric={EXACT_MATCH}."
        )
    for setting in settings:
        if setting.is_oracle:
            raise UserError(f"{setting!r} is an oracle, an upper bound for research: there is nothing to choose in it.")
        if setting.rows_depend is not None and batch_size > 1:
            raise UserError(
                f"{setting!r} decodes a row otherwise in a batch than alone ({setting.rows_depend}), so the losses of "
                "a batch depend on each other, and the test needs independent ones: give --data.batch_size=1 (it is "
                f"{batch_size})."
            )
    check_ids(examples, "calibration")
    needed = smallest_sample(bound, tolerance, error)
    if len(examples) < needed:
        rank_zero_warn(
            f"The calibration can only end with full depth: with {len(examples)} examples no setting can pass at "
            f"tolerance={tolerance:g}, error={error:g} and bound={bound}, not even one that loses nothing. {needed} "
            "examples are needed, and more for settings that lose something (--data.limit)."
        )


def _check_metric(metric: str, computed: Collection[str]) -> None:
    known = ", ".join([*COMPUTED_BY, EXACT_MATCH])
    if metric.startswith("bleu"):
        raise UserError(
            f"metric={metric}: BLEU is a figure of a whole corpus, and the guarantee is about the mean of a loss that "
            f"each example has by itself; expected one of {known}."
        )
    if metric != EXACT_MATCH and metric not in COMPUTED_BY:
        raise UserError(f"metric={metric}; expected one of {known}.")
    if metric != EXACT_MATCH:
        check_computed(metric, COMPUTED_BY[metric], computed)


def example_losses(
    module: DecodeModule, loss: LossName, metric: str, full: StrategyResult, result: StrategyResult
) -> list[float]:
    """Compute the loss of each example under a setting.

    Args:
        module: Its metrics score the texts for "textual".
        loss: "risk", from the scores in the records; "textual", with full depth's text as the reference.
        metric: One with a score for each example.
        full: The result of full depth.
        result: The result of the setting for the same examples in the same order.

    Returns:
        One loss for each example, 0 to 1, in the order of the data.
    """
    texts, full_texts = ([record.prediction for record in each.examples] for each in (result, full))
    if loss == "textual":
        return textual_losses(texts, full_texts, lambda *pair: _scores(module, metric, *pair))
    return risk_losses(_recorded(metric, result), _recorded(metric, full))


def _scores(module: DecodeModule, metric: str, predictions: list[str], references: list[list[str]]) -> list[float]:
    if metric == EXACT_MATCH:
        return exact_match(predictions, references)
    scorer = module.text_metrics()[COMPUTED_BY[metric]]
    return [bounded(score[metric]) for score in scorer.score(predictions, references)]


def _recorded(metric: str, result: StrategyResult) -> list[float]:
    if metric == EXACT_MATCH:
        records = result.examples
        return exact_match([each.prediction for each in records], [list(each.references) for each in records])
    return [bounded(record.scores[metric]) for record in result.examples]
