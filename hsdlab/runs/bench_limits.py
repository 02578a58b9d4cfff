"""What the strategies of a bench are measured against: the same layers physically removed; transformers' early exit."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from hsdlab.decoding import Timing
from hsdlab.decoding.cost import ideal_speedup
from hsdlab.decoding.families import DecoderParts, decoder_config, decoder_parts
from hsdlab.decoding.timing import now_s
from hsdlab.reasons import reason
from hsdlab.runs.bench_cells import Batch
from hsdlab.runs.bench_sides import clock_at_first_step


class LayersRemovedSide:
    """transformers' own ``generate``, whose model holds in each decode step only the layers of a schedule.

    This is the limit of skipping: the other layers are not in the model's list, and nothing decides, checks or makes up
    for them. The prefill runs all layers. A layer that comes back after steps without it repeats its last keys and
    values in place of the missing ones, so that its attention costs what it would cost. So the tokens mean nothing, and
    only the time does.

    Args:
        model: A decoder-only transformers model in eval mode.
        batches: The prompts, on its device.
        options: Of ``generate``, with max_new_tokens and without an end of sequence.
        schedule: The layers of each decode step.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        options: Mapping[str, Any],
        schedule: Sequence[Sequence[int]],
    ) -> None:
        self._parts = decoder_parts(model)
        self._batches = batches
        self._options = options
        self._schedule = [sorted(layers) for layers in schedule]
        lists = {tuple(layers): nn.ModuleList([self._parts.layers[i] for i in layers]) for layers in self._schedule}
        self._lists = [lists[tuple(layers)] for layers in self._schedule]
        self._later = [set().union(*self._schedule[step:]) for step in range(len(self._schedule) + 1)]

    def __call__(self, case: int) -> Timing:
        """Decode a batch; return how long it took."""
        model, batch = self._parts.model, self._batches[case]
        cache = _CacheOfSomeLayers(model, self._later)
        first_layer = self._parts.layers[self._schedule[0][0]]
        with (
            _changing_layers(self._parts, self._lists, cache),
            clock_at_first_step(first_layer, model.device) as first_step_s,
        ):
            start = now_s(model.device)
            sequences = model.generate(
                batch.input_ids, attention_mask=batch.attention_mask, past_key_values=cache, **self._options
            )
            end = now_s(model.device)
        (first_step,) = first_step_s
        return Timing(first_step - start, end - first_step, sequences.shape[1] - batch.prompt_tokens - 1)

    def costs(self) -> dict[str, float | None]:
        """Compute what the schedule alone determines.

        Returns:
            "average_layers" per decode step, and "ideal_speed_up".
        """
        return {
            "average_layers": sum(map(len, self._schedule)) / len(self._schedule),
            "ideal_speed_up": ideal_speedup(self._parts.model, self._schedule),
        }


@contextmanager
def _changing_layers(
    parts: DecoderParts, lists: Sequence[nn.ModuleList], cache: "_CacheOfSomeLayers"
) -> Iterator[None]:
    """Have each pass after the first run the layers of its own list; the model is restored on leaving."""
    body = parts.body
    name, whole = next(
        (name, each)
        for name, each in body.named_children()
        if isinstance(each, nn.ModuleList) and tuple(each) == parts.layers
    )

    def begin_pass(module: nn.Module, args: tuple[Any, ...]) -> None:
        cache.begin_pass()
        if cache.step is not None:
            setattr(body, name, lists[cache.step])

    hook = body.register_forward_pre_hook(begin_pass)
    try:
        yield
    finally:
        hook.remove()
        setattr(body, name, whole)


