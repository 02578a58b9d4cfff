"""The reliability diagram against torchmetrics' calibration error, and in two shares."""

import torch
from torchmetrics.functional.classification import binary_calibration_error

from hsdlab.metrics.reliability import Reliability


def cases(number=500, classifiers=3):
    generator = torch.Generator().manual_seed(0)
    confidences = torch.rand(number, classifiers, generator=generator, dtype=torch.float64)
    return confidences, torch.rand(number, classifiers, generator=generator) < confidences**2


def test_calibration_error_is_that_of_torchmetrics():
    confidences, positive = cases()
    metric = Reliability(classifiers=3, bins=10)
    metric.update(confidences, positive)
    ours = metric.compute()["calibration_error"]
    for index in range(3):
        # torchmetrics asks how sure one is of the class that one predicts; of "yes" it is the same where all say "yes"
        theirs = binary_calibration_error(confidences[:, index], positive[:, index].long(), n_bins=10, norm="l1")
        torch.testing.assert_close(ours[index], theirs.double(), atol=1e-6, rtol=0)


def test_shares_add_up():
    confidences, positive = cases()
    whole, shares = Reliability(3), Reliability(3)
    whole.update(confidences, positive)
    shares.update(confidences[:7], positive[:7])
    shares.update(confidences[7:], positive[7:])
    for name, value in whole.compute().items():
        torch.testing.assert_close(shares.compute()[name], value)


def test_bins_by_hand():
    metric = Reliability(classifiers=1, bins=2)
    metric.update(torch.tensor([[1.0], [0.5], [0.2]]), torch.tensor([[True], [False], [True]]))
    diagram = metric.compute()
    assert diagram["count"].tolist() == [[1, 2]]  # 0.5 belongs to the upper bin, 1 too
    torch.testing.assert_close(diagram["rate"], torch.tensor([[1.0, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(diagram["confidence"], torch.tensor([[0.2, 0.75]], dtype=torch.float64))
