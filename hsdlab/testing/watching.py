"""Decode with a strategy, and record through hooks what the model does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hsdlab.decoding import DecodeOutput
from hsdlab.decoding.families import attention, decoder_parts, feed_forward
from hsdlab.strategies import SkipStrategy
from hsdlab.testing.expect import LawViolationError
from hsdlab.testing.tiny import prompts_for

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 4},
    "sampling": {"do_sample": True, "temperature": 2.0},
}
"""transformers' options of the three ways to decode."""

NEW_TOKENS = 8
END_TOKENS = [3, 4, 5, 6]  # several, so that sequences of random text end at different times


@dataclass(frozen=True)
class Passes:
    """What hooks recorded of each forward pass, the prefill first.

    ``with watched(model) as (logits, tokens_run)`` takes the first two.

    Attributes:
        logits: For each forward pass, the model's logits at the last position, [rows, vocabulary].
        tokens_run: For each forward pass and layer, the number of tokens for which the feed-forward part was called.
        tokens_attended: The same, of tokens for which attention ran to its end.
        tokens_late: The same, of tokens for which attention was called but stopped before its end: the late KV
            computation, which needs the projections only (:mod:`hsdlab.decoding.cache`).
    """

    logits: list[Tensor] = field(default_factory=list)
    tokens_run: list[list[int]] = field(default_factory=list)
    tokens_attended: list[list[int]] = field(default_factory=list)
    tokens_late: list[list[int]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.logits, self.tokens_run))


@dataclass(frozen=True)
class Decode:
    """One decode, as reported and as observed.

    Attributes:
        output: The result of ``hsdlab``, with the trace.
        passes: The independent record of the hooks.
    """

    output: DecodeOutput
    passes: Passes

    @property
    def logits(self) -> list[Tensor]:
        """For each forward pass, the model's logits at the last position, [rows, vocabulary]; the prefill first."""
        return self.passes.logits


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[Passes]:
    """Record the logits of each forward pass, and for how many tokens each layer's two parts ran.

    Args:
        model: A transformers language model; the hooks are removed on leaving.

    Yields:
        The record, which grows with each forward pass inside the block.
    """
    parts = decoder_parts(model)
    passes = Passes()

    def begin(*_: Any) -> None:
        for counts in (passes.tokens_run, passes.tokens_attended, passes.tokens_late):
            counts.append([0] * parts.num_layers)

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if output.dim() == 3:  # (rows, length, vocabulary); an intermediate prediction is (rows, vocabulary)
            passes.logits.append(parts.scaled(output[:, -1]).detach().clone())

    handles = [parts.body.register_forward_pre_hook(begin), parts.head.register_forward_hook(keep)]
    for index, layer in enumerate(parts.layers):
        called, ended = _counters(passes, index)
        handles += [
            feed_forward(layer).register_forward_pre_hook(_adds(passes.tokens_run, index), with_kwargs=True),
            attention(layer).register_forward_pre_hook(called, with_kwargs=True),
            attention(layer).register_forward_hook(ended, with_kwargs=True),
        ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _counters(passes: Passes, layer: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Make the hooks before and after attention. A late KV computation stops early and calls the first one only."""
    starts, ends = _adds(passes.tokens_late, layer), _adds(passes.tokens_attended, layer)

    def ended(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        ends(module, args, kwargs)
        starts(module, args, kwargs, sign=-1)

    return starts, ended


def _adds(counts: list[list[int]], layer: int) -> Callable[..., None]:
    """Make a hook that adds the number of tokens in a module's input to the count of the current forward pass."""

    def add(module: nn.Module, args: tuple, kwargs: dict, sign: int = 1) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]  # (rows, length, d), or (tokens, d) in OPT
        counts[-1][layer] += sign * (hidden.numel() // hidden.shape[-1])

    return add


def decode(
    model: PreTrainedModel,
    strategy: SkipStrategy,
    mode: str = "greedy",
    rows: Tensor | None = None,
    **options: Any,
) -> Decode:
    """Decode three padded random prompts, or some of them, and record what the model does.

    Args:
        model: A small model whose vocabulary has ``VOCABULARY`` tokens or more.
        strategy: Applied through ``strategy.applied_to``.
        mode: A key of ``MODES``, one way to decode. Sampling begins with the same seed each time.
        rows: Indices of the prompts to decode, LongTensor [n]; None decodes all three. Columns that are padding in all
            of them are left out.
        **options: Further options of transformers' ``generate``, which win over ``NEW_TOKENS`` and ``END_TOKENS``;
            ``input_ids`` and ``attention_mask`` give other prompts.

    Returns:
        The result, and the record of the hooks.

    Raises:
        LawViolationError: ``applied_to`` does not apply the strategy to ``model.generate``.
    """
    ids, mask = prompts_for(model)
    if rows is not None:
        ids, mask = ids[rows], mask[rows]
        ids, mask = ids[:, mask.any(0)], mask[:, mask.any(0)]  # a single sequence needs no padding
    call = {
        "input_ids": ids,
        "attention_mask": mask,
        "max_new_tokens": NEW_TOKENS,
        "eos_token_id": END_TOKENS,
        "return_dict_in_generate": True,
        "output_scores": True,
        **MODES[mode],
        **options,
    }
    with watched(model) as passes, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        with strategy.applied_to(model) as run:
            model.generate(**call)
    if run.output is None:
        raise LawViolationError(f"{strategy!r}: applied_to let model.generate run without it.")
    return Decode(run.output, passes)
