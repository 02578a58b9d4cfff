"""Make the decoder layers of an unmodified transformers model skippable, and undo it.

Inside :func:`skippable`, the class of each decoder layer is a subclass of its own class. Its ``forward`` looks for a
:class:`LayerRunner` among its arguments, where transformers passes the KV cache. The runner decides how the layer is
called; without one, the layer runs as usual. So the cache holds all state of a decode and the layers hold none.
Ordinary forward passes stay at full depth, and nothing else of the model changes (names in the ``state_dict``,
``isinstance``, hooks, FSDP's class policies).
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

    Args:
        layer: The decoder layer that the model calls.
        forward: The forward of its original class, which takes ``self`` first.
        signature: The signature of that forward, without ``self``.

    Attributes:
        layer: As given.
        forward: As given.
        signature: As given.
    """

    __slots__ = ("forward", "layer", "signature")

    def __init__(self, layer: nn.Module, forward: Callable[..., Any], signature: inspect.Signature) -> None:
        self.layer = layer
        self.forward = forward
        self.signature = signature

    @property
    def places(self) -> dict[str, int]:
        """The place of each parameter among the positional ones that follow the hidden state."""
        return {name: place - 1 for place, name in enumerate(self.signature.parameters)}

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer; return the hidden state after it, [rows, length, d]."""
        output = self.forward(self.layer, hidden, *args, **kwargs)
        if isinstance(output, tuple):
            setattr(type(self.layer), _EXTRA, len(output) - 1)
            return output[0]
        return output


class LayerRunner:
    """Takes the place of the KV cache in a forward pass; decides about each layer (:class:`SkipCache`, ``replay``)."""

    last_executed: Tensor | None = None
    """The last executed layer of each token of the pass, LongTensor [rows or 1, tokens] on the CPU, at its end. None
    where it is the model's last one for all tokens."""

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer, run it for some rows only, or skip it.

        Args:
            call: Runs the layer that the model calls.
            hidden: The hidden state that arrives at the layer, [rows, length, d].
            args: The other positional arguments of the call.
            kwargs: Its keyword arguments.

        Returns:
            The hidden state after the layer, [rows, length, d]; unchanged in the rows that skip it.
        """
        raise NotImplementedError


_EXTRA = "_outputs_after_hidden"  # of layers that return a tuple, known after the first call


_HOOKED = "_forward_with_hook"  # accelerate's forward of a layer, which loads its weights, while it is skippable


class _Skippable(nn.Module):
    """Marks the subclasses made here."""


def _with_hook(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a layer as accelerate's hook does. A skipped layer comes not so far, and its weights stay where they are."""
    return vars(layer)[_HOOKED](*args, **kwargs)


@cache
def _skippable_class(layer_class: Any) -> type[_Skippable]:
    own_forward = layer_class.forward
    signature = inspect.signature(own_forward)
    signature = signature.replace(parameters=list(signature.parameters.values())[1:])

    def forward(self: _Skippable, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        whole = _with_hook if _HOOKED in vars(self) else own_forward
        for argument in (*kwargs.values(), *args):
            if isinstance(argument, LayerRunner):
                hidden = argument.run_layer(LayerCall(self, whole, signature), hidden_states, args, kwargs)
                extra = getattr(self, _EXTRA, None)
                return hidden if extra is None else (hidden, *[None] * extra)
        return whole(self, hidden_states, *args, **kwargs)

    body = {"forward": forward, "__module__": layer_class.__module__, "__doc__": layer_class.__doc__}
    return type(f"Skippable{layer_class.__name__}", (_Skippable, layer_class), body)


@contextmanager
def skippable(parts: DecoderParts) -> Iterator[None]:
    """Swap the classes of the decoder layers, and swap them back on leaving, also after an exception.

    Blocks can be nested; the inner ones change nothing.

    Args:
        parts: The model's decoder layers.

    Yields:
        Nothing; call the model with a :class:`LayerRunner` as its cache inside the block.

    Raises:
        UnsupportedModelError: A layer's ``forward`` was replaced on the instance, and not by accelerate, so that the
            one of its class is never called.
    """
    classes: list[Any] = [type(layer) for layer in parts.layers]
    if issubclass(classes[0], _Skippable):
        yield
        return
    own = [i for i, layer in enumerate(parts.layers) if "forward" in vars(layer) and not hasattr(layer, "_hf_hook")]
    if own:
        raise UnsupportedModelError(
            f"Layers {own} have a forward of their own on the instance, which hsdlab cannot skip; remove it."
        )
    try:
        for layer, layer_class in zip(parts.layers, classes, strict=True):
            if "forward" in vars(layer):
                vars(layer)[_HOOKED] = vars(layer).pop("forward")
            layer.__class__ = _skippable_class(layer_class)
            if parts.further_outputs is not None:
                setattr(layer.__class__, _EXTRA, parts.further_outputs)
        with _exits_adapted(parts):
            yield
    finally:
        for layer, layer_class in zip(parts.layers, classes, strict=True):
            layer.__class__ = layer_class
            if _HOOKED in vars(layer):
                vars(layer)["forward"] = vars(layer).pop(_HOOKED)


@contextmanager
def _exits_adapted(parts: DecoderParts) -> Iterator[None]:
    """Apply the adapters of the exits in forward passes with a :class:`LayerRunner`, to what the final norm gives."""
    exits = parts.exits
    if exits is None or exits.rank is None:
        yield
        return

    def adapt(body: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        runner = next((each for each in (*kwargs.values(), *args) if isinstance(each, LayerRunner)), None)
        if runner is not None and runner.last_executed is not None:
            output.last_hidden_state = exits.of_tokens(output.last_hidden_state, runner.last_executed)
        return output

    handle = parts.body.register_forward_hook(adapt, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
