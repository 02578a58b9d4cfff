"""What an encoder-decoder model adds to the KV cache: cross-attention, and the position bias of its first block.

The decoding semantics, section 7, point 6: the encoder runs whole, and the law holds for self-attention in the decoder.
The keys and values of a layer's cross-attention come from the encoder. They are made once, when the layer first runs,
and a token that skips the layer owes it none. The bias that T5 makes from relative positions in its first block is
computed here for every layer, whether or not the block runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, arange, nn, tensor, zeros
from torch import bool as torch_bool
from transformers import Cache, EncoderDecoderCache

from hsdlab.decoding.arguments import with_argument
from hsdlab.decoding.device import sent
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.skipping import LayerCall, LayerRunner
from hsdlab.decoding.timing import now_s
from hsdlab.decoding.trace import SourceCounts


@dataclass
class _Rows:
    """The rows of a decode.

    Attributes:
        count: All that still run.
        called: Those with which the current layer was called, LongTensor on the CPU; None for all.
        on_device: The same on the device.
    """

    count: int = 0
    called: Tensor | None = None
    on_device: Tensor | None = None


class _Held:
    """The keys and values of one layer's cross-attention, as transformers reads them: for the rows of the call.

    Attributes:
        pair: Keys and values, [rows or sources, heads, source, head dim] each; None before the layer first ran.
        made: The rows for which the layer has run, BoolTensor [rows] on the CPU; None for all.
    """

    def __init__(self, rows: _Rows) -> None:
        self.pair: tuple[Tensor, Tensor] | None = None
        self.made: Tensor | None = None
        self._rows = rows

    @property
    def keys(self) -> Tensor:
        return self._read(0)

    @property
    def values(self) -> Tensor:
        return self._read(1)

    def _read(self, which: int) -> Tensor:
        if self.pair is None:
            raise RuntimeError("The layer's cross-attention was read before it first ran.")
        copies = self._rows.count // len(self.pair[0])
        if copies > 1:  # they were made in the prefill, once for each source
            keys, values = self.pair
            self.pair = keys.repeat_interleave(copies, dim=0), values.repeat_interleave(copies, dim=0)
        held, called = self.pair[which], self._rows.on_device
        return held if called is None else held.index_select(0, called)


class CrossAttention(Cache):
    """The keys and values that the decoder layers make from the encoder's output.

    Args:
        num_layers: L, of the decoder.

    Attributes:
        tokens: Tokens of the sources of which each layer has made keys and values, with padding.
    """

    def __init__(self, num_layers: int) -> None:
        self._rows = _Rows()
        self._held = [_Held(self._rows) for _ in range(num_layers)]
        super().__init__(layers=self._held)
        self.tokens = [0] * num_layers
        self._in_prompt = list(self.tokens)

    def begin(self, rows: int) -> None:
        """Note that the first forward pass begins.

        Args:
            rows: All of its rows.
        """
        self._rows.count = rows

    @property
    def began(self) -> bool:
        """Whether the first forward pass has begun."""
        return self._rows.count > 0

    @contextmanager
    def of_rows(self, called: Tensor | None, on_device: Tensor | None) -> Iterator[None]:
        """Let a layer make, or read, keys and values for some rows inside the block.

        Args:
            called: LongTensor [n] on the CPU; None for all.
            on_device: The same on the device.

        Yields:
            Nothing.
        """
        self._rows.called, self._rows.on_device = called, on_device
        try:
            yield
        finally:
            self._rows.called = self._rows.on_device = None

    def holds(self, layer: int) -> bool:
        """Say whether a layer has the keys and values of the rows with which it is called.

        Args:
            layer: Index of the layer.

        Returns:
            Whether it ran for all of them before.
        """
        held, called = self._held[layer], self._rows.called
        if held.pair is None or held.made is None:
            return held.pair is not None
        return bool((held.made if called is None else held.made[called]).all())

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of the rows for which a layer runs; [rows, heads, source, head dim] each."""
        held, rows = self._held[layer_idx], self._rows
        self.tokens[layer_idx] += len(key_states) * key_states.shape[2]
        if rows.called is None or rows.on_device is None:
            held.pair, held.made = (key_states, value_states), None
            return key_states, value_states
        if held.pair is None:
            keys, values = (states.new_zeros(rows.count, *states.shape[1:]) for states in (key_states, value_states))
            held.pair, held.made = (keys, values), zeros(rows.count, dtype=torch_bool)
        if held.made is not None:
            for block, states in zip(held.pair, (key_states, value_states), strict=True):
                block.index_copy_(0, rows.on_device, states)
            held.made[rows.called] = True
        return key_states, value_states

    def end_prompt(self) -> None:
        """Note that the prefill ends."""
        self._in_prompt = list(self.tokens)

    def counts(self, sources: Tensor) -> SourceCounts:
        """Say what the layers made.

        Args:
            sources: What the encoder read, LongTensor [rows, length].

        Returns:
            The counts of the decode.
        """
        made = tensor(self.tokens)
        rows, length = sources.shape
        return SourceCounts(rows, length, made, made - tensor(self._in_prompt))

    def keep(self, rows: Tensor) -> None:
        """Keep some rows, and free the others.

        Args:
            rows: LongTensor [n] on the device.
        """
        for held in self._held:
            if held.pair is not None:
                sources = rows // (self._rows.count // len(held.pair[0]))
                keys, values = held.pair
                held.pair = keys.index_select(0, sources), values.index_select(0, sources)
                held.made = None if held.made is None else held.made[rows.cpu()]
        self._rows.count = len(rows)

    def free(self, needed: Callable[[int], bool]) -> int:
        """Free what no later decode step needs.

        Args:
            needed: Says of a layer whether it is still needed.

        Returns:
            Bytes that were held until now.
        """
        held_bytes = 0
        for layer, held in enumerate(self._held):
            if held.pair is not None:
                held_bytes += sum(states.nbytes for states in held.pair)
                if not needed(layer):
                    held.pair = held.made = None
        return held_bytes


