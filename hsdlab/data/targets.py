"""Texts to train on in place of the references: what a model wrote, as `evaluate.py predict` leaves it."""

import json
from collections.abc import Sequence
from pathlib import Path

from hsdlab.data.batches import Example
from hsdlab.errors import UserError


def read_targets(files: Sequence[str], examples: Sequence[Example]) -> dict[str, list[str]]:
    """Return the predicted texts of each example, by its id.

    Args:
        files: Of predictions, one JSON object a line with "id", "source" and "prediction"; lines for other examples
            are passed over.
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
                f"data.targets: no file {file}. `python evaluate.py predict --data.predict_split=train` writes one."
            )
        for number, line in enumerate(Path(file).read_bytes().splitlines(), start=1):
            try:
                record = json.loads(line)
                example_id, source, text = record["id"], record["source"], record["prediction"]
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"data.targets: {file}, line {number}: expected a prediction with id, source and prediction, got "
                    f"{line[:80]!r}."
                ) from error
            if sources.get(example_id) == source:  # ids of two splits may be the same
                texts.setdefault(example_id, []).append(text)
    missing = [example_id for example_id in sources if example_id not in texts]
    if missing:
        raise UserError(
            f"data.targets: {len(missing)} of {len(sources)} examples have no prediction in {', '.join(files)}, the "
            f"first of them {missing[0]!r}. Decode their split too: `python evaluate.py predict "
            "--data.predict_split=train` (or validation)."
        )
    return texts
