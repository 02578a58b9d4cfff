"""What a bench times: plain ``model.generate``, and ``hsdlab.generate`` under a strategy.

Every side makes exactly ``new_tokens`` tokens: ``eos_token_id=None`` switches the end of a sequence off and leaves no
logits processor and the length as the only stopping criterion, whereas ``min_new_tokens`` would add two processors over
the vocabulary to each step.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.costs import Cost
from hsdlab.decoding import DecodeOutput, Timing, generate
from hsdlab.decoding.cost import decode_cost, ideal_speedup
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.timing import now_s
from hsdlab.strategies.base import SkipStrategy


class PlainSide:
    """transformers' own ``generate``, timed prompt by prompt.

    Args:
        model: A decoder-only transformers model in eval mode.
        prompts: LongTensors [1, length] on its device.
        options: Of ``generate``, with max_new_tokens and without an end of sequence.

    Attributes:
        sequences: The last output for each prompt by its index, [1, length + new tokens].
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Tensor], options: Mapping[str, Any]) -> None:
        self._parts = decoder_parts(model)
        self._prompts = prompts
        self._options = options
        self.sequences: dict[int, Tensor] = {}

    def __call__(self, case: int) -> Timing:
        """Decode a prompt; return how long it took."""
        model, prompt = self._parts.model, self._prompts[case]
        mask = torch.ones_like(prompt)
        passes = itertools.count()
        readings_s: list[float] = []

        def read_clock(module: nn.Module, args: tuple[Any, ...]) -> None:
            if next(passes) == 1:  # the pass after the prompt's
                readings_s.append(now_s(model.device))
                hook.remove()  # the steps that follow run without it

        hook = self._parts.layers[0].register_forward_pre_hook(read_clock)
        try:
            readings_s.append(now_s(model.device))
            sequences = model.generate(prompt, attention_mask=mask, **self._options)
            readings_s.append(now_s(model.device))
        finally:
            hook.remove()
        self.sequences[case] = sequences
        start, first_step, end = readings_s
        return Timing(first_step - start, end - first_step, sequences.shape[1] - prompt.shape[1] - 1)


class StrategySide:
    """``hsdlab.generate`` under one strategy, timed prompt by prompt.

    Args:
        model: A decoder-only transformers model in eval mode.
        prompts: LongTensors [1, length] on its device.
        options: Of ``generate``, with max_new_tokens and without an end of sequence.
        strategy: The strategy.

    Attributes:
        outputs: The last output for each prompt by its index.
    """

    def __init__(
        self, model: nn.Module, prompts: Sequence[Tensor], options: Mapping[str, Any], strategy: SkipStrategy
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._options = options
        self.strategy = strategy
        self.outputs: dict[int, DecodeOutput] = {}

    def __call__(self, case: int) -> Timing:
        """Decode a prompt; return how long it took."""
        prompt = self._prompts[case]
        self.outputs[case] = generate(
            self._model,
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            strategy=self.strategy,
            **self._options,
        )
        return self.outputs[case].timing

    def costs(self) -> dict[str, float | None]:
        """Add up the cost of `outputs`.

        Returns:
            - ``average_layers``: executed layers per decode step.
            - ``ideal_speed_up``: of the layer schedule; None where the strategy decides while it decodes.
            - ``flops_per_token``: of decode steps.
            - ``cache_mib``: size of the KV cache at its peak, in MiB.
        """
        figures = sum((decode_cost(self._model, output) for output in self.outputs.values()), Cost()).figures()
        num_layers = next(iter(self.outputs.values())).trace.num_layers
        schedule = self.strategy.scheduled_layers(num_layers, self._options["max_new_tokens"])
        if hasattr(self.strategy, "should_exit"):  # may leave the schedule early
            schedule = None
        return {
            "average_layers": figures["average_layers"],
            "ideal_speed_up": None if schedule is None else ideal_speedup(self._model, schedule),
            "flops_per_token": figures["flops_per_token"],
            "cache_mib": figures["cache_peak_mib"],
        }
