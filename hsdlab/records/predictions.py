"""The prediction records of a run: appended batch by batch, read back after a kill, merged over the processes."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from hsdlab.errors import RunError, UserError
from hsdlab.records.example import ExampleRecord
from hsdlab.records.files import append_whole, replace_file
from hsdlab.records.lines import ChangedLineError

Batches = dict[int, list[ExampleRecord]]
"""Number of each finished batch to its records."""


class PredictionFile:
    """A file of example records, one JSON object per line. Each record names its batch.

    A single process appends to the file itself. Each of several processes appends to a working file of its own beside
    it ("predictions.rank1.jsonl"). At the end the first process brings all records into one file, in the order of the
    data: batches hold prompts of similar length, and are appended in another order.

    The lines of a batch reach the disk together. A kill can leave an incomplete batch at the end. All its lines are
    dropped when the file is read, so that the whole batch is decoded again.

    Args:
        path: The file; its folder is made when something is written.
        rank: Number of this process, from 0.
        world_size: Number of processes.
    """

    def __init__(self, path: Path, rank: int = 0, world_size: int = 1) -> None:
        self.path = path
        self.own = path if world_size == 1 else path.with_suffix(f".rank{rank}{path.suffix}")

    def clear(self) -> None:
        """Remove the file and the working files of all processes."""
        for file in self._files():
            file.unlink()

    def read(self) -> Batches:
        """Read the finished batches of all processes, and remove an incomplete batch from this process's own file.

        Returns:
            Number of each finished batch to its records.

        Raises:
            RunError: A line is damaged, changed after it was written, or written by a version of hsdlab that did not
                number the batches.
        """
        if self.own.exists():
            whole = b"".join(record.to_line() for records in _read(self.own).values() for record in records)
            if len(whole) != self.own.stat().st_size:
                replace_file(self.own, whole)
        return self._read_all()

    def append(self, records: Sequence[ExampleRecord]) -> None:
        """Write the records of one batch. When this returns, they are on the disk.

        Args:
            records: All records of the batch, in the order of the data.

        Raises:
            RunError: They could not be written; the file is as before.
        """
        append_whole(self.own, b"".join(record.to_line() for record in records))

    def merge(self) -> None:
        """Bring all records into the one file, in the order of the data. After a kill it can be called again."""
        files, records = self._files(), self.records()
        working = [file for file in files if file != self.path]
        appended = [record.id for file in files for _, record in _records(file)]
        if working or appended != [record.id for record in records]:
            replace_file(self.path, b"".join(record.to_line() for record in records))
        for file in working:
            file.unlink()

    def records(self) -> list[ExampleRecord]:
        """Read the finished batches of all processes, and change no file.

        Returns:
            The records in the order of the data.
        """
        batches = self._read_all()
        return in_data_order(record for number in sorted(batches) for record in batches[number])

    def _files(self) -> list[Path]:
        """Return the file, if it exists, and all working files, also those of a run with more processes."""
        working = self.path.parent.glob(f"{self.path.stem}.rank*{self.path.suffix}")
        return [*([self.path] if self.path.exists() else []), *sorted(working)]

    def _read_all(self) -> Batches:
        """Read all files. A batch in two files, after a kill during `merge`, is the same in both."""
        return {number: records for file in self._files() for number, records in _read(file).items()}


def in_data_order(records: Iterable[ExampleRecord]) -> list[ExampleRecord]:
    """Sort records as their examples are in the data.

    Args:
        records: In the order of decoding.

    Returns:
        The same in the order of the data; as they were where an older version of hsdlab wrote one, which decoded in
        that order.
    """
    records = list(records)
    positions = [record.position for record in records if record.position is not None]
    return records if len(positions) < len(records) else sorted(records, key=lambda record: record.position or 0)


def check_same_examples(records: Sequence[ExampleRecord], examples: Iterable[tuple[str, str, Sequence[str]]]) -> None:
    """Refuse to resume a run whose predictions are for other examples.

    Args:
        records: The predictions of the run to be resumed.
        examples: Id, source and references of each example that the predictions should be for, in the same order.

    Raises:
        UserError: The two differ; the message names the first example that does.
    """
    before = [(record.id, record.source, list(record.references)) for record in records]
    now = [(example_id, source, list(references)) for example_id, source, references in examples]
    for old, new in zip_longest(before, now):
        if old != new:
            name = (old or new or ("",))[0]
            raise UserError(
                f"The data has changed since the run began: example {name!r} has other texts, has moved or is "
                "missing. Give another folder with --output, or --overwrite to start anew."
            )


def _read(file: Path) -> Batches:
    """Return the finished batches of one file, without an incomplete one."""
    batches: dict[int, list[ExampleRecord]] = {}
    rows: dict[int, int] = {}
    for number, record in _records(file):
        if record.batch is None:
            raise _damaged(file, number, "no batch")
        batches.setdefault(record.batch.number, []).append(record)
        rows[record.batch.number] = record.batch.rows
    return {number: records for number, records in batches.items() if len(records) == rows[number]}


def _records(file: Path) -> Iterator[tuple[int, ExampleRecord]]:
    """Yield the number and the record of each whole line of a file."""
    *lines, _ = file.read_bytes().split(b"\n")  # what follows the last newline was cut off, or is empty
    for number, line in enumerate(lines, start=1):
        try:
            yield number, ExampleRecord.from_line(line)
        except ChangedLineError as error:
            raise RunError(
                f"{file}, line {number}: the prediction was changed after the run had written it (its hash does not "
                "match). Put the file back as it was, or start the run anew with --overwrite."
            ) from error
        except ValueError as error:
            raise _damaged(file, number, repr(line[:80])) from error


def _damaged(file: Path, line: int, got: str) -> RunError:
    return RunError(
        f"{file}, line {line}: expected a prediction with the number of its batch, got {got}. The run cannot be "
        "resumed from it: start it anew with --overwrite."
    )
