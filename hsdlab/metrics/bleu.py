"""Corpus BLEU by ``sacrebleu``, from counts that add up."""

import math
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from hsdlab.errors import UserError
from hsdlab.metrics.base import TextMetric, check_texts

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU as SacreBLEU

MAX_NGRAM_ORDER = 4
NUM_BLEU_STATISTICS = 2 + 2 * MAX_NGRAM_ORDER
BleuTokenizer = Literal["13a", "intl", "zh", "char", "none"]
"""Tokenizers of sacrebleu that need nothing besides it."""


def bleu_statistics(
    prediction: str, references: list[str], lowercase: bool = False, tokenize: BleuTokenizer = "13a"
) -> list[int]:
    """Count what BLEU needs of one example. Corpus BLEU is a function of the summed counts.

    Args:
        prediction: The generated text.
        references: The texts to compare with, at least one.
        lowercase: Ignore case.
        tokenize: sacrebleu's tokenizer: "13a", of mteval and made for languages with spaces between words; "intl", by
            Unicode's classes of characters; "zh", each Chinese character a token; "char", each character; "none".

    Returns:
        Ten integers. The length of the prediction and of the reference closest in length, in tokens; the matched
        n-grams for n = 1 to 4; all n-grams of the prediction for n = 1 to 4.

    Raises:
        UserError: The input is not a string and a non-empty list of strings, or the tokenizer is unknown.

    Example:
        >>> bleu_statistics("the cat sat down.", ["the cat sat.", "a dog sat down here."])
        [5, 4, 5, 3, 1, 0, 5, 4, 3, 2]
    """
    check_texts([prediction], [references])
    score = _sacrebleu(lowercase, tokenize).corpus_score([prediction], [[reference] for reference in references])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


@cache
def _sacrebleu(lowercase: bool, tokenize: BleuTokenizer) -> "SacreBLEU":
    from sacrebleu.metrics.bleu import BLEU as SacreBLEU

    if tokenize not in get_args(BleuTokenizer):
        raise UserError(f"BLEU: tokenize={tokenize!r}; expected one of {', '.join(get_args(BleuTokenizer))}.")
    return SacreBLEU(lowercase=lowercase, tokenize=tokenize, max_ngram_order=MAX_NGRAM_ORDER)


def bleu_from_statistics(summed: list[int]) -> dict[str, float]:
    """Compute corpus BLEU for the maximal n-gram orders 1 to 4 from the summed counts of all examples.

    It equals ``sacrebleu.BLEU(max_ngram_order=N).corpus_score(...).score / 100``, including the exponential smoothing
    of orders without a match. The counts of order 4 contain those of the lower orders.

    Args:
        summed: The ten integers of :func:`bleu_statistics`, summed over the examples.

    Returns:
        ``{"bleu1", ..., "bleu4"}``, from 0 to 1.

    Raises:
        UserError: There are not ten integers.

    Example:
        >>> scores = bleu_from_statistics([5, 4, 5, 3, 1, 0, 5, 4, 3, 2])
        >>> {key: round(score, 4) for key, score in scores.items()}
        {'bleu1': 1.0, 'bleu2': 0.866, 'bleu3': 0.63, 'bleu4': 0.5}
    """
    if len(summed) != NUM_BLEU_STATISTICS:
        raise UserError(
            f"`summed` must hold {NUM_BLEU_STATISTICS} integers, got {len(summed)}. "
            "Sum the lists that `bleu_statistics` returns, position by position."
        )
    from sacrebleu.metrics.bleu import BLEU as SacreBLEU

    sys_len, ref_len, *counts = summed
    correct, total = counts[:MAX_NGRAM_ORDER], counts[MAX_NGRAM_ORDER:]
    return {
        f"bleu{order}": SacreBLEU.compute_bleu(
            correct[:order], total[:order], sys_len, ref_len, smooth_method="exp", max_ngram_order=order
        ).score
        / 100
        for order in range(1, MAX_NGRAM_ORDER + 1)
    }


class BLEU(TextMetric):
    """Corpus BLEU (Papineni et al., 2002) with n-grams up to 1, 2, 3 and 4, as ``sacrebleu`` computes it.

    With 13a tokenisation by default, exponential smoothing and all references of an example. BLEU is defined for a
    corpus: one example has counts (:func:`bleu_statistics`), not a score.

    Args:
        lowercase: Ignore case.
        tokenize: sacrebleu's tokenizer; see :func:`bleu_statistics`.

    Raises:
        UserError: The tokenizer is unknown.

    Example:
        >>> metric = BLEU()
        >>> metric.update(["the cat sat down."], [["the cat sat.", "a dog sat down here."]])
        >>> {key: round(value.item(), 4) for key, value in metric.compute().items()}
        {'bleu1': 1.0, 'bleu2': 0.866, 'bleu3': 0.63, 'bleu4': 0.5}
    """

    def __init__(self, lowercase: bool = False, tokenize: BleuTokenizer = "13a") -> None:
        super().__init__(torch.zeros(NUM_BLEU_STATISTICS, dtype=torch.long))
        _sacrebleu(lowercase, tokenize)  # refuses an unknown one
        self.lowercase = lowercase
        self.tokenize: BleuTokenizer = tokenize

    def score(self, predictions: list[str], references: list[list[str]]) -> list[list[int]]:
        """Count each example separately with :func:`bleu_statistics`.

        Args:
            predictions: One generated text per example.
            references: One list of at least one text per example.

        Returns:
            Ten integers per example.

        Raises:
            UserError: The input is not one list of at least one reference per prediction.
        """
        check_texts(predictions, references)
        return [
            bleu_statistics(prediction, texts, self.lowercase, self.tokenize)
            for prediction, texts in zip(predictions, references, strict=True)
        ]

    def _row(self, score: list[int]) -> list[int]:
        return score

    def compute(self) -> dict[str, Tensor]:
        """Compute corpus BLEU over all examples.

        Returns:
            ``bleu1`` to ``bleu4``, float64 tensors [] from 0 to 1. NaN where there was no example.
        """
        scores = bleu_from_statistics(self.sums.tolist())
        seen = bool(self.examples > 0)
        return {key: torch.full_like(self.examples, score if seen else math.nan) for key, score in scores.items()}
