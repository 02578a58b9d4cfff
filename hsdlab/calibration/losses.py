"""Per-example losses of decoding with fewer layers, from 0 to 1 (CALM, arXiv 2207.07061, section 4.1).

Always per example and never out of corpus figures: the guarantee is about the mean over examples. So corpus BLEU is
no loss, and the difference of two corpus ROUGEs is none.
"""

from collections.abc import Callable, Sequence
from typing import Literal

LossName = Literal["risk", "textual"]
Score = Callable[[list[str], list[list[str]]], list[float]]
"""A per-example metric: from predictions and their references to scores from 0 to 1."""


def risk_losses(scores: Sequence[float], full_scores: Sequence[float]) -> list[float]:
    """Return how much worse each example scores against its references than at full depth: max(0, full - early).

    CALM's risk consistency with the risk 1 - score. An example that scores better than at full depth loses nothing and
    makes up for no other one.

    Args:
        scores: Of the predictions under the setting, 0 to 1.
        full_scores: Of the full model's, for the same examples.

    Example:
        >>> risk_losses([0.25, 0.75], [1.0, 0.5])
        [0.75, 0.0]
    """
    return [max(0.0, full - score) for score, full in zip(scores, full_scores, strict=True)]


def textual_losses(predictions: Sequence[str], full_predictions: Sequence[str], score: Score) -> list[float]:
    """Return how far each text is from the full model's, 1 - score with that text as the reference.

    CALM's textual consistency. It needs no references. Equal texts lose nothing, also where a metric has no words to
    count.

    Args:
        predictions: Texts under the setting.
        full_predictions: The full model's, for the same examples.
        score: The metric.
    """
    pairs = list(zip(predictions, full_predictions, strict=True))
    changed = [(text, full) for text, full in pairs if text != full]
    scores = iter(score([text for text, _ in changed], [[full] for _, full in changed]) if changed else [])
    return [0.0 if text == full else 1.0 - next(scores) for text, full in pairs]


def exact_match(predictions: list[str], references: list[list[str]]) -> list[float]:
    """Score 1 where a prediction is one of its references, letter for letter, else 0.

    As a textual loss: whether the text changes at all. Its losses are 0 or 1, which the exact binomial test is for.

    Example:
        >>> exact_match(["a", "b"], [["a", "c"], ["c"]])
        [1.0, 0.0]
    """
    return [float(text in texts) for text, texts in zip(predictions, references, strict=True)]


def bounded(score: float) -> float:
    """Return a score within 0 to 1: BERTScore, a mean of cosines, may be a little outside.

    Example:
        >>> bounded(-0.01), bounded(0.5), bounded(1.0000001)
        (0.0, 0.5, 1.0)
    """
    return min(1.0, max(0.0, score))
