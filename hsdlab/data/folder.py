"""Examples from a folder of CSV, TSV, Parquet, JSON or JSON Lines files, with the user's own names of columns."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from hsdlab.data.base import Example, GenerationDataModule
from hsdlab.data.checks import check_text
from hsdlab.data.files import DATA
from hsdlab.data.jsonl import with_unique_ids
from hsdlab.data.places import files_of_split
from hsdlab.data.rows import Row, read_rows
from hsdlab.errors import UserError


class DataFolder(GenerationDataModule):
    r"""A folder with a file a split: train, validation and test as .csv, .tsv, .parquet, .json, .jsonl or .ndjson.

    Text files are in UTF-8 and may be compressed (.csv.gz). A .json file holds an array of objects, or an object
    a line. A split may be in parts, as on the hub: test-00000-of-00002.parquet. Cells of CSV and TSV files are texts as
    they stand: "007" and "NA" are no numbers. Only the files of the splits in use have to be there, and every row is
    checked before the first is used.

    Args:
        folder: The folder that holds the files. `data/<name>` is looked for in $HSDLAB_DATA first, if that is set.
        source_column: Column (or key) of what the model reads.
        reference_columns: Column or columns of what people wrote for it, each cell a text or a list of texts. Empty
            ones are ignored where a row has another. By default `references`, or `reference`.
        id_column: Column of a text or whole number, unique to each example. By default `id`; where there is no such
            column, the split and the number of the row.
        group_column: Column that is equal in all rows of one example, for files with a row for each reference: often
            that of the sources. By default each row is an example.
        delimiter: One character between the cells of .csv and .tsv files; by default a comma and a tab.
        **kwargs: See `GenerationDataModule`.

    Raises:
        UserError: A delimiter of more than one character, or as `GenerationDataModule`.

    Example::

        data = DataFolder("my_data", source_column="mr", reference_columns="ref", group_column="mr")
        data.examples("test")[0].references
    """

    def __init__(
        self,
        folder: str,
        source_column: str = "source",
        reference_columns: list[str] | str | None = None,
        id_column: str | None = None,
        group_column: str | None = None,
        delimiter: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        delimiter = "\t" if delimiter == "\\t" else delimiter  # as a shell passes it on
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise UserError(f"delimiter={delimiter!r}: expected one character, such as ';' or '\\t'")
        if reference_columns is not None and not reference_columns:
            raise UserError("reference_columns is empty: expected the name of one column or more")
        self.folder = folder
        self.source_column = source_column
        self.reference_columns = [reference_columns] if isinstance(reference_columns, str) else reference_columns
        self.id_column = id_column
        self.group_column = group_column
        self.delimiter = delimiter

    def load_examples(self, split: str) -> list[Example]:
        """Return the examples of the files of `split`, in the order of their first rows.

        Raises:
            FileNotFoundError: The folder or the file is missing.
            UserError: A file or a row is malformed; the message names the file, the row and the column.
        """
        paths = files_of_split(self.folder, split, DATA)
        groups = self._groups(row for path in paths for row in read_rows(path, self.delimiter))
        examples = with_unique_ids(
            (group.row, Example(group.id or f"{split}-{group.number:06}", group.source, tuple(group.references)))
            for group in groups
        )
        if not examples:
            raise UserError(f"{paths[0]} holds no row: expected one example at least")
        again = len(examples) - len({example.source for example in examples})
        if again and self.group_column is None:
            rank_zero_warn(
                f"{paths[0]}: {again} of {len(examples)} rows repeat the source of an earlier row, each is an example "
                "of its own. To make one example of all rows of a source, with all references, give "
                f"--data.group_column={self.source_column}",
                category=UserWarning,
            )
        return examples

    def _groups(self, rows: Iterator[Row]) -> list["_Group"]:
        """Take the rows of one example together."""
        groups: dict[Any, _Group] = {}
        for number, row in enumerate(rows, start=1):
            source = row.text(self.source_column)
            key = number if self.group_column is None else _key(row, self.group_column)
            group = groups.setdefault(key, _Group(row, number, source, self._id_of(row)))
            if source != group.source:
                raise UserError(
                    f'{row.where}: another "{self.source_column}" than {group.row.place} with the same '
                    f'"{self.group_column}": expected a group_column that is equal in all rows of one source only'
                )
            group.references += self._references_of(row)
        return list(groups.values())

    def _id_of(self, row: Row) -> str | None:
        if self.id_column is None and "id" not in row.fields:
            return None
        return _key(row, self.id_column or "id")

    def _references_of(self, row: Row) -> list[str]:
        columns = self.reference_columns or (["references"] if "references" in row.fields else ["reference"])
        references = []
        for column in columns:
            value = row.get(column)
            for text in value if isinstance(value, list) else [value]:
                if text is not None and text != "":
                    check_text(text, f'"{column}"', row.where)
                    references.append(text)
        if not references:
            raise UserError(f'{row.where}: no reference in "{", ".join(columns)}": expected at least one')
        return references


@dataclass
class _Group:
    """The rows of one example: the first one, its number, and all references."""

    row: Row
    number: int
    source: str
    id: str | None
    references: list[str] = field(default_factory=list)


def _key(row: Row, column: str) -> str:
    """Return an id, a text or a whole number, as a text."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return row.text(column)
