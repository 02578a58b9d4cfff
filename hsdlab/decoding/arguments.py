"""The arguments with which a model calls its decoder layers, by name and for some rows of the batch."""

import inspect
from typing import Any

from torch import Tensor

from hsdlab.decoding.skipping import LayerCall, LayerRunner

CACHE = object()
"""Stands for the cache among the arguments that are kept."""

_BIAS_BY_ROW = "alibi"  # BLOOM: [rows · heads, 1, keys], Falcon: [rows, heads, 1, keys]
_BIASES = (_BIAS_BY_ROW, "position_bias")  # MPT: [heads, 1, keys], T5: [1, heads, tokens, keys], for all rows
"""Arguments that are added to attention scores. Keys and values do not depend on them."""

_OF_ENCODER = ("encoder_hidden_states", "encoder_attention_mask")
"""Arguments of cross-attention, with an entry for each token of the source: [rows, source, d], and a mask."""


def select_rows(value: Any, rows: Tensor, count: int, expand: bool = False) -> Any:
    """Select rows from every tensor that has one entry for each row.

    Args:
        value: A layer's arguments: tensors in nested tuples, lists and dicts.
        rows: Indices, LongTensor [n] on the device of the tensors.
        count: Number of rows in the batch; a tensor with another first dimension is left as it is, and so is one of a
            single dimension (positions that all rows share).
        expand: Also repeat n times the tensors that all rows share (first dimension 1). By default they stay as they
            are, since a layer broadcasts them itself.

    Returns:
        The same nesting, with tensors [n, …].
    """
    if isinstance(value, Tensor) and value.dim() > 0:
        if value.shape[0] == count and (expand or (count > 1 and value.dim() > 1)):
            return value.index_select(0, rows)
        if expand and value.shape[0] == 1:
            return value.expand(len(rows), *value.shape[1:])
        return value
    if isinstance(value, dict):
        return {
            name: _bias_of_rows(name, item, rows, count) if name in _BIASES else select_rows(item, rows, count, expand)
            for name, item in value.items()
        }
    if type(value) in (tuple, list):
        return type(value)(select_rows(item, rows, count, expand) for item in value)
    return value


