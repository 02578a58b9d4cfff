"""What `calibrate` refuses before anything is decoded, and the losses that it makes of decoded texts."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console

from hsdlab.calibration import (
    BoundName,
    LossName,
    bounded,
    check_levels,
    exact_match,
    risk_losses,
    smallest_sample,
    textual_losses,
)
from hsdlab.errors import UserError
from hsdlab.metrics.bertscore import BERTSCORE_KEYS
from hsdlab.metrics.rouge import ROUGE_KEYS
from hsdlab.modules import DecodeModule
from hsdlab.reporting import StrategyResult
from hsdlab.runs.strategies import StrategyRuns, baseline_first
from hsdlab.strategies import SkipStrategy

EXACT_MATCH = "exact_match"
COMPUTED_BY = {**dict.fromkeys(ROUGE_KEYS, "rouge"), **dict.fromkeys(BERTSCORE_KEYS, "bertscore")}
"""The metrics that score each example by itself, and which of DecodeModule's `metrics` computes them."""


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
        strategies: The settings, safest first; FullDepth among them does not count.
        tolerance: δ.
        error: ε.
        bound: Name of the p-value.
        metric: A per-example metric.
        computed: Names of the metrics that DecodeModule computes.
        examples: Ids of those for calibration.
        batch_size: Prompts per batch.

    Raises:
        UserError: In the words of the options.
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


def check_computed(metric: str, by: str, computed: Collection[str]) -> None:
    """Refuse a metric that the run does not compute."""
    if by not in computed:
        raise UserError(f"metric={metric} is computed by {by}, which is not in model.metrics=[{', '.join(computed)}].")


def check_ids(examples: Sequence[str], what: str) -> None:
    """Refuse examples of one id."""
    if len(set(examples)) < len(examples):
        (twice, number), *_ = Counter(examples).most_common(1)
        raise UserError(f"{number} {what} examples have the id {twice!r}; expected each to have its own.")


def decoded_losses(
    runs: StrategyRuns,
    settings: Sequence[SkipStrategy],
    files: Sequence[Path],
    full: StrategyResult,
    loss: LossName,
    metric: str,
    console: Console,
) -> Iterator[tuple[StrategyResult, list[float]]]:
    """Decode under each setting when it is asked for, and yield what it gave with the loss of each example.

    Args:
        runs: Decodes the calibration examples.
        settings: In order.
        files: The prediction file of each.
        full: What full depth gave.
        loss: See `example_losses`.
        metric: A per-example metric.
        console: Where to say what is decoded.
    """
    for number, (setting, predictions) in enumerate(zip(settings, files, strict=True), start=1):
        console.print(f"Setting {number} of {len(settings)}: {setting!r}", highlight=False)
        result = runs.result(setting, predictions)
        losses = example_losses(runs.model, loss, metric, full, result) if runs.trainer.is_global_zero else []
        yield result, runs.trainer.strategy.broadcast(losses)  # all processes stop at the same setting


def example_losses(
    model: DecodeModule, loss: LossName, metric: str, full: StrategyResult, result: StrategyResult
) -> list[float]:
    """Return the loss of each example, in the order of the data, 0 to 1.

    Args:
        model: Whose metrics score.
        loss: "risk", out of the scores that the records hold; "textual", with full depth's text as the reference.
        metric: A per-example metric.
        full: What full depth gave.
        result: What a setting gave for the same examples in the same order.
    """
    texts, full_texts = ([record["prediction"] for record in each.examples] for each in (result, full))
    if loss == "textual":
        return textual_losses(texts, full_texts, lambda *pair: _scores(model, metric, *pair))
    return risk_losses(_recorded(metric, result), _recorded(metric, full))


def _scores(model: DecodeModule, metric: str, predictions: list[str], references: list[list[str]]) -> list[float]:
    if metric == EXACT_MATCH:
        return exact_match(predictions, references)
    scorer = model.text_metrics()[COMPUTED_BY[metric]]
    return [bounded(score[metric]) for score in scorer.score(predictions, references)]


def _recorded(metric: str, result: StrategyResult) -> list[float]:
    if metric == EXACT_MATCH:
        records = result.examples
        return exact_match([each["prediction"] for each in records], [each["references"] for each in records])
    return [bounded(record["scores"][metric]) for record in result.examples]
