"""Memory for keys and values: preallocated blocks of each layer, written in place and read as views."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

GROWTH_TOKENS = 64
"""By how many new tokens a block grows: each growth copies it once."""


def token_numbers(keys: Tensor, values: Tensor) -> int:
    """Count the numbers that a token has in the cache of a layer.

    Args:
        keys: [rows, heads, tokens, head dim].
        values: Likewise.

    Returns:
        Those of its keys and of its values together.
    """
    return keys.shape[1] * keys.shape[3] + values.shape[1] * values.shape[3]


class LayerStorage:
    """Keys and values of one layer, those of the prompt first.

    With ``apart``, the prompt's keys and values stay apart, once per source. Else they are the first columns of the
    block, once per row.

    The tokens of a text, those of the (padded) prompt first, are counted from 0. A layer with a sliding window needs
    the last of them only, and its block begins with a later one.

    Args:
        keys: Of the prompt, or of its last tokens, [sources, heads, tokens, head dim].
        values: Of the prompt, likewise.
        copies: Consecutive rows of the batch that share a source.
        most: The most new tokens that will be written.
        apart: Whether the prompt's part stays apart, in ``prompt``.
        first: The first token of the text that ``keys`` has; 0 where the prompt's part stays apart.

    Attributes:
        prompt: Keys and values of the prompt, [sources, heads, prompt, head dim]; None where the block holds them.
    """

    def __init__(self, keys: Tensor, values: Tensor, copies: int, most: int, apart: bool, first: int = 0) -> None:
        self.prompt = (keys, values) if apart else None
        self._copies = copies
        self._prompt_length = first + keys.shape[2]
        self._first = self._prompt_length if apart else first  # token of the text in column 0 of the block
        self._most = most
        self._pair = [self._block(part, copies, apart) for part in (keys, values)]

    def _column(self, new_token: Any) -> Any:
        """Return the column of a new token, a number or a tensor of them; below 0 for one that was dropped."""
        return self._prompt_length - self._first + new_token

    def _block(self, prompt: Tensor, copies: int, apart: bool) -> Tensor:
        """Make a block [rows, heads, columns, head dim], with the prompt's keys or values in it unless ``apart``."""
        sources, heads, length, size = prompt.shape
        columns = self._column(min(self._most, GROWTH_TOKENS))
        block = prompt.new_zeros(sources, copies, heads, columns, size)
        if not apart:
            block[:, :, :, :length] = prompt[:, None]
        return block.flatten(0, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, those not yet written included."""
        return sum(part.nbytes for part in (*self._pair, *(self.prompt or ())))

    def reserve(self, new_tokens: int, seen_from: int = 0) -> None:
        """Make room, if need be: drop what is not needed if it is much, else grow the block.

        Args:
            new_tokens: How many it has to hold.
            seen_from: The first token of the text that is still needed.
        """
        if self._pair[0].shape[2] >= self._column(new_tokens):
            return
        if seen_from - self._first >= GROWTH_TOKENS:
            dropped = min(seen_from - self._first, self._pair[0].shape[2])
            for block in self._pair:
                block[:, :, : block.shape[2] - dropped] = block[:, :, dropped:].clone()
            self._first = seen_from
        columns = self._pair[0].shape[2]
        if columns >= self._column(new_tokens):
            return
        more = self._column(max(new_tokens, min(self._most, columns - self._column(0) + GROWTH_TOKENS)))
        for index, block in enumerate(self._pair):
            rows, heads, _, size = block.shape
            grown = block.new_zeros(rows, heads, more, size)
            grown[:, :, :columns] = block
            self._pair[index] = grown

    def drop_before(self, first: int) -> None:
        """Free what comes before a token of the prompt, which the block holds.

        Args:
            first: The first token of the text to keep.
        """
        if first > self._first:
            self._pair = [block[:, :, first - self._first :].clone() for block in self._pair]
            self._first = first

    def read(self, new_tokens: int, seen_from: int = 0) -> tuple[Tensor, Tensor]:
        """Get views of the block.

        Args:
            new_tokens: How many of them to include.
            seen_from: The first token of the text to include, where it is not the first in the block.

        Returns:
            Keys and values, [rows, heads, length, head dim] each; where the prompt is apart, of the new tokens alone.
        """
        keys, values = self._pair
        columns = slice(max(0, seen_from - self._first), self._column(new_tokens))
        return keys[:, :, columns], values[:, :, columns]

    def append(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values of all rows for the next new tokens.

        Args:
            start: The first of these new tokens.
            keys: [rows, heads, tokens, head dim].
            values: Likewise.
        """
        columns = slice(self._column(start), self._column(start + keys.shape[2]))
        for block, part in zip(self._pair, (keys, values), strict=True):
            block[:, :, columns] = part

    def write(self, rows: Tensor, tokens: Tensor | int, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values of some new tokens.

        Args:
            rows: LongTensor [entries] on the device.
            tokens: The new tokens of each row, LongTensor [entries, tokens], or one for all.
            keys: [entries, heads, tokens, head dim].
            values: Likewise.
        """
        columns = self._column(tokens)
        for block, part in zip(self._pair, (keys, values), strict=True):
            block[rows[:, None], :, columns] = part.transpose(1, 2)

    def write_prompt(self, sources: Tensor, tokens: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values of some tokens of the prompt, for all rows of their source.

        Args:
            sources: LongTensor [entries] on the device.
            tokens: The tokens of each, LongTensor [entries, tokens], from 0 at the first column.
            keys: [entries, heads, tokens, head dim].
            values: Likewise.
        """
        columns = tokens if self.prompt is not None else tokens - self._first
        for block, part in zip(self._prompt_blocks(), (keys, values), strict=True):
            block[sources[:, None], :, :, columns] = part.transpose(1, 2)[:, :, None]

    def read_prompt(self) -> tuple[Tensor, Tensor]:
        """Get views of the prompt's part.

        Returns:
            Keys and values, [sources, heads, prompt, head dim] each.
        """
        keys, values = (block[:, 0] for block in self._prompt_blocks())
        return keys, values

    def _prompt_blocks(self) -> list[Tensor]:
        """Return views of the prompt's keys and values, [sources, copies, heads, prompt, head dim] each."""
        if self.prompt is not None:
            return [part[:, None] for part in self.prompt]
        return [part.unflatten(0, (-1, self._copies))[:, :, :, : max(0, self._column(0))] for part in self._pair]

    def keep(self, rows: Tensor) -> None:
        """Keep some rows and free the others.

        Args:
            rows: LongTensor [n], ascending; all rows of a source, or none.
        """
        self._pair = [block.index_select(0, rows) for block in self._pair]
        if self.prompt is not None:
            sources = rows[:: self._copies] // self._copies
            keys, values = (part.index_select(0, sources) for part in self.prompt)
            self.prompt = keys, values

    def move(self, sources: Tensor, rows: Tensor, new_tokens: int) -> None:
        """Copy new tokens from some rows to others; the prompt's part is that of both.

        Args:
            sources: The rows to copy from, LongTensor [n].
            rows: The rows to copy to, likewise.
            new_tokens: How many of each row to copy.
        """
        columns = slice(max(0, self._column(0)), self._column(new_tokens))
        for block in self._pair:
            part = block[:, :, columns]
            part.index_copy_(0, rows, part.index_select(0, sources))


class KeyValueStore:
    """The keys and values of all layers that a later decode step may run.

    Args:
        num_layers: L.
        most: The most new tokens that will be written.
    """

    def __init__(self, num_layers: int, most: int) -> None:
        self._layers: list[LayerStorage | None] = [None] * num_layers
        self._most = most
        self._sources, self._copies, self._length, self._apart = 0, 1, 0, False
        self._windows: Sequence[int | None] = [None] * num_layers

    def begin(self, sources: int, copies: int, length: int, apart: bool, windows: Sequence[int | None]) -> None:
        """Note the sizes of the prefill.

        Args:
            sources: Prompts.
            copies: Consecutive rows of the batch that share a source.
            length: Of the (padded) prompts, tokens.
            apart: Whether the prompt's part stays apart (:class:`LayerStorage`), in layers without a window.
            windows: The sliding window of each layer, tokens; None for one that sees the whole text.
        """
        self._sources, self._copies, self._length, self._apart = sources, copies, length, apart
        self._windows = windows

    def __getitem__(self, layer: int) -> LayerStorage:
        storage = self._layers[layer]
        if storage is None:
            raise RuntimeError(f"Layer {layer} runs, and its keys and values were freed.")
        return storage

    def hold_prompt(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Begin with the keys and values of whole prompts, of which a window keeps the last.

        Args:
            layer: Index of the layer.
            keys: [sources, heads, prompt, head dim].
            values: Likewise.
        """
        first = self._first_of_prompt(layer)
        self._hold(layer, keys[:, :, first:], values[:, :, first:], first)

    def _hold(self, layer: int, keys: Tensor, values: Tensor, first: int) -> None:
        apart = self._apart and self._windows[layer] is None
        self._layers[layer] = LayerStorage(keys, values, self._copies, self._most, apart, first)

    def _first_of_prompt(self, layer: int) -> int:
        """Return the first token of the prompts that a new token can see at a layer."""
        window = self._windows[layer]
        return 0 if window is None else max(0, self._length - window + 1)

    def end_prompt(self) -> None:
        """Free what no new token can see, after a prefill that wrote some tokens at a time."""
        for layer, storage in enumerate(self._layers):
            if storage is not None and self._windows[layer] is not None:
                storage.drop_before(self._first_of_prompt(layer))

    def write_prompt(self, layer: int, sources: Tensor, tokens: Tensor, keys: Tensor, values: Tensor) -> LayerStorage:
        """Write the keys and values of some tokens of the prompts; a layer that holds none begins with zeros.

        Args:
            layer: Index of the layer.
            sources: See :meth:`LayerStorage.write_prompt`, as for the other arguments.
            tokens: See there.
            keys: See there.
            values: See there.

        Returns:
            The layer's storage.
        """
        if self._layers[layer] is None:
            sizes = self._sources, keys.shape[1], self._length
            zeros = [part.new_zeros(*sizes, part.shape[3]) for part in (keys, values)]
            self._hold(layer, zeros[0], zeros[1], first=0)
        storage = self[layer]
        storage.write_prompt(sources, tokens, keys, values)
        return storage

    def keep(self, rows: Tensor) -> None:
        """Keep some rows of all layers (:meth:`LayerStorage.keep`).

        Args:
            rows: LongTensor [n].
        """
        for storage in self._layers:
            if storage is not None:
                storage.keep(rows)

    def reorder(self, rows: Tensor, new_tokens: int) -> None:
        """Move the new tokens of all layers between rows.

        Args:
            rows: The rows that become the rows 0, 1 …, LongTensor [rows].
            new_tokens: How many of each row.
        """
        places = torch.arange(len(rows), device=rows.device)
        if rows.device.type == "cpu":  # on another device, to find those that move would wait for it
            places = (rows != places).nonzero().squeeze(1)
            rows = rows[places]
        for storage in self._layers:
            if storage is not None and new_tokens > 0 and len(rows) > 0:
                storage.move(rows, places, new_tokens)

    def free(self, needed: Callable[[int], bool]) -> int:
        """Free what no later decode step needs.

        Args:
            needed: Says of a layer whether it is still needed.

        Returns:
            Bytes that were held until now.
        """
        held = sum(storage.nbytes for storage in self._layers if storage is not None)
        self._layers = [
            storage if storage is not None and needed(layer) else None for layer, storage in enumerate(self._layers)
        ]
        return held
