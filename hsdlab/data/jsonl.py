"""Examples from JSON Lines files."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hsdlab.data.base import Example, GenerationDataModule
from hsdlab.data.checks import check_text
from hsdlab.data.files import shown
from hsdlab.data.places import files_of_split
from hsdlab.data.rows import Row, json_lines
from hsdlab.errors import UserError


class JSONLines(GenerationDataModule):
    r"""A folder with train.jsonl, validation.jsonl and test.jsonl: one example a line, UTF-8.

    A line is `{"id": "a-1", "source": "name[...], ...", "references": ["...", "..."]}`; other keys are
    ignored, blank lines are skipped. Only the files of the splits in use have to be there. Every line is checked
    before the first is used. For other names, kinds of files and several rows of one source see `DataFolder`.

    Args:
        folder: The folder that holds the files. `data/<name>` is looked for in $HSDLAB_DATA first, if that is set.
        **kwargs: See `GenerationDataModule`.

    Example::

        data = JSONLines("my_data", prompt="{source}\n\nSummary:")
        data.examples("test")[0].references
    """

    def __init__(self, folder: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = folder

    def load_examples(self, split: str) -> list[Example]:
        """Return the examples of `folder`/`split`.jsonl.

        Raises:
            FileNotFoundError: The folder or the file is missing.
            UserError: The file or a line of it is malformed; the message names the file and the line.
        """
        (path,) = files_of_split(self.folder, split, [".jsonl"])
        return read_examples(path)


def read_examples(path: Path) -> list[Example]:
    """Read the examples of one file, all of its lines checked.

    Args:
        path: A JSON Lines file.

    Returns:
        The examples in the order of the lines, at least one.

    Raises:
        UserError: The file is empty or a line is not an example; the message names the file and the line.
    """
    examples = with_unique_ids((row, _example(row)) for row in json_lines(path))
    if not examples:
        raise UserError(f"{path} is empty: expected one JSON object a line")
    return examples


def with_unique_ids(examples: Iterable[tuple[Row, Example]]) -> list[Example]:
    """Collect the examples made of rows, and check that their ids are unique.

    Args:
        examples: Each example with the row that it was made of.

    Returns:
        The examples in order.

    Raises:
        UserError: Two have the same id; the message names both rows.
    """
    row_of_id: dict[str, Row] = {}

    def checked() -> Iterator[Example]:
        for row, example in examples:
            other = row_of_id.setdefault(example.id, row)
            if other is not row:
                place = other.place if other.path == row.path else other.where
                raise UserError(f'{row.where}: id "{shown(example.id)}" is also that of {place}')
            yield example

    return list(checked())


def _example(row: Row) -> Example:
    for key in ("id", "source", "references"):
        row.get(key)
    example_id, source, references = row.text("id"), row.text("source"), row.get("references")
    if not isinstance(references, list):
        raise UserError(f'{row.where}: "references" has to be a list of strings, got {type(references).__name__}')
    if not references:
        raise UserError(f'{row.where}: "references" is empty: expected at least one')
    for reference in references:
        check_text(reference, 'each of "references"', row.where)
    return Example(example_id, source, tuple(references))
