"""Demo: two fine-tuned models under the same strategies, side by side, on 48 inputs that come with hsdlab."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Trainer

from hsdlab.data import GenerationDataModule, Restaurants
from hsdlab.modules import DecodeModule, load_decode_module
from hsdlab.progress import part
from hsdlab.records.comparison import Comparison, compare_results
from hsdlab.records.files import replace_file
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.records.run_folder import prediction_file
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.comparison import FILE, write_comparison
from hsdlab.reporting.figures import replace_figure
from hsdlab.reporting.side_by_side import side_by_side_figure, side_by_side_table, side_by_side_terminal
from hsdlab.reporting.tables import console, quality_notes, time_notes
from hsdlab.runs.progress import ShowsProgress
from hsdlab.runs.strategies import StrategyRuns, baseline_first
from hsdlab.strategies import HSD, FullDepth, SkipDecode, SkipStrategy

MODELS = {
    "trained plainly": "embedded:smollm2-135m-e2e",
    "trained to skip": "embedded:smollm2-135m-e2e-skip-aware",
}
"""How the tables name the models -> the models."""

STRATEGIES = (FullDepth(), HSD(2, 0, 8), HSD(1, 0, 18), HSD(2, 0, 12), HSD(3, 0, 4), SkipDecode(10, 20))
FIRST = 2
"""After so many strategies under each model the first table and picture are there."""

MAX_NEW_TOKENS, BATCH_SIZE = 50, 16
TABLE, PICTURE = "table.md", "picture.png"
HOW_TO_READ = """\
100 % is {baseline} at full depth, {layers} layers; [95 % bootstrap intervals over the {examples} examples]. Texts are
decoded greedily, {batch} at a time. Milliseconds are measured on this machine, decode steps only. Layers saved are no
speed-up.
"""


def demo(
    folder: Path,
    models: Mapping[str, str] | None = None,
    strategies: Sequence[SkipStrategy] = STRATEGIES,
    data: GenerationDataModule | None = None,
) -> Comparison:
    """Decode under each strategy with each model in turn; print one table and draw one picture of all.

    Table and picture are there after the first two strategies, and again at the end. What an earlier demo wrote into
    the folder is replaced.

    Args:
        folder: Folder for table.md, picture.png and comparison.json, and a folder with the report of each model.
        models: Models for `load_model`, by their names in the tables. None takes SmolLM2-135M fine-tuned on E2E, once
            trained plainly and once trained to skip.
        strategies: The strategies to run. FullDepth is added if it is missing.
        data: Its test split is decoded. None takes `Restaurants`.

    Returns:
        The comparison of all, whose first model's full depth is the baseline.
    """
    began = time.monotonic()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # which devices there are
    data = Restaurants(batch_size=BATCH_SIZE) if data is None else data
    terminal, ordered, models = console(), baseline_first(strategies), MODELS if models is None else models
    runs = {name: _runs(model, data) for name, model in models.items()}
    run = run_info(config={"models": dict(models), "data": type(data).__name__}, subcommand="demo")
    results: dict[str, list[StrategyResult]] = {name: [] for name in models}
    total = len(ordered) * len(models)
    for number, strategy in enumerate(ordered, start=1):
        for name, decoding in runs.items():
            done = sum(map(len, results.values()))
            terminal.print(f"{done + 1} of {total}: {strategy!r}, the model {name}", highlight=False)
            file = prediction_file(folder / name.replace(" ", "_"), repr(strategy), number)
            with part(done, total, "run", since=began):
                results[name].append(decoding.result(strategy, file))
        if number in (FIRST, len(ordered)):
            found = _report(results, run, folder)
            terminal.print(side_by_side_terminal(found))
            terminal.print(how_to_read(found, data.batch_size), highlight=False, style="dim")
            seconds = time.monotonic() - began
            terminal.print(
                f"After {seconds:.0f} s: the picture is {folder / PICTURE}, the table {folder / TABLE}.",
                highlight=False,
                soft_wrap=True,
            )
    return found


def _runs(model: str, data: GenerationDataModule) -> StrategyRuns:
    module: DecodeModule = load_decode_module(
        model, dtype="bfloat16", max_new_tokens=MAX_NEW_TOKENS, num_beams=1, metrics=["rouge", "bleu"]
    )
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return StrategyRuns(Trainer(**options, devices=1, callbacks=[ShowsProgress()]), module, data, "test")


def _report(results: Mapping[str, Sequence[StrategyResult]], run: RunInfo, folder: Path) -> Comparison:
    """Write the report of each model, then the table and the picture of both."""
    for name, own in results.items():
        write_comparison(compare_results(own, run), own, folder / name.replace(" ", "_"))
    pairs = [(name, result) for name, own in results.items() for result in own]
    found = compare_results([result for _, result in pairs], run, [name for name, _ in pairs])
    found.write(folder / FILE)
    replace_figure(folder / PICTURE, side_by_side_figure(found), dots_per_inch=150)
    page = f"# Side by side\n\n{side_by_side_table(found)}\n\n{how_to_read(found)}\n![The picture]({PICTURE})\n"
    replace_file(folder / TABLE, page)
    return found


def how_to_read(found: Comparison, batch_size: int = BATCH_SIZE) -> str:
    """Say how to read the table.

    Args:
        found: The comparison of all models.
        batch_size: Sequences per batch.

    Returns:
        A few lines. Marks that no row has are not explained.
    """
    first = found.baseline
    text = HOW_TO_READ.format(
        baseline=f"the model {first.run}", layers=first.num_layers, examples=first.examples, batch=batch_size
    )
    return "\n".join([text, *time_notes(found.rows, "the baseline"), *quality_notes(found)])
