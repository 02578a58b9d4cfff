"""ExampleRecord: the result of decoding one example, a line of a prediction file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hsdlab.costs import Cost
from hsdlab.records import lines, version_1
from hsdlab.records.document import NOT_A_RECORD, SCHEMA_VERSION, VERSION_KEY, from_plain, to_plain


@dataclass(frozen=True)
class Batch:
    """The batch in which an example was decoded.

    Attributes:
        number: Of the batch, from 0 on, in the order of decoding.
        rows: Number of examples in it.
        cost: Of the whole batch.
    """

    number: int
    rows: int
    cost: Cost


@dataclass(frozen=True)
class ExampleRecord:
    """The result of decoding one example. All figures of a run can be computed again from its records.

    Attributes:
        id: Unique in the data set.
        source: The source text.
        references: The reference texts.
        prediction: The new text, without special tokens.
        new_tokens: Number of tokens of the prediction, including its end-of-sequence token.
        token_ids: Those tokens.
        tokens: The same as texts. The first comes from the prefill, token k + 1 from decode step k.
        decode_steps: Number of decode steps of the returned sequence.
        average_layers: Executed layers per decode step; None without a step.
        layers: The executed layers of each of those steps, such as "0,2,4,15-29" (`hsdlab.records.layer_ranges`).
        scores: ROUGE and BERTScore of the example, by name, from 0 to 1.
        bleu_statistics: The counts that corpus BLEU sums (:func:`hsdlab.metrics.bleu_statistics`); None where BLEU was
            not computed.
        batch: The batch in which it was decoded; None where not noted.
        position: Place among the examples of the split that the run uses, from 0; None in older records, whose batches
            kept the order of the data.
        drafts: For each verification, how many tokens were drafted and how many of them accepted; empty without drafts.
    """

    id: str
    prediction: str
    references: tuple[str, ...]
    new_tokens: int
    average_layers: float | None
    source: str = ""
    token_ids: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    decode_steps: int = 0
    layers: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    bleu_statistics: tuple[int, ...] | None = None
    batch: Batch | None = None
    position: int | None = None
    drafts: tuple[tuple[int, ...], ...] = ()

    def to_line(self) -> bytes:
        """Write the record as a line of a prediction file.

        Returns:
            JSON in UTF-8 with a final newline; the last key is a hash of the others.
        """
        return lines.to_line({VERSION_KEY: SCHEMA_VERSION, **to_plain(self)})

    @classmethod
    def from_line(cls, line: bytes) -> ExampleRecord:
        """Read the record from a line of a prediction file.

        Args:
            line: With or without its newline. A line of version 1 has no hash and is upgraded.

        Returns:
            The record.

        Raises:
            ChangedLineError: The line was changed after it was written.
            ValueError: The line holds no such record.
        """
        try:
            content = lines.from_line(line)
            version = content.pop(VERSION_KEY, 1)
            if version not in (1, SCHEMA_VERSION):
                raise ValueError(f"schema version {version}")
            return from_plain(version_1.example(content) if version == 1 else content, cls)
        except lines.ChangedLineError:
            raise
        except NOT_A_RECORD as error:
            raise ValueError(f"no prediction: {error}") from error


def batch_costs(records: Iterable[ExampleRecord]) -> list[Cost]:
    """Collect the cost of each batch once.

    Args:
        records: In any order; those without a batch add nothing.

    Returns:
        One cost per batch number. Their sum is the cost of all the records.
    """
    return list(batch_costs_by_number(records).values())


def batch_costs_by_number(records: Iterable[ExampleRecord]) -> dict[int, Cost]:
    """Collect the cost of each batch by the batch's number.

    Args:
        records: In any order; those without a batch add nothing.

    Returns:
        Batch number to the cost of the whole batch.
    """
    return {record.batch.number: record.batch.cost for record in records if record.batch is not None}
