"""Texts to train on in place of the references: what a model wrote, as `evaluate.py predict` leaves it."""

from collections.abc import Sequence
from pathlib import Path

from hsdlab.data.batches import Example
from hsdlab.data.rows import Row, json_lines
from hsdlab.errors import UserError
from hsdlab.program import typed


def read_targets(files: Sequence[str], examples: Sequence[Example]) -> dict[str, list[str]]:
    """Return the predicted texts of each example, by its id.

    Args:
        files: Of predictions, one JSON object a line with "id", "source" and "prediction"; lines for other examples
            are ignored.
        examples: What the texts are for.

    Returns:
        For each example one text a file that has it.

    Raises:
        FileNotFoundError: A file is missing.
        UserError: A line is no prediction, or an example has none.
    """
    sources = {example.id: example.source for example in examples}
    texts: dict[str, list[str]] = {}
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(
                f"data.targets: no file {file}. `{typed('predict')} --data.predict_split=train` writes one."
            )
        for row in json_lines(Path(file)):
            _check_prediction(row)
            example_id, text = row.fields["id"], row.fields["prediction"]
            if sources.get(example_id) == row.fields["source"]:  # ids of two splits may be the same
                texts.setdefault(example_id, []).append(text)
    missing = [example_id for example_id in sources if example_id not in texts]
    if missing:
        raise UserError(
            f"data.targets: {len(missing)} of {len(sources)} examples have no prediction in {', '.join(files)}, the "
            f"first of them {missing[0]!r}. Decode their split too: `{typed('predict')} "
            "--data.predict_split=train` (or validation)."
        )
    return texts


def _check_prediction(row: Row) -> None:
    for key in ("id", "source", "prediction"):
        if not isinstance(row.get(key), str):
            raise UserError(f'data.targets: {row.where}: "{key}" has to be a string, got {row.fields[key]!r:.80}')
    if row.fields["prediction"].strip():  # a model may write nothing
        row.text("prediction")