def select_tokens(value: Any, rows: Tensor, slots: Tensor, count: int, length: int) -> Any:
    """Select tokens of a pass from every tensor that has an entry for each of them.

    Args:
        value: A layer's arguments: tensors in nested tuples, lists and dicts.
        rows: Indices, LongTensor [n] on the device.
        slots: The tokens of each of these rows, LongTensor [n, k] on the device.
        count: Rows of the pass.
        length: Tokens of each row.

    Returns:
        The same nesting, with tensors [n, k, …], masks [n, …, k, keys]; a tensor that has no entry for each token is
        left as it is.
    """
    if isinstance(value, Tensor):
        if value.dim() < 2 or value.shape[0] not in (count, 1):
            return value
        of_row = rows[:, None] if value.shape[0] == count else rows.new_zeros(len(rows), 1)
        if value.dim() == 4 and value.shape[2] == length:  # a mask [rows or 1, heads or 1, tokens, keys]
            return value[of_row, :, slots].transpose(1, 2)
        return value[of_row, slots] if value.shape[1] == length else value
    if isinstance(value, dict):
        return {name: _argument_of_tokens(name, item, rows, slots, count, length) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(select_tokens(item, rows, slots, count, length) for item in value)
    return value


def _argument_of_tokens(name: str, value: Any, rows: Tensor, slots: Tensor, count: int, length: int) -> Any:
    if name in _OF_ENCODER:
        if name == "encoder_attention_mask" and isinstance(value, Tensor) and value.dim() == 4:
            value = value[:, :, :1]  # all queries see the same tokens of the source
        return select_rows(value, rows, count)
    of_tokens = name == "position_bias" and isinstance(value, Tensor) and value.dim() == 4
    if name in _BIASES and not of_tokens:
        return _bias_of_rows(name, value, rows, count)
    return select_tokens(value, rows, slots, count, length)


def _bias_of_rows(name: str, value: Any, rows: Tensor, count: int) -> Any:
    """Select rows from one of ``_BIASES``, which has no entry for each query token."""
    if name != _BIAS_BY_ROW or not isinstance(value, Tensor):
        return value
    return value.unflatten(0, (count, -1)).index_select(0, rows).flatten(0, 1)


class RowArguments:
    """Arguments of layers for some rows, selected once for all layers that are called with the same ones."""

    def __init__(self) -> None:
        self._given: list[Any] = []
        self._selected: tuple[tuple, dict[str, Any]] = ((), {})

    def select(self, rows: Tensor, count: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Select positional and keyword arguments for some rows.

        Args:
            rows: LongTensor [n] on the device; the same object for the same rows.
            count: Number of rows in the batch.
            args: The positional arguments of a layer's call.
            kwargs: Its keyword arguments.

        Returns:
            Both for n rows; the same objects as before while rows and arguments are the same objects.
        """
        given = [rows, *args, *kwargs.values()]
        same = len(given) == len(self._given) and all(a is b for a, b in zip(given, self._given, strict=True))
        if not same:
            self._given, self._selected = given, select_rows((args, kwargs), rows, count)
        return self._selected

    def forget(self) -> None:
        """Hold nothing of an earlier pass."""
        self._given, self._selected = [], ((), {})


def argument(call: LayerCall, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Find an argument of a layer's call by name.

    Args:
        call: The call; its signature gives the place of the name.
        name: Of the parameter.
        args: The positional arguments after the hidden state.
        kwargs: The keyword arguments.

    Returns:
        The argument; None where the layer was not given it.
    """
    if name in kwargs:
        return kwargs[name]
    place = call.places.get(name, len(args))
    return args[place] if place < len(args) else None


def with_argument(
    call: LayerCall, name: str, value: Any, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Replace an argument of a layer's call that :func:`argument` finds.

    Args:
        call: The call.
        name: Of the parameter.
        value: To be given instead.
        args: The positional arguments after the hidden state.
        kwargs: The keyword arguments.

    Returns:
        Both with the new value.
    """
    if name in kwargs:
        return args, {**kwargs, name: value}
    place = call.places[name]
    return (*args[:place], value, *args[place + 1 :]), kwargs


def bound_arguments(call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bind a layer's arguments by name, without the hidden state.

    Args:
        call: The call; its signature names the arguments.
        hidden: The hidden state, [rows, tokens, d].
        args: The other positional arguments.
        kwargs: The keyword arguments.

    Returns:
        Name to argument, ready for ``call(hidden, **arguments)``.
    """
    parameters = call.signature.parameters
    bound = call.signature.bind(hidden, *args, **kwargs).arguments
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    bound.pop(next(iter(parameters)))
    return bound


def position_arguments(call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bind a layer's arguments by name, without the hidden state and without a mask, which keys and values ignore.

    The cache holds what is returned, and a circle of references would keep the keys and values of a finished decode in
    memory until Python's garbage collector runs. So ``CACHE`` stands for the cache. A bias of attention scores is
    replaced by a single 0, since its presence may mean that keys are not rotated (Falcon). Late keys and values are
    made before cross-attention, which gets nothing.

    Args:
        call: The call.
        hidden: The hidden state, [rows, tokens, d].
        args: The other positional arguments.
        kwargs: The keyword arguments.

    Returns:
        Name to argument; ``attention_mask`` is None.
    """
    bound = bound_arguments(call, hidden, args, kwargs)
    bound["attention_mask"] = None
    bound.update(dict.fromkeys(bound.keys() & set(_OF_ENCODER)))
    for name in _BIASES:
        if isinstance(bound.get(name), Tensor):
            bound[name] = bound[name].new_zeros(())
    return {name: CACHE if isinstance(value, LayerRunner) else value for name, value in bound.items()}
