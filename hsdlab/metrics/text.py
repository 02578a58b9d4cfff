"""ROUGE, BLEU and BERTScore: the reference packages' own numbers, kept as sums.

Why not torchmetrics' own text metrics (1.9.0): its ``ROUGEScore`` gathers one scalar at a time and goes out
of step when processes hold different numbers of examples; its ``BERTScore`` matches the wrong pairs once
there are more than two texts of different length; its ``BLEUScore`` reads a reference given as a plain string
letter by letter. Here every number comes from ``rouge_score``, ``sacrebleu`` or ``bert_score``, and only sums
are kept.

Each metric has two ways in. ``update(predictions, references)`` is the usual one. Who also wants the numbers
of each example calls ``scores = metric.score(predictions, references)``, keeps them, and hands them to
``metric.update_from_scores(scores)``: nothing is computed twice.

All metrics take ``predictions: list[str]`` and ``references: list[list[str]]``, one list of references per
prediction; the number of references may differ from example to example.
"""

from hsdlab.metrics.bertscore import BERTScore
from hsdlab.metrics.bleu import BLEU, bleu_from_statistics, bleu_statistics
from hsdlab.metrics.rouge import ROUGE, rouge_scores

__all__ = ["BLEU", "ROUGE", "BERTScore", "bleu_from_statistics", "bleu_statistics", "rouge_scores"]