class _CacheOfSomeLayers(DynamicCache):
    """transformers' cache for layers that come and go.

    Args:
        model: Its config says which layers there are.
        later: Of each decode step, the layers that it or a later one runs; one entry more, empty, at the end. A model
            without the others would not hold their keys and values, so that beam search does not move them.
    """

    def __init__(self, model: PreTrainedModel, later: Sequence[set[int]]) -> None:
        super().__init__(config=decoder_config(model.config))
        self._later = later
        self._passes = 0
        self._latest = 0  # the layer that ran last, which lacks nothing
        self._seen = 0

    @property
    def step(self) -> int | None:
        """The decode step that is running; None in the prefill."""
        return self._passes - 2 if self._passes > 1 else None

    def begin_pass(self) -> None:
        """Note the length before a forward pass."""
        self._seen = self.get_seq_length()
        self._passes += 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens so far, also where the layer has no keys and values of some of them."""
        return self.layers[self._latest].get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the number of keys that a layer attends to, and the first of them: of all tokens, or of its window."""
        window = getattr(self.layers[layer_idx], "sliding_window", None)
        first = 0 if window is None else max(0, self._seen - window + 1)
        return self._seen + query_length - first, first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values, [rows, heads, length, head dim], after stand-ins for those that are missing."""
        layer, (seen, _) = self.layers[layer_idx], self.get_mask_sizes(key_states.shape[2], layer_idx)
        missing = self._seen - layer.get_seq_length()
        if missing > 0:
            stand_ins = [held[:, :, -1:].expand(-1, -1, missing, -1) for held in (layer.keys, layer.values)]
            key_states = torch.cat([stand_ins[0], key_states], dim=2)
            value_states = torch.cat([stand_ins[1], value_states], dim=2)
        self._latest = layer_idx
        keys, values = layer.update(key_states, value_states)
        return keys[:, :, -seen:], values[:, :, -seen:]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Move the sequences to those from which beam search continues, in the layers that are still to run."""
        next_step = self._passes - 1
        for index in self._later[next_step]:
            self.layers[index].reorder_cache(beam_idx)


class EarlyExitSide:
    """transformers' ``assistant_early_exit``: the first layers draft tokens, and the whole model verifies them.

    The prefill is the first draft and its verification, for transformers makes no pass over the prompt alone. The
    decode is what follows, and its steps are counted in tokens.

    Args:
        model: A decoder-only transformers model in eval mode.
        batches: The prompts, on its device, of one sequence each.
        options: Of ``generate``, with max_new_tokens, greedy and without an end of sequence.
        exit_layer: Number of layers that draft.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], options: Mapping[str, Any], exit_layer: int) -> None:
        self._parts = decoder_parts(model)
        self._batches = batches
        self._options = options
        self._exit_layer = exit_layer

    def __call__(self, case: int) -> Timing:
        """Decode a batch; return how long it took."""
        model, batch = self._parts.model, self._batches[case]
        first = _FirstVerification(model.device)
        with _config_kept(model):
            start = now_s(model.device)
            sequences = model.generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                assistant_early_exit=self._exit_layer,
                stopping_criteria=StoppingCriteriaList([first]),
                **self._options,
            )
            end = now_s(model.device)
        return Timing(first.at_s - start, end - first.at_s, sequences.shape[1] - first.tokens)

    def why_not(self) -> str | None:
        """Find out whether it can be measured here, by a decode of the first batch.

        Returns:
            The reason why not; None if it can.
        """
        if self._parts.model.config.is_encoder_decoder:
            return "it is measured for decoder-only models"
        if self._batches[0].input_ids.shape[0] > 1:
            return "transformers drafts for one sequence at a time"
        if self._options["num_beams"] > 1:
            return "transformers drafts for greedy decoding only"
        calls = {0: 0, self._exit_layer: 0}

        def counting(index: int) -> Any:
            def count(module: nn.Module, args: tuple[Any, ...]) -> None:
                calls[index] += 1

            return count

        hooks = [self._parts.layers[index].register_forward_pre_hook(counting(index)) for index in calls]
        try:
            timing = self(0)
        except Exception as error:  # of transformers or the model, which says in many ways that it cannot
            return f"transformers cannot draft with this model ({reason(error)})"
        finally:
            for hook in hooks:
                hook.remove()
        if calls[0] == calls[self._exit_layer]:
            return f"{type(self._parts.model).__name__} runs all its layers in a draft too"
        if timing.decode_passes == 0:
            return "the first verification made all tokens: give more new_tokens"
        return None

    def costs(self) -> dict[str, float | None]:
        """Compute nothing, since no trace of the layers is kept.

        Returns:
            No figures.
        """
        return {}


class _FirstVerification(StoppingCriteria):
    """Stops nothing; reads the clock, and counts the tokens, when the first draft has been verified."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.at_s = 0.0
        self.tokens = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if not self.tokens:
            self.at_s, self.tokens = now_s(self._device), input_ids.shape[1]
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextmanager
def _config_kept(model: PreTrainedModel) -> Iterator[None]:
    """Restore what assisted decoding changes in a model's configs, also after an exception."""
    config = decoder_config(model.config)
    num_layers, generation_config = config.num_hidden_layers, copy.deepcopy(model.generation_config)
    try:
        yield
    finally:
        config.num_hidden_layers = num_layers
        model.generation_config = generation_config
