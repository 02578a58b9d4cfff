"""A comparison for TensorBoard: a run for each strategy, all with the same tags, and one for them together.

The figures that need a record of the layers are images, since TensorBoard's text plugin strips styles. The
hparams table is filled without `SummaryWriter.add_hparams`, which makes a further run for each call, and
without a list of columns: TensorBoard then finds the parameters and figures of all runs itself, where a list
would hide the parameters that only other strategies have.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.example import ExampleRecord
from hsdlab.records.files import faults_of_writing, replace_file
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.records.manifest import Manifest
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.coloured_text import TextBlock, coloured_text_figure, example_block
from hsdlab.reporting.comparison import comparison_tables
from hsdlab.reporting.depth import depth_figure, shares_run
from hsdlab.reporting.early_exit import deciding_by_token, early_exit_figure
from hsdlab.reporting.figures import Picture, draw
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.tables import number

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
COMPARISON_RUN = "comparison"
EVENT_FILES = "events.out.tfevents.*"
SAMPLES, COLOURED_SAMPLES = 8, 3
MOST_CHARACTERS = 2000  # of a source; a whole article would bury the texts below it
DOTS_PER_INCH = 150  # of the pictures that are in TensorBoard alone
CHANNELS = 4  # red, green, blue and opacity
LONGEST_NAME = 80  # characters of a run's name; file systems end at 255 bytes
LAYOUT = {
    "Quality": {
        "ROUGE": ["Multiline", ["^quality/rouge"]],
        "BLEU": ["Multiline", ["^quality/bleu"]],
        "BERTScore": ["Multiline", ["^quality/bertscore"]],
        "% of the baseline": ["Multiline", ["^percent_of_baseline/"]],
    },
    "Cost": {
        "Layers in each decode step": ["Multiline", ["^depth/layers_in_step$"]],
        "Average and computed layers": ["Multiline", ["^cost/(average|compute)_layers$"]],
        "Milliseconds per decode step": ["Multiline", ["^cost/decode_step_ms$"]],
        "Measured speed-up": ["Multiline", ["^cost/speed_up$"]],
        "FLOPs per token": ["Multiline", ["^cost/flops_per_token$"]],
    },
}
"""Charts of the Custom Scalars tab: regular expressions of tags."""


def command(folder: Path) -> str:
    """Give the command that shows the runs in a folder.

    Args:
        folder: Holds a folder for each TensorBoard run.

    Returns:
        A line for a shell, with the folder quoted where it needs quotes.
    """
    return f"tensorboard --logdir {shlex.quote(str(folder))}"


def run_name(row: ComparisonRow, numbered: bool = True) -> str:
    """Return the name of a strategy's run, which is that of its folder: the label of the tables, "03_HSD(2,0,7)".

    Args:
        row: The strategy.
        numbered: Whether its number comes first. It sorts the runs as the tables are and makes each name unique.

    Returns:
        A name of letters, digits and ``_ . , = + ( ) -`` alone, which every file system takes.
    """
    label = row.label.replace(", ", ",").replace(": ", "_")
    plain = re.sub(r"[^\w.,=+()-]+", "-", label)[:LONGEST_NAME].strip("-.")
    return f"{row.number:02}_{plain}" if numbered else plain or row.class_name


def remove_events(folder: Path) -> None:
    """Remove the event files of an earlier comparison: TensorBoard would mix them with the new ones.

    Args:
        folder: Holds a folder for each TensorBoard run. Files of other names stay, and those that no run of hsdlab
            wrote.
    """
    written = Manifest(folder.parent)
    for file in folder.glob(f"*/{EVENT_FILES}"):
        if not written.exists or written.lists(file.relative_to(folder.parent).as_posix()):
            file.unlink()


def write_strategy(comparison: Comparison, row: ComparisonRow, result: StrategyResult, folder: Path) -> None:
    """Write the run of one strategy anew: figures, hparams, samples, heat map, text coloured by depth.

    Figures relative to a baseline are written only where that is the full depth; what is not a number is left
    out.

    Args:
        comparison: Holds the baseline and the model and data of the run.
        row: One of its rows.
        result: The result of the row, with its examples.
        folder: Folder of this TensorBoard run; its name is the run's.
    """
    from torch.utils.tensorboard.summary import hparams  # slow to import

    with _new_run(folder) as writer:
        for tag, value in scalars(comparison, row).items():
            writer.add_scalar(tag, value, 0)
        for step, shares in enumerate(shares_run(result.examples, result.num_layers)):
            writer.add_scalar("depth/layers_in_step", shares.sum(), step)
        _, start, end = hparams(hyperparameters(comparison, row), {})
        for summary in (start, end):
            writer._get_file_writer().add_summary(summary)
        add_picture(writer, "depth/heat_map", draw(depth_figure([row], [result]), DOTS_PER_INCH))
        chosen = deciding_by_token([row], [result])
        if chosen:
            add_picture(writer, "depth/early_exit", draw(early_exit_figure(chosen), DOTS_PER_INCH))
        samples = result.examples[:COLOURED_SAMPLES]
        blocks = [example_block(each.id, each, result.num_layers, each.source) for each in samples]
        if blocks:
            add_picture(writer, "depth/text", draw(coloured_text_figure(blocks, result.num_layers), DOTS_PER_INCH))
        for index, example in enumerate(result.examples[:SAMPLES], start=1):
            writer.add_text(f"samples/{index}", sample_table(comparison, [(row, example)]), 0)


def write_comparison(
    comparison: Comparison, results: Sequence[StrategyResult], pictures: Mapping[str, Picture], folder: Path
) -> None:
    """Write the run of what shows all strategies anew: tables, pictures, texts side by side, layout.

    Args:
        comparison: Of one strategy or more.
        results: The result of each row, with its examples.
        pictures: Those of the report, by their tags.
        folder: Folder of this TensorBoard run; its name is the run's.
    """
    baseline = results[comparison.baseline.number - 1]
    by_id = [{example.id: example for example in result.examples} for result in results]
    with _new_run(folder) as writer:
        writer.add_custom_scalars(LAYOUT)
        writer.add_text("tables", comparison_tables(comparison), 0)
        for tag, picture in pictures.items():
            add_picture(writer, tag, picture)
        for index, sample in enumerate(baseline.examples[:SAMPLES], start=1):
            texts = [(row, examples[sample.id]) for row, examples in zip(comparison.rows, by_id, strict=True)]
            writer.add_text(f"side_by_side/{index}", sample_table(comparison, texts), 0)
            if index <= COLOURED_SAMPLES:
                blocks = [TextBlock(sample.id, sample.source)]
                blocks += [example_block(f"{row.number} {row.label}", each, row.num_layers) for row, each in texts]
                texts_in_colour = coloured_text_figure(blocks, baseline.num_layers)
                add_picture(writer, f"side_by_side/{index}", draw(texts_in_colour, DOTS_PER_INCH))


def write_runs(
    comparison: Comparison, results: Sequence[StrategyResult], pictures: Mapping[str, Picture], folder: Path
) -> None:
    """Write the run of each strategy anew, and the one of what shows them all.

    Args:
        comparison: Of one strategy or more.
        results: The result of each row, with its examples.
        pictures: Those of the report, by their tags.
        folder: Of all TensorBoard runs. The events of an earlier comparison are removed.
    """
    remove_events(folder)
    for row, result in zip(comparison.rows, results, strict=True):
        write_strategy(comparison, row, result, folder / run_name(row))
    write_comparison(comparison, results, pictures, folder / COMPARISON_RUN)


def add_picture(writer: SummaryWriter, tag: str, picture: Picture) -> None:
    """Add a picture as it is; `SummaryWriter.add_image` would compress its pixels anew.

    Args:
        writer: Of the run.
        tag: The name under which TensorBoard shows it.
        picture: The picture.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(
        height=picture.height, width=picture.width, colorspace=CHANNELS, encoded_image_string=picture.png
    )
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), 0)


