"""The states of recurrent layers: Mamba, linear attention and short convolutions.

transformers holds such a state in a ``LinearAttentionLayer`` of its KV cache and overwrites it with each token. The
decoding semantics extended, point 7: a token that skips the layer enters its state nonetheless, with the hidden state
that arrived. Before the layer next runs for a row, the tokens that the row skipped enter one by one, in their order,
so that the arithmetic is that of plain decoding. A state cannot be taken back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import LinearAttentionLayer

from hsdlab.decoding.families import output_projection


class RecurrentStates:
    """The states of all recurrent layers of a decode, a row each.

    Args:
        layers: The layers of the KV cache. While a recurrent layer runs for some rows only, its entry is one that holds
            the states of these rows.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers

    def _held(self) -> list[LinearAttentionLayer]:
        return [layer for layer in self._layers if isinstance(layer, LinearAttentionLayer)]

    @contextmanager
    def of_rows(self, index: int, rows: Tensor | None) -> Iterator[None]:
        """Let a layer read and write the states of some rows inside the block.

        Args:
            index: Of the layer.
            rows: LongTensor [n] on the device; None for all rows.

        Yields:
            Nothing.
        """
        whole = self._layers[index]
        if rows is None or not isinstance(whole, LinearAttentionLayer):
            yield
            return
        some = self._layers[index] = LinearAttentionLayer()
        some.conv_kernel_size, some.has_previous_state = whole.conv_kernel_size, whole.has_previous_state
        some.is_conv_states_initialized = whole.is_conv_states_initialized
        some.is_recurrent_states_initialized = whole.is_recurrent_states_initialized
        for mine, theirs in _states(some, whole):
            mine.update({key: state.index_select(0, rows) for key, state in theirs.items() if state is not None})
        try:
            yield
        finally:
            self._layers[index] = whole
            for mine, theirs in _states(some, whole):
                for key, state in theirs.items():
                    if state is not None:
                        state.index_copy_(0, rows, mine[key])

    def take(self, rows: Tensor) -> None:
        """Continue with the states of some rows: those that stay, or those from which beam search continues.

        Args:
            rows: The old row of each new row, LongTensor [n] on the device.
        """
        for layer in self._held():
            for states in (layer.conv_states, layer.recurrent_states):
                states.update({key: state.index_select(0, rows) for key, state in states.items() if state is not None})

    def free(self, needed: Callable[[int], bool]) -> int:
        """Free the states that no later decode step needs.

        Args:
            needed: Says of a layer whether it is still needed.

        Returns:
            Bytes that were held until now.
        """
        held = 0
        for index, layer in enumerate(self._layers):
            if isinstance(layer, LinearAttentionLayer):
                for states in (layer.conv_states, layer.recurrent_states):
                    held += sum(state.nbytes for state in states.values() if state is not None)
                    if not needed(index):
                        states.update(dict.fromkeys(states))
        return held


def _states(some: LinearAttentionLayer, whole: LinearAttentionLayer) -> list[tuple[dict, dict]]:
    return [(some.conv_states, whole.conv_states), (some.recurrent_states, whole.recurrent_states)]


class StateMade(Exception):
    """Stops the forward of a recurrent layer, as soon as the state holds its tokens."""


@contextmanager
def no_output(mixer: nn.Module | None, stops: bool) -> Iterator[None]:
    """Let a recurrent layer compute its state, and neither its output projection nor what follows.

    Args:
        mixer: The recurrent part of the layer; None for a layer without one, which is left as it is.
        stops: Raise :class:`StateMade` where the output would be projected. Else zeros take its place, and the layer
            goes on to its keys and values.

    Yields:
        Nothing.
    """
    if mixer is None:
        yield
        return
    name = output_projection(mixer)
    size = getattr(mixer, name).out_features

    def stand_in(hidden: Tensor) -> Tensor:
        if stops:
            raise StateMade
        return hidden.new_zeros(()).expand(*hidden.shape[:-1], size)

    vars(mixer)[name] = stand_in
    try:
        yield
    finally:
        del vars(mixer)[name]
