"""Names of metrics as tables and plots show them."""

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
"""The metrics that have a figure for a whole split, in the order of the tables."""


def metric_label(metric: str) -> str:
    """Look up the name of a metric in tables and plots.

    Args:
        metric: As `hsdlab.metrics` and options name it, such as "rougeL".

    Returns:
        The label, "ROUGE-L"; for a metric without one the name with spaces for underscores.
    """
    return METRIC_LABELS.get(metric, metric.replace("_", " "))
