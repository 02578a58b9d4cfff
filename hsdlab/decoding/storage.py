"""Memory for the keys and values of one layer: preallocated blocks that are written in place and read as views."""

from torch import Tensor

GROWTH_TOKENS = 64
"""By how many new tokens a block grows: each growth copies it once."""


class LayerStorage:
    """Keys and values of one layer, those of the prompt first.

    With ``apart``, the prompt's keys and values stay apart, once per source. Else they are the first columns of the
    block, once per row.

    Args:
        keys: Of the prompt, [sources, heads, prompt, head dim].
        values: Of the prompt, likewise.
        copies: Consecutive rows of the batch that share a source.
        most: The most new tokens that will be written.
        apart: Whether the prompt's part stays apart, in ``prompt``.

    Attributes:
        prompt: Keys and values of the prompt, [sources, heads, prompt, head dim]; None where the block holds them.
    """

    def __init__(self, keys: Tensor, values: Tensor, copies: int, most: int, apart: bool) -> None:
        self.prompt = (keys, values) if apart else None
        self._prompt_columns = 0 if apart else keys.shape[2]
        self._most = most
        self._pair = [self._block(part, copies, apart) for part in (keys, values)]

    def _block(self, prompt: Tensor, copies: int, apart: bool) -> Tensor:
        """Make a block [rows, heads, columns, head dim], with the prompt's keys or values in it unless ``apart``."""
        sources, heads, length, size = prompt.shape
        columns = self._prompt_columns + min(self._most, GROWTH_TOKENS)
        block = prompt.new_zeros(sources, copies, heads, columns, size)
        if not apart:
            block[:, :, :, :length] = prompt[:, None]
        return block.flatten(0, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, those not yet written included."""
        return sum(part.nbytes for part in (*self._pair, *(self.prompt or ())))

    def reserve(self, new_tokens: int) -> None:
        """Grow the block, if need be.

        Args:
            new_tokens: How many it has to hold.
        """
        columns = self._pair[0].shape[2]
        if columns >= self._prompt_columns + new_tokens:
            return
        more = max(new_tokens, min(self._most, columns - self._prompt_columns + GROWTH_TOKENS))
        for index, block in enumerate(self._pair):
            rows, heads, _, size = block.shape
            grown = block.new_zeros(rows, heads, self._prompt_columns + more, size)
            grown[:, :, :columns] = block
            self._pair[index] = grown

    def read(self, new_tokens: int) -> tuple[Tensor, Tensor]:
        """Get views of the block.

        Args:
            new_tokens: How many of them to include.

        Returns:
            Keys and values, [rows, heads, length, head dim] each; where the prompt is apart, of the new tokens alone.
        """
        keys, values = self._pair
        length = self._prompt_columns + new_tokens
        return keys[:, :, :length], values[:, :, :length]

    def append(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Write the keys and values of all rows for the next new tokens.

        Args:
            start: The first of these new tokens.
            keys: [rows, heads, tokens, head dim].
            values: Likewise.
        """
        stop = start + keys.shape[2]
        columns = slice(self._prompt_columns + start, self._prompt_columns + stop)
        for block, part in zip(self._pair, (keys, values), strict=True):
            block[:, :, columns] = part

    def write(self, rows: Tensor, tokens: Tensor | int, keys: Tensor, values: Tensor) -> None:
        """Write single entries.

        Args:
            rows: The row of each entry, LongTensor [entries] on the device.
            tokens: The new token of each, LongTensor [entries], or one for all.
            keys: [entries, heads, 1, head dim].
            values: Likewise.
        """
        columns = self._prompt_columns + tokens
        for block, part in zip(self._pair, (keys, values), strict=True):
            block[rows, :, columns] = part[:, :, 0]

    def reorder(self, rows: Tensor, new_tokens: int) -> None:
        """Move new tokens between rows; the prompt's part is that of both rows.

        Args:
            rows: The rows that become the rows 0, 1 …, LongTensor [rows].
            new_tokens: How many of each row to move.
        """
        columns = slice(self._prompt_columns, self._prompt_columns + new_tokens)
        for block in self._pair:
            block[:, :, columns] = block[:, :, columns].index_select(0, rows)
