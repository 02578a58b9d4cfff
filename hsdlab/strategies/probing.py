"""What the strategies that measure a confidence share: where they probe, with how much of the head, who exits along."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from hsdlab.decoding import LayerState
from hsdlab.decoding.families import DecoderParts
from hsdlab.errors import UserError
from hsdlab.strategies.confidence import ConfidenceStrategy, saturation

ExitRule = Literal["per_row", "min", "mean", "source_min", "source_mean"]
EXIT_RULES: tuple[ExitRule, ...] = ("per_row", "min", "mean", "source_min", "source_mean")
"""Who exits together, and whose confidence counts.

- ``per_row``: each sequence by itself, with beams each hypothesis.
- ``min``, ``mean``: all sequences of the batch, where the smallest or the mean confidence reaches the threshold.
- ``source_min``, ``source_mean``: the same among the sequences of one prompt: its beams, or its sampled sequences.

Sequences whose text has ended have no say. With beams, transformers does not tell which prompts are done: under ``min``
and ``mean`` they keep theirs until the search ends.
"""


class ProbingStrategy(ConfidenceStrategy):
    """A confidence strategy that probes some layers and lets sequences exit by themselves or together.

    Args:
        probe_layers: k to probe after every k-th layer that runs, or the indices of the layers to probe after.
        shortlist: K: within a step, the first probe of a sequence applies the whole head, later ones only its rows for
            the K tokens that were likeliest then. None for the whole head always.
        exit_rule: One of ``EXIT_RULES``.
        gate: Apply the head only to sequences whose hidden-state saturation reaches this; the others' confidence is 0.
            None for all. Not together with a shortlist.
    """

    def __init__(
        self,
        probe_layers: int | list[int] = 1,
        shortlist: int | None = None,
        exit_rule: ExitRule = "per_row",
        gate: float | None = None,
    ) -> None:
        name = type(self).__name__
        indices = probe_layers if isinstance(probe_layers, list) else [probe_layers - 1]
        if not indices or min(indices) < 0:
            raise UserError(
                f"{name}: probe_layers={probe_layers!r}; expected 1 or more (every k-th layer), or a list of layers."
            )
        if shortlist is not None and shortlist < 2:
            raise UserError(f"{name}: shortlist={shortlist}; expected 2 tokens or more, or None.")
        if gate is not None and shortlist is not None:
            raise UserError(f"{name}: gate={gate} and shortlist={shortlist}; expected one of the two at most.")
        check_not_negative(name, gate=gate)
        check_choice(name, "exit_rule", exit_rule, EXIT_RULES)
        self.probe_layers = probe_layers
        self.shortlist = shortlist
        self.exit_rule = exit_rule
        self.gate = gate
        if exit_rule in ("min", "mean"):
            self.rows_depend = f"exit_rule={exit_rule!r}: all sequences of a batch exit together"

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse layers, a shortlist or a head that the model does not have."""
        super().check_model(parts)
        name, last = type(self).__name__, parts.num_layers - 1
        if isinstance(self.probe_layers, list) and max(self.probe_layers) > last:
            raise UserError(f"{name}: probe_layers={self.probe_layers}; this model has layers 0 to {last}.")
        if self.probe_layers != 1 and self.most_probes(parts.num_layers) == 0:
            raise UserError(
                f"{name}: probe_layers={self.probe_layers!r} probes after no layer of this model's {parts.num_layers} "
                "from which there is something to skip: it could never exit. Give smaller ones."
            )
        if self.shortlist is None:
            return
        if self.shortlist > parts.vocabulary_size:
            raise UserError(
                f"{name}: shortlist={self.shortlist} is beyond this model's vocabulary of {parts.vocabulary_size}."
            )
        parts.check_head_rows()

    def most_probes(self, num_layers: int) -> int:
        """How often it can probe in one step of a model of L layers: the last layer is not asked after."""
        if isinstance(self.probe_layers, list):
            return len({layer for layer in self.probe_layers if layer < num_layers - 1})
        return (num_layers - 1) // self.probe_layers

    def probes(self, state: LayerState) -> bool:
        """Whether it looks at the output of the layer at all."""
        if isinstance(self.probe_layers, list):
            return state.layer in self.probe_layers
        return state.layers_run % self.probe_layers == 0

    def probed_logits(self, state: LayerState) -> tuple[Tensor, Tensor | None]:
        """The head's answer for all sequences, of the whole vocabulary or of the shortlist.

        Returns:
            Logits [rows, vocabulary or K], and the tokens they are for, [rows, K]; None for the whole vocabulary.
        """
        if self.shortlist is None:
            return state.logits(), None
        tokens = state.recall("shortlist")
        if tokens is not None:
            return state.probe.token_logits(tokens), tokens
        logits = state.logits()
        state.keep("shortlist", logits.topk(self.shortlist, dim=-1).indices)
        return logits, None

    def head_confidence(self, state: LayerState, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """A measure of the head's answer for all sequences, or for those that the gate lets through.

        Args:
            state: After a layer.
            measure: Logits [n, vocabulary or K] to confidences [n].

        Returns:
            [rows]; 0 for rows below the gate, and for all at the first executed layer if there is a gate.
        """
        if self.gate is None:
            return measure(self.probed_logits(state)[0])
        near = saturation(state.output, state.previous_output) >= self.gate
        which = near.nonzero().squeeze(1)
        if len(which) == len(near):
            return measure(state.logits())
        if len(which) == 0:
            return torch.zeros(len(near))  # on the CPU: the answer needs no second synchronisation
        confidence = measure(state.probe.logits(which))
        return confidence.new_zeros(len(near)).index_copy(0, which, confidence)

    def exits(self, state: LayerState, confidence: Tensor, threshold: float) -> Tensor:
        """Who exits: [rows] confidences, pooled as the exit rule says, against a threshold; BoolTensor [rows]."""
        if self.exit_rule == "per_row":
            return confidence >= threshold
        by_source = self.exit_rule.startswith("source")
        together = state.rows_per_source if by_source else len(confidence)
        return pooled(confidence, self.exit_rule.removeprefix("source_"), together, state.ended) >= threshold

    def shown_parameters(self) -> dict[str, Any]:
        """As always, but ``probe_layers`` only where some are left out."""
        return {name: value for name, value in super().shown_parameters().items() if (name, value) != _EVERY_LAYER}

    def changed(self, **parameters: Any) -> Self:
        """The same setting with other values for some parameters."""
        return type(self)(**{**self.parameters(), **parameters})


_EVERY_LAYER = ("probe_layers", 1)


def pooled(confidence: Tensor, by: str, together: int, ended: Tensor | None) -> Tensor:
    """Give each sequence the smallest or the mean confidence of those that it exits together with.

    Args:
        confidence: [rows].
        by: ``min`` or ``mean``.
        together: Rows that exit together; they are consecutive.
        ended: BoolTensor [rows]: rows that have no say; where all of a group have ended, it is infinite.

    Example:
        >>> pooled(torch.tensor([0.2, 0.6, 0.9, 0.7]), "mean", 2, None)
        tensor([0.4000, 0.4000, 0.8000, 0.8000])
    """
    if ended is None:
        ended = torch.zeros(len(confidence), dtype=torch.bool)
    ended = ended.to(confidence.device)
    if by == "min":
        groups = confidence.masked_fill(ended, torch.inf).view(-1, together)  # (groups, rows that exit together)
        values = groups.amin(dim=1)
    else:
        groups = confidence.masked_fill(ended, torch.nan).view(-1, together)
        values = groups.nanmean(dim=1).nan_to_num(nan=torch.inf)
    return values.repeat_interleave(together)


def nobody(state: LayerState) -> Tensor:
    """The answer that no sequence exits."""
    return torch.zeros(len(state.output), dtype=torch.bool)


def check_choice(name: str, parameter: str, value: object, known: Sequence[object]) -> None:
    """Check that a parameter is one of the values it can have.

    Raises:
        UserError: In the words of the strategy's parameters.
    """
    if value not in known:
        raise UserError(f"{name}: {parameter}={value!r}; expected one of {', '.join(map(str, known))}.")


def check_not_negative(name: str, **numbers: float | None) -> None:
    """Check parameters that are finite numbers of 0 or more, or None.

    Raises:
        UserError: In the words of the strategy's parameters.
    """
    for parameter, number in numbers.items():
        wrong = isinstance(number, bool) or not isinstance(number, int | float)
        if number is not None and (wrong or not 0 <= number < math.inf):
            raise UserError(f"{name}: {parameter}={number!r}; expected a finite number, 0 or more.")
