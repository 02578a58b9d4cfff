"""Text quality and decoding cost as torchmetrics metrics with sum states."""

from hsdlab.metrics.efficiency import Efficiency
from hsdlab.metrics.text import (
    BLEU,
    ROUGE,
    BERTScore,
    bleu_from_statistics,
    bleu_statistics,
    rouge_scores,
)

__all__ = [
    "BLEU",
    "ROUGE",
    "BERTScore",
    "Efficiency",
    "bleu_from_statistics",
    "bleu_statistics",
    "rouge_scores",
]