def scalars(comparison: Comparison, row: ComparisonRow) -> dict[str, float]:
    """Give the figures of a strategy that TensorBoard shows.

    Args:
        comparison: Tells whether full depth was run. Without it there are no figures relative to a baseline.
        row: One of its rows.

    Returns:
        Finite numbers by their tags. A tag is "quality/", "percent_of_baseline/" or "cost/", and the key in
        comparison.json.
    """
    cost = {name: row.figure(name) for name in row.figures} | {
        "percent_of_layers": row.percent_of_layers,
        "output_tokens": row.output_tokens.value,
    }
    figures = {f"quality/{name}": figure.value for name, figure in row.quality.items()}
    if comparison.has_full_depth:
        figures |= {f"percent_of_baseline/{name}": share.value for name, share in row.percent_of_baseline.items()}
        cost["speed_up"] = row.speed_up
    figures |= {f"cost/{name}": value for name, value in cost.items()}
    return {tag: value for tag, value in figures.items() if math.isfinite(value)}


def hyperparameters(comparison: Comparison, row: ComparisonRow) -> dict[str, str | int | float]:
    """Give what the hparams table shows of a strategy.

    Args:
        comparison: Model and data come from its run's configuration, if it has one.
        row: One of its rows.

    Returns:
        Parameters of the strategy, the model and the data, by the names of the command line. Lists and other nested
        values are written as JSON; those that are None are left out.
    """
    config = comparison.run.config
    data = config.get("data") or {}
    named = {
        "strategy": row.class_name,
        **{f"strategy.{name}": value for name, value in row.strategy.init_args.items()},
        **{f"model.{name}": value for name, value in (config.get("model") or {}).items()},
        "data": str(data.get("class_path", "")).rpartition(".")[2] or None,
        **{f"data.{name}": value for name, value in (data.get("init_args") or {}).items()},
    }
    return {name: _hyperparameter(value) for name, value in named.items() if value is not None}


