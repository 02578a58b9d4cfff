"""A forward pass over several tokens of each row, each with its own set of executed layers."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hsdlab.decoding.arguments import argument, bound_arguments, select_tokens
from hsdlab.decoding.device import sent
from hsdlab.decoding.skipping import LayerCall


@dataclass
class RunningTokens:
    """The tokens of a pass that run one layer, or several layers.

    Rows that run fewer tokens than others repeat their last one, so that the tokens form a rectangle. What is computed
    for the repeated ones is the same, and is not counted.

    Attributes:
        mask: BoolTensor [rows, tokens] on the CPU, true for the tokens that run.
        skipped: The same shape, true for those that do not, padding apart.
        everywhere: Whether all tokens run, padding apart.
        device: Of the model.
    """

    mask: Tensor
    skipped: Tensor
    everywhere: bool
    device: torch.device

    @cached_property
    def nowhere(self) -> bool:
        """Whether no token runs."""
        return not bool(self.mask.any())

    @cached_property
    def rows(self) -> Tensor:
        """The rows that run some token, LongTensor [running rows] on the CPU."""
        return self.mask.any(dim=1).nonzero().squeeze(1)

    @cached_property
    def slots(self) -> Tensor:
        """The tokens that run in each of ``rows``, LongTensor [running rows, most tokens] on the CPU."""
        running = self.mask[self.rows]
        counts = running.sum(dim=1)
        in_order = (~running).to(torch.uint8).argsort(dim=1, stable=True)  # those that run come first
        last = in_order.gather(1, counts[:, None] - 1)
        places = torch.arange(int(counts.max()))
        return torch.where(places < counts[:, None], in_order[:, : len(places)], last)

    @cached_property
    def after_last(self) -> Tensor:
        """One more than the last token that runs in each row of the pass, LongTensor [rows] on the CPU; 0 for none."""
        places = torch.arange(1, self.mask.shape[1] + 1)
        return (self.mask * places).amax(dim=1)

    @cached_property
    def first(self) -> Tensor:
        """The first token that runs in each row of the pass, LongTensor [rows] on the CPU; 0 where none does."""
        return self.mask.to(torch.uint8).argmax(dim=1)

    @cached_property
    def on_device(self) -> tuple[Tensor, Tensor]:
        """``rows`` and ``slots`` on the device."""
        return sent(self.rows, self.device), sent(self.slots, self.device)

    @cached_property
    def in_all_rows(self) -> bool:
        """Whether each row runs some token."""
        return len(self.rows) == len(self.mask)

    def take(self, hidden: Tensor) -> Tensor:
        """Gather the hidden states of the tokens that run.

        Args:
            hidden: [rows, tokens, d].

        Returns:
            [running rows, most tokens, d].
        """
        rows, slots = self.on_device
        return hidden[rows[:, None], slots]

    def put(self, hidden: Tensor, output: Tensor) -> Tensor:
        """Put the output of a layer in the place of the tokens that ran.

        Args:
            hidden: [rows, tokens, d]; it is not changed.
            output: [running rows, most tokens, d]; [rows, tokens, d] if all tokens run.

        Returns:
            [rows, tokens, d].
        """
        if self.everywhere:
            return output
        rows, slots = self.on_device
        return hidden.index_put((rows[:, None], slots), output)


class TokenPass:
    """Which tokens of one forward pass run which layer, or its attention and its MLP.

    Args:
        executed: BoolTensor [rows or 1, tokens, layers] on the CPU; with a last dimension of 2 for attention and MLP
            apart.
        valid: BoolTensor [rows, tokens] on the CPU, false at padding, which runs where its whole row does.
        device: Of the model.
    """

    def __init__(self, executed: Tensor, valid: Tensor, device: torch.device) -> None:
        self.executed = executed & valid.reshape(*valid.shape, *[1] * (executed.dim() - 2))
        self.valid = valid
        self._device = device
        self._by_mask: dict[bytes, RunningTokens] = {}  # layers of equal masks share what is computed from them
        attention = self.executed if executed.dim() == 3 else self.executed[..., 0]
        self._by_layer = [self._running(attention[:, :, layer]) for layer in range(executed.shape[2])]
        self._given: list[Any] = []
        self._selected: dict[str, Any] = {}

    def at(self, layer: int) -> RunningTokens:
        """Say who runs a layer, or its attention.

        Args:
            layer: Index of the layer.

        Returns:
            The tokens; the same object for layers that the same tokens run.
        """
        return self._by_layer[layer]

    def mlp_beside(self, layer: int) -> Tensor | bool:
        """Say who of the tokens of :meth:`at` runs the MLP of a layer, too.

        Args:
            layer: Index of the layer.

        Returns:
            Whether all of them do, or none. If some do, BoolTensor [rows, tokens] on the device, of the tokens with
            which the layer is called.
        """
        if self.executed.dim() == 3:
            return True
        running, mlp = self.at(layer), self.executed[:, :, layer, 1]
        among = mlp[running.mask]
        if bool(among.all()) or not bool(among.any()):
            return bool(among.all())
        called = mlp if running.everywhere else mlp[running.rows[:, None], running.slots]
        return called.to(self._device)

    def mlp_alone(self, layer: int) -> RunningTokens | None:
        """Say who runs the MLP of a layer without its attention.

        Args:
            layer: Index of the layer.

        Returns:
            The tokens; None if there are none.
        """
        if self.executed.dim() == 3:
            return None
        running = self._running(self.executed[:, :, layer, 1] & ~self.executed[:, :, layer, 0])
        return None if running.nowhere else running

    def _running(self, mask: Tensor) -> RunningTokens:
        mask = mask.contiguous()
        key = mask.numpy().tobytes()
        if key not in self._by_mask:
            skipped = self.valid & ~mask
            self._by_mask[key] = RunningTokens(mask, skipped, not bool(skipped.any()), self._device)
        return self._by_mask[key]

    def arguments(
        self, running: RunningTokens, call: LayerCall, hidden: Tensor, args: tuple, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Select a layer's arguments for the tokens that run it.

        Args:
            running: Those of the layer.
            call: The layer's call.
            hidden: The hidden states of the whole pass, [rows, tokens, d].
            args: The other positional arguments.
            kwargs: The keyword arguments.

        Returns:
            Arguments by name, without the hidden state; the same objects as before while all are the same objects. A
            layer that was called without a mask, which means causal attention within the pass, gets one.
        """
        given = [running, *args, *kwargs.values()]
        if len(given) != len(self._given) or any(a is not b for a, b in zip(given, self._given, strict=True)):
            rows, tokens = hidden.shape[:2]
            bound = bound_arguments(call, hidden, args, kwargs)
            if argument(call, "attention_mask", args, kwargs) is None:
                causal = torch.ones(tokens, tokens, dtype=torch.bool, device=hidden.device).tril()
                bound["attention_mask"] = causal[None, None]
            self._selected = select_tokens(bound, *running.on_device, rows, tokens)
            self._given = given
        return self._selected

    def forget(self) -> None:
        """Hold nothing of the layers' arguments."""
        self._given, self._selected = [], {}
