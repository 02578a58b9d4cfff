"""A second device without the hardware: tensors that live elsewhere, and a record of each time the host waits for it.

A tensor of the fake device holds its values in a tensor on the CPU, which code under test cannot see: ``device`` says
``DEVICE``, and an operator that mixes it with tensors of the CPU raises, as on a GPU. What the host reads of it is
noted as a :class:`Wait`: ``item``, ``tolist``, ``cpu``, ``bool``, ``equal``, ``nonzero``, a mask as an index, and every
other operator whose result's shape depends on values. So is a copy to the device that is not ``non_blocking``, for
which CUDA waits too. A ``non_blocking`` copy to the CPU holds nonsense until the host has waited for an event (or for
anything else) that came after it.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("maia:0")
"""A device type of torch that is neither tied to a driver nor treated specially by transformers."""

NAMES = (DEVICE.type, "meta")
"""What torch calls it: to C++ it is the meta device, which has no memory either."""

aten = torch.ops.aten
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index)
DYNAMIC = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class DeviceTensor(Tensor):
    """A tensor of the fake device."""

    @staticmethod
    def __new__(cls, values):
        """Wrap values that are on the CPU; memory that they share with others stays shared."""
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device="meta", **layout)
        made.values = values
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self):
        return DEVICE

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on {DEVICE} outside of `with FakeDevice()`")


@dataclass(frozen=True)
class Wait:
    """One wait of the host.

    Attributes:
        what: The operator, or "event".
        queued: Operators that the device has still to run when the host goes on. 0 means that it then stands idle.
    """

    what: str
    queued: int


class FakeDevice(TorchDispatchMode):
    """Runs operators on tensors of the fake device inside a ``with`` block.

    Attributes:
        waits: The waits so far.
    """

    def __init__(self):
        super().__init__()
        self.waits = []
        self._queued = 0  # operators so far
        self._done = 0  # of which the host knows that they are done
        self._copies = []  # to the CPU under way: (number of the operator, the copy, its values)

    def __enter__(self):
        self._only_cpu = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=DEVICE) copies from the CPU
        self._own = torch.Event, torch.accelerator.synchronize
        torch.Event, torch.accelerator.synchronize = self._event, lambda device: self._wait("synchronize")
        return super().__enter__()

    def __exit__(self, *exception):
        torch._C._set_only_lift_cpu_tensors(self._only_cpu)
        torch.Event, torch.accelerator.synchronize = self._own
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        here = [value for value in tensors if not isinstance(value, DeviceTensor)]
        target = kwargs.get("device")
        if len(here) == len(tensors) and (target is None or target.type not in NAMES):
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is aten._to_copy:
            return self._to_copy(func, args[0], kwargs)
        if packet is aten.copy_:
            return self._copy(*args, **kwargs)
        self._queued += 1
        if packet in INDEXING:
            indices = [each for each in args[1] if each is not None]
            if any(each.dtype == torch.bool or not isinstance(each, DeviceTensor) for each in indices):
                self._wait(packet.__name__)
        elif any(tag in func.tags for tag in DYNAMIC):
            self._wait(packet.__name__)
        if packet not in INDEXING and any(each.dim() > 0 for each in here):
            raise RuntimeError(f"{func}: expected all tensors on {DEVICE}, found some on the CPU")
        if target is not None:
            kwargs["device"] = "cpu"
        output = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        given = {id(each.values): each for each in tensors if isinstance(each, DeviceTensor)}
        return tree_map(lambda value: _there(value, given), output)

    def _to_copy(self, func, tensor, kwargs):
        target, non_blocking = kwargs.pop("device", tensor.device), kwargs.pop("non_blocking", False)
        made = func(_values(tensor), **kwargs)
        self._queued += 1
        if tensor.device.type == target.type:
            return DeviceTensor(made)
        if target.type in NAMES:
            if not non_blocking:
                self._wait("copy to the device")
            return DeviceTensor(made)
        return self._arriving(made, torch.empty_like(made), non_blocking)

    def _copy(self, destination, source, non_blocking=False):
        self._queued += 1
        if isinstance(destination, DeviceTensor):
            if not isinstance(source, DeviceTensor) and not non_blocking:
                self._wait("copy to the device")
            destination.values.copy_(_values(source))
            return destination
        return self._arriving(source.values.clone(), destination, non_blocking)

    def _arriving(self, values, copied, non_blocking):
        """Copy to the CPU: at once, or after the next wait."""
        nonsense = ~values if values.dtype == torch.bool else values.new_full(values.shape, -77)
        copied.copy_(nonsense)
        self._copies.append((self._queued, copied, values))
        if not non_blocking:
            self._wait("copy to the CPU")
        return copied

    def _wait(self, what, until=None):
        until = self._queued if until is None else until
        self.waits.append(Wait(what, self._queued - until))
        self._done = max(self._done, until)
        for number, copied, values in self._copies:
            if number <= self._done:
                copied.copy_(values)
        self._copies = [each for each in self._copies if each[0] > self._done]

    def _event(self, device=None, **options):
        return _Event(self)


class _Event:
    """Takes the place of ``torch.Event``; waiting for what is known to be done is no wait."""

    def __init__(self, device):
        self._device = device

    def record(self):
        self._number = self._device._queued

    def synchronize(self):
        if self._number > self._device._done:
            self._device._wait("event", self._number)


def on_fake_device(model):
    """Copy a model whose parameters and buffers are on the CPU to the fake device."""
    model = copy.deepcopy(model)
    with FakeDevice():
        there = {  # tied weights stay tied
            weight: nn.Parameter(DeviceTensor(weight.detach()), requires_grad=False) for weight in model.parameters()
        }
    for module in model.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = there.get(weight)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else DeviceTensor(buffer)
    return model


def _values(value):
    return value.values if isinstance(value, DeviceTensor) else value


def _there(value, given):
    if not isinstance(value, Tensor):
        return value
    return given[id(value)] if id(value) in given else DeviceTensor(value)
