"""Memory for values of single tokens, written pass by pass and gathered by index."""

from typing import Any

import torch
from torch import Tensor

_FIRST_TOKENS = 256


class TokenPool:
    """Values of single tokens, such as their hidden states. It grows by doubling, so that appending copies little."""

    def __init__(self) -> None:
        self._block: Tensor | None = None
        self._used = 0

    @property
    def device(self) -> torch.device:
        """Where the values are.

        Raises:
            RuntimeError: Nothing was appended yet.
        """
        return self._values().device

    def append(self, values: Tensor) -> int:
        """Add the values of one forward pass.

        Args:
            values: [rows, tokens, …].

        Returns:
            The index of token 0 of row 0. Token j of row r has this index + j · rows + r.
        """
        rows, tokens = values.shape[:2]
        start, self._used = self._used, self._used + rows * tokens
        if self._block is None or self._used > len(self._block):
            self._grow(values)
        self._values()[start : self._used].view(tokens, rows, *values.shape[2:]).copy_(values.transpose(0, 1))
        return start

    def gather(self, indices: Tensor) -> Tensor:
        """Read values.

        Args:
            indices: LongTensor [entries] on the device of the values.

        Returns:
            [entries, 1, …].
        """
        return self._values().index_select(0, indices).unsqueeze(1)

    def clear(self) -> None:
        """Forget all values; the memory is kept for the next ones."""
        self._used = 0

    def _values(self) -> Tensor:
        if self._block is None:
            raise RuntimeError("Nothing was appended yet.")
        return self._block

    def _grow(self, like: Tensor) -> None:
        held = 0 if self._block is None else len(self._block)
        grown = like.new_empty(max(self._used, 2 * held, _FIRST_TOKENS), *like.shape[2:])
        if self._block is not None:
            grown[:held] = self._block
        self._block = grown


class ArgumentPools:
    """A layer's arguments of single tokens: one :class:`TokenPool` for each tensor with an entry for each token.

    Other values are those of the first pass: None, flags, tensors that have no entry for each token.
    """

    def __init__(self) -> None:
        self._pools: list[tuple[TokenPool, int, int]] = []  # with the dimensions of the tensor, and that of the tokens
        self._nested: Any = None

    def append(self, arguments: Any, rows: int, tokens: int) -> int:
        """Add the arguments of one forward pass.

        Args:
            arguments: Tensors in nested tuples, lists and dicts. An entry for each token have those of shape
                [rows or 1, tokens, …], [rows or 1, heads or 1, tokens, …] and [tokens].
            rows: Rows of the pass.
            tokens: Tokens of each row.

        Returns:
            As :meth:`TokenPool.append`.
        """
        leaves: list[Tensor] = []
        nested = _nested(arguments, rows, tokens, leaves)
        if self._nested is None:
            self._nested = nested
            self._pools = [(TokenPool(), leaf.dim(), _token_axis(leaf, rows, tokens) or 0) for leaf in leaves]
        starts = [
            pool.append(_by_token(leaf, rows, tokens)) for (pool, *_), leaf in zip(self._pools, leaves, strict=True)
        ]
        return starts[0] if starts else 0

    def gather(self, indices: Tensor) -> Any:
        """Read arguments.

        Args:
            indices: LongTensor [entries] on the device of the tensors.

        Returns:
            Nested as they were appended, with tensors [entries, 1, …], or [entries] where they had one dimension.
        """
        read = []
        for pool, dims, axis in self._pools:
            values = pool.gather(indices)  # [entries, 1, …]
            read.append(values.squeeze(1) if dims == 1 else values.transpose(1, axis))
        return _filled(self._nested, read)

    def clear(self) -> None:
        """Forget all arguments; the memory is kept for the next ones."""
        for pool, *_ in self._pools:
            pool.clear()


class _Leaf(int):
    """The place of a tensor among those with an entry for each token."""


def _nested(value: Any, rows: int, tokens: int, leaves: list[Tensor]) -> Any:
    """Put a :class:`_Leaf` in place of each tensor with an entry for each token, which goes to ``leaves``."""
    if isinstance(value, Tensor) and _token_axis(value, rows, tokens) is not None:
        leaves.append(value)
        return _Leaf(len(leaves) - 1)
    if isinstance(value, dict):
        return {name: _nested(item, rows, tokens, leaves) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_nested(item, rows, tokens, leaves) for item in value)
    return value


def _token_axis(value: Tensor, rows: int, tokens: int) -> int | None:
    """Return the dimension of a tensor that has an entry for each token; None where there is none."""
    if value.dim() < 2:
        return 0 if value.dim() == 1 and len(value) == tokens else None
    if value.shape[0] not in (rows, 1):
        return None
    return next((axis for axis in (1, 2) if axis < value.dim() and value.shape[axis] == tokens), None)


def _by_token(value: Tensor, rows: int, tokens: int) -> Tensor:
    """Repeat what all rows share: [rows, tokens, …]."""
    if value.dim() == 1:
        return value.expand(rows, tokens)
    return value.expand(rows, *value.shape[1:]).transpose(1, _token_axis(value, rows, tokens) or 1)


def _filled(value: Any, read: list[Tensor]) -> Any:
    """Put tensors in the place of each :class:`_Leaf`."""
    if isinstance(value, _Leaf):
        return read[value]
    if isinstance(value, dict):
        return {name: _filled(item, read) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_filled(item, read) for item in value)
    return value
