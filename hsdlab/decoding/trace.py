"""Which layers ran for which token of which sequence, and the depth that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hsdlab.decoding.draft_counts import DraftCounts
from hsdlab.decoding.states import ProbeCost
from hsdlab.decoding.sub_layers import alike, depth_sum


@dataclass(frozen=True)
class LayerCounts:
    """What each layer did in all decode steps, over all live beams. All tensors are LongTensor [layers] on the CPU.

    Where attention and MLP ran apart, ``tokens`` and ``passes`` are [layers, 2].

    Attributes:
        tokens: New tokens for which the layer, or each of its parts, ran.
        attended: Keys that these tokens attended to, summed over the tokens; padding of the prompt counts, and what is
            outside of a sliding window does not.
        passes: Decode steps in which the layer ran for some sequence. Of a part: calls of the layer that ran it, one
            for the sequences that run both parts, and one for those that run this part only.
        late_tokens: Tokens whose keys and values were computed late, in decode steps.
        late_passes: Calls of the layer that computed them, each for all such tokens at once.
        cached_numbers: Numbers that a token has in the KV cache, keys and values together; 0 where the layer never ran.
        prompt_tokens: Tokens of the prompts for which the layer was computed in the prefill, each source once where the
            engine computes it once; with padding, and with those that a row repeats to be as long as the others.
        prompt_keys: Keys that these tokens attended to: those of a prompt once for all of its tokens.
        prompt_late_tokens: The same as ``late_tokens``, in the prefill under a prompt schedule.
        prompt_late_passes: The same as ``late_passes``, in the prefill.
    """

    tokens: Tensor
    attended: Tensor
    passes: Tensor
    late_tokens: Tensor
    late_passes: Tensor
    cached_numbers: Tensor
    prompt_tokens: Tensor
    prompt_keys: Tensor
    prompt_late_tokens: Tensor
    prompt_late_passes: Tensor


@dataclass(frozen=True)
class SourceCounts:
    """What an encoder read, and what the decoder layers made of it.

    Attributes:
        rows: Sources of the batch.
        length: Of the padded sources, tokens.
        made: Tokens of which each layer made keys and values for its cross-attention, with padding, LongTensor
            [layers].
        made_later: Those of them that were made in decode steps, after a prefill that skipped the layer.
    """

    rows: int
    length: int
    made: Tensor
    made_later: Tensor


@dataclass(frozen=True)
class Trace:
    """The record of one decode, along the returned sequences.

    Decode step t is the forward pass whose input is new token t. All tensors are on the CPU.

    Attributes:
        executed: BoolTensor [steps, rows, layers], true where the layer ran in the step for the returned sequence; or
            [steps, rows, layers, 2] where attention and MLP ran apart. ``steps`` is the number of real new tokens of
            the longest sequence minus one (an end-of-sequence token is real, the padding after it is not).
        live: BoolTensor [steps, rows], true where the sequence took the step. An end-of-sequence token is never an
            input. ``executed`` is false in the steps that a sequence did not take.
        prompt_length: Length of the (padded) prompt, tokens.
        layers: What each layer did, over all live beams.
        compute_steps: Decode steps of all live beams.
        decode_passes: Decode steps; one forward pass of the whole batch counts as one. Of verified drafts, those that
            full depth would have taken for the same text.
        probes: The cost of deciding about exits.
        prompt: BoolTensor [rows, prompt, layers], true where the layer ran for the token of the prompt, and at padding;
            None where all layers ran for all tokens.
        batch_rows: Rows of the batch that decoded: with beams, all live beams.
        drafts: What verified decoding computed; None where nothing was drafted.
        source: What the encoder read; None in a decoder-only model.
    """

    executed: Tensor
    live: Tensor
    prompt_length: int
    layers: LayerCounts
    compute_steps: int
    decode_passes: int
    probes: ProbeCost = field(default_factory=ProbeCost)
    prompt: Tensor | None = None
    batch_rows: int = 0
    drafts: DraftCounts | None = None
    source: SourceCounts | None = None

    @property
    def depth_sum(self) -> int | float:
        """Executed layers summed over all steps of the returned sequences. Attention and MLP are half a layer each."""
        return depth_sum(self.executed, dims=3)

    @property
    def compute_depth_sum(self) -> int | float:
        """Executed layers summed over all live beams of all steps."""
        return depth_sum(self.layers.tokens, dims=1)

    @property
    def filled(self) -> int:
        """Number of (token, layer) pairs whose keys and values were computed late, over all beams."""
        return int(self.layers.late_tokens.sum())

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return self.executed.shape[2]

    @property
    def depths(self) -> Tensor:
        """Executed layers, LongTensor [steps, rows]; 0 where the sequence did not take the step.

        Where attention and MLP ran apart, a float tensor, in which each counts as half a layer.
        """
        return self.executed.sum(dim=2) if self.executed.dim() == 3 else self.executed.sum(dim=(2, 3)) / 2

    @property
    def average_layers(self) -> float:
        """Average depth over all live steps of all returned sequences ("Avg. Layer" in the papers); NaN without any."""
        steps = int(self.live.sum())
        return self.depth_sum / steps if steps else float("nan")

    @property
    def row_average_layers(self) -> list[float]:
        """Average depth of each returned sequence over its live steps; NaN for a sequence without any."""
        return (self.depths.sum(dim=0) / self.live.sum(dim=0)).tolist()

    @property
    def compute_layers(self) -> float:
        """Average depth over all computed steps: with beams, all live beams, returned or not; NaN without any."""
        return self.compute_depth_sum / self.compute_steps if self.compute_steps else float("nan")

    def mask(self, prompt_length: int) -> Tensor:
        """Make the mask of the whole sequences that ``replay`` takes.

        Args:
            prompt_length: Length of the (padded) prompt, tokens.

        Returns:
            BoolTensor [rows, length, layers], or [rows, length, layers, 2] as ``executed``. ``length`` covers the
            prompt and the real new tokens of the longest sequence. The mask is true for the last token and where a
            sequence did not take the step; for the prompt too, unless the strategy has a prompt schedule.
        """
        steps, rows, *layers = self.executed.shape
        mask = torch.ones(rows, prompt_length + steps + 1, *layers, dtype=torch.bool)
        taken = self.executed.clone()  # (steps, rows, layers) or (steps, rows, layers, 2)
        taken[~self.live] = True
        mask[:, prompt_length : prompt_length + steps] = taken.transpose(0, 1)
        if self.prompt is not None:
            mask[:, :prompt_length] = self.prompt.reshape(*self.prompt.shape, *[1] * (mask.dim() - 3))
        return mask


def trace_along(
    log: list[Tensor],
    real_tokens: Tensor,
    num_layers: int,
    prompt_length: int,
    beam_rows: Tensor | None = None,
    batch_rows: int | None = None,
    live_rows: Sequence[int] | None = None,
    late: tuple[Tensor, Tensor] | None = None,
    probes: ProbeCost | None = None,
    prompt: Tensor | None = None,
    prompt_counts: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    cached_numbers: Sequence[int] | None = None,
    windows: Sequence[int | None] | None = None,
    source: SourceCounts | None = None,
) -> Trace:
    """Follow the returned sequences through the log of a decode.

    Args:
        log: Which layers ran in each decode step: BoolTensor [rows of the step, or 1 if equal for all; layers], or one
            dimension more for attention and MLP.
        real_tokens: Real new tokens of each returned sequence, LongTensor [rows].
        num_layers: L.
        prompt_length: Length of the (padded) prompt, tokens.
        beam_rows: With beams, the row of each step's batch from which a returned sequence came, LongTensor
            [rows, steps or more]. None without beams: the returned sequences are then those of the batch, and steps
            after their end do not count.
        batch_rows: With beams, sources × beams; None without.
        live_rows: With beams, the rows that ran in each decode step: beams × the sources that had not finished. None
            for all.
        late: ``late_tokens`` and ``late_passes`` of :class:`LayerCounts`; None for zeros.
        probes: The cost of deciding about exits; None for no cost.
        prompt: The layers that ran in the prefill, BoolTensor [sources, prompt, layers], or with an entry for each row
            of the batch; None for all.
        prompt_counts: ``prompt_tokens``, ``prompt_keys``, ``prompt_late_tokens`` and ``prompt_late_passes`` of
            :class:`LayerCounts`; None for zeros.
        cached_numbers: Of :class:`LayerCounts`; None for zeros.
        windows: The sliding window of each layer, tokens, or None where there is none; 0 for a layer without keys and
            values. None if no layer has one.
        source: What the encoder read; None for a decoder-only model.

    Returns:
        The trace, on the CPU.
    """
    rows, log = len(real_tokens), alike(log, dims=2)
    parts = log[0].shape[2:] if log else ()  # (2,) for attention and MLP apart
    steps = max(int(real_tokens.max()) - 1, 0)
    live = torch.arange(steps)[:, None] < real_tokens[None] - 1  # (steps, rows)
    executed = torch.zeros(steps, rows, num_layers, *parts, dtype=torch.bool)
    for step, ran in enumerate(log[:steps]):
        along = ran if beam_rows is None or len(ran) == 1 else ran[beam_rows[:, step]]
        executed[step] = along
    executed[~live] = False
    compute_steps, computed = int(live.sum()), list(executed)
    if batch_rows is not None:
        counts = live_rows or [batch_rows] * len(log)
        compute_steps = sum(counts)
        computed = [ran.expand(count, *ran.shape[1:]) for ran, count in zip(log, counts, strict=True)]
    none = torch.zeros(num_layers, *parts, dtype=torch.long)
    ran_for = torch.stack([none, *(ran.sum(dim=0) for ran in computed)])[1:]  # (steps, layers), rows or beams
    attention_for = ran_for[..., 0] if parts else ran_for
    whole = prompt_length + len(ran_for)
    most = torch.tensor([whole if window is None else window for window in windows or [None] * num_layers])
    keys = (prompt_length + 1 + torch.arange(len(ran_for)))[:, None].minimum(most)  # (steps, layers), attended to
    no_tokens = torch.zeros(num_layers, dtype=torch.long)
    late_tokens, late_passes = late or (no_tokens, no_tokens)
    prompt_tokens, prompt_keys, prompt_late_tokens, prompt_late_passes = prompt_counts or (no_tokens,) * 4
    return Trace(
        executed=executed,
        live=live,
        prompt_length=prompt_length,
        layers=LayerCounts(
            tokens=ran_for.sum(dim=0),
            attended=(attention_for * keys).sum(dim=0),
            passes=sum((_calls(ran) for ran in computed), start=none),
            late_tokens=late_tokens - prompt_late_tokens,
            late_passes=late_passes - prompt_late_passes,
            cached_numbers=no_tokens if cached_numbers is None else torch.tensor(cached_numbers),
            prompt_tokens=prompt_tokens,
            prompt_keys=prompt_keys,
            prompt_late_tokens=prompt_late_tokens,
            prompt_late_passes=prompt_late_passes,
        ),
        compute_steps=compute_steps,
        decode_passes=len(log),
        probes=probes or ProbeCost(),
        prompt=None if prompt is None else prompt[torch.arange(rows) * len(prompt) // rows],
        batch_rows=batch_rows or rows,
        source=source,
    )


def _calls(ran: Tensor) -> Tensor:
    """Count the calls that ran each layer in a step, or each of its parts, from BoolTensor [rows, layers(, 2)]."""
    if ran.dim() == 2:
        return ran.any(dim=0).long()
    both, either = ran.all(dim=2), ran.any(dim=2)
    alone = ran & (either & ~both)[..., None]  # (rows, layers, 2)
    return both.any(dim=0).long()[:, None] + alone.any(dim=0).long()
