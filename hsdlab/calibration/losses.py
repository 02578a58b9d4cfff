"""Per-example losses of decoding with fewer layers, from 0 to 1 (CALM, arXiv 2207.07061, section 4.1).

Always per example and never out of corpus figures: the guarantee is about the mean over examples. So corpus BLEU is
no loss, and the difference of two corpus ROUGEs is none.
"""

from collections.abc import Callable, Sequence
from typing import Literal

LossName = Literal["risk", "textual"]
Score = Callable[[str, Sequence[str]], float]
"""A per-example metric: the score, from 0 to 1, of a prediction against references."""


def risk_loss(score: float, full_score: float) -> float:
    """Return how much worse an example scores against its references than at full depth: max(0, full - early).

    CALM's risk consistency with the risk 1 - score.

    Args:
        score: Of the prediction under the setting, 0 to 1.
        full_score: Of the full model's, 0 to 1.

    Example:
        >>> risk_loss(0.25, 1.0), risk_loss(0.75, 0.5)
        (0.75, 0.0)
    """
    return max(0.0, full_score - score)


def textual_loss(prediction: str, full_prediction: str, score: Score) -> float:
    """Return how far a text is from the full model's, 1 - score with that text as the reference.

    CALM's textual consistency. It needs no references. Equal texts lose nothing, also where a metric has no words to
    count.

    Args:
        prediction: Text under the setting.
        full_prediction: The full model's text.
        score: The metric.
    """
    if prediction == full_prediction:
        return 0.0
    return 1.0 - score(prediction, [full_prediction])
