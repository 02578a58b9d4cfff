"""ExampleRecord: what decoding one example gave, a line of a prediction file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hsdlab.costs import Cost
from hsdlab.records import lines, version_1
from hsdlab.records.document import NOT_A_RECORD, SCHEMA_VERSION, VERSION_KEY, from_plain, to_plain


@dataclass(frozen=True)
class Batch:
    """The batch that an example was decoded in.

    Attributes:
        number: Of the batch, in the order of the data.
        rows: Examples in it.
        cost: Of the whole batch.
    """

    number: int
    rows: int
    cost: Cost


@dataclass(frozen=True)
class ExampleRecord:
    """What decoding one example gave. All figures of a run can be computed again from its records.

    Attributes:
        id: Of the example.
        source: Its source text.
        references: Its reference texts.
        prediction: The new text, without special tokens.
        new_tokens: Tokens of the prediction, its end-of-sequence token included.
        token_ids: Those tokens.
        tokens: The same as texts. The first comes from the prefill, token k + 1 from decode step k.
        decode_steps: The decode steps that it took.
        average_layers: Their mean depth; None without a step.
        layers: For each of those steps, the layers that ran, such as "0,2,4,15-29".
        scores: ROUGE and BERTScore of the example, by name, from 0 to 1.
        bleu_statistics: What corpus BLEU sums up (:func:`hsdlab.metrics.bleu_statistics`); None where not computed.
        batch: The batch that it was decoded in.
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

    def to_line(self) -> bytes:
        """Return the record as a line of JSON in UTF-8, with a hash of its content at the end."""
        return lines.to_line({VERSION_KEY: SCHEMA_VERSION, **to_plain(self)})

    @classmethod
    def from_line(cls, line: bytes) -> ExampleRecord:
        """Return the record of a line, also of one without a hash or that the version before wrote.

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
    """Return what each batch of some records cost, once."""
    return list(batch_costs_by_number(records).values())


def batch_costs_by_number(records: Iterable[ExampleRecord]) -> dict[int, Cost]:
    """Return what each batch of some records cost, by the batch's number."""
    return {record.batch.number: record.batch.cost for record in records if record.batch is not None}
