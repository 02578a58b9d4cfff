"""The hidden states of skipped tokens, kept until the late KV computation or the end of the decode."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hsdlab.decoding.arguments import argument, position_arguments
from hsdlab.decoding.device import Reading, sent
from hsdlab.decoding.skipping import LayerCall
from hsdlab.decoding.token_pool import ArgumentPools, TokenPool


@dataclass(frozen=True)
class Owed:
    """Tokens whose keys and values a layer computes late.

    Attributes:
        hidden: The hidden states that arrived at the layer, [entries, 1, d].
        arguments: The layer's other arguments for them, by name.
        rows: The row of each, LongTensor [entries] on the device.
        tokens: The index of each in its row, LongTensor [entries] on the device.
    """

    hidden: Tensor
    arguments: dict[str, Any]
    rows: Tensor
    tokens: Tensor


@dataclass
class _LayerType:
    """Layers that are called with the same arguments besides hidden state and mask (rotary embeddings differ by type).

    Attributes:
        pools: The arguments of each token.
        places: Of each token in the pools, LongTensor [rows or 1, length].
        given: The arguments of the current pass, if they are in the pools already.
    """

    places: Tensor
    pools: ArgumentPools = field(default_factory=ArgumentPools)
    given: list[Any] | None = None


class History:
    """Which tokens still owe keys and values at which layers, and the hidden states to compute them from.

    What is kept of a forward pass stays where it is. Where beams change places, ``_origin`` maps the current rows to
    the rows of each earlier pass.

    Args:
        num_layers: L.
        length: The most tokens of a row.
    """

    def __init__(self, num_layers: int, length: int) -> None:
        self._length = length
        self._owes: list[Tensor | None] = [None] * num_layers  # BoolTensor [rows or 1, length]; None owes nothing
        self._moves: list[Reading] = []  # of beams, which _owes has still to follow
        self._places: dict[int, Tensor] = {}  # of hidden states, by layer: LongTensor [rows or 1, length]
        self._hidden = TokenPool()
        self._types: list[_LayerType] = []
        self._type_of: dict[int, _LayerType] = {}
        self._last: tuple[Tensor, _Columns, Tensor] | None = None  # the hidden state that was kept last, and its places
        self._origin: Tensor | None = None  # [length, rows], on the device; None while no beam has moved

    def passed_by(
        self,
        layer: int,
        call: LayerCall,
        hidden: Tensor,
        args: tuple,
        kwargs: dict[str, Any],
        starts: int | Tensor,
        skipped: Tensor | None = None,
    ) -> None:
        """Note who skips a layer in the current forward pass.

        Args:
            layer: Index of the layer.
            call: Its call.
            hidden: The hidden states that arrive at it, [rows, tokens, d].
            args: The other positional arguments of the call.
            kwargs: Its keyword arguments.
            starts: The index of the first token of the pass in its row; LongTensor [rows] on the CPU where rows differ.
            skipped: BoolTensor [rows, tokens] on the CPU, true for the tokens that skip the layer; None for all.
        """
        rows, tokens = hidden.shape[:2]
        if self._last is None or self._last[0] is not hidden:
            columns = _Columns(starts, rows, tokens)
            self._last = hidden, columns, columns.places(self._hidden.append(hidden), rows)
        _, columns, places = self._last
        width = columns.width
        self._places[layer] = _written(self._places.get(layer), self._length, width, columns, places)
        self._keep_arguments(layer, call, hidden, args, kwargs, columns)
        if skipped is not None or not isinstance(starts, int):
            width = rows
        values = torch.ones(1, tokens, dtype=torch.bool) if skipped is None else skipped
        self._follow_moves()
        self._owes[layer] = _written(self._owes[layer], self._length, width, columns, values)

    def _keep_arguments(
        self, layer: int, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict[str, Any], columns: "_Columns"
    ) -> None:
        """Keep a layer's arguments of this pass, once for all layers that are called with the same ones."""
        mask = argument(call, "attention_mask", args, kwargs)
        given = [None if value is mask else value for value in (*args, *kwargs.values())]
        kind = self._type_of.get(layer)
        if kind is None:
            kind = next((each for each in self._types if _same(each.given, given)), None)
            if kind is None:
                kind = _LayerType(torch.zeros(1, self._length, dtype=torch.long))
                self._types.append(kind)
            self._type_of[layer] = kind
        if kind.given is None:
            kind.given = given
            rows, tokens = hidden.shape[:2]
            place = kind.pools.append(position_arguments(call, hidden, args, kwargs), rows, tokens)
            width = max(len(kind.places), columns.width)
            kind.places = _written(kind.places, self._length, width, columns, columns.places(place, rows))
        elif not _same(kind.given, given):
            raise RuntimeError(f"Layer {layer} no longer has the arguments of those that it shared them with.")

    def take(
        self, layer: int, count: int, before: int | Tensor, rows: Tensor | None = None, first: int | Tensor = 0
    ) -> Owed | None:
        """Take tokens that still owe keys and values at a layer; afterwards they owe none there.

        Args:
            layer: Index of the layer that is about to run.
            count: Rows of the batch.
            before: Tokens with a smaller index are taken; LongTensor [count] on the CPU where rows differ.
            rows: The rows whose tokens are taken, LongTensor on the CPU; None for all.
            first: Tokens with a smaller index stay, since they are outside of the layer's sliding window; LongTensor
                [count] on the CPU where rows differ.

        Returns:
            The tokens; None if there are none.
        """
        if self._owes[layer] is not None:
            self._follow_moves()
        owes = self._owes[layer]
        if owes is None:
            return None
        if rows is not None or not isinstance(before, int) or not isinstance(first, int):
            owes = self._owes[layer] = owes.expand(count, -1).clone() if len(owes) != count else owes
        tokens = torch.arange(self._length)
        asked = owes & (tokens < _column(before)) & (tokens >= _column(first))  # (rows or 1, length)
        if rows is not None:
            others = torch.ones(count, dtype=torch.bool).index_fill(0, rows, value=False)
            asked[others] = False
        if len(asked) == count:
            of_rows, of_tokens = asked.nonzero(as_tuple=True)
        else:
            tokens = asked[0].nonzero().squeeze(1)
            of_rows, of_tokens = torch.arange(count).repeat(len(tokens)), tokens.repeat_interleave(count)
        if len(of_rows) == 0:
            return None
        owes &= ~asked
        if not owes.any():
            self._owes[layer] = None
        return self._owed(layer, of_rows, of_tokens)

    def next_owed(self, layer: int, rows: Tensor | None = None) -> int | None:
        """Find the first token that some rows still owe at a layer.

        Args:
            layer: Index of the layer.
            rows: LongTensor on the CPU; None for all.

        Returns:
            Its index; None if they owe none.
        """
        if self._owes[layer] is not None:
            self._follow_moves()
        owes = self._owes[layer]
        if owes is None:
            return None
        owes = owes.any(dim=0) if rows is None or len(owes) == 1 else owes[rows].any(dim=0)  # (length)
        return int(owes.long().argmax()) if bool(owes.any()) else None

    def _owed(self, layer: int, rows: Tensor, tokens: Tensor) -> Owed:
        hidden, kind = self._places[layer], self._type_of[layer]
        on_cpu = torch.stack([rows, tokens, _read(hidden, rows, tokens), _read(kind.places, rows, tokens)])
        rows, tokens, place, argument_place = sent(on_cpu, self._hidden.device).unbind()
        row_then = rows if self._origin is None else self._origin[tokens, rows]
        return Owed(
            hidden=self._hidden.gather(place + row_then),
            arguments=kind.pools.gather(argument_place + row_then),
            rows=rows,
            tokens=tokens,
        )

    def end_pass(self) -> None:
        """Hold nothing of a forward pass but what was copied from it."""
        self._last = None
        for kind in self._types:
            kind.given = None

    def reorder(self, beam_idx: Tensor, tokens: int) -> None:
        """Follow the beams to the rows from which beam search continues.

        Args:
            beam_idx: The old row of each new row, LongTensor [rows] on the device.
            tokens: The number of tokens so far, the same in each row.
        """
        if not self._places:
            return
        if self._origin is None:
            self._origin = torch.arange(len(beam_idx), device=beam_idx.device).repeat(self._length, 1)
        self._origin[:tokens] = self._origin[:tokens, beam_idx]
        if any(owes is not None and len(owes) > 1 for owes in self._owes):
            self._moves.append(Reading(beam_idx))

    def _follow_moves(self) -> None:
        for move in self._moves:
            old_rows = move.values()
            self._owes = [owes if owes is None or len(owes) == 1 else owes[old_rows] for owes in self._owes]
        self._moves.clear()

    def forget(self, kept: Tensor) -> None:
        """Forget the last tokens of each row, as if they had never been.

        Args:
            kept: The number of tokens of each row that stay, LongTensor [rows] on the CPU.
        """
        self._follow_moves()
        stay = torch.arange(self._length) < kept[:, None]  # (rows, length)
        for layer, owes in enumerate(self._owes):
            if owes is not None:
                owes = owes & stay
                self._owes[layer] = owes if owes.any() else None
        if all(owes is None for owes in self._owes):
            self._hidden.clear()
            for kind in self._types:
                kind.pools.clear()


