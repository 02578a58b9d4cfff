"""What a strategy can read: before a step, after an executed layer, and (oracles only) after a whole step."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hsdlab.decoding.device import RowsOnDevice
from hsdlab.decoding.families import DecoderParts, matrix_weights
from hsdlab.decoding.token_head import TokenHead, TokenHeads


@dataclass(frozen=True)
class StepState:
    """What a plan can read.

    Attributes:
        step: t, from 0 to T-2; the input of the decode step is new token t.
        rows: Number of sequences in the batch (with beams: sources × beams).
        num_layers: L.
        max_steps: T, the most new tokens.
    """

    step: int
    rows: int
    num_layers: int
    max_steps: int


@dataclass
class ProbeCost:
    """The cost of deciding about exits, beyond what the new tokens cost without it.

    Where the logits of a check are those of the token that exits, the head counts as the token's own.

    Attributes:
        rows: Hidden states to which the head, whole or in part, was applied: the number of intermediate predictions.
        weights: Weights that hidden states were multiplied with, summed over the states.
        weights_read: Weights that were read for that. A matrix counts once for all states of a call; the head's rows of
            candidate tokens count once for each state.
    """

    rows: int = 0
    weights: int = 0
    weights_read: int = 0

    def reused(self, states: int, weights: int, whole_pass: bool) -> None:
        """Take the head off the cost of checks whose logits the tokens themselves take over.

        Args:
            states: Their number.
            weights: Of the head.
            whole_pass: Whether the decode step then needs no other logits, so that the head is not read again.
        """
        self.weights -= states * weights
        self.weights_read -= weights if whole_pass else 0


@dataclass
class Probe:
    """Applies the head, or a small module of the strategy, to the output of one layer on demand, and counts the cost.

    Attributes:
        parts: Gives the final norm and the head.
        hidden: The layer's output before the final norm, [rows, d].
        cost: The cost of each call is added to it.
        layer: The layer, whose exit may have an adapter; None for the model's last one.
        heads: Those of some tokens only, which the decode has made so far.
        head_output: What the head gave for all rows, before the model's scale or cap; None until it was applied.
    """

    parts: DecoderParts
    hidden: Tensor
    cost: ProbeCost = field(default_factory=ProbeCost)
    layer: int | None = None
    heads: TokenHeads = field(default_factory=TokenHeads)
    head_output: Tensor | None = field(default=None, init=False)
    _logits: Tensor | None = field(default=None, init=False)

    def logits(self, which: Tensor | None = None) -> Tensor:
        """Apply the final norm and the head (an intermediate prediction).

        Args:
            which: Indices into the rows of ``hidden``, LongTensor [n] on its device. None stands for all rows, which
                are computed at the first such call only.

        Returns:
            [n, vocabulary], or [rows, vocabulary] for all rows.
        """
        if which is None and self._logits is not None:
            return self._logits
        hidden = self._rows(which)
        self._count_head(len(hidden), self.parts.vocabulary_size, read=1)
        output = self.parts.head_output(hidden, self.layer)
        logits = self.parts.scaled(output)
        if which is None:
            self.head_output, self._logits = output, logits
        return logits

    def token_logits(self, tokens: Tensor) -> Tensor:
        """Apply the final norm and the head's rows of candidate tokens only.

        Args:
            tokens: The K candidate tokens of each row, LongTensor [rows, K].

        Returns:
            Their logits, [rows, K]; computed anew at each call.
        """
        self._count_head(len(self.hidden), tokens.shape[1], read=len(self.hidden))
        return self.parts.token_logits(self.hidden, tokens, self.layer)

    def token_head(self, tokens: Tensor) -> TokenHead:
        """Take the rows of the head of some tokens, the same for all rows; they are copied once a decode.

        Args:
            tokens: LongTensor [n], without repetition. Give the same object each time.

        Returns:
            Their head.
        """
        return self.heads.of(self.parts, tokens)

    def head_logits(self, head: TokenHead, which: Tensor | None = None) -> Tensor:
        """Apply the final norm and the head of some tokens, the same for all rows.

        Args:
            head: Of n tokens, from :meth:`token_head`.
            which: As for ``logits``.

        Returns:
            The logits of these tokens, [rows, n]; computed anew at each call.
        """
        hidden = self._rows(which)
        self._count_head(len(hidden), len(head.tokens), read=1)
        return head.logits(self.parts.before_head(hidden, self.layer))

    def apply(self, module: nn.Module, *arguments: Any) -> Tensor:
        """Apply a small module of the strategy, such as an exit classifier, to ``hidden``.

        Args:
            module: Takes [rows, d] and ``arguments``; only its matrices count as cost.
            *arguments: What the module takes besides.

        Returns:
            The module's output.
        """
        weights = matrix_weights(module)
        self.cost.weights += len(self.hidden) * weights
        self.cost.weights_read += weights
        return module(self.hidden, *arguments)

    def _rows(self, which: Tensor | None) -> Tensor:
        return self.hidden if which is None else self.hidden.index_select(0, which)

    def _count_head(self, rows: int, logits: int, read: int) -> None:
        before_head, per_logit = self.parts.head_weights
        before_head += 0 if self.parts.exits is None else self.parts.exits.weights(self.layer)
        self.cost.rows += rows
        self.cost.weights += rows * (before_head + logits * per_logit)
        self.cost.weights_read += before_head + read * logits * per_logit


class StepMemory:
    """Values that a strategy keeps from one layer of a step to the next; the engine drops them after the step.

    Args:
        rows: Number of sequences in the batch.
        on_device: Copies indices of rows to the device; None makes a new one.
    """

    def __init__(self, rows: int, on_device: RowsOnDevice | None = None) -> None:
        self._rows = rows
        self._on_device = on_device or RowsOnDevice()
        self._kept: dict[str, Tensor] = {}

    def keep(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Keep values for some rows; what the other rows have stays.

        Args:
            name: The name under which ``recall`` finds them.
            rows: Indices in the batch, LongTensor [n] on the CPU, ascending.
            values: [n, …] of any dtype; a row for which nothing was kept yet has zeros.
        """
        if len(rows) < self._rows:
            kept = self._kept.get(name, values.new_zeros(self._rows, *values.shape[1:]))
            values = kept.index_copy(0, self._on_device.get(rows, values.device), values)
        self._kept[name] = values

    def recall(self, name: str, rows: Tensor) -> Tensor | None:
        """Return what was kept for some rows.

        Args:
            name: The name under which it was kept.
            rows: Indices in the batch, LongTensor [n] on the CPU, ascending.

        Returns:
            [n, …], on the device of what was kept; None if nothing was kept under the name in this step.
        """
        kept = self._kept.get(name)
        if kept is None or len(rows) == self._rows:
            return kept
        return kept.index_select(0, self._on_device.get(rows, kept.device))


