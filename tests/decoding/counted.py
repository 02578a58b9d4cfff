"""What a decode computes and reads, counted where torch runs it: operator by operator, without hsdlab's cost model."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hsdlab import generate

aten = torch.ops.aten
ROWS_OF = (aten.index, aten.index_select)  # operators that read of a tensor what they return
ATTENTION = "counted"
"""transformers' name of an attention of matrix products, which torch counts; it counts the keys and values read."""

_attended_bytes = [0]


def _attention(module, query, key, value, attention_mask, **kwargs):
    _attended_bytes[0] += key.nbytes + value.nbytes
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _ParameterReads(TorchDispatchMode):
    """Adds up the bytes of a model's parameters that operators read; looked-up embeddings do not count."""

    def __init__(self, model):
        super().__init__()
        self.bytes = 0
        self._parameters = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

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


def counted(model, strategy, **call):
    """Decode; return the output, and what was counted in the whole decode, prefill included."""
    _attended_bytes[0] = 0
    usual = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as flops, _ParameterReads(model) as read:
            output = generate(model, strategy=strategy, eos_token_id=None, **call)
    finally:
        model.set_attn_implementation(usual)
    return output, Counted(flops.get_total_flops(), read.bytes + _attended_bytes[0])
