"""Cost: the one ledger of what decoding cost, from the engine to the tables.

Skipped layers are not a speed-up. Beside the depth, a cost therefore counts passes, late key and value computations,
intermediate predictions, floating-point operations, bytes and seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from hsdlab.errors import UserError

MAXIMA = ("wall_s", "peak_cache_bytes")
"""The fields of which a sum of costs takes the maximum. All others add up; only `num_layers` has to be equal."""


@dataclass(frozen=True)
class Cost:
    """What a part of a decode cost: a batch, all batches of a process, a whole run. Costs add up by ``+``.

    A decode step is a forward pass whose input is a new token. The prefill (prompt pass) runs over the prompt and is
    counted separately. "Returned" counts the decode steps of the returned sequences; "computed" counts
    those of all live beams.

    Attributes:
        num_layers: L, the decoder layers of the model; 0 in an empty cost.
        prompt_passes: Prefills, each of a whole batch.
        decode_passes: Forward passes of the decode; one decode step of a whole batch is one pass.
        new_tokens: New tokens of the returned sequences, including their end-of-sequence tokens.
        decode_steps: Decode steps of the returned sequences.
        executed_layers: Executed layers, summed over those steps. Attention and MLP count as half a layer each where
            they ran apart.
        computed_steps: Decode steps of all live beams.
        computed_layers: Executed layers, summed over those steps.
        late_key_values: (token, layer) pairs whose keys and values were computed late.
        intermediate_predictions: Hidden states to which a check applied the head, whole or in part.
        intermediate_weights: Weights of the head or of an exit classifier that such a check multiplied with a hidden
            state, summed over the states.
        flops: Floating-point operations of the decode passes (:func:`hsdlab.decoding.cost.decode_flops`).
        bytes_read: Bytes of weights, keys and values that the decode passes read
            (:func:`hsdlab.decoding.cost.decode_bytes`).
        prompt_flops: Floating-point operations of the prefills (:func:`hsdlab.decoding.cost.prompt_flops`); 0 in files
            of earlier versions, which did not count them.
        prompt_s: Seconds of prefills, summed over the processes. A prefill that strategies share counts in full for
            each of them, with the seconds that its layers took once.
        decode_s: Seconds of decode steps, summed over the processes.
        warmup_s: Seconds of compiling and capturing decode steps (``compile=True``), likewise; in neither of the two.
        wall_s: Seconds for which a process had decoded at the end of this part; in a sum, the longest of them.
        peak_cache_bytes: Bytes of the largest KV cache.
        shared_prompt_passes: Prefills whose layers ran in the decode of another strategy over the same batch.
        encoder_flops: Floating-point operations of the encoder of an encoder-decoder model
            (:func:`hsdlab.decoding.cost.encoder_flops`), which no other figure counts.
        encoder_s: Seconds of the encoder, which ``prompt_s`` has among its own.
        verifications: Verifications of drafts (``Verified``), each of one sequence.
        draft_tokens: Tokens that were drafted.
        accepted_drafts: Those of them that are in the returned text.

    Example:
        >>> a = Cost(num_layers=30, decode_steps=4, executed_layers=60, decode_s=0.2, wall_s=0.3)
        >>> b = Cost(num_layers=30, decode_steps=6, executed_layers=40, decode_s=0.1, wall_s=0.4)
        >>> (a + b).figures()["average_layers"], (a + b).wall_s
        (10.0, 0.4)
    """

    num_layers: int = 0
    prompt_passes: int = 0
    decode_passes: int = 0
    new_tokens: int = 0
    decode_steps: int = 0
    executed_layers: int | float = 0
    computed_steps: int = 0
    computed_layers: int | float = 0
    late_key_values: int = 0
    intermediate_predictions: int = 0
    intermediate_weights: int = 0
    flops: float = 0.0
    bytes_read: float = 0.0
    prompt_flops: float = 0.0
    prompt_s: float = 0.0
    decode_s: float = 0.0
    warmup_s: float = 0.0
    wall_s: float = 0.0
    peak_cache_bytes: int = 0
    shared_prompt_passes: int = 0
    encoder_flops: float = 0.0
    encoder_s: float = 0.0
    verifications: int = 0
    draft_tokens: int = 0
    accepted_drafts: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Add another part.

        Args:
            other: A cost of the same model, or an empty one.

        Returns:
            The cost of both parts.

        Raises:
            UserError: The two are of models with different numbers of layers.
        """
        if not isinstance(other, Cost):
            return NotImplemented
        if self.num_layers and other.num_layers and self.num_layers != other.num_layers:
            raise UserError(
                f"Got costs of models with {self.num_layers} and with {other.num_layers} layers; expected one model. "
                "Keep a sum of costs for each model."
            )
        total = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(Cost)}
        total |= {name: max(getattr(self, name), getattr(other, name)) for name in ("num_layers", *MAXIMA)}
        return Cost(**total)

    def __radd__(self, other: int) -> Cost:
        """Let ``sum(costs)`` begin with 0."""
        return self if other == 0 else NotImplemented

    def figures(self) -> dict[str, float]:
        """Compute what tables, TensorBoard and JSON show: means over all decode steps, never means of batch means.

        Seconds of several processes are summed before dividing, so that times and throughput are those of one process,
        averaged. Together the processes reach about `tokens_per_second` times their number.

        Returns:
            The figures by name. Each is NaN where there was nothing to measure.

            - ``average_layers``: executed layers per decode step of the returned sequences (the papers' "Avg. Layer").
            - ``share_skipped``: 1 - average_layers / L.
            - ``compute_layers``: executed layers per decode step of all live beams.
            - ``decode_step_ms``: milliseconds per decode pass of a whole batch.
            - ``tokens_per_second``: decode steps of the returned sequences per second of decoding, per process. The
              first new token comes from the prefill and is not counted.
            - ``prompt_ms``: milliseconds per prefill of a whole batch.
            - ``flops_per_token``: FLOPs of the decode, all beams, per decode step of the returned sequences.
            - ``bytes_per_token``: bytes read by the decode, likewise.
            - ``late_key_values_per_token``: late key and value computations, likewise.
            - ``intermediate_predictions_per_token``: intermediate predictions, likewise.
            - ``cache_peak_mib``: the largest KV cache, in MiB.

            And where there was an encoder:

            - ``encoder_ms``: the part of ``prompt_ms`` in which it ran.

            And where drafts were verified:

            - ``acceptance_rate``: the share of the drafted tokens that are in the text.
            - ``tokens_per_verification``: decode steps of the returned sequences per verification.
        """
        drafts = {
            "acceptance_rate": _ratio(self.accepted_drafts, self.draft_tokens),
            "tokens_per_verification": _ratio(self.decode_steps, self.verifications),
        }
        return {
            "average_layers": _ratio(self.executed_layers, self.decode_steps),
            "share_skipped": 1 - _ratio(_ratio(self.executed_layers, self.decode_steps), self.num_layers),
            "compute_layers": _ratio(self.computed_layers, self.computed_steps),
            "decode_step_ms": _ratio(1000 * self.decode_s, self.decode_passes),
            "tokens_per_second": _ratio(self.decode_steps, self.decode_s),
            "prompt_ms": _ratio(1000 * self.prompt_s, self.prompt_passes),
            "flops_per_token": _ratio(self.flops, self.decode_steps),
            "bytes_per_token": _ratio(self.bytes_read, self.decode_steps),
            "late_key_values_per_token": _ratio(self.late_key_values, self.decode_steps),
            "intermediate_predictions_per_token": _ratio(self.intermediate_predictions, self.decode_steps),
            "cache_peak_mib": self.peak_cache_bytes / 2**20 if self.num_layers else math.nan,
            **({"encoder_ms": _ratio(1000 * self.encoder_s, self.prompt_passes)} if self.encoder_flops else {}),
            **(drafts if self.verifications else {}),
        }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
