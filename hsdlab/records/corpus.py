"""The corpus figures of a strategy, from the records of its examples alone."""

import math
from collections.abc import Sequence

from hsdlab.metrics import bleu_from_statistics
from hsdlab.records.example import ExampleRecord


def corpus_scores(records: Sequence[ExampleRecord]) -> dict[str, float]:
    """Compute what the metrics of `hsdlab.metrics` give for the examples together.

    Args:
        records: Scored examples, at least one, all by the same metrics.

    Returns:
        Figures from 0 to 1 by name. ROUGE and BERTScore are means over the examples, BLEU is that of the corpus.
    """
    scores = {name: math.fsum(record.scores[name] for record in records) / len(records) for name in records[0].scores}
    statistics = [record.bleu_statistics for record in records if record.bleu_statistics is not None]
    if len(statistics) == len(records):
        scores |= bleu_from_statistics([sum(column) for column in zip(*statistics, strict=True)])
    return scores
