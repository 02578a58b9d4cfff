"""What a decode computes and reads, counted where torch runs it: operator by operator, without hsdlab's cost model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hsdlab import generate
from hsdlab.decoding import cache
from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.encoder_decoder import _Held
from hsdlab.decoding.exit_router import ExitRouter
from hsdlab.decoding.token_head import TokenHead

aten = torch.ops.aten
ROWS_OF = (aten.index, aten.index_select)  # operators that read of a tensor what they return


class _ParameterReads(TorchDispatchMode):
    """Adds up the bytes of a model's parameters that operators read; looked-up embeddings do not count."""

    def __init__(self, model):
        super().__init__()
        self.bytes = 0
        self._parameters = set()
        self.add(model)

    def add(self, module):
        """Count the parameters of a module, too."""
        self._parameters |= {weight.untyped_storage().data_ptr() for weight in module.parameters()}

    def copied(self, make, head, *args):
        """Count the copied rows of a head, too; the copying itself does not count."""
        before = self.bytes
        make(head, *args)
        self.bytes = before
        self._parameters |= {
            each.untyped_storage().data_ptr() for each in (head._weight, head._bias) if each is not None
        }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func.is_view or func in (aten.embedding.default, aten.detach.default):
            return output
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self._parameters:
                self.bytes += output.nbytes if func.overloadpacket in ROWS_OF else value.nbytes
        return output


@dataclass(frozen=True)
class Counted:
    """FLOPs, and bytes of parameters, keys and values."""

    flops: int
    bytes_read: int

    def __sub__(self, other):
        return Counted(self.flops - other.flops, self.bytes_read - other.bytes_read)


@contextmanager
def _cache_reads() -> Iterator[list[int]]:
    """Add up the bytes of the keys and values that the cache hands to attention."""
    usual, read = SkipCache.update, [0]

    def update(*args, **kwargs):
        keys, values = usual(*args, **kwargs)
        read[0] += keys.nbytes + values.nbytes
        return keys, values

    usual_read = _Held._read

    def read_cross(*args):
        held = usual_read(*args)
        read[0] += held.nbytes
        return held

    with mock.patch.object(SkipCache, "update", update), mock.patch.object(_Held, "_read", read_cross):
        yield read


def counted(model, strategy, **call):
    """Decode; return the output, and what was counted in the whole decode, prefill included.

    Attention is computed as matrix products, which torch counts, over keys of one prompt for each of its rows.
    """
    flops, read = FlopCounterMode(display=False), _ParameterReads(model)
    whole = mock.patch.object(cache, "can_split", return_value=False)
    usual = ExitRouter.load.__func__

    def load(cls, *args):
        router = usual(cls, *args)
        read.add(router)
        return router

    routers = mock.patch.object(ExitRouter, "load", classmethod(load))
    made = TokenHead.__init__
    heads = mock.patch.object(TokenHead, "__init__", lambda head, *args: read.copied(made, head, *args))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), whole, routers, heads, _cache_reads() as cached, flops, read:
        output = generate(model, strategy=strategy, eos_token_id=None, **call)
    return output, Counted(flops.get_total_flops(), read.bytes + cached[0])
