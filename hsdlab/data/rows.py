"""Rows of data files: JSON Lines, JSON arrays, CSV, TSV and Parquet, each row with the place that an error names."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hsdlab.data.checks import check_text
from hsdlab.data.files import COMPRESSED, lines_of, read_bytes, read_text, shown
from hsdlab.errors import UserError
from hsdlab.extras import of_extra

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Between the cells of a row, by how a file's name ends."""


@dataclass(frozen=True)
class Row:
    """One row of a data file.

    Attributes:
        path: The file.
        place: Where it is in the file: "line 3", say.
        fields: What it holds, by key or column.
        word: What the file calls a field: "key" or "column".
    """

    path: Path
    place: str
    fields: dict[str, Any]
    word: str = "column"

    @property
    def where(self) -> str:
        """File and place: how the message of an error begins."""
        return f"{self.path}, {self.place}"

    def get(self, name: str) -> Any:
        """Get a field.

        Args:
            name: The key or column.

        Returns:
            Its value, of whatever type the file holds.

        Raises:
            UserError: There is no such field; the message lists those that there are.
        """
        if name not in self.fields:
            names = ", ".join(map(shown, self.fields)) or "an empty object"
            raise UserError(f'{self.where}: no {self.word} "{name}"; got {names}')
        return self.fields[name]

    def text(self, name: str) -> str:
        """Get a field that has to be a text.

        Args:
            name: The key or column.

        Returns:
            The text, not blank.

        Raises:
            UserError: There is no such field, or it is no text that can be encoded.
        """
        value = self.get(name)
        check_text(value, f'"{name}"', self.where)
        return str(value)


def parse_json(text: bytes, where: str) -> Any:
    """Parse JSON in UTF-8, more strictly than Python's own reader.

    Args:
        text: The bytes of one value.
        where: How the message of an error begins.

    Returns:
        The value.

    Raises:
        UserError: It is not JSON in UTF-8, holds NaN or infinity, or a key twice in one object.
    """
    try:
        return json.loads(text.decode(), object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # ValueError: JSONDecodeError, UnicodeDecodeError, _Refused
        if isinstance(error, _Refused):
            raise UserError(f"{where}: {error}") from error
        why = str(error)
        if isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno}, " if error.lineno > 1 else ""
            why = f"{error.msg} ({line}column {error.colno})"
        raise UserError(f"{where} is not JSON in UTF-8: {why}") from error


class _Refused(ValueError):
    """JSON that Python reads, and we do not."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _Refused(f'the key "{shown(name)}" is there twice in one object: leave one of them')
        fields[name] = value
    return fields


def _no_number(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON: write null, or the text in quotation marks")


def json_lines(path: Path) -> Iterator[Row]:
    """Read a JSON Lines file: one object a line; blank lines are skipped.

    Args:
        path: The file; .gz is unpacked.

    Yields:
        The rows in order.

    Raises:
        UserError: The file or a line is malformed; the message names the file and the line.
    """
    for number, line in lines_of(path):
        where = f"{path}, line {number}"
        fields = parse_json(line, where)
        if not isinstance(fields, dict):
            raise UserError(f"{where}: expected a JSON object, got {type(fields).__name__}")
        yield Row(path, f"line {number}", fields, "key")


def json_file(path: Path) -> Iterator[Row]:
    """Read a .json file: an array of objects, or one object a line as `datasets` writes it.

    Args:
        path: The file; .gz is unpacked.

    Yields:
        The rows in order.

    Raises:
        UserError: The file is neither; the message names the file and the element or line.
    """
    data = read_bytes(path)
    if not data.lstrip().startswith(b"["):
        yield from json_lines(path)
        return
    for number, fields in enumerate(parse_json(data, str(path)), start=1):
        place = f"element {number}"
        if not isinstance(fields, dict):
            raise UserError(f"{path}, {place}: expected a JSON object, got {type(fields).__name__}")
        yield Row(path, place, fields, "key")


def delimited(path: Path, delimiter: str) -> Iterator[Row]:
    """Read a CSV or TSV file: a header with the names of the columns, then one row each, all cells texts.

    A cell that holds the delimiter, a line break or a quotation mark is in quotation marks, those in it doubled
    (RFC 4180).

    Args:
        path: The file; .gz is unpacked.
        delimiter: One character between the cells.

    Yields:
        The rows in order, without the header.

    Raises:
        UserError: The file is malformed; the message names the file, the row and its line.
    """
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    while True:
        place = f"row {number} (line {reader.line_num + 1})" if header else f"the header (line {reader.line_num + 1})"
        limit = csv.field_size_limit(max(len(text), 1))  # Python's own, 131,072, is less than a long article
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, {place}: {error}. A cell with quotation marks in it has to be in quotation marks itself, "
                "those in it doubled"
            ) from error
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if not cells:  # a blank line
            continue
        if not header:
            header = cells
            _check_header(header, path, delimiter)
        elif len(cells) != len(header):
            raise UserError(
                f"{path}, {place}: {len(cells)} cells, but the header names {len(header)} columns "
                f"({', '.join(map(shown, header))}). A cell that holds the delimiter has to be in quotation marks"
            )
        else:
            yield Row(path, place, dict(zip(header, cells, strict=True)))
        number += 1


def _check_header(header: list[str], path: Path, delimiter: str) -> None:
    if len(header) < 2:
        raise UserError(
            f"{path}: the header has one column only, {shown(header[0])!r}, split at {delimiter!r}: expected one of "
            "sources and one of references. Give another delimiter with --data.delimiter"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f'{path}: the column "{shown(twice[0])}" is there twice: leave one of them')


def parquet(path: Path) -> Iterator[Row]:
    """Read a Parquet file in batches, so that a large one need not fit in memory.

    Args:
        path: The file.

    Yields:
        The rows in order.

    Raises:
        UserError: It is no Parquet file, it is damaged, or a column is there twice.
        RunError: pyarrow is not installed.
    """
    with of_extra("data", "A Parquet file"):
        import pyarrow  # slow to import
        from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise UserError(f"{path}: a column is there twice; got {', '.join(map(shown, names))}")
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(path, f"row {number}", fields)
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a text that is not UTF-8
        raise UserError(f"{path} cannot be read as Parquet, after row {number}: {error}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_file,
    ".parquet": parquet,
}
"""By how a file's name ends; for the others see `DELIMITERS`."""


def read_rows(path: Path, delimiter: str | None = None) -> Iterator[Row]:
    """Read a data file by the ending of its name (before .gz).

    Args:
        path: The file.
        delimiter: Between the cells of a CSV or TSV file. None for a comma in .csv and a tab in .tsv.

    Returns:
        The rows in order, read as they are iterated.

    Raises:
        UserError: The file or a row is malformed; the message names the file and the place.
    """
    suffix = Path(path.name.removesuffix(COMPRESSED)).suffix
    if suffix in DELIMITERS:
        return delimited(path, delimiter or DELIMITERS[suffix])
    return READERS[suffix](path)