class _Made:
    """Tells transformers whether the keys and values of a layer are there for the rows of the call.

    It says so before the first pass too, when T5Gemma would else replace the cache by one of its own.
    """

    def __init__(self, cross: CrossAttention) -> None:
        self._cross = cross

    def __len__(self) -> int:
        return len(self._cross.layers)

    def get(self, layer: int) -> bool:
        return not self._cross.began or self._cross.holds(layer)

    def __setitem__(self, layer: int, made: bool) -> None:
        """Transformers notes what ``CrossAttention.update`` knows already."""


@dataclass(frozen=True)
class EncodedSource:
    """What a decoder attends to beside its text.

    Attributes:
        states: Output of the encoder, [rows, source, d].
        mask: [rows, source], 1 for tokens and 0 for padding; None for no padding.
    """

    states: Tensor
    mask: Tensor | None

    def of_rows(self, rows: Tensor) -> "EncodedSource":
        """Select rows.

        Args:
            rows: LongTensor [n] on the device.

        Returns:
            The source of these rows.
        """
        mask = None if self.mask is None else self.mask.index_select(0, rows)
        return EncodedSource(self.states.index_select(0, rows), mask)


@contextmanager
def positions_given(parts: DecoderParts, positions: Tensor) -> Iterator[None]:
    """Embed given positions in the decoder, which else counts them from the length of its cache, equal for all rows.

    Args:
        parts: Their ``embed_positions`` embeds positions (BART and its kin); without one, nothing changes.
        positions: LongTensor [rows, tokens].

    Yields:
        Nothing; run the decoder once inside the block.
    """
    module = parts.embed_positions
    if module is None:
        yield
        return

    def give(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "position_ids": positions}

    def shape(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        for handle in handles:  # a check of the model inside the pass embeds its own
            handle.remove()
        return output.reshape(*positions.shape, -1)

    handles = [module.register_forward_pre_hook(give, with_kwargs=True), module.register_forward_hook(shape)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class EncoderDecoderPair(LayerRunner, EncoderDecoderCache):
    """Gives an encoder-decoder model both KV caches, and its layers to the one that runs them.

    Args:
        parts: The decoder layers.
        own: The KV cache of self-attention, which runs the layers.
        cross: That of cross-attention.
    """

    def __init__(self, parts: DecoderParts, own: Any, cross: CrossAttention) -> None:
        self.self_attention_cache = own
        self.cross_attention_cache = cross
        self.is_updated: Any = _Made(cross)
        self._first = parts.layers[0]
        self._make_bias = parts.position_bias
        self._bias: Tensor | None = None  # of the current pass, [rows or 1, heads, tokens, keys]

    @property
    def last_executed(self) -> Tensor | None:  # type: ignore[override]
        """The last layer that ran for each token, as the KV cache of self-attention has it."""
        return self.self_attention_cache.last_executed

    def run_layer(self, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run a layer as the KV cache of self-attention does, with the position bias of the pass."""
        if call.layer is self._first:
            self._begin_pass(hidden)
        if self._make_bias is not None:
            args, kwargs = with_argument(call, "position_bias", self._bias, args, kwargs)
        return self.self_attention_cache.run_layer(call, hidden, args, kwargs)

    def _begin_pass(self, hidden: Tensor) -> None:
        if not self.cross_attention_cache.began:
            self.cross_attention_cache.begin(len(hidden))
        if self._make_bias is not None:
            before, tokens = self.get_seq_length(), hidden.shape[1]
            lengths = getattr(self.self_attention_cache, "lengths", None)  # new tokens of each row
            if lengths is None or bool((lengths == lengths[0]).all()):
                self._bias = self._make_bias(tokens, before + tokens, device=hidden.device, past_seen_tokens=before)
            else:
                every = self._make_bias(before + tokens, before + tokens, device=hidden.device)
                first = sent(before - lengths.max() + lengths, hidden.device)
                places = first[:, None] + arange(tokens, device=hidden.device)  # (rows, tokens)
                self._bias = every[0][:, places].transpose(0, 1)  # (rows, heads, tokens, keys)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Move the rows to those from which beam search continues. All rows of a source read the same encoder."""
        self.self_attention_cache.reorder_cache(beam_idx)


@contextmanager
def encoder_timed(parts: DecoderParts, seconds: list[float]) -> Iterator[None]:
    """Time the encoder inside the block.

    Args:
        parts: The model's encoder, if it has one.
        seconds: The seconds of each of its forward passes are appended.

    Yields:
        Nothing.
    """
    if parts.encoder is None:
        yield
        return
    device, began = parts.model.device, [0.0]
    handles = [
        parts.encoder.register_forward_pre_hook(lambda *_: began.append(now_s(device))),
        parts.encoder.register_forward_hook(lambda *_: seconds.append(now_s(device) - began[-1])),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
