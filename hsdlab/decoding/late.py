"""The late KV computation: a layer's own code computes the keys and values of skipped tokens, and no more than that.

The layer is called as usual, and stopped where it passes its keys and values on: norm and projections run, attention
and MLP do not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.decoding.arguments import CACHE
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.history import History, Owed
from hsdlab.decoding.recurrent import StateMade, no_output
from hsdlab.decoding.skipping import LayerCall
from hsdlab.decoding.storage import KeyValueStore


class KeysAndValuesMade(Exception):
    """The KV cache stops the forward of a layer with it, as soon as keys and values are computed: its arguments."""


class LateKeyValues:
    """The tokens that owe keys and values, and the late computation of these.

    Args:
        parts: The decoder layers, and their query projections.
        store: Takes what is computed.
        length: The most new tokens of a row.

    Attributes:
        new: Which new tokens owe keys and values.
        prompt: Which tokens of the prompts do; None where all of them ran all layers.
        tokens: Tokens of each layer that were computed late, LongTensor [layers].
        passes: Calls of each layer that computed them, LongTensor [layers].
    """

    def __init__(self, parts: DecoderParts, store: KeyValueStore, length: int) -> None:
        self._parts = parts
        self._store = store
        self.new = History(parts.num_layers, length)
        self.prompt: History | None = None
        self.tokens = torch.zeros(parts.num_layers, dtype=torch.long)
        self.passes = torch.zeros(parts.num_layers, dtype=torch.long)

    def compute(self, cache: Any, layer: int, call: LayerCall, owed: Owed | None, of_prompt: bool = False) -> None:
        """Compute keys and values of skipped tokens, in one batch.

        Args:
            cache: Given to the layer as its KV cache. Its ``update`` has to raise :class:`KeysAndValuesMade`.
            layer: Index of the layer.
            call: Its call.
            owed: The tokens; None for none.
            of_prompt: Whether they are tokens of the prompts.
        """
        if owed is None:
            return
        arguments = {name: cache if value is CACHE else value for name, value in owed.arguments.items()}
        made = self.made(layer, call, owed.hidden, (), arguments)
        tokens = owed.tokens[:, None]
        if made is not None and of_prompt:
            self._store.write_prompt(layer, owed.rows, tokens, *made)
        elif made is not None:
            self._store[layer].write(owed.rows, tokens, *made)

    def made(
        self, layer: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        """Compute what tokens leave behind at a layer: keys and values, and its state, which the KV cache holds.

        Args:
            layer: Index of the layer.
            call: Its call.
            hidden: The hidden states that arrived, [rows, tokens, d].
            args: The other positional arguments.
            kwargs: The keyword arguments. The ``update`` of the cache has to raise :class:`KeysAndValuesMade`.

        Returns:
            Keys and values, [rows, heads, tokens, head dim] each; None for a layer that has only a state.

        Raises:
            RuntimeError: The layer came to its end without either.
        """
        self.tokens[layer] += hidden.shape[0] * hidden.shape[1]
        self.passes[layer] += 1
        attends = self._parts.attends[layer]
        try:
            with _no_queries(self._parts.queries[layer]), no_output(self._parts.mixers[layer], stops=not attends):
                call(hidden, *args, **kwargs)
        except KeysAndValuesMade as made:
            keys, values = made.args
            return keys, values
        except StateMade:
            return None
        raise RuntimeError(f"{type(call.layer).__name__} did not pass keys and values, or a state, to its KV cache.")

    def reorder(self, beam_idx: Tensor, tokens: int) -> None:
        """Follow the beams (:meth:`History.reorder`); the prompts stay.

        Args:
            beam_idx: LongTensor [rows] on the device.
            tokens: New tokens so far.
        """
        self.new.reorder(beam_idx, tokens)

    def end_pass(self) -> None:
        """Hold nothing of a forward pass but what was copied from it."""
        for history in (self.new, self.prompt):
            if history is not None:
                history.end_pass()


@contextmanager
def _no_queries(projection: nn.Module | None) -> Iterator[None]:
    """Let a layer's query projection, if it is a module of its own, return zeros without computing anything."""
    if projection is None:
        yield
        return
    size, own = projection.out_features, {name: value for name, value in vars(projection).items() if name == "forward"}
    vars(projection)["forward"] = lambda x: x.new_zeros(()).expand(*x.shape[:-1], size)
    try:
        yield
    finally:
        del vars(projection)["forward"]
        vars(projection).update(own)
