"""ROUGE, BLEU and BERTScore: the figures of the reference packages, kept as sums.

Why not torchmetrics' own text metrics (1.9.0)? Its ``ROUGEScore`` gathers one scalar at a time, so that processes with
different numbers of examples no longer gather the same one. Its ``BERTScore`` matches the wrong pairs once there are
more than two texts of different length. Its ``BLEUScore`` reads a reference given as a plain string letter by letter.
Here every figure comes from ``rouge_score``, ``sacrebleu`` or ``bert_score``, and only sums are kept.

There are two ways to add examples. ``update(predictions, references)`` is the usual one. To keep the scores of each
example too, call ``scores = metric.score(predictions, references)`` and then ``metric.update_from_scores(scores)``:
nothing is computed twice.

All metrics take ``predictions: list[str]`` and ``references: list[list[str]]``, one list of references per
prediction. The number of references may differ from example to example.
"""

from hsdlab.metrics.bertscore import BERTScore
from hsdlab.metrics.bleu import BLEU, bleu_from_statistics, bleu_statistics
from hsdlab.metrics.rouge import ROUGE, rouge_scores

__all__ = ["BLEU", "ROUGE", "BERTScore", "bleu_from_statistics", "bleu_statistics", "rouge_scores"]
