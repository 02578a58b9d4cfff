"""What the confidence strategies share: where they check, with how much of the head, and who exits together."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hsdlab.decoding import LayerState
from hsdlab.decoding.families import DecoderParts
from hsdlab.errors import UserError
from hsdlab.strategies.confidence import ConfidenceStrategy, saturation
from hsdlab.strategies.vocabulary import VocabularyOption

ExitRule = Literal["per_row", "min", "mean", "source_min", "source_mean"]
EXIT_RULES: tuple[ExitRule, ...] = ("per_row", "min", "mean", "source_min", "source_mean")
"""Who exits together, and whose confidence counts.

- ``per_row``: each sequence by itself; each beam is a sequence.
- ``min``, ``mean``: all sequences of the batch, where the smallest or the mean confidence reaches the threshold.
- ``source_min``, ``source_mean``: the same among the sequences of one prompt: its beams, or its sampled sequences.

The confidence of sequences whose text has ended does not count. With beams, transformers does not tell which prompts
are done: under ``min`` and ``mean`` they count until the search ends.
"""


class ProbingStrategy(ConfidenceStrategy):
    """A confidence strategy that checks after some layers, and lets sequences exit by themselves or together.

    Args:
        probe_layers: Where the confidence is checked: k, 1 or more, for after every k-th layer that runs, or a list of
            layer indices. None for the layers at which the model was trained to exit, and for every layer of a model
            that was not (``DecoderParts.exits``). The last layer that may run is never checked.
        shortlist: K, 2 or more. The first check of a sequence in a step applies the head. Later ones compute only the
            logits of the K most likely tokens of the first (the candidate tokens). None always applies the head.
        exit_rule: One of ``EXIT_RULES``.
        gate: Apply the head only to sequences whose hidden-state saturation reaches this, 0 or more; the confidence of
            the others is 0. None applies it to all. Cannot be combined with a shortlist.
        late_exit: Read the answer of a check after the next executed layer, so that the host does not wait for the
            device. A sequence then exits one executed layer after the check that decided it.
        check_vocabulary: The tokens for which the head of a check is computed: a file that ``hsdlab count-tokens``
            wrote, or a number, 2 or more, of tokens with the lowest ids. None: all tokens. The token itself always
            comes from the whole head.

    Raises:
        UserError: An argument is out of its range, or ``shortlist`` and ``gate`` are both given.
    """

    def __init__(
        self,
        probe_layers: int | list[int] | None = None,
        shortlist: int | None = None,
        exit_rule: ExitRule = "per_row",
        gate: float | None = None,
        late_exit: bool = False,
        check_vocabulary: int | str | None = None,
    ) -> None:
        name = type(self).__name__
        every = 1 if probe_layers is None else probe_layers
        indices = every if isinstance(every, list) else [every - 1]
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
        if not isinstance(late_exit, bool):
            raise UserError(f"{name}: late_exit={late_exit!r}; expected True or False.")
        self.check_vocabulary = check_vocabulary
        self._vocabulary.check()
        self._check_ids: Tensor | None = None
        self.probe_layers = probe_layers
        self._checked = every  # known once the strategy has met a model
        self.shortlist = shortlist
        self.exit_rule = exit_rule
        self.gate = gate
        self.late_exit = late_exit
        if exit_rule in ("min", "mean"):
            self.rows_depend = f"exit_rule={exit_rule!r}: all sequences of a batch exit together"

    @property
    def _vocabulary(self) -> VocabularyOption:
        return VocabularyOption(type(self).__name__, "check_vocabulary", self.check_vocabulary, fewest=2)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a vocabulary of the checks that was counted with another tokenizer."""
        self._vocabulary.check_tokenizer(tokenizer)

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse layers, tokens or a head that the model does not have."""
        super().check_model(parts)
        self._checked = self.checked_layers(parts)
        name, last = type(self).__name__, parts.num_layers - 1
        if isinstance(self.probe_layers, list) and max(self.probe_layers) > last:
            raise UserError(f"{name}: probe_layers={self.probe_layers}; this model has layers 0 to {last}.")
        if self._checked != 1 and self.most_probes(parts.num_layers) == 0:
            raise UserError(
                f"{name}: probe_layers={self.probe_layers!r} probes after no layer of this model's {parts.num_layers} "
                "that has layers to skip above it: no sequence could ever exit. Give smaller ones."
            )
        self._check_ids = ids = self._vocabulary.ids(parts)
        if self.shortlist is None:
            return
        size, whose = (parts.vocabulary_size, "this model's") if ids is None else (len(ids), "the checks'")
        if self.shortlist > size:
            raise UserError(f"{name}: shortlist={self.shortlist} is beyond {whose} vocabulary of {size}.")
        parts.check_head_rows()

    def checked_layers(self, parts: DecoderParts) -> int | list[int]:
        """Find where the confidence is checked on a model.

        Args:
            parts: The model's layers, and the exits that it was trained for.

        Returns:
            k for after every k-th layer that runs, or layer indices. Where ``probe_layers`` is not None, it is that.
        """
        if self.probe_layers is not None:
            return self.probe_layers
        return 1 if parts.exits is None else list(parts.exits.layers)

    def most_probes(self, num_layers: int) -> int:
        """Count the confidence checks that are possible in one step; there is none after the last layer.

        Args:
            num_layers: L.

        Returns:
            The largest number of checks, reached where all layers may run and no sequence exits.
        """
        if isinstance(self._checked, list):
            return len({layer for layer in self._checked if layer < num_layers - 1})
        return (num_layers - 1) // self._checked

    def probes_among(self, layers: Sequence[int]) -> int:
        """Count the confidence checks that are possible in a step of a schedule.

        Args:
            layers: The layers of the step, ascending. There is no check after the last one.

        Returns:
            The number of checks where no sequence exits.
        """
        if isinstance(self._checked, list):
            return len({*self._checked} & {*layers[:-1]})
        return max(len(layers) - 1, 0) // self._checked

    def fewest_probes(self, num_layers: int) -> int:
        """Count the checks without which no sequence exits.

        Args:
            num_layers: L.

        Returns:
            1, unless a measure compares several checks.
        """
        return 1

    def probes(self, state: LayerState) -> bool:
        """Say whether the confidence is checked after a layer.

        Args:
            state: The layer that has just run.

        Returns:
            Whether the layer is among those that are checked; with a number k, whether k divides the number of layers
            that have run in this step.
        """
        if isinstance(self._checked, list):
            return state.layer in self._checked
        return state.layers_run % self._checked == 0

    def probes_so_far(self, state: LayerState) -> int:
        """Count the confidence checks of a step.

        Args:
            state: The layer that has just run.

        Returns:
            The largest number of checks that there can have been in this step, one after this layer included.
        """
        if isinstance(self._checked, list):
            return len({layer for layer in self._checked if layer <= state.layer})
        return state.layers_run // self._checked

    def probed_logits(self, state: LayerState) -> tuple[Tensor, Tensor | None]:
        """Compute an intermediate prediction for all sequences that ran the layer.

        Args:
            state: The layer's output; it also remembers the candidate tokens of the first check.

        Returns:
            Logits [rows, n], and which tokens these are, LongTensor [rows, n], or None for the whole vocabulary. They
            are those of ``check_vocabulary`` or, after the first check with a shortlist, the candidate tokens.
        """
        candidates = None if self.shortlist is None else state.recall("shortlist")
        if candidates is not None:
            return state.probe.token_logits(candidates), candidates
        logits = self._head_logits(state)
        tokens = None if self._check_ids is None else state.probe.token_head(self._check_ids).tokens
        tokens = None if tokens is None else tokens.expand(logits.shape)
        if self.shortlist is not None:
            likely = logits.topk(self.shortlist, dim=-1).indices  # (rows, K)
            state.keep("shortlist", likely if tokens is None else tokens.gather(1, likely))
        return logits, tokens

    def _head_logits(self, state: LayerState, which: Tensor | None = None) -> Tensor:
        """Apply the head, whole or its rows for the checks, to all rows or to some, LongTensor [n] on the device."""
        if self.check_vocabulary is None:
            return state.probe.logits(which)
        if self._check_ids is None:
            name = type(self).__name__
            raise RuntimeError(f"{name} reads its vocabulary when it meets a model: use generate() or applied_to().")
        return state.probe.head_logits(state.probe.token_head(self._check_ids), which)

    def exits_by_head(self, state: LayerState, measure: Callable[[Tensor], Tensor], threshold: float) -> Tensor:
        """Decide by intermediate predictions who exits. The confidence of sequences below the gate is 0.

        With a gate, this reads from the device which sequences pass it, except after the first executed layer, where
        none does. The others cost no intermediate prediction.

        Args:
            state: The outputs of this layer and of the executed one before.
            measure: Turns logits [n, tokens] into confidences [n], 0 or more.
            threshold: The confidence from which a sequence exits. From 0 on, all exit and nothing is computed.

        Returns:
            BoolTensor [rows], true where the sequence exits.
        """
        if threshold <= 0:
            return everybody(state)
        if self.gate is None:
            return self.exits(state, measure(self.probed_logits(state)[0]), threshold)
        if state.previous_output is None:
            return nobody(state)
        near = saturation(state.output, state.previous_output) >= self.gate
        which = near.nonzero().squeeze(1)
        if len(which) == 0:
            return nobody(state)
        if len(which) == len(near):
            return self.exits(state, measure(self._head_logits(state)), threshold)
        some = measure(self._head_logits(state, which))
        return self.exits(state, some.new_zeros(len(near)).index_copy(0, which, some), threshold)

    def exits(self, state: LayerState, confidence: Tensor, threshold: float) -> Tensor:
        """Decide by a threshold who exits, together as the exit rule says.

        Args:
            state: Which sequences come from one prompt, and which have ended.
            confidence: [rows].
            threshold: The confidence from which a sequence exits.

        Returns:
            BoolTensor [rows], true where the sequence exits.
        """
        if self.exit_rule == "per_row":
            return confidence >= threshold
        by_source = self.exit_rule.startswith("source")
        together = state.rows_per_source if by_source else len(confidence)
        return pooled(confidence, self.exit_rule.removeprefix("source_"), together, state.ended) >= threshold

    def shown_parameters(self) -> dict[str, Any]:
        """Leave out ``late_exit`` where it is off."""
        shown = super().shown_parameters()
        return shown if self.late_exit else {name: value for name, value in shown.items() if name != "late_exit"}

    def changed(self, **parameters: Any) -> Self:
        """Copy the setting with other values of some parameters.

        Args:
            **parameters: Arguments of ``__init__`` by name; the others keep their values.

        Returns:
            A new strategy of the same class.
        """
        return type(self)(**{**self.parameters(), **parameters})


def pooled(confidence: Tensor, by: str, together: int, ended: Tensor | None) -> Tensor:
    """Give each sequence the smallest or the mean confidence of its group, which exits together.

    Args:
        confidence: [rows].
        by: ``min`` or ``mean``.
        together: Number of consecutive rows in a group; it divides the number of rows.
        ended: BoolTensor [rows] on the same device, true for the sequences that do not count; None where all count.

    Returns:
        [rows], equal within a group; infinite where all sequences of a group have ended.

    Example:
        >>> pooled(torch.tensor([0.2, 0.6, 0.9, 0.7]), "mean", 2, None)
        tensor([0.4000, 0.4000, 0.8000, 0.8000])
    """
    if ended is None:
        ended = torch.zeros_like(confidence, dtype=torch.bool)
    if by == "min":
        groups = confidence.masked_fill(ended, torch.inf).view(-1, together)  # (groups, rows that exit together)
        values = groups.amin(dim=1)
    else:
        groups = confidence.masked_fill(ended, torch.nan).view(-1, together)
        values = groups.nanmean(dim=1).nan_to_num(nan=torch.inf)
    return values.repeat_interleave(together)


def nobody(state: LayerState) -> Tensor:
    """Answer that no sequence exits.

    Args:
        state: The sequences that ran the layer.

    Returns:
        BoolTensor [rows], all false, on the CPU, so that it forces no synchronisation with a GPU.
    """
    return torch.zeros(len(state.output), dtype=torch.bool)


def everybody(state: LayerState) -> Tensor:
    """Answer that all sequences exit.

    Args:
        state: The sequences that ran the layer.

    Returns:
        BoolTensor [rows], all true, on the CPU, so that it forces no synchronisation with a GPU.
    """
    return torch.ones(len(state.output), dtype=torch.bool)


def check_choice(name: str, parameter: str, value: object, known: Sequence[object]) -> None:
    """Check that a parameter is one of the values it can have.

    Args:
        name: The strategy's class, for the message.
        parameter: The parameter's name, for the message.
        value: The value that was given.
        known: The values it can have.

    Raises:
        UserError: ``value`` is not among ``known``.
    """
    if value not in known:
        raise UserError(f"{name}: {parameter}={value!r}; expected one of {', '.join(map(str, known))}.")


def check_not_negative(name: str, **numbers: float | None) -> None:
    """Check parameters that are finite numbers of 0 or more, or None.

    Args:
        name: The strategy's class, for the message.
        **numbers: The values that were given, by the names of the parameters.

    Raises:
        UserError: A value is negative, infinite, NaN or not a number; the message names its parameter.
    """
    for parameter, number in numbers.items():
        wrong = isinstance(number, bool) or not isinstance(number, int | float)
        if number is not None and (wrong or not 0 <= number < math.inf):
            raise UserError(f"{name}: {parameter}={number!r}; expected a finite number, 0 or more.")
