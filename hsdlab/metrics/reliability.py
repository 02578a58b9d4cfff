"""Reliability: whether a classifier that says "80 %" is right in 80 % of the cases."""

import torch
from torch import Tensor

from hsdlab.metrics.base import SumMetric


class Reliability(SumMetric):
    """The reliability diagram of several binary classifiers, and their expected calibration error.

    The confidences are sorted into bins of equal width (Guo et al. 2017, arXiv 1706.04599, section 2). The states are
    sums, so any share of the data over processes gives the same figures.

    Args:
        classifiers: Number of classifiers.
        bins: Number of bins between the confidences 0 and 1.

    Example:
        >>> metric = Reliability(classifiers=1, bins=2)
        >>> metric.update(torch.tensor([[0.9], [0.7], [0.1]]), torch.tensor([[True], [False], [False]]))
        >>> round(metric.compute()["calibration_error"].item(), 3)  # bins: 1/3 · |0.1 - 0| + 2/3 · |0.8 - 0.5|
        0.233
    """

    count: Tensor
    confidence_sum: Tensor
    positives: Tensor

    def __init__(self, classifiers: int, bins: int = 10) -> None:
        super().__init__()
        self.bins = bins
        for name in ("count", "confidence_sum", "positives"):
            self.add_state(name, torch.zeros(classifiers, bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, confidences: Tensor, positive: Tensor) -> None:
        """Add cases.

        Args:
            confidences: FloatTensor [cases, classifiers], each classifier's probability of "yes", from 0 to 1.
            positive: BoolTensor [cases, classifiers], whether "yes" is right.
        """
        device = self.count.device  # differs from the module's where that device has no float64
        confidences, positive = confidences.to(device).double(), positive.to(device)
        place = (confidences * self.bins).long().clamp(0, self.bins - 1)  # (cases, classifiers)
        in_bin = torch.nn.functional.one_hot(place, self.bins).double()  # (cases, classifiers, bins)
        self._add(
            count=in_bin.sum(dim=0),
            confidence_sum=(in_bin * confidences[..., None]).sum(dim=0),
            positives=(in_bin * positive[..., None]).sum(dim=0),
        )

    def compute(self) -> dict[str, Tensor]:
        """Compute the diagram and the calibration error.

        Returns:
            Float64 tensors. The first two are NaN in a bin without cases, the last two for a classifier without cases.

            - ``confidence`` [classifiers, bins]: the mean confidence in each bin.
            - ``rate`` [classifiers, bins]: the share of the cases in it for which "yes" was right.
            - ``count`` [classifiers, bins]: the number of cases in it.
            - ``calibration_error`` [classifiers]: the mean of |confidence - rate| over the cases.
            - ``positive_rate`` [classifiers]: the share of all cases for which "yes" was right.
        """
        confidence, rate = self.confidence_sum / self.count, self.positives / self.count
        gaps = (confidence - rate).abs().nan_to_num(0.0) * self.count
        return {
            "confidence": confidence,
            "rate": rate,
            "count": self.count,
            "calibration_error": gaps.sum(dim=1) / self.count.sum(dim=1),
            "positive_rate": self.positives.sum(dim=1) / self.count.sum(dim=1),
        }


def both_kinds(positive_rate: Tensor) -> Tensor:
    """Say where the AUROC is defined; elsewhere torchmetrics gives 0.

    Args:
        positive_rate: [classifiers], the share of positive cases.

    Returns:
        BoolTensor [classifiers]: whether there are positive and negative cases.
    """
    return (positive_rate > 0) & (positive_rate < 1)
