"""Names of metrics as tables and pictures show them."""

METRIC_LABELS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "bertscore_precision": "BERTScore P",
    "bertscore_recall": "BERTScore R",
    "bertscore_f1": "BERTScore F1",
}
"""The metrics that have a figure of a whole split, in the order of the tables."""


def metric_label(metric: str) -> str:
    """Return a metric's name for people; one without a label is spelled out."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))
