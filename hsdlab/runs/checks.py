"""What `calibrate` and `tune` refuse alike before anything is decoded."""

from collections import Counter
from collections.abc import Collection, Sequence

from hsdlab.errors import UserError
from hsdlab.metrics.bertscore import BERTSCORE_KEYS
from hsdlab.metrics.rouge import LSUM_KEY, ROUGE_KEYS

EXACT_MATCH = "exact_match"
COMPUTED_BY = {**dict.fromkeys((*ROUGE_KEYS, LSUM_KEY), "rouge"), **dict.fromkeys(BERTSCORE_KEYS, "bertscore")}
"""The metrics that score each example by itself, and which of DecodeModule's `metrics` computes them."""
CORPUS_METRICS = {**COMPUTED_BY, **dict.fromkeys(("bleu1", "bleu2", "bleu3", "bleu4"), "bleu")}
"""The metrics that have a figure of a whole split, and which of DecodeModule's `metrics` computes them."""


def check_computed(metric: str, by: str, computed: Collection[str]) -> None:
    """Refuse a metric that the run does not compute.

    Args:
        metric: Name of a figure, such as rougeL.
        by: The entry of DecodeModule's `metrics` that computes it.
        computed: The entries of `metrics` in this run.

    Raises:
        UserError: `by` is not among `computed`.
    """
    if by not in computed:
        raise UserError(f"metric={metric} is computed by {by}, which is not in model.metrics=[{', '.join(computed)}].")


def check_ids(examples: Sequence[str], what: str) -> None:
    """Refuse examples that share an id.

    Args:
        examples: Ids of all examples.
        what: Which examples they are, for the message: "calibration" or "validation".

    Raises:
        UserError: An id occurs twice.
    """
    if len(set(examples)) < len(examples):
        (twice, number), *_ = Counter(examples).most_common(1)
        raise UserError(f"{number} {what} examples have the id {twice!r}; expected each to have its own.")