def sample_table(comparison: Comparison, texts: Sequence[tuple[ComparisonRow, ExampleRecord]]) -> str:
    """Render one example as a table: source, references, and the text of each strategy.

    Args:
        comparison: Its headline metric is shown beside each text.
        texts: Rows, each with its record of the example; at least one.

    Returns:
        Markdown. A source of more than 2000 characters is cut.
    """
    metric = comparison.headline_metric
    _, first = texts[0]
    source = first.source
    cut = source if len(source) <= MOST_CHARACTERS else source[:MOST_CHARACTERS] + " […]"
    header = ["", _escaped(first.id), "Average depth", "Tokens", METRIC_LABELS[metric]]
    lines = [["source", _escaped(cut), "", "", ""]]
    lines += [["reference", _escaped(reference), "", "", ""] for reference in first.references]
    for row, example in texts:
        figures = [number(example.average_layers, 1), str(example.new_tokens), number(example.scores.get(metric), 3)]
        lines.append([_escaped(f"{row.number} {row.label}"), _escaped(example.prediction), *figures])
    return markdown_table(header, lines, align=["left", "left", "right", "right", "right"])


@contextmanager
def _new_run(folder: Path) -> Iterator[SummaryWriter]:
    """Give a writer whose events replace those of before, whole or not at all."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    with tempfile.TemporaryDirectory() as made:
        with faults_of_writing(Path(made)), SummaryWriter(made) as writer:
            yield writer
        before = list(folder.glob(EVENT_FILES))
        for file in Path(made).iterdir():
            replace_file(folder / file.name, file.read_bytes())
    for file in before:
        file.unlink()


def _hyperparameter(value: Any) -> str | int | float:
    """Return a value that the hparams table takes."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _escaped(text: str) -> str:
    """Return a text that Markdown leaves as it is, in a cell of a table: signs as character references."""
    signs = re.sub(r"[!-/:-@\[-`{-~]", lambda sign: f"&#{ord(sign[0])};", text)
    return signs.replace("\r\n", "\n").replace("\n", "<br>")
