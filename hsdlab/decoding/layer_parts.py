"""Run a decoder layer without its attention or without its MLP.

For the time of one call, an attribute of the layer stands before the module of the same name: a function that returns
zeros without computing anything, or one that masks what the module returns. The layer's own code adds zeros to the
hidden state, so a part that is left out passes it on unchanged. In place of zeros, a part that adds to the hidden state
by itself (BLOOM) returns what it was given to add to. Norms are computed nonetheless.

Whether the layers of a model do that is checked once, with the hidden states of two tokens.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from hsdlab.decoding.encoder_decoder import CrossAttention, EncoderDecoderPair
from hsdlab.decoding.families import (
    DecoderParts,
    UnsupportedModelError,
    attention_name,
    cross_attention_name,
    decoder_config,
    feed_forward_names,
)
from hsdlab.decoding.skipping import LayerCall, LayerRunner, skippable

Runs = Tensor | bool
"""Which tokens a part runs for: all, none, or those where a BoolTensor [rows, length] is true."""


def run_parts(call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict, attention: Runs, mlp: Runs) -> Tensor:
    """Run a layer whose model :func:`check_parts` has checked, in parts.

    A part that runs for no token is not called. One that runs for some is called for all, and adds nothing to the
    others. The MLP gets the hidden state after attention (in parallel blocks, that before it), as in the whole layer.

    Args:
        call: Runs the layer.
        hidden: The hidden state that arrives at the layer, [rows, length, d].
        args: The other positional arguments of the call.
        kwargs: Its keyword arguments.
        attention: Which tokens attention runs for.
        mlp: Which tokens the MLP runs for.

    Returns:
        The hidden state after the layer, [rows, length, d].
    """
    if attention is True and mlp is True:
        return call(hidden, *args, **kwargs)
    stand_ins: dict[str, Callable[..., Any]] = {}
    if attention is not True:
        for name in _attentions(call.layer):
            stand_ins |= _stand_ins(call.layer, (name,), attention)
    if mlp is not True:
        stand_ins |= _stand_ins(call.layer, feed_forward_names(call.layer), mlp)
    with _before_modules(call.layer, stand_ins):
        return call(hidden, *args, **kwargs)


def check_parts(parts: DecoderParts) -> None:
    """Check that the layers of a model can be run in parts. The result is remembered, so a model is checked once.

    Args:
        parts: The model's decoder layers.

    Raises:
        UnsupportedModelError: A layer has no attention or MLP under a known name, or changes the hidden state also
            where both are left out (a norm after the residual connection, as in OPT-350m).
    """
    if parts.model not in _problems:
        _problems[parts.model] = _problem(parts)
    if problem := _problems[parts.model]:
        raise UnsupportedModelError(
            f"The attention and the MLP of {type(parts.model).__name__} cannot be skipped apart: {problem}. Use a "
            "strategy that skips whole layers."
        )


_problems: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()
_further_outputs: WeakKeyDictionary[type, int | None] = WeakKeyDictionary()
"""How many outputs follow the hidden state, by the class of an attention or MLP; None where it returns no tuple."""


def _problem(parts: DecoderParts) -> str | None:
    if any(mixer is not None and attends for mixer, attends in zip(parts.mixers, parts.attends, strict=True)):
        return "its layers have a recurrent part beside attention"
    try:
        _ = [(attention_name(layer), feed_forward_names(layer)) for layer in parts.layers]
    except UnsupportedModelError:
        return "a layer has no attention or no MLP under a known name"
    check = _Check(parts)
    token = torch.arange(2, device=parts.model.device)[:, None]  # one of them is no padding, whose embedding may be 0
    given: dict[str, Any] = {"input_ids": token, "use_cache": True, parts.cache_argument: check}
    if parts.encoder is not None:
        given["encoder_hidden_states"] = torch.ones(
            2, 1, parts.hidden_size, device=token.device, dtype=parts.model.dtype
        )
        given[parts.cache_argument] = EncoderDecoderPair(parts, check, CrossAttention(parts.num_layers))
    with skippable(parts), torch.no_grad():
        # forward instead of a call, and below too: hooks that count passes and parts do not see the check
        parts.body.forward(**given)
    if check.changing:
        return f"layers {check.changing} change the hidden state also without both (a norm after the residual?)"
    return None if check.seen == parts.num_layers else "its layers were not called with the cache"


class _Check(LayerRunner, DynamicCache):
    """Runs each layer as a whole, notes what its parts return, and then runs it without both."""

    def __init__(self, parts: DecoderParts) -> None:
        super().__init__(config=decoder_config(parts.model.config))
        self.seen = 0
        self.changing: list[int] = []

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        names = (*_attentions(call.layer), *feed_forward_names(call.layer))
        with _before_modules(call.layer, {name: _noting(call.layer.get_submodule(name)) for name in names}):
            output = call(hidden, *args, **kwargs)
        without = run_parts(call, hidden, args, kwargs, attention=False, mlp=False)
        if not torch.allclose(without, hidden, rtol=0, atol=0, equal_nan=True):
            self.changing.append(self.seen)
        self.seen += 1
        return output


def _attentions(layer: nn.Module) -> list[str]:
    """The paths of self-attention and, beside an encoder, of cross-attention, which runs where self-attention does."""
    return [name for name in (attention_name(layer), cross_attention_name(layer)) if name is not None]


def _noting(module: nn.Module) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = module.forward(*args, **kwargs)
        _further_outputs[type(module)] = len(output) - 1 if isinstance(output, tuple) else None
        return output

    return forward


def _stand_ins(layer: nn.Module, names: tuple[str, ...], runs: Tensor | bool) -> dict[str, Callable[..., Any]]:
    """Return what stands before the modules of a part, which is the last module's output or nothing."""
    last = layer.get_submodule(names[-1])
    if isinstance(runs, Tensor):
        return {names[-1]: _masked(last, runs)}
    return dict.fromkeys(names[:-1], _pass_on) | {names[-1]: _nothing(last)}


def _pass_on(hidden: Tensor) -> Tensor:
    return hidden


def _nothing(module: nn.Module) -> Callable[..., Any]:
    further = _further_outputs[type(module)]

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        output = _adding_nothing(module, args, kwargs, hidden)
        return output if further is None else (output, *[None] * further)

    return forward


def _masked(module: nn.Module, runs: Tensor) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = module(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        where = runs.reshape(*hidden.shape[:-1], 1)  # [rows, length, 1], or [rows · length, 1] in OPT
        hidden = torch.where(where, hidden, _adding_nothing(module, args, kwargs, hidden))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return forward


def _adding_nothing(module: nn.Module, args: tuple, kwargs: dict[str, Any], like: Tensor) -> Tensor:
    """Return what a part returns that adds nothing: zeros, or the residual if the part adds to it itself (BLOOM)."""
    module_class: Any = type(module)
    place = _place_of_residual(module_class)
    if place is None:
        return torch.zeros_like(like)
    return kwargs["residual"] if "residual" in kwargs else args[place]


@cache
def _place_of_residual(module_class: Any) -> int | None:
    names = list(inspect.signature(module_class.forward).parameters)[1:]
    return names.index("residual") if "residual" in names else None


@contextmanager
def _before_modules(layer: nn.Module, functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Let attributes of instances hide the modules of the same paths inside the block."""
    places = [(layer.get_submodule(path), name) for path, _, name in (each.rpartition(".") for each in functions)]
    try:
        for (owner, name), function in zip(places, functions.values(), strict=True):
            vars(owner)[name] = function
        yield
    finally:
        for owner, name in places:
            vars(owner).pop(name, None)
