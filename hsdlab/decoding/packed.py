"""A model's weight matrices in the layout that its CPU multiplies fastest, for the time of a decode.

A decode step multiplies a few rows with every matrix, and the layout of the matrix decides how fast. That of oneDNN,
which torch comes with, is faster than the model's own for one row as for many (docs/performance.md). It is a copy,
which costs the memory of the weights again, and is kept with the model for its next decode, while its weights are the
same. On a CPU with AMX, a single row in float32 is multiplied with the model's own weights, which is faster there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hsdlab.decoding.families import DecoderParts

FEWEST_STEPS = 16
"""The fewest new tokens (T) for which packing pays: it takes as long as some steps, once for each model."""

MOST_BYTES = 2 * 1024**3
"""Larger models decode on their own weights, since a copy of them might not fit into memory."""

_ROWS_PACKED_FOR = 8  # a layout for one row is slow for several; this one is fast for both
_SAMPLED_ROWS = 64  # every 64th row of a matrix is compared: any training step or merged adapter changes it


@dataclass(frozen=True)
class _Copy:
    """A weight in another layout.

    Attributes:
        matrix: The copy.
        state: Of the weight that it was made from.
    """

    matrix: Tensor
    state: tuple[int, int, torch.Size, int]


_copies: WeakKeyDictionary[nn.Module, _Copy] = WeakKeyDictionary()


@contextmanager
def packed_weights(parts: DecoderParts, max_steps: int) -> Iterator[None]:
    """Multiply with copies of the weights inside the block, and with the model's own after it.

    Linear layers (and GPT-2's ``Conv1D``) among the decoder layers, and the head, on a CPU in float32, or in bfloat16
    where the CPU has instructions for it.
    Passes with gradients or under autocast use the model's own weights, as does everything else.

    Args:
        parts: The model's decoder layers and head.
        max_steps: T, the most new tokens of the decode.

    Yields:
        Nothing.
    """
    modules = _packable(parts) if max_steps >= FEWEST_STEPS else []
    try:
        for module in modules:
            vars(module)["forward"] = _forward(module)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _packable(parts: DecoderParts) -> list[nn.Module]:
    """Return the modules that gain from another layout; none where all together are too large."""
    if not torch.backends.mkldnn.is_available():
        return []
    found = [module for layer in parts.layers for module in layer.modules()]
    modules: list[Any] = [module for module in dict.fromkeys((*found, parts.head)) if _gains(module)]
    return modules if sum(module.weight.nbytes for module in modules) <= MOST_BYTES else []


def _gains(module: nn.Module) -> bool:
    if type(module) not in (nn.Linear, Conv1D) or "forward" in vars(module):
        return False
    weight = module.weight
    if type(weight) is not nn.Parameter or weight.dim() != 2 or weight.device.type != "cpu":
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and onednn_takes_bfloat16())


def onednn_takes_bfloat16() -> bool:
    """Ask for the instructions without which oneDNN lays out no weights in bfloat16.

    Returns:
        Whether this CPU has them (AVX-512 on x86).
    """
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def one_row_is_faster_unpacked() -> bool:
    """Tell the CPUs on which torch multiplies one row in float32 faster with the model's own weights than oneDNN does.

    Measured on an Intel Xeon with AMX: all matrices of SmolLM2-135M take 22 to 28 ms against 32 to 33 ms with two
    threads, 39 against 47 to 50 ms with one. On CPUs of AMD the packed layout was the faster one.

    Returns:
        Whether this CPU has AMX.
    """
    return torch.cpu._is_amx_tile_supported()


def _matrix(module: Any) -> Tensor:
    """Return a module's weight in another layout, copied anew if it has changed."""
    weight = module.weight.detach()
    state, copy = _state(weight), _copies.get(module)
    if copy is None or copy.state != state:
        by_output = weight if type(module) is nn.Linear else weight.t()  # (outputs, inputs)
        matrix = torch.ops.mkldnn._reorder_linear_weight(by_output.contiguous(), _ROWS_PACKED_FOR)
        copy = _copies[module] = _Copy(matrix, state)
    return copy.matrix


def _state(weight: Tensor) -> tuple[int, int, torch.Size, int]:
    """Tell a weight from another in the same place: address, version, shape and the sum of the bits of some rows.

    The version alone does not see changes through ``weight.data``, by which adapters are merged.
    """
    bits = weight.view(torch.int32 if weight.dtype == torch.float32 else torch.int16)
    version = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.shape, int(bits[::_SAMPLED_ROWS].sum())


def _forward(module: Any) -> Callable[[Tensor], Tensor]:
    own_forward, weight, bias, matrix = module.forward, module.weight, module.bias, _matrix(module)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    own_for_one_row = weight.dtype == torch.float32 and one_row_is_faster_unpacked()

    def forward(hidden: Tensor) -> Tensor:
        """Apply the module: [..., inputs] to [..., outputs]."""
        if hidden.dtype != weight.dtype or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return own_forward(hidden)
        if own_for_one_row and hidden.numel() == hidden.shape[-1]:
            return own_forward(hidden)
        return multiply(hidden, matrix, bias, "none", [], "")

    return forward
