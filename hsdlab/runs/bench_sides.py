"""What a bench times: plain ``model.generate``, and ``hsdlab.generate`` under a strategy.

Every side makes exactly ``new_tokens`` tokens: ``eos_token_id=None`` switches the end of a sequence off and leaves no
logits processor and the length as the only stopping criterion, whereas ``min_new_tokens`` would add two processors over
the vocabulary to each step.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from hsdlab.costs import Cost
from hsdlab.decoding import DecodeOutput, Timing, generate
from hsdlab.decoding.compiled import Compilation
from hsdlab.decoding.cost import decode_cost, ideal_speedup
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.sub_layers import StepLayers
from hsdlab.decoding.timing import now_s
from hsdlab.runs.bench_cells import Batch
from hsdlab.strategies.base import SkipStrategy
from hsdlab.strategies.verified import Verified


@contextmanager
def clock_at_first_step(layer: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Read the clock when the first decode step enters a layer, which the prefill entered too.

    Args:
        layer: The first layer of that step. The steps that follow run without the hook.
        device: Where the model is.

    Yields:
        An empty list; the reading is added to it, seconds.
    """
    passes = itertools.count()
    readings_s: list[float] = []

    def read_clock(module: nn.Module, args: tuple[Any, ...]) -> None:
        if next(passes) == 1:  # the pass after the prompt's
            readings_s.append(now_s(device))
            hook.remove()

    hook = layer.register_forward_pre_hook(read_clock)
    try:
        yield readings_s
    finally:
        hook.remove()


class PlainSide:
    """transformers' own ``generate``, timed batch by batch.

    Args:
        model: A transformers model in eval mode.
        batches: The prompts, on its device.
        options: Of ``generate``, with max_new_tokens and without an end of sequence.

    Attributes:
        dtype: Of the model's weights.
        sequences: The last output for each batch by its index, [rows, length + new tokens].
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], options: Mapping[str, Any]) -> None:
        self._parts = decoder_parts(model)
        self._batches = batches
        self._options = options
        self.dtype = self._parts.model.dtype
        self.sequences: dict[int, Tensor] = {}

    def __call__(self, case: int) -> Timing:
        """Decode a batch; return how long it took."""
        model, batch = self._parts.model, self._batches[case]
        with clock_at_first_step(self._parts.layers[0], model.device) as first_step_s:
            start = now_s(model.device)
            sequences = model.generate(batch.input_ids, attention_mask=batch.attention_mask, **self._options)
            end = now_s(model.device)
        self.sequences[case] = sequences
        (first_step,) = first_step_s
        return Timing(first_step - start, end - first_step, sequences.shape[1] - batch.prompt_tokens - 1)


class PlainCompiledSide:
    """transformers' own ``generate`` on its static KV cache, which it compiles by itself on a GPU.

    Args:
        model: A transformers model in eval mode.
        batches: The prompts, on its device.
        options: Of ``generate``, with max_new_tokens and without an end of sequence.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], options: Mapping[str, Any]) -> None:
        self._model = decoder_parts(model).model
        self._batches = batches
        self._options = {**options, "cache_implementation": "static"}

    def __call__(self, case: int) -> Timing:
        """Decode a batch; return how long it took. The choice of the first new token counts as decoding."""
        model, batch = self._model, self._batches[case]
        clock = _FirstLogits(model.device)  # a hook on a layer would be compiled
        start = now_s(model.device)
        sequences = model.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            logits_processor=LogitsProcessorList([clock]),
            **self._options,
        )
        end = now_s(model.device)
        return Timing(
            prompt_s=clock.reading_s - start,
            decode_s=end - clock.reading_s,
            decode_passes=sequences.shape[1] - batch.prompt_tokens - 1,
        )

    def costs(self) -> dict[str, float | None]:
        """Give no figures, as this is a baseline.

        Returns:
            Nothing.
        """
        return {}


class _FirstLogits(LogitsProcessor):
    """Reads the clock at the end of the prefill, and changes nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reading_s = math.nan

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [rows, vocabulary] as they are."""
        if math.isnan(self.reading_s):
            self.reading_s = now_s(self._device)
        return scores


class StrategySide:
    """``hsdlab.generate`` under one strategy, timed batch by batch.

    Args:
        model: A transformers model in eval mode.
        batches: The prompts, on its device.
        options: Of ``generate``, with max_new_tokens and without an end of sequence.
        strategy: The strategy.
        compile: As in ``hsdlab.generate``.

    Attributes:
        outputs: The last output for each batch by its index.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        options: Mapping[str, Any],
        strategy: SkipStrategy,
        compile: bool | Compilation = False,
    ) -> None:
        self._model = model
        self._batches = batches
        self._options = options
        self.strategy = strategy
        self._compile = compile
        self.outputs: dict[int, DecodeOutput] = {}

    def __call__(self, case: int) -> Timing:
        """Decode a batch; return how long it took."""
        batch = self._batches[case]
        self.outputs[case] = generate(
            self._model,
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            strategy=self.strategy,
            compile=self._compile,
            **self._options,
        )
        return self.outputs[case].timing

    def schedule(self) -> Sequence[StepLayers] | None:
        """Look up the layers of each decode step.

        Returns:
            Layer indices of each step, or its sub-layers; None where the strategy decides while it decodes, or drafts.
        """
        if hasattr(self.strategy, "should_exit") or isinstance(self.strategy, Verified):  # more or other layers run
            return None
        num_layers = decoder_parts(self._model).num_layers
        return self.strategy.scheduled_layers(num_layers, self._options["max_new_tokens"])

    def costs(self) -> dict[str, float | None]:
        """Add up the cost of `outputs`.

        Returns:
            - ``average_layers``: executed layers per decode step.
            - ``ideal_speed_up``: of the layer schedule; None where the strategy decides while it decodes.
            - ``flops_per_token``: of decode steps.
            - ``cache_mib``: size of the KV cache at its peak, in MiB.
        """
        figures = sum((decode_cost(self._model, output) for output in self.outputs.values()), Cost()).figures()
        schedule = self.schedule()
        return {
            "average_layers": figures["average_layers"],
            "ideal_speed_up": None if schedule is None else ideal_speedup(self._model, schedule),
            "flops_per_token": figures["flops_per_token"],
            "cache_mib": figures["cache_peak_mib"],
        }
