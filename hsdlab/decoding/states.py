"""What a strategy may look at: before a step, after an executed layer, and (oracles only) after a whole step."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from hsdlab.decoding.families import DecoderParts, matrix_weights


@dataclass(frozen=True)
class StepState:
    """What a plan may look at.

    Attributes:
        step: t; the pass whose input is new token t.
        rows: Number of rows in the batch (with beams: sources × beams).
        num_layers: L.
        max_steps: T, the most new tokens.
    """

    step: int
    rows: int
    num_layers: int
    max_steps: int


@dataclass
class ProbeCost:
    """What deciding about exits cost.

    Attributes:
        rows: Hidden states that the head, whole or in part, was applied to.
        weights: Weights that hidden states were multiplied with, summed over the states.
        weights_read: Weights that were read for that: a matrix once for all states of a call, the rows of the head for
            some tokens once for each state.
    """

    rows: int = 0
    weights: int = 0
    weights_read: int = 0


@dataclass
class Probe:
    """Looks at one layer's output through the head or a small module, on demand, and counts what that costs.

    Attributes:
        parts: The model's parts.
        hidden: The layer's output, [rows, d].
        cost: Where the cost is counted.
    """

    parts: DecoderParts
    hidden: Tensor
    cost: ProbeCost = field(default_factory=ProbeCost)
    _logits: Tensor | None = field(default=None, init=False)

    def logits(self, which: Tensor | None = None) -> Tensor:
        """Apply the final norm and the head; for all rows, computed at the first call only.

        Args:
            which: Places of the wanted rows among these, LongTensor [n]; all if not given.

        Returns:
            [n, vocabulary], or [rows, vocabulary].
        """
        if which is None and self._logits is not None:
            return self._logits
        hidden = self._rows(which)
        self._count_head(len(hidden), self.parts.vocabulary_size, read=1)
        logits = self.parts.logits(hidden)
        if which is None:
            self._logits = logits
        return logits

    def token_logits(self, tokens: Tensor) -> Tensor:
        """Apply the final norm and only the head's rows for some tokens: LongTensor [rows, K] to [rows, K]."""
        self._count_head(len(self.hidden), tokens.shape[1], read=len(self.hidden))
        return self.parts.token_logits(self.hidden, tokens)

    def apply(self, module: nn.Module) -> Tensor:
        """Apply a strategy's own small module to the rows, [rows, d]; returns what it gives."""
        weights = matrix_weights(module)
        self.cost.weights += len(self.hidden) * weights
        self.cost.weights_read += weights
        return module(self.hidden)

    def _rows(self, which: Tensor | None) -> Tensor:
        return self.hidden if which is None else self.hidden.index_select(0, which)

    def _count_head(self, rows: int, logits: int, read: int) -> None:
        before_head, per_logit = self.parts.head_weights
        self.cost.rows += rows
        self.cost.weights += rows * (before_head + logits * per_logit)
        self.cost.weights_read += before_head + read * logits * per_logit


class StepMemory:
    """Values by row that a strategy keeps from one layer of a step to the next; the engine drops them after it.

    Args:
        rows: Number of rows in the batch.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._kept: dict[str, Tensor] = {}

    def keep(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Keep ``values`` [n, …] for ``rows`` [n] under a name; those of the other rows stay (0 at first)."""
        if len(rows) < self._rows:
            kept = self._kept.get(name, values.new_zeros(self._rows, *values.shape[1:]))
            values = kept.index_copy(0, rows.to(values.device), values)
        self._kept[name] = values

    def recall(self, name: str, rows: Tensor) -> Tensor | None:
        """What was kept for ``rows`` [n] under a name, [n, …]; None if nothing was, in this step."""
        kept = self._kept.get(name)
        if kept is None or len(rows) == self._rows:
            return kept
        return kept.index_select(0, rows.to(kept.device))


@dataclass(frozen=True)
class LayerState:
    """What an exit may look at, after one executed layer. Rows are those that have not exited yet.

    Attributes:
        layer: Index of the layer that has just run.
        layers_run: Number of layers that have run in this step, this one included.
        step: t; the pass whose input is new token t.
        num_layers: L.
        max_steps: T, the most new tokens.
        rows: Indices of these rows in the batch, LongTensor [rows] on the CPU, ascending.
        rows_per_source: Consecutive rows of the batch that come from one prompt: beams, or sampled sequences.
        ended: BoolTensor [rows] on the CPU: the row's text has ended and transformers only pads it; None where that
            cannot be known (beams) or cannot be (a single row).
        output: Output of the layer, [rows, d].
        previous_output: Output of the executed layer before it, [rows, d]; None if this is the first.
        probe: The head, whole or in part, and modules of the strategy's own, applied to ``output``.
        memory: What the strategy keeps until the step's end; see ``keep`` and ``recall``.
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
        """The head applied to the final norm of ``output``, [rows, vocabulary]; computed at the first call only."""
        return self.probe.logits()

    def keep(self, name: str, values: Tensor) -> None:
        """Keep ``values`` [rows, …] under a name until the step ends."""
        self.memory.keep(name, self.rows, values)

    def recall(self, name: str) -> Tensor | None:
        """What an earlier layer of this step kept under a name for these rows, [rows, …]; None if nothing."""
        return self.memory.recall(name, self.rows)


@dataclass(frozen=True)
class HindsightState:
    """What an oracle may look at, after all layers have run.

    Attributes:
        step: t; the pass whose input is new token t.
        rows: Number of rows in the batch.
        num_layers: L.
        max_steps: T, the most new tokens.
        outputs: Output of each layer, [layers, rows, d].
        parts: The model's parts.
    """

    step: int
    rows: int
    num_layers: int
    max_steps: int
    outputs: Tensor
    parts: DecoderParts

    def logits(self, layer: int) -> Tensor:
        """The head applied to the final norm of a layer's output, [rows, vocabulary]."""
        return self.parts.logits(self.outputs[layer])
