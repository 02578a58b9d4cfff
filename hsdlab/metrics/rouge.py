"""ROUGE by Google's ``rouge_score``."""

import re
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

from lightning_utilities.core.rank_zero import rank_zero_warn

from hsdlab.errors import UserError
from hsdlab.metrics.base import MeanScore, check_texts

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL")
LSUM_KEY = "rougeLsum"

TokenizerName = Literal["default", "unicode"]


@runtime_checkable
class RougeTokenizer(Protocol):
    """The interface of a tokenizer for ``rouge_score``. It has to be hashable: one scorer is kept per tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text into words.

        Args:
            text: A prediction or a reference, as it is.

        Returns:
            The words in the form in which they are compared, such as lower case.
        """
        ...

    def __hash__(self) -> int:
        """Tell tokenizers apart: one scorer is kept for each."""
        ...


class UnicodeTokenizer:
    """Words of any script in lower case. In scripts without spaces between words, each character is a word.

    The scripts without spaces are Chinese, Japanese, Thai, Lao, Khmer and Burmese.

    Example:
        >>> UnicodeTokenizer().tokenize("Привет, мир! 你好")
        ['привет', 'мир', '你', '好']
    """

    _WORD = re.compile(
        r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
        r"|(?:[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
        r"|[\u0300-\u036f\u0900-\u0dff\u064b-\u065f])+"
    )

    def tokenize(self, text: str) -> list[str]:
        """Split a text into words.

        Args:
            text: Of any script.

        Returns:
            The words in lower case, without punctuation; empty where there is none.
        """
        return self._WORD.findall(text.lower())


def rouge_scores(
    prediction: str,
    references: list[str],
    use_stemmer: bool = False,
    tokenizer: TokenizerName | RougeTokenizer = "default",
    lsum: bool = False,
) -> dict[str, float]:
    """Score one prediction by ROUGE-1, ROUGE-2 and ROUGE-L with Google's ``rouge_score``.

    Args:
        prediction: The generated text.
        references: The texts to compare with, at least one.
        use_stemmer: Compare words of more than three letters by their Porter stem.
        tokenizer: "default", ``rouge_score``'s own, which reads English letters and digits only; "unicode", words of
            any script (:class:`UnicodeTokenizer`); or an object with ``tokenize(text) -> list[str]``.
        lsum: Score ROUGE-Lsum too: ROUGE-L of summaries with one sentence per line.

    Returns:
        ``{"rouge1", "rouge2", "rougeL"}``, and "rougeLsum" with `lsum`. Each is the F1, from 0 to 1, of the reference
        that is best for that key. A text in which the tokenizer finds no word scores 0.

    Raises:
        UserError: The input is not a string and a non-empty list of strings, or the tokenizer is unknown, or used with
            the stemmer.

    Example:
        >>> rouge_scores("the cat sat down", ["the cat sat", "a dog sat down here"])
        {'rouge1': 0.8571428571428571, 'rouge2': 0.8, 'rougeL': 0.8571428571428571}
        >>> rouge_scores("привет мир", ["привет мир"], tokenizer="unicode")["rougeL"]
        1.0
    """
    check_texts([prediction], [references])
    scorer = _rouge_scorer(use_stemmer, tokenizer, lsum)
    best = scorer.score_multi(references, prediction)
    return {key: float(best[key].fmeasure) for key in scorer.rouge_types}


@cache
def _rouge_scorer(use_stemmer: bool, tokenizer: TokenizerName | RougeTokenizer, lsum: bool) -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer  # slow to import: it brings all of nltk

    keys = [*ROUGE_KEYS, *([LSUM_KEY] if lsum else [])]
    return RougeScorer(keys, use_stemmer=use_stemmer, tokenizer=_tokenizer(use_stemmer, tokenizer))


def _tokenizer(use_stemmer: bool, tokenizer: TokenizerName | RougeTokenizer) -> RougeTokenizer | None:
    """Return the object that ``rouge_score`` takes; None for its own tokenizer."""
    if tokenizer == "default":
        return None
    if use_stemmer:
        raise UserError(
            "ROUGE: use_stemmer is Porter's stemmer of English, which belongs to tokenizer='default'; leave one out."
        )
    if tokenizer == "unicode":
        return UnicodeTokenizer()
    if isinstance(tokenizer, RougeTokenizer):
        return tokenizer
    raise UserError(
        f"ROUGE: tokenizer={tokenizer!r}; expected one of {', '.join(get_args(TokenizerName))}, or an object with "
        "tokenize(text) that returns a list of words."
    )


class ROUGE(MeanScore):
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004): the mean over examples of the best F1 over the references.

    The best reference is chosen separately for each key, as ``rouge_score.score_multi`` does. The metric warns once
    where the default tokenizer ignores most letters of a reference.

    Args:
        use_stemmer: Compare words of more than three letters by their Porter stem.
        tokenizer: See :func:`rouge_scores`.
        lsum: Score ROUGE-Lsum too: ROUGE-L of summaries with one sentence per line.

    Raises:
        UserError: The tokenizer is unknown, or used with the stemmer.

    Example:
        >>> metric = ROUGE()
        >>> metric.update(["the cat sat down", "hello"], [["the cat sat", "a dog sat down"], ["hello world"]])
        >>> {key: round(value.item(), 4) for key, value in metric.compute().items()}
        {'rouge1': 0.7619, 'rouge2': 0.4, 'rougeL': 0.7619}
    """

    def __init__(
        self,
        use_stemmer: bool = False,
        tokenizer: TokenizerName | RougeTokenizer = "default",
        lsum: bool = False,
    ) -> None:
        super().__init__((*ROUGE_KEYS, *([LSUM_KEY] if lsum else [])))
        _tokenizer(use_stemmer, tokenizer)  # refuses what is not a tokenizer
        self.use_stemmer = use_stemmer
        self.tokenizer = tokenizer
        self.lsum = lsum
        self._has_warned = False

    def score(self, predictions: list[str], references: list[list[str]]) -> list[dict[str, float]]:
        """Score each example separately with :func:`rouge_scores`.

        Args:
            predictions: One generated text per example.
            references: One list of at least one text per example.

        Returns:
            ``{"rouge1", "rouge2", "rougeL"}``, and "rougeLsum" with `lsum`, per example.

        Raises:
            UserError: The input is not one list of at least one reference per prediction.
        """
        check_texts(predictions, references)
        self._warn_of_unknown_letters(references)
        return [
            rouge_scores(prediction, texts, self.use_stemmer, self.tokenizer, self.lsum)
            for prediction, texts in zip(predictions, references, strict=True)
        ]

    def _warn_of_unknown_letters(self, references: list[list[str]]) -> None:
        if self._has_warned or self.tokenizer != "default":
            return
        unknown = next((text for texts in references for text in texts if _mostly_unknown(text)), None)
        if unknown is not None:
            self._has_warned = True
            rank_zero_warn(
                "ROUGE's default tokenizer reads English letters and digits only, and ignores most of a reference "
                f"({unknown[:40]!r}): equal texts may score 0. Give tokenizer='unicode' "
                "(--model.rouge_tokenizer=unicode)."
            )


def _mostly_unknown(text: str) -> bool:
    """Return whether rouge_score's own tokenizer ignores more letters of a text than it reads."""
    letters = [character for character in text if character.isalnum()]
    return 2 * sum(not character.isascii() for character in letters) > len(letters)