@dataclass(frozen=True)
class LayerState:
    """What an early exit can read, after one executed layer. Its rows are the sequences that ran the layer.

    Attributes:
        layer: Index of the layer that has just run.
        layers_run: Number of layers that have run in this step, this one included.
        step: t, from 0 to T-2; the input of the decode step is new token t.
        num_layers: L.
        max_steps: T, the most new tokens.
        rows: Indices of these sequences in the batch, LongTensor [rows] on the CPU, ascending.
        rows_per_source: Number of consecutive sequences in the batch that come from one prompt: beams, or samples.
        ended: BoolTensor [rows] on the device of ``output``, true where the text has ended and transformers only pads
            it. None where that is not known (beams) or cannot happen (a single sequence).
        output: Output of the layer before the final norm, [rows, d].
        previous_output: Output of the executed layer before it, [rows, d]; None after the first.
        probe: Applies the head, whole or in part, or modules of the strategy to ``output``.
        memory: What the strategy keeps until the step ends; use ``keep`` and ``recall``.
    """

    layer: int
    layers_run: int
    step: int
    num_layers: int
    max_steps: int
    rows: Tensor
    rows_per_source: int
    ended: Tensor | None
    output: Tensor
    previous_output: Tensor | None
    probe: Probe
    memory: StepMemory

    def logits(self) -> Tensor:
        """Apply the final norm and the head to ``output`` (an intermediate prediction).

        Returns:
            [rows, vocabulary]; computed at the first call only.
        """
        return self.probe.logits()

    def keep(self, name: str, values: Tensor) -> None:
        """Keep values for these rows until the step ends.

        Args:
            name: The name under which ``recall`` finds them after a later layer.
            values: [rows, …] of any dtype.
        """
        self.memory.keep(name, self.rows, values)

    def recall(self, name: str) -> Tensor | None:
        """Return what was kept for these rows after an earlier layer of this step.

        Args:
            name: The name under which it was kept.

        Returns:
            [rows, …]; None if nothing was kept under the name in this step, zeros for rows without a value.
        """
        return self.memory.recall(name, self.rows)


@dataclass(frozen=True)
class HindsightState:
    """What an oracle can read, after all layers have run.

    Attributes:
        step: t, from 0 to T-2; the input of the decode step is new token t.
        rows: Number of sequences in the batch.
        num_layers: L.
        max_steps: T, the most new tokens.
        outputs: Output of each layer before the final norm, [layers, rows, d].
        parts: Gives the final norm and the head.
    """

    step: int
    rows: int
    num_layers: int
    max_steps: int
    outputs: Tensor
    parts: DecoderParts

    def logits(self, layer: int) -> Tensor:
        """Apply the final norm and the head to the output of a layer.

        Args:
            layer: Index of the layer; -1 is the last, whose logits are those of full depth.

        Returns:
            [rows, vocabulary]; computed anew at each call, and not counted as cost.
        """
        return self.parts.logits(self.outputs[layer], layer if layer >= 0 else None)
