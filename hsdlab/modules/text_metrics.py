"""The text metrics that a decode computes, by the names of its `metrics` option."""

from dataclasses import dataclass
from typing import Literal

from hsdlab.errors import UserError
from hsdlab.metrics import BLEU, ROUGE, BERTScore
from hsdlab.metrics.base import TextMetric
from hsdlab.metrics.bleu import BleuTokenizer
from hsdlab.metrics.rouge import TokenizerName
from hsdlab.models.embedded import PREFIX, embedded_folder

MetricName = Literal["rouge", "bleu", "bertscore"]
METRICS: tuple[MetricName, ...] = ("rouge", "bleu", "bertscore")
ENCODER = "embedded:all-minilm-l6-v2"


@dataclass(frozen=True)
class MetricOptions:
    """How the metrics score; see `DecodeModule`.

    Attributes:
        bertscore_encoder: Encoder of BERTScore: a local folder, or an embedded model.
        rouge_tokenizer: "default" or "unicode".
        rouge_lsum: Whether to score ROUGE-Lsum too.
        bleu_tokenizer: One of sacrebleu's: "13a", "intl", "zh", "char" or "none".
    """

    bertscore_encoder: str = ENCODER
    rouge_tokenizer: TokenizerName = "default"
    rouge_lsum: bool = False
    bleu_tokenizer: BleuTokenizer = "13a"


def text_metric(name: str, options: MetricOptions) -> TextMetric:
    """Make a metric.

    Args:
        name: One of `METRICS`.
        options: Those of other metrics are ignored.

    Returns:
        A new metric without any state.

    Raises:
        UserError: There is no such metric, or an option has no such value.
        FileNotFoundError: The folder of BERTScore's encoder is missing.
    """
    if name == "rouge":
        return ROUGE(tokenizer=options.rouge_tokenizer, lsum=options.rouge_lsum)
    if name == "bleu":
        return BLEU(tokenize=options.bleu_tokenizer)
    if name == "bertscore":
        encoder = options.bertscore_encoder
        return BERTScore(embedded_folder(encoder) if encoder.startswith(PREFIX) else encoder)
    raise UserError(f"metrics holds {name!r}: expected some of {', '.join(METRICS)}.")
