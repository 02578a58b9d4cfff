"""Report: draw the tables, pictures and TensorBoard events of finished runs anew, from what they wrote alone.

No model and no data is loaded. Several runs, of a plain and a skip-aware model, say, make one comparison.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from hsdlab.costs import Cost
from hsdlab.errors import RunError, UserError
from hsdlab.program import TRAIN_SCRIPT, typed
from hsdlab.reasons import reason
from hsdlab.records.bench import BenchResult
from hsdlab.records.calibration import CalibrationResult
from hsdlab.records.comparison import Comparison, ComparisonRow, compare_results
from hsdlab.records.document import Document, kind_of
from hsdlab.records.draft_tuning import DraftTuningResult
from hsdlab.records.example import ExampleRecord, batch_costs
from hsdlab.records.exit_quality import ExitQuality
from hsdlab.records.inspection import InspectionResult
from hsdlab.records.manifest import Manifest
from hsdlab.records.predictions import PredictionFile
from hsdlab.records.provenance import run_info
from hsdlab.records.run_folder import RESULT_FILE, RUN_FILE, held, prediction_file
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.records.tuning import TuningResult
from hsdlab.reporting import (
    bench,
    calibration,
    comparison,
    draft_tuning,
    exit_quality,
    inspection,
    tensorboard,
    tuning,
)
from hsdlab.reporting.tables import console


def report(
    runs: Mapping[str, str | Path] | Sequence[str | Path] | str | Path, output: str | Path | None = None
) -> Document:
    """Draw the report of a finished run anew in its folder; or one comparison of several runs.

    Args:
        runs: The folder of a run, or several folders, or a mapping from names in the tables to folders. Several runs
            must be of `test` or `compare` over the same examples.
        output: Folder for the comparison of several runs. With None, the one run is drawn in its own folder.

    Returns:
        The record that was drawn.

    Raises:
        UserError: No folder is given, or several without an output or of other kinds of runs.
        RunError: A folder holds no finished run, or one that cannot be read.
    """
    if isinstance(runs, Mapping):
        named = {name: Path(folder) for name, folder in runs.items()}
    else:
        named = _named([Path(each) for each in ([runs] if isinstance(runs, str | Path) else runs)])
    output = None if output is None else Path(output)
    if not named:
        raise UserError(f"Got no run folder to report. Give one or more: {typed('report')} RUN …")
    try:
        if len(named) == 1 and output is None:
            return _redraw(next(iter(named.values())))
        return _joined(named, output)
    except (UserError, OSError):
        raise
    except Exception as error:  # records that are whole, each by itself, and do not belong together
        raise RunError(
            f"the records in {' and '.join(map(str, named.values()))} cannot be drawn ({reason(error)}): they do not "
            "belong together. Was a file changed by hand? Run the command that wrote them again."
        ) from error


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by their names; by as much of their paths as tells them apart."""
    if len({folder.absolute() for folder in folders}) < len(folders):
        raise UserError(f"Got a run folder twice: {', '.join(map(str, folders))}. Expected each once.")
    depth = 1
    while len({folder.absolute().parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return {"/".join(folder.absolute().parts[-depth:]): folder for folder in folders}


def _redraw(folder: Path) -> Document:
    """Draw what the folder holds."""
    terminal = console()
    for name, draw in DRAWN.items():
        if (folder / name).is_file():
            with held(folder):
                record = draw(folder, terminal)
            terminal.print(f"Drawn again in {folder}.", highlight=False, soft_wrap=True)
            return record
    raise RunError(
        f"{folder} holds no finished run: expected one of {', '.join(DRAWN)}. `{typed('report')}` takes the output "
        "folders of test, validate, compare, calibrate, tune, bench and inspect, and of "
        f"`{typed('fit_exit_classifier', TRAIN_SCRIPT)}` and `{typed('fit_exit_router', TRAIN_SCRIPT)}`."
    )


def _draw_comparison(folder: Path, terminal: Console) -> Comparison:
    results = results_of(folder)
    before = Comparison.read(folder / comparison.FILE)
    in_turn = any(row.speed_up_interval is not None for row in before.rows)
    found = compare_results(results, before.run, in_turn=in_turn)
    pictures = comparison.write_comparison(found, results, folder)
    tensorboard.write_runs(found, results, pictures, folder / tensorboard.FOLDER)
    comparison.print_comparison(found, terminal)
    return found


def _draw_result(folder: Path, terminal: Console) -> StrategyResult:
    (result,) = results_of(folder)
    found = compare_results([result], result.run or run_info())
    (row,) = found.rows
    events = folder / tensorboard.FOLDER
    tensorboard.remove_events(events)
    tensorboard.write_strategy(found, row, result, events / tensorboard.run_name(row, numbered=False))
    comparison.print_comparison(found, terminal)
    return result


def _drawing(
    record: type[Document],
    file: str,
    write: Callable[[Any, Path], object],
    show: Callable[[Any, Console], None],
) -> Callable[[Path, Console], Document]:
    """Return what draws a record that holds all that its report shows."""

    def draw(folder: Path, terminal: Console) -> Document:
        found = record.read(folder / file)
        write(found, folder)
        show(found, terminal)
        return found

    return draw


_draw_settings = _drawing(TuningResult, tuning.FILE, tuning.write_tuning, tuning.print_tuning)
_draw_drafts = _drawing(
    DraftTuningResult, draft_tuning.FILE, draft_tuning.write_draft_tuning, draft_tuning.print_draft_tuning
)


def _draw_tuning(folder: Path, terminal: Console) -> Document:
    """Draw a tuning; one of drafts has a file of the same name."""
    drafts = kind_of(folder / tuning.FILE) == DraftTuningResult.kind
    return (_draw_drafts if drafts else _draw_settings)(folder, terminal)


DRAWN: dict[str, Callable[[Path, Console], Document]] = {
    comparison.FILE: _draw_comparison,
    RESULT_FILE: _draw_result,
    tuning.FILE: _draw_tuning,
    **{
        file: _drawing(record, file, write, show)
        for record, file, write, show in (
            (CalibrationResult, calibration.FILE, calibration.write_calibration, calibration.print_calibration),
            (BenchResult, bench.FILE, bench.write_bench, bench.print_bench),
            (InspectionResult, inspection.FILE, inspection.write_inspection, inspection.print_inspection),
        )
    },
    **{
        file: _drawing(ExitQuality, file, exit_quality.write_exit_quality, exit_quality.print_exit_quality)
        for file in exit_quality.FILES
    },
}
"""The file by which each kind of run is known, and what draws it."""


def _joined(named: Mapping[str, Path], output: Path | None) -> Comparison:
    """Compare all strategies of several runs, the first run's full depth being the baseline."""
    if output is None:
        raise UserError("Several runs make a comparison of their own: give the folder for it with --output.")
    _check_output(output, named.values())
    results, names = [], []
    for name, folder in named.items():
        for result in results_of(folder):
            results.append(result)
            names.append(name)
    run = run_info(config={"runs": {name: str(folder) for name, folder in named.items()}}, subcommand="report")
    found = compare_results(results, run, names)
    with held(output):
        pictures = comparison.write_comparison(found, results, output)
        tensorboard.write_runs(found, results, pictures, output / tensorboard.FOLDER)
    terminal = console()
    comparison.print_comparison(found, terminal)
    drawn = comparison.pictures_in_words(pictures)
    text = f"In {output}: the tables in comparison.md and .json, the pictures in {drawn}. "
    text += f"Side by side in TensorBoard: {tensorboard.command(output / tensorboard.FOLDER)}"
    terminal.print(text, highlight=False, soft_wrap=True)
    return found


def _check_output(output: Path, folders: Iterable[Path]) -> None:
    """Refuse a folder with results of a run, or with files that no report wrote: they would be replaced.

    Raises:
        FileExistsError: Naming it.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"--output={output} is a file; expected a folder.")
    is_of_a_run = (output / RUN_FILE).exists() or any(output.resolve() == folder.resolve() for folder in folders)
    is_filled = output.is_dir() and any(output.iterdir())
    if is_of_a_run or (is_filled and not Manifest(output).exists):
        raise FileExistsError(
            f"--output={output} holds {'a run' if is_of_a_run else 'files that no report wrote'}, which the comparison "
            "would replace in part. Give a new folder."
        )


def results_of(folder: Path) -> list[StrategyResult]:
    """Read what the strategies of a `test` or `compare` run gave, with their examples.

    Args:
        folder: Of the finished run.

    Returns:
        One result for each strategy, in the order of the run.

    Raises:
        RunError: The folder holds no finished run of the two, or a part of what was decoded is missing.
    """
    if (folder / comparison.FILE).is_file():
        return [_result(folder, row) for row in Comparison.read(folder / comparison.FILE).rows]
    if (folder / RESULT_FILE).is_file():
        result = StrategyResult.read(folder / RESULT_FILE)
        return [replace(result, examples=_examples(prediction_file(folder), result.cost))]
    raise RunError(f"{folder} holds no finished `test` or `compare` run: it has no {comparison.FILE} or {RESULT_FILE}.")


def _result(folder: Path, row: ComparisonRow) -> StrategyResult:
    """Return what a strategy of a comparison gave."""
    examples = _examples(prediction_file(folder, row.name, row.number), row.cost)
    return StrategyResult(
        name=row.name,
        strategy=row.strategy,
        num_layers=row.num_layers,
        scores={name: figure.value for name, figure in row.quality.items() if not math.isnan(figure.value)},
        cost=sum(batch_costs(examples), Cost()),
        examples=examples,
        is_oracle=row.is_oracle,
        resolved=row.resolved,
    )


def _examples(file: Path, cost: Cost | None) -> tuple[ExampleRecord, ...]:
    """Read what was decoded; refuse a file that does not hold all of it.

    Args:
        file: Of the predictions.
        cost: Of all of them, as the run noted it; None where a version before did not.
    """
    if not file.is_file():
        raise RunError(f"{file} is missing: the report needs what was decoded. Was the folder moved in part?")
    records = PredictionFile(file).records()
    found = sum(batch_costs(records), Cost())
    if cost is not None and (found.new_tokens, found.decode_steps) != (cost.new_tokens, cost.decode_steps):
        raise RunError(
            f"{file} holds {found.new_tokens} new tokens of {len(records)} examples, and the run's figures are of "
            f"{cost.new_tokens}: a part of it is missing. Run the command again, which decodes what is missing."
        )
    return tuple(records)
