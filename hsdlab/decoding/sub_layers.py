"""Masks of sub-layers: the attention and the MLP of a layer, which may run apart.

A mask has the shape [..., layers] for whole layers, and [..., layers, 2] for attention and MLP.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SubLayers:
    """The layers whose attention, and those whose MLP, run in a decode step.

    A layer in both runs as a whole. A part that does not run passes the hidden state on unchanged. Each part counts as
    half a layer.

    Attributes:
        attention: Indices of layers from 0 to L-1, in any order.
        mlp: Likewise; the two may not both be empty.
    """

    attention: Sequence[int]
    mlp: Sequence[int]


StepLayers = Sequence[int] | SubLayers
"""What runs in a decode step: whole layers, or attention and MLP apart."""


def step_mask(layers: Iterable[int] | SubLayers, num_layers: int) -> Tensor:
    """Turn the layers of a decode step into a mask.

    Args:
        layers: Indices from 0 to L-1, in any order.
        num_layers: L.

    Returns:
        BoolTensor [layers], or [layers, 2] for :class:`SubLayers`, on the CPU.
    """
    if isinstance(layers, SubLayers):
        return torch.stack([step_mask(part, num_layers) for part in (layers.attention, layers.mlp)], dim=1)
    mask = torch.zeros(num_layers, dtype=torch.bool)
    mask[list(layers)] = True
    return mask


def layers_of(step: StepLayers) -> list[int]:
    """List the layers of a decode step of which any part runs.

    Args:
        step: The layers, in any order.

    Returns:
        Indices, ascending.
    """
    return sorted({*step.attention, *step.mlp} if isinstance(step, SubLayers) else {*step})


def step_layers(mask: Tensor) -> StepLayers:
    """Turn the mask of a decode step into layers; the reverse of :func:`step_mask`.

    Args:
        mask: BoolTensor [layers], or [layers, 2] for attention and MLP.

    Returns:
        Indices, ascending.
    """
    if mask.dim() == 2:
        attention, mlp = (part.nonzero().flatten().tolist() for part in mask.unbind(dim=1))
        return SubLayers(attention, mlp)
    return mask.nonzero().flatten().tolist()


def alike(masks: Sequence[Tensor], dims: int) -> list[Tensor]:
    """Bring masks into the same form.

    Args:
        masks: Of whole layers or of sub-layers.
        dims: Dimensions of a mask of whole layers.

    Returns:
        The masks as they are if all are of whole layers; else those of whole layers with both parts equal.
    """
    if all(mask.dim() == dims for mask in masks):
        return list(masks)
    return [apart(mask, dims) for mask in masks]


def apart(mask: Tensor, dims: int) -> Tensor:
    """Turn a mask of whole layers, or counts of them, into that of attention and MLP apart.

    Args:
        mask: Of whole layers or of sub-layers.
        dims: Dimensions of a mask of whole layers.

    Returns:
        The mask as it is, if it is of sub-layers; else [..., layers, 2] with both equal.
    """
    return mask if mask.dim() > dims else mask[..., None].expand(*mask.shape, 2)


def depth_sum(mask: Tensor, dims: int) -> int | float:
    """Count the layers in a mask.

    Args:
        mask: Of whole layers or of sub-layers.
        dims: Dimensions of a mask of whole layers.

    Returns:
        Layers; attention and MLP count as half a layer each.
    """
    total = int(mask.sum())
    return total if mask.dim() == dims else total / 2
