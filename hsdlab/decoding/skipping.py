"""Make the decoder layers of an unmodified transformers model skippable, and undo it.

Inside :func:`skippable`, each decoder layer's class is a subclass of its own class whose ``forward`` looks for a
:class:`LayerRunner` among its arguments, where transformers passes the key/value cache. If there is one, it
decides how the layer is called; if there is none, the layer runs as ever. So the state of a decode travels with
its cache: layers hold none, ordinary forward passes stay at full depth, and nothing else of the model changes
(names in the ``state_dict``, ``isinstance``, hooks, FSDP's class policies).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn

from hsdlab.decoding.families import DecoderParts, UnsupportedModelError


class LayerCall:
    """One call of a decoder layer's own forward.

    Attributes:
        layer: The layer.
        signature: The signature of its forward, without ``self``.
    """

    __slots__ = ("_forward", "layer", "signature")

    def __init__(self, layer: nn.Module, forward: Callable[..., Any], signature: inspect.Signature) -> None:
        self.layer = layer
        self.signature = signature
        self._forward = forward

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer; returns the hidden state after it, [rows, length, d]."""
        output = self._forward(self.layer, hidden, *args, **kwargs)
        if isinstance(output, tuple):
            setattr(type(self.layer), _EXTRA, len(output) - 1)
            return output[0]
        return output


class LayerRunner:
    """What stands where a model passes its cache and decides about each layer (:class:`SkipCache`, ``replay``)."""

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Return the hidden state after a layer.

        Args:
            call: Runs the layer that the model calls.
            hidden: The hidden state as it arrives, [rows, length, d].
            args: The other positional arguments of the call.
            kwargs: Its keyword arguments.
        """
        raise NotImplementedError


_EXTRA = "_outputs_after_hidden"  # of layers that return a tuple, known after the first call


class _Skippable(nn.Module):
    """Marks the subclasses made here."""


@cache
def _skippable_class(layer_class: Any) -> type[_Skippable]:
    own_forward = layer_class.forward
    signature = inspect.signature(own_forward)
    signature = signature.replace(parameters=list(signature.parameters.values())[1:])

    def forward(self: _Skippable, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        for argument in (*kwargs.values(), *args):
            if isinstance(argument, LayerRunner):
                hidden = argument.run_layer(LayerCall(self, own_forward, signature), hidden_states, args, kwargs)
                extra = getattr(self, _EXTRA, None)
                return hidden if extra is None else (hidden, *[None] * extra)
        return own_forward(self, hidden_states, *args, **kwargs)

    body = {"forward": forward, "__module__": layer_class.__module__, "__doc__": layer_class.__doc__}
    return type(f"Skippable{layer_class.__name__}", (_Skippable, layer_class), body)


@contextmanager
def skippable(parts: DecoderParts) -> Iterator[None]:
    """Swap the classes of the decoder layers, and swap them back on leaving, also by an exception.

    May be nested: inside, the layers are left as they are.

    Raises:
        UnsupportedModelError: If a layer's ``forward`` was replaced on the instance (accelerate's hooks do that),
            so that its class has no say.
    """
    hooked = [i for i, layer in enumerate(parts.layers) if "forward" in vars(layer)]
    if hooked:
        raise UnsupportedModelError(
            f"Layers {hooked} have a forward of their own on the instance (accelerate's device_map hooks?); "
            "load the model without device_map."
        )
    classes: list[Any] = [type(layer) for layer in parts.layers]
    if issubclass(classes[0], _Skippable):
        yield
        return
    try:
        for layer, layer_class in zip(parts.layers, classes, strict=True):
            layer.__class__ = _skippable_class(layer_class)
        yield
    finally:
        for layer, layer_class in zip(parts.layers, classes, strict=True):
            layer.__class__ = layer_class