class _Columns:
    """The tokens of a forward pass, among all tokens of their rows."""

    def __init__(self, starts: int | Tensor, rows: int, tokens: int) -> None:
        self.width = 1 if isinstance(starts, int) else rows
        self._slots = torch.arange(tokens)
        if isinstance(starts, int):
            self.where: Any = (slice(None), slice(starts, starts + tokens))
        else:
            self.where = (torch.arange(rows)[:, None], starts[:, None] + self._slots)

    def places(self, first: int, rows: int) -> Tensor:
        """Return the places of row 0 of each token in a pool, [1, tokens]; that of row r is r more."""
        return (first + rows * self._slots)[None]


def _written(table: Tensor | None, length: int, width: int, columns: _Columns, values: Tensor) -> Tensor:
    """Write values [rows or 1, tokens] into a table [rows or 1, length], which is made or widened if need be."""
    if table is None:
        table = values.new_zeros(width, length)
    elif len(table) < width:
        table = table.repeat(width, 1)
    table[columns.where] = values
    return table


def _column(tokens: int | Tensor) -> int | Tensor:
    return tokens if isinstance(tokens, int) else tokens[:, None]


def _read(table: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    return table[0, tokens] if len(table) == 1 else table[rows, tokens]


def _same(a: list[Any] | None, b: list[Any]) -> bool:
    return a is not None and len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
