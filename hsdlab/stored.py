"""What a model stores of its weights. Quantised ones take less memory than their shape and dtype say.

A quantised weight is a tensor around others (torchao), a packed tensor with its scales beside it (bitsandbytes), or
buffers of a linear layer that has no weight (GPTQ, AWQ).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """Take a tensor apart into those that hold its numbers.

    Args:
        tensor: Any tensor.

    Returns:
        The tensor alone, or what a tensor that wraps others (a quantised weight) is made of.
    """
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [plain for name in names for plain in plain_tensors(getattr(tensor, name))]


def stored_bytes(module: nn.Module) -> int:
    """Count the bytes of a module's weights, as they are stored.

    Args:
        module: Any module.

    Returns:
        Bytes of its parameters; of quantised linear layers, those of the packed numbers and of their scales.
    """
    quantised = quantised_linears(module)
    within = {id(weight) for each in quantised for weight in each.parameters()}
    held: list[Tensor] = [weight for weight in module.parameters() if id(weight) not in within]
    held += [
        value for each in quantised for value in each.state_dict(keep_vars=True).values() if isinstance(value, Tensor)
    ]
    return sum(plain.nbytes for weight in held for plain in plain_tensors(weight))


def quantised_linears(module: nn.Module) -> list[Any]:
    """Find the linear layers whose weights are quantised.

    Args:
        module: Any module.

    Returns:
        The modules with ``in_features`` and ``out_features`` that hold their matrix in fewer numbers than it has, or in
        numbers of one byte.
    """
    return [each for each in module.modules() if _is_quantised(each)]


def _is_quantised(module: Any) -> bool:
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not all(isinstance(size, int) for size in sizes) or next(module.children(), None) is not None:
        return False
    weight = module._parameters.get("weight")
    if weight is None:
        return next(module.buffers(), None) is not None
    if type(weight) is nn.Parameter and weight.dtype in _WHOLE:
        return False
    return any(plain.element_size() == 1 for plain in plain_tensors(weight))


_WHOLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
