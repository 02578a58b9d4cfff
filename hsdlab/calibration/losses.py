"""Per-example losses of decoding with fewer layers, from 0 to 1 (CALM, arXiv 2207.07061, section 4.1).

The guarantee is about the mean over examples, so each loss is of one example, never of a corpus. Corpus BLEU gives no
such loss, nor does the difference of two corpus ROUGEs.
"""

from collections.abc import Callable, Sequence
from typing import Literal

LossName = Literal["risk", "textual"]
Score = Callable[[list[str], list[list[str]]], list[float]]
"""A per-example metric. It maps predictions and the references of each to one score from 0 to 1 for each example."""


def risk_losses(scores: Sequence[float], full_scores: Sequence[float]) -> list[float]:
    """Compute how much worse each example scores against its references than at full depth: max(0, full - early).

    CALM's risk consistency with the risk 1 - score. An example that scores better than at full depth has loss 0; it
    does not make up for another one.

    Args:
        scores: Scores of the predictions under the setting, one for each example, 0 to 1.
        full_scores: Scores of the predictions at full depth, for the same examples.

    Returns:
        One loss for each example, 0 to 1.

    Example:
        >>> risk_losses([0.25, 0.75], [1.0, 0.5])
        [0.75, 0.0]
    """
    return [max(0.0, full - score) for score, full in zip(scores, full_scores, strict=True)]


def textual_losses(predictions: Sequence[str], full_predictions: Sequence[str], score: Score) -> list[float]:
    """Compute how far each text is from the text at full depth: 1 - score, with the latter as the reference.

    CALM's textual consistency. It needs no references. Equal texts have loss 0, also where a metric has no words to
    count.

    Args:
        predictions: Texts under the setting, one for each example.
        full_predictions: Texts at full depth, for the same examples.
        score: The metric. It is called once, with the texts that differ, and not at all if none does.

    Returns:
        One loss for each example, 0 to 1.
    """
    pairs = list(zip(predictions, full_predictions, strict=True))
    changed = [(text, full) for text, full in pairs if text != full]
    scores = iter(score([text for text, _ in changed], [[full] for _, full in changed]) if changed else [])
    return [0.0 if text == full else 1.0 - next(scores) for text, full in pairs]


def exact_match(predictions: list[str], references: list[list[str]]) -> list[float]:
    """Score 1 where a prediction equals one of its references, character by character, else 0.

    As the score of `textual_losses`, it tells whether the text changes at all. The losses are then 0 or 1, as the exact
    binomial test needs them.

    Args:
        predictions: One text for each example.
        references: One or more texts for each example.

    Returns:
        1.0 or 0.0 for each example.

    Example:
        >>> exact_match(["a", "b"], [["a", "c"], ["c"]])
        [1.0, 0.0]
    """
    return [float(text in texts) for text, texts in zip(predictions, references, strict=True)]


def bounded(score: float) -> float:
    """Clip a score to 0 … 1.

    Args:
        score: Of one example. BERTScore, a mean of cosines, may be slightly outside of 0 … 1.

    Returns:
        From 0 to 1.

    Example:
        >>> bounded(-0.01), bounded(0.5), bounded(1.0000001)
        (0.0, 0.5, 1.0)
    """
    return min(1.0, max(0.0, score))
