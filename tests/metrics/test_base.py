"""Sums on a device without float64, which is Apple's MPS; it is imitated, so that every machine can test it."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hsdlab.metrics import ROUGE, Efficiency
from hsdlab.metrics.base import SumMetric
from hsdlab.metrics.reliability import Reliability

TEXTS = ["a cat sat"], [["a cat sat down"]]


REFUSED = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."


def to_mps(tensor):
    """Move a tensor as `.to("mps")` does; "meta" stands for the device."""
    if tensor.dtype == torch.float64:
        raise TypeError(REFUSED)
    return tensor.to("meta")


class NoFloat64(TorchDispatchMode):
    """Refuses each operation whose result would be float64 on the device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "meta" and result.dtype == torch.float64:
            raise TypeError(REFUSED)
        return result


class Total(SumMetric):
    """The sum of pairs of numbers, and in float32 how many there were."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, numbers):
        self._add(total=numbers, count=1)

    def compute(self):
        return self.total


def test_float64_stays_where_it_is_and_the_rest_moves():
    metric = Total()
    metric.update(torch.tensor([2.0**24, 1.0]))
    metric._apply(to_mps)
    assert (metric.total.device.type, metric.total.dtype) == ("cpu", torch.float64)
    assert metric.count.device.type == "meta"
    metric.update(torch.tensor([1.0, 1.0]))
    assert metric.compute().tolist() == [2.0**24 + 1, 2.0]  # float32 would give 2 ** 24
    metric.reset()
    assert (metric.total.tolist(), metric.total.device.type) == ([0.0, 0.0], "cpu")


def test_a_text_metric_gives_there_what_it_gives_elsewhere():
    here, there = ROUGE(), ROUGE()
    there._apply(to_mps)
    for metric in (here, there):
        metric.update(*TEXTS)
    assert there.compute() == here.compute()
    assert here.compute()["rouge1"] == pytest.approx(6 / 7)  # 3 words of 3 and of 4


def test_all_states_of_efficiency_are_moved_or_stay():
    metric = Efficiency()
    metric._apply(to_mps)
    devices = {name: (getattr(metric, name).device.type, getattr(metric, name).dtype) for name in metric._defaults}
    assert all(device == "meta" or dtype == torch.float64 for device, dtype in devices.values())


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_amounts_from_another_device_are_moved_to_the_state():
    with FakeTensorMode(), NoFloat64():
        metric, reliability = Total(), Reliability(classifiers=2)
        metric.update(torch.ones(2, device="meta"))
        reliability.update(torch.rand(3, 2, device="meta"), torch.ones(3, 2, dtype=torch.bool, device="meta"))
        assert metric.total.device.type == "cpu"
        assert reliability.count.device.type == "cpu"


def test_other_type_errors_are_not_hidden():
    def broken(tensor):
        raise TypeError("not a device")

    metric = Total()
    with pytest.raises(TypeError, match="not a device"):
        metric._apply(broken)
