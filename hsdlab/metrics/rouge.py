"""ROUGE by Google's ``rouge_score``."""

from functools import cache

from rouge_score.rouge_scorer import RougeScorer

from hsdlab.metrics.base import MeanScore, check_texts

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL")


def rouge_scores(prediction: str, references: list[str], use_stemmer: bool = False) -> dict[str, float]:
    """Score one prediction by ROUGE-1, ROUGE-2 and ROUGE-L with Google's ``rouge_score``.

    Args:
        prediction: The generated text.
        references: The texts to compare with, at least one.
        use_stemmer: Compare words of more than three letters by their Porter stem.

    Returns:
        ``{"rouge1", "rouge2", "rougeL"}``: the F1, from 0 to 1, of the reference that is best for that key. A
        text without an English letter or a digit scores 0.

    Raises:
        UserError: If the input is not a string and a non-empty list of strings.

    Example:
        >>> rouge_scores("the cat sat down", ["the cat sat", "a dog sat down here"])
        {'rouge1': 0.8571428571428571, 'rouge2': 0.8, 'rougeL': 0.8571428571428571}
    """
    check_texts([prediction], [references])
    best = _rouge_scorer(use_stemmer).score_multi(references, prediction)
    return {key: float(best[key].fmeasure) for key in ROUGE_KEYS}


@cache
def _rouge_scorer(use_stemmer: bool) -> RougeScorer:
    return RougeScorer(list(ROUGE_KEYS), use_stemmer=use_stemmer)


class ROUGE(MeanScore):
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004): the mean over examples of the best F1 over the references.

    The best reference is chosen for each key by itself, as ``rouge_score.score_multi`` does.

    Args:
        use_stemmer: Compare words of more than three letters by their Porter stem.

    Example:
        >>> metric = ROUGE()
        >>> metric.update(["the cat sat down", "hello"], [["the cat sat", "a dog sat down"], ["hello world"]])
        >>> {key: round(value.item(), 4) for key, value in metric.compute().items()}
        {'rouge1': 0.7619, 'rouge2': 0.4, 'rougeL': 0.7619}
    """

    def __init__(self, use_stemmer: bool = False) -> None:
        super().__init__(ROUGE_KEYS)
        self.use_stemmer = use_stemmer

    def score(self, predictions: list[str], references: list[list[str]]) -> list[dict[str, float]]:
        """Score each example by itself with :func:`rouge_scores`.

        Args:
            predictions: One generated text per example.
            references: One list of at least one text per example.

        Returns:
            ``{"rouge1", "rouge2", "rougeL"}`` per example.

        Raises:
            UserError: If the input is not one list of references per prediction.
        """
        check_texts(predictions, references)
        return [
            rouge_scores(prediction, texts, self.use_stemmer)
            for prediction, texts in zip(predictions, references, strict=True)
        ]
